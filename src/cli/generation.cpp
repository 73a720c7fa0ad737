#include "cli/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/progress.h"
#include "core/error.h"
#include "protocol/chat_format.h"

namespace hadal::cli {

namespace {

using Json = nlohmann::ordered_json;

// The model's own defaults, an empty object when it has none.
Json generation_config(const Path& directory) {
  const Path path = directory / "generation_config.json";
  if (!std::filesystem::exists(path)) return Json::object();
  Json j = Json::parse(read_text(path), nullptr, false);
  if (!j.is_object()) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: wanted a JSON object; repair or remove it", path.string()));
  }
  return j;
}

template <class T>
void assign(T& to, const std::optional<T>& flag, const Json& config, const char* key) {
  if (flag) {
    to = *flag;
  } else if (config.contains(key) && config[key].is_number()) {
    to = config[key].get<T>();
  }
}

// A control token's look: <｜name｜>. The place of one that the tokenizer does not have.
std::optional<std::string_view> unknown_control_token(const io::Tokenizer& tokenizer,
                                                      std::string_view text) {
  constexpr std::string_view kOpen = "<｜", kClose = "｜>", kBar = "｜";
  constexpr std::size_t kMaxName = 64;
  for (std::size_t at = text.find(kOpen); at != std::string_view::npos;
       at = text.find(kOpen, at + kOpen.size())) {
    const std::size_t begin = at + kOpen.size();
    const std::size_t end = text.find(kBar, begin);
    if (end == std::string_view::npos || end == begin || end - begin > kMaxName) continue;
    if (text.substr(end, kClose.size()) != kClose) continue;
    if (text.substr(begin, end - begin).find_first_of("<>\n") != std::string_view::npos) continue;
    const std::string_view token = text.substr(at, end + kClose.size() - at);
    if (!tokenizer.token_id(token)) return token;
  }
  return std::nullopt;
}

double rate(std::int64_t n, double seconds) {
  return seconds > 0 ? static_cast<double>(n) / seconds : 0.0;
}

}  // namespace

engine::SamplingParams GenerationOptions::sampling(const engine::LoadedModel& loaded) const {
  const Json config = generation_config(loaded.directory);
  engine::SamplingParams params;
  assign(params.temperature, temperature, config, "temperature");
  assign(params.top_p, top_p, config, "top_p");
  assign(params.top_k, top_k, config, "top_k");
  assign(params.min_p, min_p, config, "min_p");
  assign(params.repetition_penalty, repetition_penalty, config, "repetition_penalty");
  if (!temperature && config.contains("do_sample") && config["do_sample"] == false) {
    params.temperature = 0;
  }
  params.presence_penalty = presence_penalty.value_or(0.0f);
  params.frequency_penalty = frequency_penalty.value_or(0.0f);
  params.seed = seed;
  params.validate(loaded.config.vocab_size);
  return params;
}

engine::SessionOptions GenerationOptions::session(Numerics numerics) const {
  return {.numerics = numerics, .prefill_chunk = chunk, .draft_tokens = no_mtp ? 0 : draft_tokens};
}

