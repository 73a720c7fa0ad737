#include "server/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "protocol/answer_constraint.h"
#include "protocol/chat_format.h"
#include "server/api_errors.h"

namespace hadal::server {

using namespace protocol;  // requests

RenderOptions render_options(const ApiRequest& request, const ServedModel& model,
                             const GenerationSettings& settings) {
  RenderOptions options;
  options.thinking_mode = request.thinking_mode;
  options.effort = request.effort;
  options.profile = model.profile;
  options.trust_special_tokens = settings.trust_special_tokens;
  options.continues_reasoning = request.continues_reasoning;
  return options;
}

std::string cache_domain(const GenerationSettings& settings, const ApiKey& key,
                         const std::string& user_id) {
  if (!settings.isolate_users || (key.name.empty() && user_id.empty())) return {};
  return fmt::format("{}/{}", key.name, user_id);
}

EncodedPrompt encode_chat(const ApiRequest& request, const ServedModel& model,
                          const GenerationSettings& settings, AnswerMemory* memory,
                          const std::string& domain) {
  if (!model.can_chat) {
    throw invalid_request(
        fmt::format("the model {} has no chat tokens; use /v1/completions", model.id), "model");
  }
  PromptEncodeOptions options;
  options.memory = memory;
  options.domain = domain;
  options.marks = request.cache_marks;
  try {
    return encode_prompt(request.conversation, render_options(request, model, settings),
                         model.tokenizer, options);
  } catch (const Error& error) {
    throw invalid_request(error.what(), "messages");
  }
}

namespace {

TokenId control_token(const ServedModel& model, std::string_view text) {
  const auto id = model.tokenizer.token_id(text);
  if (id) return *id;
  throw invalid_request(fmt::format("the model {} has no token {}, which filling in the middle "
                                    "needs",
                                    model.id, text),
                        "suffix");
}

std::vector<TokenId> encode_text(const ServedModel& model, const std::string& text,
                                 io::SpecialTokens special, const char* param) {
  try {
    return model.tokenizer.encode(text, special);
  } catch (const Error& error) {
    throw invalid_request(error.what(), param);
  }
}

// One prompt of /v1/completions as the caller wrote it.  Source: serving.md §4.4a, §4.8.
std::vector<TokenId> raw_prompt(const ApiRequest& request, const RawPrompt& prompt,
                                const ServedModel& model) {
  const auto special = request.parse_special ? io::SpecialTokens::parse : io::SpecialTokens::ignore;
  std::vector<TokenId> ids;
  if (const auto* given = std::get_if<std::vector<TokenId>>(&prompt)) {
    ids = *given;
    for (const TokenId id : ids) {
      if (id >= 0 && id < model.tokenizer.vocab_size()) continue;
      throw invalid_request(fmt::format("{} is no token of this model; its tokens are 0 to {}", id,
                                        model.tokenizer.vocab_size() - 1),
                            "prompt");
    }
    if (ids.empty()) throw invalid_request("a prompt without tokens cannot be continued", "prompt");
    if (!request.suffix) return ids;
  } else {
    ids = encode_text(model, std::get<std::string>(prompt), special, "prompt");
  }
  if (request.suffix) {
    std::vector<TokenId> out = {model.bos, control_token(model, "<｜fim▁begin｜>")};
    out.insert(out.end(), ids.begin(), ids.end());
    out.push_back(control_token(model, "<｜fim▁hole｜>"));
    const auto suffix = encode_text(model, *request.suffix, special, "suffix");
    out.insert(out.end(), suffix.begin(), suffix.end());
    out.push_back(control_token(model, "<｜fim▁end｜>"));
    return out;
  }
  if (ids.empty() || ids.front() != model.bos) ids.insert(ids.begin(), model.bos);
  return ids;
}

engine::SamplingParams sampling_of(const ApiRequest& request, const ServedModel& model,
                                   const GenerationSettings& settings, std::uint64_t seed) {
  engine::SamplingParams params = model.defaults;
  const SamplingOptions& wanted = request.sampling;
  const bool fixed = settings.fixed_thinking_sampling && request.api != Api::completions &&
                     request.thinking_mode == ThinkingMode::thinking;
  if (fixed) {
    params = {};
  } else {
    const auto set = [](auto& to, const auto& from) {
      if (from) to = static_cast<std::remove_reference_t<decltype(to)>>(*from);
    };
    set(params.temperature, wanted.temperature);
    set(params.top_p, wanted.top_p);
    set(params.top_k, wanted.top_k);
    set(params.min_p, wanted.min_p);
    set(params.repetition_penalty, wanted.repetition_penalty);
    set(params.presence_penalty, wanted.presence_penalty);
    set(params.frequency_penalty, wanted.frequency_penalty);
  }
  for (const auto& [id, bias] : wanted.logit_bias) {
    if (id < 0 || id >= model.vocab_size) {
      throw invalid_request(fmt::format("logit_bias: token id {} is outside the vocabulary [0, {})",
                                        id, model.vocab_size),
                            "logit_bias");
    }
    params.logit_bias[id] = static_cast<float>(bias);
  }
  params.seed = wanted.seed.value_or(seed);
  try {
    params.validate(model.vocab_size);
  } catch (const Error& error) {
    throw invalid_request(error.what());
  }
  return params;
}

std::vector<std::int64_t> snapshot_positions(const EncodedPrompt& prompt) {
  std::vector<std::int64_t> positions = prompt.mark_positions;
  if (prompt.end_of_system_position > 0) positions.push_back(prompt.end_of_system_position);
  if (prompt.think_token_position) positions.push_back(*prompt.think_token_position);
  std::ranges::sort(positions);
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  return positions;
}

// How many tokens a choice may get behind a prompt.
std::int64_t output_limit(const ApiRequest& request, const ServedModel& model, const ApiKey& key,
                          std::int64_t n_prompt) {
  std::int64_t context = model.context_length;
  if (key.limits.max_context) context = std::min(context, *key.limits.max_context);
  if (n_prompt >= context) throw context_too_long(n_prompt, context);
  std::int64_t limit = context - n_prompt;
  limit = std::min(limit, model.max_output_tokens);
  if (key.limits.max_output) limit = std::min(limit, *key.limits.max_output);
  constexpr std::int64_t kCompletionsDefault = 16;  // OpenAI's
  const std::int64_t wanted = request.max_tokens.value_or(
      request.api == Api::completions && !request.suffix ? kCompletionsDefault : limit);
  return std::min(limit, wanted);
}

}  // namespace

Prepared prepare(const ApiRequest& request, const ServedModel& model,
                 const GenerationSettings& settings, const ApiKey& key, AnswerMemory* memory,
                 std::uint64_t seed) {
  if (request.prompt_logprobs) {
    throw invalid_request(
        "log probabilities of the prompt are not available; ask for those of the "
        "answer, or echo the prompt without them",
        "prompt_logprobs");
  }
  Prepared out;
  const engine::SamplingParams sampling = sampling_of(request, model, settings, seed);
  out.seed = sampling.seed;
  const std::string domain = cache_domain(settings, key, request.user_id);

  const bool is_chat = request.api != Api::completions;
  const std::vector<TokenId> stops = request.ignore_eos
                                         ? std::vector<TokenId>()
                                         : (is_chat ? model.chat_stop_tokens : model.end_tokens);
  std::shared_ptr<const grammar::Constraint> prototype;
  if (settings.grammars != nullptr) {
    prototype =
        make_answer_constraint(request, model.tokenizer, model.profile, stops, *settings.grammars);
  }
  // Under a constraint the answer ends by itself, with its tags closed.
  AnswerForm form = answer_form(request, model, settings.in_reasoning);
  form.single_call = form.single_call && prototype == nullptr;
  out.form = std::make_shared<const AnswerForm>(std::move(form));

  const auto add = [&](std::vector<TokenId> prompt, std::vector<std::int64_t> positions,
                       std::int64_t preamble_tokens) {
    const auto n_prompt = static_cast<std::int64_t>(prompt.size());
    PreparedPart part;
    engine::Request& r = part.request;
    const std::int64_t limit = output_limit(request, model, key, n_prompt);
    part.only_echo = limit == 0;
    r.prompt = std::move(prompt);
    r.sampling = sampling;
    // Another prompt of the same request is another draw.
    r.sampling.seed = sampling.seed + 0x9E3779B97F4A7C15ULL * out.parts.size();
    r.n_choices = request.n;
    r.max_tokens = limit;
    r.stop_tokens = stops;
    r.top_logprobs = request.logprobs ? request.top_logprobs : 0;
    r.cache_domain = domain;
    r.fairness_key = key.name + "/" + request.user_id;
    r.priority = request.priority;
    r.snapshot_positions = std::move(positions);
    r.preamble_tokens = preamble_tokens;
    if (prototype) {
      r.make_constraint = [prototype](std::int32_t) { return prototype->clone(); };
    }
    r.make_observer = [form = out.form, tokenizer = model.tokenizer](std::int32_t) {
      return make_observer(form, tokenizer);
    };
    out.max_tokens = std::max(out.max_tokens, limit);
    out.n_prompt_tokens += n_prompt;
    out.parts.push_back(std::move(part));
  };

  if (is_chat) {
    EncodedPrompt prompt = encode_chat(request, model, settings, memory, domain);
    std::vector<std::int64_t> positions = snapshot_positions(prompt);
    add(std::move(prompt.tokens), std::move(positions), prompt.end_of_system_position);
  } else {
    for (const RawPrompt& prompt : request.prompts) add(raw_prompt(request, prompt, model), {}, 0);
  }
  if (out.parts.empty()) throw invalid_request("there is no prompt to continue", "prompt");
  return out;
}

}  // namespace hadal::server
