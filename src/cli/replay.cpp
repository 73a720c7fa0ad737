#include "cli/replay.h"

#include <fmt/format.h>

#include <ctime>
#include <nlohmann/json.hpp>

#include "cli/subcommands.h"
#include "core/digest.h"
#include "core/error.h"
#include "io/tokenizer.h"
#include "journal/recovery.h"

namespace hadal::cli {

namespace {

using Json = nlohmann::ordered_json;
using journal::ChoiceState;
using journal::Recovery;
using journal::Stream;

struct Options {
  Path directory;
  std::string stream;
  ModelOptions model;
  bool json = false, verify = false, repair = false, resume = false;
};

std::string time_text(std::int64_t unix_seconds) {
  const auto time = static_cast<std::time_t>(unix_seconds);
  std::tm utc{};
  char text[32];
  if (::gmtime_r(&time, &utc) == nullptr ||
      std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0) {
    return std::to_string(unix_seconds);
  }
  return text;
}

// "open", or how its choices ended: "stop", "stop length".
std::string state_of(const Stream& stream) {
  std::string text;
  for (const ChoiceState& choice : stream.choices) {
    if (!text.empty()) text += ' ';
    text += choice.close ? journal::to_string(choice.close->reason) : "open";
  }
  if (!stream.fault.empty() && !stream.closed()) text += " (lost tokens)";
  if (stream.cancelled && !stream.closed()) text += " (cancelled)";
  return text;
}

Json summary(const Stream& stream) {
  Json choices = Json::array();
  for (const ChoiceState& choice : stream.choices) {
    Json c{{"tokens", choice.n_tokens},
           {"finish", choice.close ? Json(journal::to_string(choice.close->reason)) : Json()}};
    if (choice.close && !choice.close->detail.empty()) c["detail"] = choice.close->detail;
    choices.push_back(std::move(c));
  }
  return {{"stream", stream.open.name},     {"api", stream.open.api},
          {"created", stream.open.created}, {"resumable", stream.open.resumable},
          {"closed", stream.closed()},      {"tokens", stream.n_tokens},
          {"choices", std::move(choices)}};
}

std::string tail_text(const Recovery& recovery) {
  if (recovery.torn_bytes == 0) return {};
  return fmt::format(
      "The last write was not finished: {} bytes, which no client has seen, will be cut off at the "
      "next start ({}).\n",
      recovery.torn_bytes, recovery.torn_reason);
}

int list(const Options& options, const Recovery& recovery) {
  if (options.json) {
    Json streams = Json::array();
    for (const auto& [local, stream] : recovery.streams) streams.push_back(summary(stream));
    print(Json{{"segments", recovery.segments.size()},
               {"records", recovery.next_lsn - 1},
               {"torn_bytes", recovery.torn_bytes},
               {"streams", std::move(streams)}}
              .dump(2, ' ', false, Json::error_handler_t::replace) +
          "\n");
    return 0;
  }
  std::string out = fmt::format("{:<36} {:<18} {:<21} {:>7} {:>7}  {}\n", "stream", "api",
                                "created", "prompt", "tokens", "state");
  // Closed streams are listed without their prompts, which stay on disk.
  for (const auto& [local, stream] : recovery.streams) {
    const std::string n_prompt = stream.closed() ? "-" : std::to_string(stream.open.prompt.size());
    out += fmt::format("{:<36} {:<18} {:<21} {:>7} {:>7}  {}\n", stream.open.name, stream.open.api,
                       time_text(stream.open.created), n_prompt, stream.n_tokens, state_of(stream));
  }
  print(out + tail_text(recovery));
  return 0;
}

std::string decoded(const io::Tokenizer& tokenizer, std::span<const TokenId> tokens) {
  try {
    return tokenizer.decode(tokens);
  } catch (const Error& error) {
    return fmt::format("[not this model's tokens: {}]", error.what());
  }
}

int show_stream(const Options& options, const Recovery& recovery) {
  const Stream* known = nullptr;
  for (const auto& [local, stream] : recovery.streams) {
    if (stream.open.name == options.stream) known = &stream;
  }
  if (known == nullptr) {
    throw Error(
        ErrorCode::not_found,
        fmt::format("the journal in {} has no stream \"{}\"; hadal replay {} lists them",
                    options.directory.string(), options.stream, options.directory.string()));
  }
  const Stream stream = journal::read_stream(FileSystem::real(), options.directory, known->local(),
                                             known->begin, known->end);
  const auto tokenizer = io::Tokenizer::load(options.model.resolved_directory() / "tokenizer.json");
  const auto& open = stream.open;
  if (options.json) {
    Json json = summary(stream);
    json["seed"] = open.seed;
    json["response_id"] = open.response_id;
    json["principal"] = open.principal;
    json["request_sha256"] = to_hex(open.request_sha256);
    json["fingerprint"] = to_hex(open.fingerprint);
    json["fingerprint_text"] = open.fingerprint_text;
    json["request"] = open.request;
    json["prompt_token_ids"] = open.prompt;
    for (std::size_t c = 0; c < stream.choices.size(); ++c) {
      json["choices"][c]["token_ids"] = stream.choices[c].tokens;
      json["choices"][c]["text"] = decoded(tokenizer, stream.choices[c].tokens);
    }
    print(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    return 0;
  }
  std::string out;
  const auto line = [&](const char* name, const std::string& value) {
    out += fmt::format("{:<14} {}\n", name, value);
  };
  line("stream", open.name);
  line("api", open.api);
  line("created", time_text(open.created));
  line("seed", std::to_string(open.seed));
  line("resumable", open.resumable ? "yes" : "no");
  line("principal", open.principal.empty() ? "-" : open.principal);
  line("state", state_of(stream));
  line("fingerprint", to_hex(open.fingerprint).substr(0, 16));
  line("prompt", fmt::format("{} tokens", open.prompt.size()));
  line("request", open.request);
  for (std::size_t c = 0; c < stream.choices.size(); ++c) {
    const ChoiceState& choice = stream.choices[c];
    out += fmt::format("\nchoice {}: {} tokens, {}{}\n{}\n", c, choice.n_tokens,
                       choice.close ? journal::to_string(choice.close->reason) : "open",
                       choice.close && !choice.close->detail.empty()
                           ? fmt::format(" ({})", choice.close->detail)
                           : "",
                       decoded(tokenizer, choice.tokens));
  }
  print(out);
  return 0;
}

int run(const Options& options) {
  FileSystem& fs = FileSystem::real();
  if (!fs.exists(options.directory)) {
    throw Error(ErrorCode::not_found,
                fmt::format("there is no journal directory {}", options.directory.string()));
  }
  if (options.resume) return resume_journal(options.directory, options.model);
  if (options.repair) {
    const Recovery recovery = journal::recover(fs, options.directory, {.repair = true});
    std::string out;
    for (const std::string& note : recovery.notes) out += note + "\n";
    if (recovery.notes.empty()) out = "nothing is damaged\n";
    if (recovery.torn_bytes > 0) {
      out +=
          fmt::format("{} bytes of an unfinished last write were cut off\n", recovery.torn_bytes);
    }
    print(out);
    return 0;
  }
  const Recovery recovery = journal::recover(fs, options.directory, {.read_only = true});
  if (options.verify) {
    std::uint64_t n_tokens = 0;
    for (const auto& [local, stream] : recovery.streams) n_tokens += stream.n_tokens;
    for (const auto& [local, stream] : recovery.streams) {
      if (stream.fault.empty() || stream.closed()) continue;
      throw Error(ErrorCode::corrupt_data,
                  fmt::format("stream \"{}\": {}", stream.open.name, stream.fault));
    }
    print(fmt::format("{} segments, {} records, {} streams, {} tokens: all as they were written\n",
                      recovery.segments.size(), recovery.next_lsn - 1, recovery.streams.size(),
                      n_tokens) +
          tail_text(recovery));
    return 0;
  }
  return options.stream.empty() ? list(options, recovery) : show_stream(options, recovery);
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("JOURNAL", options->directory,
                 "the journal's directory: DATA/journal of hadal serve --data DATA")
      ->required();
  CLI::Option* stream =
      app.add_option("--stream", options->stream, "show one stream, with its text");
  app.add_flag("--json", options->json, "print one JSON object");
  CLI::Option* verify =
      app.add_flag("--verify", options->verify,
                   "check every checksum, number and digest; exit status 1 names the first damage")
          ->excludes(stream);
  CLI::Option* repair = app.add_flag("--repair", options->repair,
                                     "write what can be read anew, close streams that lost tokens "
                                     "with an error, and set the old segments aside")
                            ->excludes(stream)
                            ->excludes(verify);
  app.add_flag("--resume", options->resume,
               "finish what is unfinished, without a server, with the model that began it")
      ->excludes(stream)
      ->excludes(verify)
      ->excludes(repair);
  add_model_options(app, options->model);
  return [options] { return run(*options); };
}

}  // namespace

const Subcommand kReplay{
    "replay", "Look into a server's journal, check, repair or finish it",
    "  hadal replay data/journal                   # the streams in it\n"
    "  hadal replay data/journal --stream chat-42  # one of them, with its text\n"
    "  hadal replay data/journal --verify\n"
    "  hadal replay data/journal --resume --model DeepSeek-V4-Flash",
    add};

}  // namespace hadal::cli
