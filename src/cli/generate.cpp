#include "engine/generate.h"

#include <fmt/format.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cli/common.h"
#include "cli/generation.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/subcommands.h"
#include "core/error.h"
#include "protocol/chat_template.h"

namespace hadal::cli {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  ModelOptions model;
  GenerationOptions generation;
  std::string prompt, system;
  Path file;
  bool has_prompt = false, chat = false, raw = false, no_special = false, json = false;
};

std::string prompt_text(const Options& options) {
  if (options.has_prompt) return options.prompt;
  if (options.file == "-") {
    return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
  }
  return read_text(options.file);
}

std::vector<TokenId> prompt_ids(const Options& options, const engine::LoadedModel& loaded) {
  const std::string text = prompt_text(options);
  if (!options.chat) {
    return raw_prompt(loaded, text,
                      options.no_special ? io::SpecialTokens::ignore : io::SpecialTokens::parse);
  }
  protocol::Conversation conversation;
  if (!options.system.empty()) {
    conversation.messages.push_back(message_of(protocol::Role::system, options.system));
  }
  conversation.messages.push_back(message_of(protocol::Role::user, text));
  return loaded.require_tokenizer().encode(
      protocol::render(conversation, {.thinking_mode = protocol::ThinkingMode::chat}));
}

Json result_json(const engine::Session& session, const engine::GenerationResult& result,
                 const std::string& text, std::size_t n_prompt) {
  Json ids = Json::array(), logprobs = Json::array();
  for (const engine::SampledToken& token : result.tokens) {
    ids.push_back(token.token);
    logprobs.push_back(token.logprob);
  }
  const engine::SessionStats& s = session.stats();
  return {{"text", text},
          {"finish_reason", to_string(result.reason)},
          {"stop_token", result.stop_token < 0 ? Json() : Json(result.stop_token)},
          {"prompt_tokens", n_prompt},
          {"token_ids", std::move(ids)},
          {"logprobs", std::move(logprobs)},
          {"prefill_seconds", s.prefill_seconds},
          {"decode_seconds", s.decode_seconds},
          {"drafted_tokens", s.drafted_tokens},
          {"accepted_drafts", s.accepted_drafts}};
}

int run(const Options& options) {
  if (options.has_prompt == !options.file.empty()) {
    throw CLI::RequiredError("one of --prompt and --file");
  }
  const auto runtime = options.model.runtime();
  const auto loaded = options.model.load(runtime.get());
  const io::Tokenizer& tokenizer = loaded->require_tokenizer();
  const auto profile = protocol::ChatProfile::v4_preview;
  if (options.chat) expect_chat_tokens(tokenizer, profile);

  engine::GenerationRequest request{
      .prompt = prompt_ids(options, *loaded),
      .sampling = options.generation.sampling(*loaded),
      .max_tokens = options.generation.max_tokens,
      .cancel = &InterruptGuard::flag(),
  };
  if (!options.generation.ignore_eos) {
    request.stop_tokens =
        stop_tokens(*loaded, options.chat ? std::optional(profile) : std::nullopt);
  }
  TextStream stream(tokenizer, options.generation.stop);
  engine::Session session(*runtime, *loaded,
                          options.generation.session(options.model.resolved_numerics()));

  std::string text;
  const auto show = [&](const std::string& piece) {
    text += piece;
    if (options.json || piece.empty()) return;
    print(piece);
    flush_stdout();
  };
  const InterruptGuard guard;
  engine::GenerationResult result;
  {
    auto bar = std::make_unique<ProgressBar>("prompt", ProgressBar::Unit::tokens);
    result = engine::generate(
        session, request,
        [&](const engine::SampledToken& token) {
          show(stream.feed(token.token));
          return !stream.stopped();
        },
        [&](std::int64_t done, std::int64_t total) {
          bar->update(static_cast<std::size_t>(done), static_cast<std::size_t>(total));
          if (done == total) bar.reset();
          return true;
        });
  }
  show(stream.finish());
  if (options.json) {
    print(result_json(session, result, text, request.prompt.size())
              .dump(2, ' ', false, Json::error_handler_t::replace) +
          "\n");
  } else if (text.empty() || text.back() != '\n') {
    print("\n");
  }
  flush_stdout();
  if (options.generation.stats) {
    fmt::print(stderr, "{}\nend: {}\n", stats_text(session), to_string(result.reason));
  }
  return result.reason == engine::FinishReason::cancelled ? kInterruptedStatus : 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->generation.max_tokens = 256;
  CLI::Option* prompt =
      app.add_option("-p,--prompt", options->prompt, "the text to continue, or to answer");
  app.add_option("-f,--file", options->file, "read it from a file; - is stdin")->excludes(prompt);
  CLI::Option* raw =
      app.add_flag("--raw", options->raw,
                   "the prompt is text to continue, behind the beginning-of-sentence token; this "
                   "is the default");
  app.add_flag("--chat", options->chat, "the prompt is a user's message to answer")->excludes(raw);
  app.add_option("--system", options->system, "with --chat, a system prompt")->needs("--chat");
  app.add_flag("--no-special", options->no_special,
               "control tokens written in a raw prompt are ordinary text");
  app.add_flag("--json", options->json, "print one JSON object at the end, with ids and logprobs");
  app.add_flag("--stats", options->generation.stats, "print speeds to stderr at the end");
  add_model_options(app, options->model);
  add_generation_options(app, options->generation);
  return [options, prompt] {
    options->has_prompt = prompt->count() > 0;
    return run(*options);
  };
}

}  // namespace

const Subcommand kGenerate{
    "generate", "Continue a text, or answer one message",
    "  hadal generate -p \"In the beginning\" -n 50\n"
    "  hadal generate --chat -p \"What is the capital of France?\" -t 0 --stats\n"
    "  hadal generate --model DeepSeek-V4-Flash --file prompt.txt -t 0.6 --seed 7 --stop '\\n\\n'\n"
    "\n"
    "Ctrl-C ends the answer; the exit status is then 130.",
    add};

}  // namespace hadal::cli
