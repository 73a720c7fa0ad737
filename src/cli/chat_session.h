#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cli/generation.h"
#include "protocol/dsml_parser.h"

namespace hadal::cli {

// A conversation with a model: messages in, events of the answers out.
class ChatSession {
 public:
  // Throws unsupported when the tokenizer has no chat tokens. All references must outlive this.
  ChatSession(engine::Runtime& runtime, const engine::LoadedModel& loaded,
              const GenerationOptions& options, Numerics numerics, protocol::ChatProfile profile,
              std::vector<protocol::Json> tools);

  void set_thinking(const std::string& effort);  // "off", "high", "max"
  void set_system(const std::string& text);      // and begins anew
  void reset();

  void add_user(const std::string& text);
  void add_result(const protocol::ToolCall& call, const std::string& result);
  // Takes back messages behind the last answer.
  void drop_unanswered();

  struct Outcome {
    std::vector<protocol::ToolCall> calls;  // complete ones, with ids
    std::optional<std::string> note;        // why the answer ended early
  };
  // Answers the conversation. Ctrl-C (see InterruptGuard) ends it; what there is stays.
  [[nodiscard]] Outcome answer(const std::function<void(const protocol::DsmlEvent&)>& on_event);

  [[nodiscard]] const engine::Session& session() const { return session_; }

 private:
  const engine::LoadedModel& loaded_;
  const GenerationOptions& options_;
  engine::Session session_;
  protocol::ChatProfile profile_;
  std::vector<protocol::Json> tools_;
  std::vector<protocol::DeclaredTool> declared_;
  std::vector<TokenId> stop_tokens_;
  protocol::ThinkingMode thinking_ = protocol::ThinkingMode::chat;
  protocol::ReasoningEffort effort_ = protocol::ReasoningEffort::none;
  std::string system_;
  protocol::Conversation conversation_;
  std::uint64_t n_answers_ = 0, n_calls_ = 0;
};

}  // namespace hadal::cli
