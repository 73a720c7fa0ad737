#include "protocol/message.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>

#include "core/error.h"

namespace hadal::protocol {
namespace {

template <class T>
struct Name {
  std::string_view name;
  T value;
};

constexpr Name<Role> kRoles[] = {{.name = "system", .value = Role::system},
                                 {.name = "user", .value = Role::user},
                                 {.name = "assistant", .value = Role::assistant},
                                 {.name = "tool", .value = Role::tool},
                                 {.name = "developer", .value = Role::developer},
                                 {.name = "latest_reminder", .value = Role::latest_reminder}};
constexpr Name<ThinkingMode> kThinkingModes[] = {
    {.name = "chat", .value = ThinkingMode::chat},
    {.name = "thinking", .value = ThinkingMode::thinking}};
constexpr Name<ReasoningEffort> kEfforts[] = {{.name = "none", .value = ReasoningEffort::none},
                                              {.name = "low", .value = ReasoningEffort::low},
                                              {.name = "high", .value = ReasoningEffort::high},
                                              {.name = "max", .value = ReasoningEffort::max}};
constexpr Name<ChatProfile> kProfiles[] = {{.name = "v4-preview", .value = ChatProfile::v4_preview},
                                           {.name = "v4-0731", .value = ChatProfile::v4_0731}};
constexpr Name<Task> kTasks[] = {
    {.name = "action", .value = Task::action},       {.name = "query", .value = Task::query},
    {.name = "authority", .value = Task::authority}, {.name = "domain", .value = Task::domain},
    {.name = "title", .value = Task::title},         {.name = "read_url", .value = Task::read_url}};

template <class T, std::size_t N>
const char* name_of(const Name<T> (&names)[N], T value) {
  for (const auto& entry : names) {
    if (entry.value == value) return entry.name.data();
  }
  return "?";
}

template <class T, std::size_t N>
T value_of(const Name<T> (&names)[N], std::string_view name, const char* what) {
  std::string known;
  for (const auto& entry : names) {
    if (entry.name == name) return entry.value;
    known.append(known.empty() ? "" : ", ").append(entry.name);
  }
  throw Error(ErrorCode::invalid_argument,
              fmt::format("unknown {} '{}'; known are: {}", what, name, known));
}

[[noreturn]] void refuse(std::size_t index, std::string_view why) {
  throw Error(ErrorCode::invalid_argument, fmt::format("messages[{}]: {}", index, why));
}

// The calls of the last assistant message that have no result yet, by id. Recorded conversations
// may leave ids out; then any result answers the next call.
class OpenCalls {
 public:
  void start(const std::vector<ToolCall>& calls, std::size_t message_index) {
    ids_.clear();
    for (const ToolCall& call : calls) ids_.push_back(call.id);
    message_index_ = message_index;
  }
  bool answer(const std::string& id) {
    auto found = std::ranges::find(ids_, id);
    if (found == ids_.end()) return false;
    ids_.erase(found);
    return true;
  }
  void expect_none() const {
    if (ids_.empty()) return;
    refuse(message_index_,
           fmt::format("no tool message answers tool call '{}'; every call needs its result before "
                       "the conversation goes on",
                       ids_.front()));
  }

 private:
  std::vector<std::string> ids_;
  std::size_t message_index_ = 0;
};

// Whether the answer header follows such a message at once (tool results become user turns).
bool opens_answer(Role role) {
  return role == Role::user || role == Role::developer || role == Role::tool;
}

}  // namespace

const char* to_string(Role role) {
  return name_of(kRoles, role);
}
const char* to_string(ThinkingMode mode) {
  return name_of(kThinkingModes, mode);
}
const char* to_string(ReasoningEffort effort) {
  return name_of(kEfforts, effort);
}
const char* to_string(ChatProfile profile) {
  return name_of(kProfiles, profile);
}
Role role_from(std::string_view name) {
  return value_of(kRoles, name, "role");
}
ThinkingMode thinking_mode_from(std::string_view name) {
  return value_of(kThinkingModes, name, "thinking mode");
}
ChatProfile chat_profile_from(std::string_view name) {
  return value_of(kProfiles, name, "chat profile");
}
Task task_from(std::string_view name) {
  return value_of(kTasks, name, "task");
}

void attach_tools(Conversation& conversation, std::vector<Json> functions) {
  auto& messages = conversation.messages;
  const bool head_takes_tools = !messages.empty() && (messages.front().role == Role::system ||
                                                      messages.front().role == Role::developer);
  if (!head_takes_tools) {
    Message head;
    head.role = Role::system;
    messages.insert(messages.begin(), std::move(head));
  }
  messages.front().tools = std::move(functions);
}

void validate(const Conversation& conversation) {
  const auto& messages = conversation.messages;
  if (messages.empty()) {
    throw Error(ErrorCode::invalid_argument, "messages: there must be at least one message");
  }
  OpenCalls open_calls;
  bool has_turn = false;  // something to answer, or an answer to continue
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Message& message = messages[i];
    if (message.role != Role::tool) open_calls.expect_none();
    has_turn |= message.role != Role::system && message.role != Role::latest_reminder;
    switch (message.role) {
      case Role::tool:
        if (!open_calls.answer(message.tool_call_id)) {
          refuse(i, fmt::format("Messages with role 'tool' must be a response to a preceding "
                                "message with 'tool_calls'; no open call has the id '{}'",
                                message.tool_call_id));
        }
        break;
      case Role::assistant:
        if (message.wo_eos && i + 1 != messages.size()) {
          refuse(i, "a prefix to be continued must be the last message");
        }
        open_calls.start(message.tool_calls, i);
        break;
      case Role::latest_reminder:
        if (i > 0 && opens_answer(messages[i - 1].role)) {
          refuse(i, fmt::format("a latest_reminder may not follow a {} message; put it before the "
                                "user message that it belongs to",
                                to_string(messages[i - 1].role)));
        }
        break;
      default:
        break;
    }
  }
  open_calls.expect_none();
  if (!has_turn) {
    throw Error(ErrorCode::invalid_argument,
                "messages: only system text and nothing to answer; add a user message");
  }
}

}  // namespace hadal::protocol