void add_generation_options(CLI::App& app, GenerationOptions& options) {
  const char* group = "Drawing tokens";
  app.add_option("-n,--max-tokens", options.max_tokens,
                 "most tokens to draw; 0: until the context is full")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(group);
  app.add_option("-t,--temperature", options.temperature,
                 "0 takes the most probable token; without it and its like below, what the model's "
                 "generation_config.json says")
      ->group(group);
  app.add_option("--top-p", options.top_p, "smallest set of tokens with this probability")
      ->group(group);
  app.add_option("--top-k", options.top_k, "that many most probable tokens; 0: off")->group(group);
  app.add_option("--min-p", options.min_p, "at least this part of the largest probability")
      ->group(group);
  app.add_option("--repetition-penalty", options.repetition_penalty, "1: off")->group(group);
  app.add_option("--presence-penalty", options.presence_penalty, "0: off")->group(group);
  app.add_option("--frequency-penalty", options.frequency_penalty, "0: off")->group(group);
  app.add_option("--seed", options.seed, "the same seed draws the same text")
      ->capture_default_str()
      ->group(group);
  app.add_option("--stop", options.stop, "text that ends the answer, left out; may be repeated")
      ->allow_extra_args(false)
      ->group(group);
  app.add_flag("--ignore-eos", options.ignore_eos, "go on behind the end of the answer")
      ->group(group);
  app.add_option("--draft-tokens", options.draft_tokens,
                 "tokens that the MTP block guesses a step; they change the speed, never the text")
      ->check(CLI::Range(0, 16))
      ->capture_default_str()
      ->group(group);
  app.add_flag("--no-mtp", options.no_mtp, "decode one by one")->group(group);
  app.add_option("--chunk", options.chunk, "most prompt tokens in one forward pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
}

std::vector<TokenId> raw_prompt(const engine::LoadedModel& loaded, std::string_view text,
                                io::SpecialTokens special) {
  const io::Tokenizer& tokenizer = loaded.require_tokenizer();
  if (special == io::SpecialTokens::parse) {
    if (const auto token = unknown_control_token(tokenizer, text)) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("the prompt has {}, a control token that this model's tokenizer does "
                              "not know; --no-special takes it as ordinary text",
                              *token));
    }
  }
  std::vector<TokenId> ids = tokenizer.encode(text, special);
  const auto bos = static_cast<TokenId>(loaded.config.bos_token_id);
  if (ids.empty() || ids.front() != bos) ids.insert(ids.begin(), bos);
  return ids;
}

void expect_chat_tokens(const io::Tokenizer& tokenizer, protocol::ChatProfile profile) {
  const protocol::ChatFormat& f = chat_format(profile);
  for (const std::string_view token :
       {f.bos, f.eos, f.user, f.assistant, f.think_open, f.think_close, f.dsml_mark}) {
    if (tokenizer.token_id(token)) continue;
    throw Error(ErrorCode::unsupported,
                fmt::format("the tokenizer has no token {}, which the chat template writes; this "
                            "is no chat model, use generate --raw",
                            token));
  }
}

std::vector<TokenId> stop_tokens(const engine::LoadedModel& loaded,
                                 std::optional<protocol::ChatProfile> profile) {
  std::vector<TokenId> ids;
  ids.reserve(loaded.config.eos_token_id.size());
  for (const std::int64_t id : loaded.config.eos_token_id) {
    ids.push_back(static_cast<TokenId>(id));
  }
  if (profile) {
    for (const std::string& token : protocol::default_stop_tokens(*profile)) {
      const auto id = loaded.require_tokenizer().token_id(token);
      if (id && std::find(ids.begin(), ids.end(), *id) == ids.end()) ids.push_back(*id);
    }
  }
  return ids;
}

std::string stats_text(const engine::Session& session) {
  const engine::SessionStats& s = session.stats();
  std::string text = fmt::format(
      "prompt: {} tokens in {} ({:.1f}/s), {} reused\n"
      "answer: {} tokens in {} ({:.1f}/s), {} steps",
      s.prefilled_tokens, format_seconds(s.prefill_seconds),
      rate(s.prefilled_tokens, s.prefill_seconds), s.reused_tokens, s.decoded_tokens,
      format_seconds(s.decode_seconds), rate(s.decoded_tokens, s.decode_seconds), s.decode_steps);
  if (s.drafted_tokens > 0) {
    text += fmt::format(", {} of {} drafts right", s.accepted_drafts, s.drafted_tokens);
  }
  const auto kv = session.kv_bytes();
  text += fmt::format("\ncontext: {} of {} tokens, KV cache {}", session.tokens().size(),
                      session.context_limit(), format_bytes(static_cast<double>(kv.total())));
  return text;
}

}  // namespace hadal::cli
