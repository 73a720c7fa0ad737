#include "protocol/openai_messages.h"

#include <fmt/format.h>

namespace hadal::protocol {
namespace {

constexpr NamedValue<Role> kRoles[] = {{.name = "system", .value = Role::system},
                                       {.name = "developer", .value = Role::developer},
                                       {.name = "user", .value = Role::user},
                                       {.name = "assistant", .value = Role::assistant},
                                       {.name = "tool", .value = Role::tool},
                                       {.name = "latest_reminder", .value = Role::latest_reminder}};
constexpr NamedValue<Task> kTasks[] = {
    {.name = "action", .value = Task::action},       {.name = "query", .value = Task::query},
    {.name = "authority", .value = Task::authority}, {.name = "domain", .value = Task::domain},
    {.name = "title", .value = Task::title},         {.name = "read_url", .value = Task::read_url}};

class MessageReader {
 public:
  MessageReader(const Json& json, std::string path, const ApiDefaults& defaults)
      : fields_(json, std::move(path)), defaults_(defaults) {}

  Message read(std::vector<std::string>& unknown) {
    const std::optional<Role> role = fields_.word("role", kRoles);
    if (!role) refuse_field(fields_.path("role"), "is missing");
    message_.role = *role;
    content(unknown);
    if (message_.role == Role::assistant) answer(unknown);
    if (message_.role == Role::tool) message_.tool_call_id = fields_.required_text("tool_call_id");
    prefix();
    task();
    // Others' members that an answer may bring back, and that no prompt shows.
    fields_.ignore({"name", "refusal", "annotations", "audio"});
    fields_.unknown(unknown);
    return std::move(message_);
  }

 private:
  void content(std::vector<std::string>& unknown) {
    const Json* value = fields_.find("content");
    if (value == nullptr) return;
    if (const auto* text = value->as<std::string>()) {
      message_.content = *text;
      return;
    }
    const std::string path = fields_.path("content");
    const auto* parts = value->as<Json::Array>();
    if (parts == nullptr) refuse_value(path, *value, "a string or an array of parts");
    for (std::size_t i = 0; i < parts->size(); ++i) {
      if (i > 0) message_.content += "\n\n";
      message_.content += part((*parts)[i], fmt::format("{}[{}]", path, i), unknown);
    }
  }

  std::string part(const Json& json, std::string path, std::vector<std::string>& unknown) const {
    Fields fields(json, std::move(path));
    const std::string& type = fields.required_text("type");
    const bool is_refusal = type == "refusal" && message_.role == Role::assistant;
    if (type == "text" || is_refusal) {
      std::string text = fields.required_text(type);
      fields.unknown(unknown);
      return text;
    }
    if (message_.role == Role::tool) return fmt::format("[Unsupported {}]", type);
    refuse_field(fields.path("type"),
                 fmt::format("unsupported content type {}; only text can be read here",
                             json_string(type.substr(0, 64))));
  }

  void answer(std::vector<std::string>& unknown) {
    const std::string* reasoning = fields_.text("reasoning_content");
    const std::string* alias = fields_.text("reasoning");  // as some servers call it
    if (reasoning == nullptr) reasoning = alias;
    if (reasoning != nullptr) message_.reasoning_content = *reasoning;
    fields_.refuse_if_given("function_call", "is not supported; use tool_calls");
    const Json::Array* calls = fields_.array("tool_calls");
    if (calls == nullptr) return;
    for (std::size_t i = 0; i < calls->size(); ++i) {
      Fields call((*calls)[i], fmt::format("{}[{}]", fields_.path("tool_calls"), i));
      message_.tool_calls.push_back(tool_call(call, unknown));
    }
  }

  static ToolCall tool_call(Fields& call, std::vector<std::string>& unknown) {
    const std::string* type = call.text("type");
    if (type != nullptr && *type != "function") {
      refuse_value(call.path("type"), *call.find("type"), "\"function\"");
    }
    ToolCall out;
    out.id = call.required_text("id");
    if (out.id.empty()) refuse_field(call.path("id"), "is empty");
    Fields function(call.required("function"), call.path("function"));
    out.name = function.required_text("name");
    if (out.name.empty()) refuse_field(function.path("name"), "is empty");
    // Some clients send the object in place of its text.
    if (const Json* arguments = function.find("arguments")) {
      const auto* text = arguments->as<std::string>();
      if (text == nullptr && arguments->as<Json::Object>() == nullptr) {
        refuse_value(function.path("arguments"), *arguments, "a string that holds a JSON object");
      }
      out.arguments = text != nullptr ? *text : arguments->dump();
    }
    call.ignore({"index"});
    call.unknown(unknown);
    function.unknown(unknown);
    return out;
  }

  void prefix() {
    message_.wo_eos = fields_.boolean("prefix").value_or(false);
    if (message_.wo_eos && message_.role != Role::assistant) {
      refuse_field(fields_.path("prefix"), "only an assistant message can be continued");
    }
  }

  void task() {
    message_.task = fields_.word("task", kTasks);
    if (message_.task && !defaults_.enable_tasks) {
      refuse_field(fields_.path("task"),
                   "tasks are switched off; the server's option --enable-tasks allows them");
    }
  }

  Fields fields_;
  const ApiDefaults& defaults_;
  Message message_;
};

}  // namespace

void read_chat_messages(Fields& body, const ApiDefaults& defaults, ApiRequest& request) {
  const Json::Array& list = array_of(body.required("messages"), body.path("messages"));
  if (list.empty()) refuse_field(body.path("messages"), "there must be at least one message");
  std::vector<Message>& messages = request.conversation.messages;
  messages.reserve(list.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    MessageReader reader(list[i], fmt::format("{}[{}]", body.path("messages"), i), defaults);
    messages.push_back(reader.read(request.unknown_fields));
  }
}

}  // namespace hadal::protocol
