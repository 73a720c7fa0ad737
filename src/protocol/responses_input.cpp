#include "protocol/responses_input.h"

#include <fmt/format.h>

#include "protocol/answer_pointer.h"
#include "protocol/responses_tools.h"

namespace hadal::protocol {
namespace {

constexpr NamedValue<Role> kRoles[] = {{.name = "user", .value = Role::user},
                                       {.name = "system", .value = Role::system},
                                       {.name = "developer", .value = Role::developer},
                                       {.name = "assistant", .value = Role::assistant}};

class ItemReader {
 public:
  ItemReader(ApiRequest& request, std::vector<std::string>& paths)
      : request_(request), paths_(paths) {}

  Message& open(Role role, std::string path) {
    Message message;
    message.role = role;
    messages().push_back(std::move(message));
    paths_.push_back(std::move(path));
    return messages().back();
  }

  void item(const Json& json, std::string path) {
    Fields item(json, std::move(path));
    const std::string* type = item.text("type");
    if (type == nullptr || *type == "message") {
      message(item);
    } else if (*type == "reasoning") {
      reasoning(item);
    } else if (*type == "function_call" || *type == "custom_tool_call") {
      call(item, *type == "custom_tool_call");
    } else if (*type == "function_call_output" || *type == "custom_tool_call_output") {
      output(item);
    } else {
      refuse_value(item.path("type"), *item.find("type"),
                   "\"message\", \"reasoning\", or a function_call or custom_tool_call with its "
                   "output");
    }
    // What an item of a response brings back.
    item.ignore({"id", "status", "phase", "caller", "async"});
    item.unknown(request_.unknown_fields);
  }

 private:
  std::vector<Message>& messages() { return request_.conversation.messages; }

  // The assistant's turn that the item at `path` belongs to.
  Message& answer(const std::string& path) {
    const bool joins = !messages().empty() && messages().back().role == Role::assistant;
    if (joins) return messages().back();
    follows_call_ = false;
    return open(Role::assistant, path);
  }

  void message(Fields& item) {
    const std::optional<Role> role = item.word("role", kRoles);
    if (!role) refuse_field(item.path("role"), "is missing");
    const std::string text =
        content(item.required("content"), item.path("content"), /*is_result=*/false);
    if (*role != Role::assistant) {
      open(*role, item.path()).content = text;
      return;
    }
    Message& turn = answer(item.path());
    // Texts that a call stands between were one text to the model.
    if (!follows_call_ && !turn.content.empty() && !text.empty()) turn.content += "\n\n";
    turn.content += text;
    follows_call_ = false;
  }

  void reasoning(Fields& item) {
    Message& turn = answer(item.path());
    if (const Json::Array* parts = item.array("content")) {
      for (std::size_t i = 0; i < parts->size(); ++i) {
        Fields part((*parts)[i], fmt::format("{}[{}]", item.path("content"), i));
        turn.reasoning_content += part.required_text("text");
        part.ignore({"type"});
        part.unknown(request_.unknown_fields);
      }
    }
    if (const std::string* sealed = item.text("encrypted_content")) {
      turn.answer_pointer = answer_pointer_from(*sealed);
    }
    item.ignore({"summary"});  // about the reasoning, not the reasoning
  }

  void call(Fields& item, bool is_custom) {
    ToolCall call;
    call.id = item.required_text("call_id");
    if (call.id.empty()) refuse_field(item.path("call_id"), "is empty");
    const std::string& name = item.required_text("name");
    if (name.empty()) refuse_field(item.path("name"), "is empty");
    const std::string* name_space = item.text("namespace");
    call.name = flattened_name(name_space == nullptr ? "" : *name_space, name);
    call.arguments =
        is_custom ? custom_arguments(item.required_text("input")) : item.required_text("arguments");
    answer(item.path()).tool_calls.push_back(std::move(call));
    follows_call_ = true;
  }

  void output(Fields& item) {
    Message& result = open(Role::tool, item.path());
    result.tool_call_id = item.required_text("call_id");
    result.content = content(item.required("output"), item.path("output"), /*is_result=*/true);
    item.ignore({"name", "namespace"});
  }

  std::string content(const Json& value, const std::string& path, bool is_result) {
    if (const auto* text = value.as<std::string>()) return *text;
    const auto* parts = value.as<Json::Array>();
    if (parts == nullptr) refuse_value(path, value, "a string or an array of content parts");
    std::string out;
    for (std::size_t i = 0; i < parts->size(); ++i) {
      Fields part((*parts)[i], fmt::format("{}[{}]", path, i));
      const std::string& type = part.required_text("type");
      if (i > 0) out += "\n\n";
      if (type == "input_text" || type == "output_text" || type == "text") {
        out += part.required_text("text");
        part.ignore({"annotations", "logprobs"});
        part.unknown(request_.unknown_fields);
      } else if (type == "refusal" && !is_result) {
        out += part.required_text("refusal");
      } else if (is_result) {
        out += fmt::format("[Unsupported {}]", type);
      } else {
        refuse_field(part.path("type"),
                     fmt::format("unsupported content type {}; only text can be read here",
                                 json_string(type.substr(0, 64))));
      }
    }
    return out;
  }

  ApiRequest& request_;
  std::vector<std::string>& paths_;
  bool follows_call_ = false;  // the last item of the open turn is a call
};

// An input as a list of items.
void append_items(const Json* input, Json::Array& out) {
  if (input == nullptr) return;
  if (const auto* items = input->as<Json::Array>()) {
    out.insert(out.end(), items->begin(), items->end());
  } else {
    out.emplace_back(Json::Object{{"role", Json("user")}, {"content", *input}});
  }
}

}  // namespace

void read_responses_input(Fields& body, ApiRequest& request, std::vector<std::string>& paths) {
  ItemReader reader(request, paths);
  if (const std::string* instructions = body.text("instructions"); instructions != nullptr) {
    reader.open(Role::system, body.path("instructions")).content = *instructions;
  }
  const Json& input = body.required("input");
  const std::string path = body.path("input");
  if (const auto* text = input.as<std::string>()) {
    reader.open(Role::user, path).content = *text;
    return;
  }
  const auto* items = input.as<Json::Array>();
  if (items == nullptr) refuse_value(path, input, "a string or an array of items");
  if (items->empty()) refuse_field(path, "there must be at least one item");
  for (std::size_t i = 0; i < items->size(); ++i) {
    reader.item((*items)[i], fmt::format("{}[{}]", path, i));
  }
}

std::optional<std::string> previous_response_id(const Json& body) {
  const Json* id = body.find("previous_response_id");
  const auto* text = id == nullptr ? nullptr : id->as<std::string>();
  if (text == nullptr) return std::nullopt;
  return *text;
}

Json with_previous_response(const Json& body, const Json& previous_body,
                            const Json& previous_response) {
  Json::Array items;
  append_items(previous_body.find("input"), items);
  append_items(previous_response.find("output"), items);
  append_items(body.find("input"), items);
  Json out = body;
  auto* members = std::get_if<Json::Object>(&out.value);
  if (members == nullptr) return out;  // whoever parses it says what is wrong
  for (Json::Member& member : *members) {
    if (member.key != "input") continue;
    member.value = Json(std::move(items));
    break;
  }
  return out;
}

}  // namespace hadal::protocol
