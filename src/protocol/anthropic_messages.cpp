#include "protocol/anthropic_messages.h"

#include <fmt/format.h>

#include <algorithm>

#include "protocol/answer_pointer.h"

namespace hadal::protocol {
namespace {

constexpr NamedValue<Role> kRoles[] = {{.name = "user", .value = Role::user},
                                       {.name = "assistant", .value = Role::assistant},
                                       {.name = "system", .value = Role::system}};

bool is_marked(Fields& block) {
  return block.find("cache_control") != nullptr;
}

[[noreturn]] void refuse_block(Fields& block, const std::string& type, std::string_view where) {
  refuse_field(block.path("type"),
               fmt::format("content blocks of type {} cannot be read {}; {}",
                           json_string(type.substr(0, 64)), where, "this model reads text only"));
}

class Reader {
 public:
  Reader(ApiRequest& request, std::vector<std::string>& paths) : request_(request), paths_(paths) {}

  // Text or text blocks; `mark` is set where a block is marked.
  std::string system_text(const Json& value, const std::string& path, bool& mark) {
    if (const auto* text = value.as<std::string>()) return without_billing_lines(*text);
    const auto* blocks = value.as<Json::Array>();
    if (blocks == nullptr) refuse_value(path, value, "a string or an array of text blocks");
    std::string out;
    for (std::size_t i = 0; i < blocks->size(); ++i) {
      Fields block((*blocks)[i], fmt::format("{}[{}]", path, i));
      const std::string& type = block.required_text("type");
      if (type != "text") refuse_block(block, type, "in system text");
      const std::string text = without_billing_lines(block.required_text("text"));
      if (!text.empty() && !out.empty()) out += "\n\n";
      out += text;
      mark |= is_marked(block);
      done(block);
    }
    return out;
  }

  void system(const std::string& text, bool is_mark) {
    if (text.empty() && !is_mark) return;
    Message& message = open(Role::system, "system");
    message.content = text;
    if (is_mark) mark();
  }

  void message(const Json& json, const std::string& path) {
    Fields fields(json, path);
    const std::optional<Role> role = fields.word("role", kRoles);
    if (!role) refuse_field(fields.path("role"), "is missing");
    const Json& content = fields.required("content");
    const std::string content_path = fields.path("content");
    if (*role == Role::system) {
      bool is_mark = false;
      const std::string text = system_text(content, content_path, is_mark);
      open(Role::system, path).content = text;
      if (is_mark) mark();
    } else if (const auto* text = content.as<std::string>()) {
      if (*role == Role::user) open(Role::user, path).content = *text;
      if (*role == Role::assistant) answer_text(answer(path), *text);
    } else {
      const auto* blocks = content.as<Json::Array>();
      if (blocks == nullptr) {
        refuse_value(content_path, content, "a string or an array of content blocks");
      }
      if (*role == Role::user) user_blocks(*blocks, content_path);
      if (*role == Role::assistant) answer_blocks(*blocks, path, content_path);
    }
    fields.unknown(request_.unknown_fields);
  }

  void mark_last() {
    if (!messages().empty()) mark();
  }

 private:
  std::vector<Message>& messages() { return request_.conversation.messages; }

  Message& open(Role role, std::string path) {
    Message message;
    message.role = role;
    messages().push_back(std::move(message));
    paths_.push_back(std::move(path));
    return messages().back();
  }
  void mark() {
    const std::size_t index = messages().size() - 1;
    std::vector<std::size_t>& marks = request_.cache_marks;
    if (marks.empty() || marks.back() != index) marks.push_back(index);
  }
  void done(Fields& block) {
    block.ignore({"citations"});
    block.unknown(request_.unknown_fields);
  }

  // Results answer the calls of the message before, so they come first, wherever they stand.
  void user_blocks(const Json::Array& blocks, const std::string& path) {
    for (const bool wants_results : {true, false}) {
      for (std::size_t i = 0; i < blocks.size(); ++i) {
        Fields block(blocks[i], fmt::format("{}[{}]", path, i));
        const std::string& type = block.required_text("type");
        if ((type == "tool_result") != wants_results) continue;
        if (wants_results) {
          const std::string& id = block.required_text("tool_use_id");
          Message& result = open(Role::tool, block.path());
          result.tool_call_id = id;
          if (const Json* content = block.find("content")) {
            result.content = result_text(*content, block.path("content"));
          }
          (void)block.boolean("is_error");  // the result's own text says what went wrong
        } else if (type == "text") {
          open(Role::user, block.path()).content = block.required_text("text");
        } else {
          refuse_block(block, type, "in a user message");
        }
        if (is_marked(block)) mark();
        done(block);
      }
    }
  }

