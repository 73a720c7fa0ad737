// A parsed request -> what the engine is to do, with everything checked that the model decides.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"
#include "grammar/grammar_cache.h"
#include "protocol/answer_memory.h"
#include "protocol/api.h"
#include "protocol/prompt_encoder.h"
#include "server/answer_reader.h"
#include "server/auth.h"
#include "server/response_stream.h"
#include "server/served_model.h"

namespace hadal::server {

struct GenerationSettings {
  protocol::ApiDefaults defaults;
  protocol::DsmlInReasoning in_reasoning = protocol::DsmlInReasoning::implicit_end;
  // In thinking mode: honour the request's sampling parameters, or do as DeepSeek's service does
  // and draw with T=1, top_p=1 and without penalties.
  bool fixed_thinking_sampling = false;
  bool isolate_users = true;  // user_id separates cached prompts and turns
  bool trust_special_tokens = false;
  // Compiles the forms that answers must have; null: answers are free. Must outlive the server.
  grammar::GrammarCache* grammars = nullptr;
};

struct PreparedPart {
  engine::Request request;  // without stream, observer's sink and drawn tokens
  bool only_echo = false;   // max_tokens 0: nothing is drawn
};
struct Prepared {
  std::vector<PreparedPart> parts;  // one a prompt
  std::shared_ptr<const AnswerForm> form;
  std::uint64_t seed = 0;
  std::int64_t max_tokens = 0, n_prompt_tokens = 0;
};

[[nodiscard]] protocol::RenderOptions render_options(const protocol::ApiRequest& request,
                                                     const ServedModel& model,
                                                     const GenerationSettings& settings);
// Who shares cached prompts with whom. Source: serving.md §4.8, user_id.
[[nodiscard]] std::string cache_domain(const GenerationSettings& settings, const ApiKey& key,
                                       const std::string& user_id);
// `memory` may be null. `seed` for a request without one.
// Throws ApiException for what this model or this key cannot do.
[[nodiscard]] Prepared prepare(const protocol::ApiRequest& request, const ServedModel& model,
                               const GenerationSettings& settings, const ApiKey& key,
                               protocol::AnswerMemory* memory, std::uint64_t seed);
// The prompt of a conversation alone.
[[nodiscard]] protocol::EncodedPrompt encode_chat(const protocol::ApiRequest& request,
                                                  const ServedModel& model,
                                                  const GenerationSettings& settings,
                                                  protocol::AnswerMemory* memory,
                                                  const std::string& domain);

}  // namespace hadal::server
