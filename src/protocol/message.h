// The neutral form of a conversation: every wire format becomes this, and only this is rendered.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/json_text.h"

namespace hadal::protocol {

enum class Role : std::uint8_t { system, user, assistant, tool, developer, latest_reminder };
enum class ThinkingMode : std::uint8_t { chat, thinking };  // chat: answer without reasoning
enum class ReasoningEffort : std::uint8_t { none, low, high, max };
// The generation of the checkpoint, which decides the effort texts. Never guessed from a model
// name.
enum class ChatProfile : std::uint8_t { v4_preview, v4_0731 };
// Quick Instruction side tasks; the model answers them with a word or a line.
// Source: DeepSeek-V4 §5.1, table 5.
enum class Task : std::uint8_t { action, query, authority, domain, title, read_url };

struct ToolCall {
  std::string id;  // ties a result to its call; may be empty in recorded conversations
  std::string name;
  std::string arguments;  // JSON text as the client or the model wrote it
};

struct Message {
  Role role = Role::user;
  std::string content;
  std::string reasoning_content;        // assistant
  std::vector<ToolCall> tool_calls;     // assistant
  std::string answer_pointer;           // assistant: our name for the answer, if it came back
  std::string tool_call_id;             // tool: the call that this answers
  std::vector<Json> tools;              // system, developer: the `function` objects, as sent
  std::optional<Json> response_format;  // system, developer: the JSON schema of the answer
  std::optional<Task> task;
  bool wo_eos = false;  // assistant: a prefix that the model is to continue
};

struct Conversation {
  std::vector<Message> messages;
};

// The names used in requests, files and options. The *_from functions throw
// Error{invalid_argument} with the accepted names.
[[nodiscard]] const char* to_string(Role role);
[[nodiscard]] const char* to_string(ThinkingMode mode);
[[nodiscard]] const char* to_string(ReasoningEffort effort);
[[nodiscard]] const char* to_string(ChatProfile profile);
[[nodiscard]] Role role_from(std::string_view name);
[[nodiscard]] ThinkingMode thinking_mode_from(std::string_view name);  // chat, thinking
[[nodiscard]] ChatProfile chat_profile_from(std::string_view name);    // v4-preview, v4-0731
[[nodiscard]] Task task_from(std::string_view name);

// Makes `functions` the tools of the conversation: on its first message if that is a system or
// developer message, else on an empty system message put in front. Replaces tools that are there.
// Source: serving notes §1.3.
void attach_tools(Conversation& conversation, std::vector<Json> functions);

// Refuses what a server must not render although the template could: no user turn to answer, a
// tool result without its call or a call without its result, a reminder behind a user message, a
// prefix that is not last. Throws Error{invalid_argument} that names messages[i].
// Source: serving notes §1.2, §4.6 (policy).
void validate(const Conversation& conversation);

}  // namespace hadal::protocol
