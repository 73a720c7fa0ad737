// The vectors of tests/vectors/dsml, and what several tests do with them. Keep what load_vectors()
// returns in a variable: a loop over a member of the temporary would outlive it.
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/chat_template.h"
#include "protocol/dsml_parser.h"
#include "protocol/message_json.h"

namespace hadal::protocol::test {

using TestJson = nlohmann::ordered_json;

inline TestJson load_vectors(const std::string& name) {
  std::ifstream file(std::string(HADAL_TEST_DATA_DIR "/vectors/dsml/") + name);
  if (!file) throw std::runtime_error("cannot open vectors " + name);
  return TestJson::parse(file);
}

inline std::string text(const TestJson& object, const char* key) {
  return object.at(key).get<std::string>();
}

inline Conversation conversation(const TestJson& messages) {
  return conversation_from_json(Json::parse(messages.dump()));
}

// Options as the published encoder has them.
inline RenderOptions reference_options(const TestJson& test_case) {
  RenderOptions options;
  options.thinking_mode = thinking_mode_from(text(test_case, "thinking_mode"));
  options.drop_thinking = test_case.value("drop_thinking", true);
  options.tool_history_keeps_thinking = false;
  return options;
}

inline DsmlOptions parse_options(const TestJson& test_case, DsmlMode mode) {
  DsmlOptions options;
  options.mode = mode;
  options.thinking_mode = thinking_mode_from(text(test_case, "thinking_mode"));
  return options;
}

// "ls", "ls(path)" or "ls(path:string, n:integer)".
inline DeclaredTool tool_from_signature(std::string_view signature) {
  const std::size_t bracket = signature.find('(');
  DeclaredTool tool{std::string(signature.substr(0, bracket)), {}};
  if (bracket == std::string_view::npos) return tool;
  std::string_view rest = signature.substr(bracket + 1, signature.size() - bracket - 2);
  while (!rest.empty()) {
    const std::string_view one = rest.substr(0, rest.find(','));
    const std::size_t colon = one.find(':');
    const std::string_view type =
        colon == std::string_view::npos ? std::string_view() : one.substr(colon + 1);
    tool.properties.push_back({std::string(one.substr(0, colon)), std::string(type)});
    rest.remove_prefix(std::min(rest.size(), one.size() + 2));
  }
  return tool;
}

// Declares the tools that the text of the case calls.
inline void declare_called(const std::string& completion, DsmlOptions& options) {
  constexpr std::string_view kInvoke = "invoke name=\"";
  for (std::size_t at = completion.find(kInvoke); at != std::string::npos;
       at = completion.find(kInvoke, at + 1)) {
    const std::size_t begin = at + kInvoke.size();
    options.tools.push_back({completion.substr(begin, completion.find('"', begin) - begin), {}});
  }
}

// Events of `completion` fed in these pieces; deltas that follow each other come out joined.
inline std::vector<DsmlEvent> parse_pieces(const std::vector<std::string_view>& pieces,
                                           const DsmlOptions& options) {
  DsmlParser parser(options);
  std::vector<DsmlEvent> events;
  for (const std::string_view piece : pieces) parser.feed(piece, events);
  parser.finish(events);
  return events;
}

inline std::vector<std::string_view> chunks(std::string_view whole, std::size_t size) {
  std::vector<std::string_view> out;
  for (std::size_t at = 0; at < whole.size(); at += size) out.push_back(whole.substr(at, size));
  return out;
}

inline ParsedMessage message_of(const std::vector<DsmlEvent>& events, DsmlMode mode) {
  MessageBuilder builder(mode);
  for (const DsmlEvent& event : events) builder.add(event);
  return builder.finish();
}

// In the shape of the vectors' "expected", whose members come in any order.
inline nlohmann::json expected_message(const TestJson& test_case) {
  return nlohmann::json::parse(test_case.at("expected").dump());
}
inline nlohmann::json to_json(const ParsedMessage& message) {
  nlohmann::json calls = nlohmann::json::array();
  for (const ToolCall& call : message.tool_calls) {
    calls.push_back(
        {{"type", "function"}, {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  return {{"role", "assistant"},
          {"content", message.content},
          {"reasoning_content", message.reasoning_content},
          {"tool_calls", calls}};
}

// The events again, readable in a failure.
inline std::string describe(const std::vector<DsmlEvent>& events) {
  struct Describe {
    std::string operator()(const ReasoningDelta& e) { return "reasoning[" + e.text + "]"; }
    std::string operator()(const ContentDelta& e) { return "content[" + e.text + "]"; }
    std::string operator()(const ToolCallBegin& e) { return "begin[" + e.name + "]"; }
    std::string operator()(const ArgumentDelta& e) { return "arguments[" + e.text + "]"; }
    std::string operator()(const ToolCallEnd&) { return "end"; }
    std::string operator()(const Malformed& e) {
      return std::string("malformed ") + to_string(e.error) + "[" + e.text + "]";
    }
  };
  std::string out;
  for (const DsmlEvent& event : events) out += std::visit(Describe{}, event) + " ";
  return out;
}

}  // namespace hadal::protocol::test
