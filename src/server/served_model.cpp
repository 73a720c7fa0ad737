#include "server/served_model.h"

#include <algorithm>

#include "protocol/chat_format.h"
#include "server/model_identity.h"

namespace hadal::server {

ServedModel served_model(const engine::LoadedModel& loaded, const ServedModelOptions& options) {
  ServedModel model{.id = options.id,
                    .aliases = options.aliases,
                    .tokenizer = loaded.require_tokenizer(),
                    .profile = options.profile,
                    .vocab_size = loaded.config.vocab_size,
                    .context_length = loaded.config.max_position_embeddings,
                    .max_output_tokens = options.max_output_tokens,
                    .bos = static_cast<TokenId>(loaded.config.bos_token_id),
                    .end_tokens = {},
                    .chat_stop_tokens = {},
                    .defaults = options.defaults,
                    .created = options.created,
                    .fingerprint_text = {},
                    .system_fingerprint = {}};
  if (model.id.empty()) {
    const Path directory = std::filesystem::absolute(loaded.directory).lexically_normal();
    model.id = directory.has_filename() ? directory.filename().string()
                                        : directory.parent_path().filename().string();
  }
  if (options.max_context > 0) {
    model.context_length = std::min(model.context_length, options.max_context);
  }
  model.max_output_tokens = std::min(model.max_output_tokens, model.context_length);
  for (const std::int64_t id : loaded.config.eos_token_id) {
    model.end_tokens.push_back(static_cast<TokenId>(id));
  }
  const protocol::ChatFormat& format = protocol::chat_format(model.profile);
  model.can_chat = true;
  for (const std::string_view token : {format.bos, format.eos, format.user, format.assistant,
                                       format.think_open, format.think_close, format.dsml_mark}) {
    model.can_chat = model.can_chat && model.tokenizer.token_id(token).has_value();
  }
  model.chat_stop_tokens = model.end_tokens;
  for (const std::string& token : protocol::default_stop_tokens(model.profile)) {
    const auto id = model.tokenizer.token_id(token);
    if (id && std::ranges::find(model.chat_stop_tokens, *id) == model.chat_stop_tokens.end()) {
      model.chat_stop_tokens.push_back(*id);
    }
  }
  model.fingerprint_text =
      fingerprint_text(FileSystem::real(), loaded.directory, options.numerics, options.version);
  model.fingerprint = sha256(model.fingerprint_text);
  model.system_fingerprint = "fp_" + to_hex(model.fingerprint).substr(0, 12);
  return model;
}

ModelName resolve_model(const ServedModel& model, std::string_view name, bool is_messages_api) {
  using protocol::ThinkingMode;
  if (name == model.id || std::ranges::find(model.aliases, name) != model.aliases.end()) {
    return {.known = true};
  }
  if (name == "deepseek-chat") return {.known = true, .thinking_mode = ThinkingMode::chat};
  if (name == "deepseek-reasoner") return {.known = true, .thinking_mode = ThinkingMode::thinking};
  if (name == "deepseek-v4-flash" || name == "deepseek-v4-pro") return {.known = true};
  return {.known = is_messages_api && name.starts_with("claude")};
}

}  // namespace hadal::server
