// Every vector of tests/vectors/dsml through HTTP: what a model may write, and what a client gets.
#include <fstream>

#include "app_fixture.h"
#include "protocol/dsml_parser.h"

namespace hadal::server {
namespace {

using test::AppTest;
using test::Reply;
using test::sse_events;
using test::TestJson;

TestJson load(const std::string& name) {
  std::ifstream file(std::string(HADAL_TEST_DATA_DIR "/vectors/dsml/") + name);
  return TestJson::parse(file);
}

struct Vector {
  std::string id, text;
  bool thinks = false, tools_declared = true;
  TestJson tools = TestJson::array();     // as a request has them
  std::optional<TestJson> expected = {};  // the message, where the vectors say it
};

void declare(TestJson& tools, const std::string& name, const TestJson& properties) {
  for (const auto& tool : tools) {
    if (tool["function"]["name"] == name) return;
  }
  tools.push_back(
      {{"type", "function"},
       {"function",
        {{"name", name}, {"parameters", {{"type", "object"}, {"properties", properties}}}}}});
}

// "ls(path:string, n:integer)"
void declare_signature(TestJson& tools, const std::string& signature) {
  const std::size_t bracket = signature.find('(');
  TestJson properties = TestJson::object();
  if (bracket != std::string::npos) {
    std::string rest = signature.substr(bracket + 1, signature.size() - bracket - 2);
    while (!rest.empty()) {
      const std::string one = rest.substr(0, rest.find(','));
      const std::size_t colon = one.find(':');
      properties[one.substr(0, colon)] = colon == std::string::npos
                                             ? TestJson::object()
                                             : TestJson{{"type", one.substr(colon + 1)}};
      rest.erase(0, one.size() + 2);
    }
  }
  declare(tools, signature.substr(0, bracket), properties);
}

std::vector<Vector> vectors() {
  std::vector<Vector> out;
  const auto add = [&](const TestJson& c, bool expected) {
    Vector v{.id = c.at("id"), .text = c.at("text"), .thinks = c.at("thinking_mode") == "thinking"};
    if (c.contains("declared_tools")) {
      for (const auto& signature : c["declared_tools"]) declare_signature(v.tools, signature);
    } else {
      constexpr std::string_view kInvoke = "invoke name=\"";
      for (std::size_t at = v.text.find(kInvoke); at != std::string::npos;
           at = v.text.find(kInvoke, at + 1)) {
        const std::size_t begin = at + kInvoke.size();
        const std::size_t end = v.text.find('"', begin);
        if (end == std::string::npos) continue;
        const std::string name = v.text.substr(begin, end - begin);
        const bool usable = !name.empty() && name.size() <= 64 &&
                            name.find_first_not_of(
                                "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTU"
                                "VWXYZ0123456789_-.:") == std::string::npos;
        if (usable) declare(v.tools, name, TestJson::object());
        // A name that no API lets a client declare: then no call of it is read.
        if (!usable) expected = false;
      }
    }
    if (expected) v.expected = c.at("expected");
    out.push_back(std::move(v));
  };
  const TestJson strict = load("parse_strict.json"), tolerant = load("parse_tolerant.json"),
                 official = load("official_parse.json");
  for (const auto& c : strict["ok"]) add(c, true);
  for (const auto& c : strict["error"]) add(c, false);
  for (const auto& c : official["cases"]) add(c, true);
  for (const auto& c : tolerant["cases"]) add(c, true);
  return out;
}

// What the parser makes of the text at once: the judge of every cut of it.
TestJson oracle(const Vector& v) {
  protocol::DsmlOptions options;
  options.thinking_mode =
      v.thinks ? protocol::ThinkingMode::thinking : protocol::ThinkingMode::chat;
  std::vector<protocol::Json> functions;
  for (const auto& tool : v.tools)
    functions.push_back(protocol::Json::parse(tool["function"].dump()));
  options.tools = protocol::declared_tools(functions);
  const auto parsed = protocol::parse_completion(v.text, options);
  TestJson calls = TestJson::array();
  for (const auto& call : parsed.tool_calls) {
    calls.push_back({{"name", call.name}, {"arguments", call.arguments}});
  }
  return {{"content", parsed.content},
          {"reasoning_content", parsed.reasoning_content},
          {"tool_calls", calls}};
}

// The message of a reply, whole or streamed, in the same form.
struct Answer {
  TestJson message = {
      {"content", ""}, {"reasoning_content", ""}, {"tool_calls", TestJson::array()}};
  std::string finish_reason;
};
Answer whole_answer(const std::string& body) {
  Answer answer;
  const TestJson choice = TestJson::parse(body)["choices"][0];
  const auto text = [&](const char* key) {
    const TestJson& message = choice["message"];
    return message.contains(key) && message[key].is_string() ? message[key].get<std::string>() : "";
  };
  answer.message["content"] = text("content");
  answer.message["reasoning_content"] = text("reasoning_content");
  if (choice["message"].contains("tool_calls")) {
    for (const auto& call : choice["message"]["tool_calls"]) {
      answer.message["tool_calls"].push_back(call["function"]);
    }
  }
  answer.finish_reason = choice["finish_reason"];
  return answer;
}
Answer streamed_answer(const std::string& body) {
  Answer answer;
  for (const auto& event : sse_events(body)) {
    if (event.data == "[DONE]") continue;
    const TestJson choice = event.json()["choices"][0];
    const TestJson& delta = choice["delta"];
    for (const char* key : {"content", "reasoning_content"}) {
      if (delta.contains(key)) {
        answer.message[key] =
            answer.message[key].get<std::string>() + delta[key].get<std::string>();
      }
    }
    if (delta.contains("tool_calls")) {
      for (const auto& part : delta["tool_calls"]) {
        TestJson& calls = answer.message["tool_calls"];
        if (part["index"].get<std::size_t>() == calls.size()) {
          calls.push_back({{"name", part["function"]["name"]}, {"arguments", ""}});
        }
        TestJson& call = calls[part["index"].get<std::size_t>()];
        call["arguments"] =
            call["arguments"].get<std::string>() + part["function"]["arguments"].get<std::string>();
      }
    }
    if (choice["finish_reason"].is_string()) answer.finish_reason = choice["finish_reason"];
  }
  return answer;
}

// Ordinary text a byte a token; the special tokens as they are, or spelt out as well.
std::vector<TokenId> finest(const std::string& text, bool spell_specials) {
  std::vector<TokenId> out;
  for (const TokenId id : test::tokenizer().encode(text)) {
    if (id == test::kEos || (test::tokenizer().is_special(id) && !spell_specials)) {
      out.push_back(id);
      continue;
    }
    for (const TokenId byte : test::byte_tokens(std::string(test::tokenizer().token_bytes(id)))) {
      out.push_back(byte);
    }
  }
  return out;
}

class DsmlHttp : public AppTest {};

TEST_F(DsmlHttp, EveryVectorForEveryCut) {
  start();
  const std::vector<Vector> all = vectors();
  ASSERT_EQ(all.size(), 24u + 19 + 4 + 22);
  for (const Vector& v : all) {
    SCOPED_TRACE(v.id);
    const TestJson judged = oracle(v);
    const std::vector<std::vector<TokenId>> cuts = {test::tokenizer().encode(v.text),
                                                    finest(v.text, false), finest(v.text, true)};
    for (std::size_t cut = 0; cut < cuts.size(); ++cut) {
      SCOPED_TRACE(cut);
      draws(cuts[cut]);
      // Vectors of text behind the end: the server never draws it.
      const bool goes_on = std::ranges::find(cuts[cut], test::kEos) != cuts[cut].end() &&
                           cuts[cut].back() != test::kEos;
      for (const bool stream : {false, true}) {
        TestJson body = chat("Hi", stream);
        if (v.thinks) body["thinking"] = {{"type", "enabled"}};
        if (!v.tools.empty()) body["tools"] = v.tools;
        const Reply reply = post("/v1/chat/completions", body);
        ASSERT_EQ(reply.status, 200) << reply.body;
        const Answer answer = stream ? streamed_answer(reply.body) : whole_answer(reply.body);
        EXPECT_TRUE(answer.finish_reason == "stop" || answer.finish_reason == "tool_calls" ||
                    answer.finish_reason == "length")
            << answer.finish_reason;
        if (goes_on) continue;
        TestJson expected = judged;
        if (stream && answer.message["tool_calls"].size() > expected["tool_calls"].size()) {
          // A call that was cut off: begun and left open in a stream, dropped from a whole.
          EXPECT_EQ(answer.message["tool_calls"].size(), expected["tool_calls"].size() + 1);
          expected["tool_calls"] = answer.message["tool_calls"];
        }
        EXPECT_EQ(answer.message, expected);
        if (v.expected) {
          EXPECT_EQ(answer.message["content"], (*v.expected)["content"]);
          EXPECT_EQ(answer.message["reasoning_content"], (*v.expected)["reasoning_content"]);
        }
        if (!judged["tool_calls"].empty() && answer.finish_reason != "length") {
          EXPECT_EQ(answer.finish_reason, "tool_calls");
        }
      }
    }
  }
}

TEST_F(DsmlHttp, CallsHaveIdsAndTheNextTurnTakesResults) {
  says(
      "I look.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"ls\">\n<｜DSML｜parameter "
      "name=\"path\" "
      "string=\"true\">/tmp</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>");
  start();
  TestJson body = chat("List it");
  declare(body["tools"] = TestJson::array(), "ls", {{"path", {{"type", "string"}}}});
  const TestJson answer = TestJson::parse(post("/v1/chat/completions", body).body);
  ASSERT_EQ(answer["choices"][0]["finish_reason"], "tool_calls");
  const TestJson message = answer["choices"][0]["message"];
  EXPECT_EQ(message["tool_calls"][0]["id"].get<std::string>().substr(0, 5), "call_");
  EXPECT_EQ(message["tool_calls"][0]["function"]["arguments"], "{\"path\": \"/tmp\"}");
  body["messages"].push_back(message);
  body["messages"].push_back(
      {{"role", "tool"}, {"tool_call_id", message["tool_calls"][0]["id"]}, {"content", "a b c"}});
  EXPECT_EQ(post("/v1/chat/completions", body).status, 200);
}

}  // namespace
}  // namespace hadal::server
