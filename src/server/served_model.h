#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/digest.h"
#include "engine/loaded_model.h"
#include "engine/sampler.h"
#include "io/tokenizer.h"
#include "protocol/message.h"

namespace hadal::server {

// What the server knows of the model: names, sizes and control tokens; no weights.
struct ServedModel {
  std::string id;
  std::vector<std::string> aliases;
  io::Tokenizer tokenizer;
  protocol::ChatProfile profile = protocol::ChatProfile::v4_preview;
  std::int64_t vocab_size = 0, context_length = 0;
  std::int64_t max_output_tokens = 0;
  TokenId bos = 0;
  std::vector<TokenId> end_tokens;        // of every text
  std::vector<TokenId> chat_stop_tokens;  // those, and the headers of turns
  bool can_chat = false;                  // the tokenizer has what the chat template writes
  engine::SamplingParams defaults;        // what a request does not say
  std::int64_t created = 0;               // unix seconds
  // Of weights, numerics and build: what must be equal for a continuation to be the same one. The
  // text is server::fingerprint_text(), the fingerprint its digest.
  Sha256Digest fingerprint{};
  std::string fingerprint_text, system_fingerprint;
};

struct ServedModelOptions {
  std::string id;  // empty: the directory's name
  std::vector<std::string> aliases = {};
  protocol::ChatProfile profile = protocol::ChatProfile::v4_preview;
  std::int64_t max_output_tokens = 393216;
  std::int64_t max_context = 0;  // 0: the model's
  std::string numerics = "official", version = {};
  std::int64_t created = 0;
  engine::SamplingParams defaults = {};
};
// Throws not_found when there is no tokenizer.
[[nodiscard]] ServedModel served_model(const engine::LoadedModel& loaded,
                                       const ServedModelOptions& options);

// How a model's name in a request is read.
struct ModelName {
  bool known = false;
  // deepseek-chat and deepseek-reasoner stand for a way of answering.
  std::optional<protocol::ThinkingMode> thinking_mode = std::nullopt;
};
// The id, the aliases, DeepSeek's names, and for the Messages API every name that begins with
// "claude".  Source: serving.md §4.8, §4.10.
[[nodiscard]] ModelName resolve_model(const ServedModel& model, std::string_view name,
                                      bool is_messages_api);

}  // namespace hadal::server