  std::string result_text(const Json& content, const std::string& path) {
    if (const auto* text = content.as<std::string>()) return *text;
    const auto* blocks = content.as<Json::Array>();
    if (blocks == nullptr) refuse_value(path, content, "a string or an array of content blocks");
    std::string out;
    for (std::size_t i = 0; i < blocks->size(); ++i) {
      Fields block((*blocks)[i], fmt::format("{}[{}]", path, i));
      const std::string& type = block.required_text("type");
      if (i > 0) out += "\n\n";
      out += type == "text" ? block.required_text("text") : fmt::format("[Unsupported {}]", type);
    }
    return out;
  }

  // Neighbouring assistant messages are one turn.
  Message& answer(const std::string& path) {
    const bool joins = !messages().empty() && messages().back().role == Role::assistant;
    return joins ? messages().back() : open(Role::assistant, path);
  }
  static void answer_text(Message& answer, std::string_view text) {
    if (!answer.content.empty() && !text.empty()) answer.content += "\n\n";
    answer.content += text;
  }

  void answer_blocks(const Json::Array& blocks, const std::string& path,
                     const std::string& blocks_path) {
    Message& turn = answer(path);
    bool follows_text = true;  // of a turn that this one joins
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      Fields block(blocks[i], fmt::format("{}[{}]", blocks_path, i));
      const std::string& type = block.required_text("type");
      if (type == "text") {
        // Texts that a call stands between were one text to the model.
        if (follows_text) {
          answer_text(turn, block.required_text("text"));
        } else {
          turn.content += block.required_text("text");
        }
      } else if (type == "thinking") {
        turn.reasoning_content += block.required_text("thinking");
        if (const std::string* signature = block.text("signature")) {
          turn.answer_pointer = answer_pointer_from(*signature);
        }
      } else if (type == "tool_use") {
        turn.tool_calls.push_back(tool_use(block));
      } else if (type == "redacted_thinking") {
        block.ignore({"data"});  // nobody here can read it
      } else {
        refuse_block(block, type, "in an assistant message");
      }
      follows_text = type != "tool_use";
      if (is_marked(block)) mark();
      done(block);
    }
  }

  static ToolCall tool_use(Fields& block) {
    ToolCall call;
    call.id = block.required_text("id");
    if (call.id.empty()) refuse_field(block.path("id"), "is empty");
    call.name = block.required_text("name");
    if (call.name.empty()) refuse_field(block.path("name"), "is empty");
    const Json& input = block.required("input");
    (void)object_of(input, block.path("input"));
    call.arguments = input.dump();
    block.ignore({"caller"});
    return call;
  }

  ApiRequest& request_;
  std::vector<std::string>& paths_;
};

bool begins_without_case(std::string_view text, std::string_view lower_case) {
  return text.size() >= lower_case.size() &&
         std::ranges::equal(text.substr(0, lower_case.size()), lower_case, {}, [](char c) {
           return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
         });
}

}  // namespace

std::string without_billing_lines(std::string_view system) {
  std::string out;
  while (!system.empty()) {
    const std::size_t end = std::min(system.find('\n'), system.size() - 1) + 1;
    const std::string_view line = system.substr(0, end);
    if (!begins_without_case(line, "x-anthropic-billing-header:")) out += line;
    system.remove_prefix(end);
  }
  return out;
}

void read_anthropic_messages(Fields& body, bool marks_system, ApiRequest& request,
                             std::vector<std::string>& paths) {
  Reader reader(request, paths);
  bool mark = marks_system;
  std::string system;
  if (const Json* value = body.find("system")) {
    system = reader.system_text(*value, body.path("system"), mark);
  }
  reader.system(system, mark);

  const std::string path = body.path("messages");
  const Json::Array& list = array_of(body.required("messages"), path);
  if (list.empty()) refuse_field(path, "there must be at least one message");
  for (std::size_t i = 0; i < list.size(); ++i) {
    reader.message(list[i], fmt::format("{}[{}]", path, i));
  }
  if (body.find("cache_control") != nullptr) reader.mark_last();

  // An assistant message at the end is a prefix; an empty one is none.
  std::vector<Message>& messages = request.conversation.messages;
  if (messages.empty() || messages.back().role != Role::assistant) return;
  Message& last = messages.back();
  if (!last.tool_calls.empty()) return;
  if (!last.content.empty() || !last.reasoning_content.empty()) {
    last.wo_eos = true;
    return;
  }
  messages.pop_back();
  paths.pop_back();
  std::erase(request.cache_marks, messages.size());
}

}  // namespace hadal::protocol
