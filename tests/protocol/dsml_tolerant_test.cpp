#include <gtest/gtest.h>

#include "vectors.h"

namespace hadal::protocol {
namespace {

using test::TestJson;

constexpr const char* kEos = "<｜end▁of▁sentence｜>";

DsmlOptions options_of(const TestJson& c) {
  DsmlOptions options = test::parse_options(c, DsmlMode::tolerant);
  for (const auto& signature : c["declared_tools"]) {
    options.tools.push_back(test::tool_from_signature(signature.get<std::string>()));
  }
  return options;
}

ParsedMessage parse(const std::string& text, ThinkingMode mode = ThinkingMode::chat,
                    std::vector<DeclaredTool> tools = {{"ls", {{"path", "string"}}}}) {
  DsmlOptions options;
  options.thinking_mode = mode;
  options.tools = std::move(tools);
  return parse_completion(text, options);
}

// <｜DSML｜invoke name="ls"> with one parameter, and optionally its wrapper.
std::string ls_invoke(const std::string& path = "/srv") {
  return "<｜DSML｜invoke name=\"ls\">\n<｜DSML｜parameter name=\"path\" string=\"true\">" + path +
         "</｜DSML｜parameter>\n</｜DSML｜invoke>";
}
std::string ls_block(const std::string& path = "/srv") {
  return "<｜DSML｜tool_calls>\n" + ls_invoke(path) + "\n</｜DSML｜tool_calls>";
}

std::string rules(const ParsedMessage& message) {
  std::string out;
  for (std::size_t rule = 0; rule < message.recoveries.size(); ++rule) {
    if (message.recoveries[rule] > 0) out.append("R").append(std::to_string(rule)).append(" ");
  }
  return out;
}

TEST(DsmlTolerant, Vectors) {
  const auto vectors = test::load_vectors("parse_tolerant.json");
  ASSERT_EQ(vectors["cases"].size(), 22u);
  for (const auto& c : vectors["cases"]) {
    SCOPED_TRACE(test::text(c, "id"));
    const ParsedMessage parsed = parse_completion(test::text(c, "text"), options_of(c));
    EXPECT_EQ(test::to_json(parsed), test::expected_message(c));
    EXPECT_FALSE(parsed.error.has_value());

    // "R1 separator optional" needs R1; "R3 negative" and R18 say what must not be recovered.
    const std::string rule = test::text(c, "rule");
    const std::string used = rules(parsed);
    if (rule.find("negative") == std::string::npos && !rule.starts_with("R18")) {
      EXPECT_NE(used.find(rule.substr(0, rule.find(' ')) + " "), std::string::npos) << used;
    } else {
      EXPECT_EQ(used, "");
    }
  }
}

TEST(DsmlTolerant, ReadsWellFormedTextAsStrictDoesAndNeedsNoRule) {
  for (const char* file : {"parse_strict.json", "official_parse.json"}) {
    const auto vectors = test::load_vectors(file);
    for (const auto& c : vectors.contains("ok") ? vectors["ok"] : vectors["cases"]) {
      SCOPED_TRACE(test::text(c, "id"));
      DsmlOptions options = test::parse_options(c, DsmlMode::tolerant);
      test::declare_called(test::text(c, "text"), options);
      if (options.tools.empty()) options.tools.push_back({"other", {}});
      const ParsedMessage parsed = parse_completion(test::text(c, "text"), options);
      EXPECT_EQ(test::to_json(parsed), test::expected_message(c));
      EXPECT_EQ(rules(parsed), "");
    }
  }
}

TEST(DsmlTolerant, HandlesEveryStrictError) {
  struct Outcome {
    const char* id;
    const char* rules;
    std::size_t n_calls;
    const char* content;
  };
  // b18: nothing repairs it, so the call is text.
  constexpr Outcome kOutcomes[] = {
      {"b01-no-think-end", "", 0, ""},
      {"b02-call-inside-thinking", "R6 ", 1, ""},
      {"b03-missing-eos", "", 0, "Hi."},
      {"b04-glue-space", "R2 ", 1, ""},
      {"b05-indented-tags", "R2 ", 1, ""},
      {"b06-param-missing-string-attr", "R12 ", 1, ""},
      {"b07-string-attr-bad-value", "R12 ", 1, ""},
      {"b08-duplicate-parameter", "R14 ", 1, ""},
      {"b09-text-after-block", "R15 ", 1, "Done."},
      {"b10-text-after-eos", "", 0, "Hi."},
      {"b11-think-tag-in-content", "", 0, "a<think>b"},
      {"b12-second-think-end", "", 0, "b</think>c"},
      {"b13-dsml-literal-in-content", "", 0, "the token ｜DSML｜ is special"},
      {"b14-single-newline-before-block", "R1 ", 1, "a"},
      {"b15-direct-json-body", "R10 ", 1, ""},
      {"b16-v32-wrapper", "R19 ", 1, ""},
      {"b17-unclosed-parameter", "R17 ", 0, ""},
      {"b18-value-contains-closer", "", 0,
       "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"s\" "
       "string=\"true\">a</｜DSML｜parameter>"
       "b</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"},
      {"b19-longer-tag-name-in-value", "", 1, ""},
  };
  const auto vectors = test::load_vectors("parse_strict.json");
  ASSERT_EQ(vectors["error"].size(), std::size(kOutcomes));
  for (std::size_t i = 0; i < std::size(kOutcomes); ++i) {
    const auto& c = vectors["error"][i];
    SCOPED_TRACE(kOutcomes[i].id);
    ASSERT_EQ(test::text(c, "id"), kOutcomes[i].id);
    DsmlOptions options = test::parse_options(c, DsmlMode::tolerant);
    test::declare_called(test::text(c, "text"), options);
    const ParsedMessage parsed = parse_completion(test::text(c, "text"), options);
    EXPECT_EQ(rules(parsed), kOutcomes[i].rules);
    EXPECT_EQ(parsed.tool_calls.size(), kOutcomes[i].n_calls);
    EXPECT_EQ(parsed.content, kOutcomes[i].content);
  }
}

TEST(DsmlTolerant, WithoutToolsTagsAreText) {
  const ParsedMessage parsed = parse("Go.\n\n" + ls_block() + kEos, ThinkingMode::chat, {});
  EXPECT_EQ(parsed.content, "Go.\n\n" + ls_block());
  EXPECT_TRUE(parsed.tool_calls.empty());
  // R16 holds also then.
  EXPECT_EQ(parse("Go.\n</｜DSML｜invoke>\n" + std::string(kEos), ThinkingMode::chat, {}).content,
            "Go.");
}

TEST(DsmlTolerant, AWrapperWithoutACallIsText) {
  for (const std::string text :
       {"The tag <｜DSML｜tool_calls> opens a block.", "See\n\n<｜DSML｜tool_calls>\nnothing",
        "`<｜DSML｜tool_calls>`", "<｜DSML｜tool_calls>"}) {
    const ParsedMessage parsed = parse(text + kEos);
    EXPECT_EQ(parsed.content, text);
    EXPECT_EQ(rules(parsed), "");
  }
  // One false start does not hide the call behind it.
  const ParsedMessage parsed = parse("Like <｜DSML｜tool_calls>\n\n" + ls_block() + kEos);
  EXPECT_EQ(parsed.content, "Like <｜DSML｜tool_calls>");
  EXPECT_EQ(parsed.tool_calls.size(), 1u);
}

TEST(DsmlTolerant, DialectsNeedADeclaredName) {
  for (const std::string mark : {"｜｜DSML｜｜", "|DSML|", "‖DSML‖", "DSML｜"}) {
    std::string block = "\n\n" + ls_block();
    for (std::size_t at = block.find("｜DSML｜"); at != std::string::npos;
         at = block.find("｜DSML｜", at + mark.size())) {
      block.replace(at, std::string("｜DSML｜").size(), mark);
    }
    SCOPED_TRACE(mark);
    const ParsedMessage called = parse("a" + block + kEos);
    ASSERT_EQ(called.tool_calls.size(), 1u);
    EXPECT_EQ(called.tool_calls[0].arguments, "{\"path\": \"/srv\"}");
    EXPECT_EQ(rules(called), "R9 ");
    const ParsedMessage text = parse("a" + block + kEos, ThinkingMode::chat, {{"other", {}}});
    EXPECT_EQ(text.content, "a" + block);
    // R18: nor in code.
    EXPECT_EQ(parse("```\n" + block + kEos).content, "```\n" + block);
  }
}

TEST(DsmlTolerant, CallsInReasoning) {
  const std::string text = "plan\n\n" + ls_block() + "\n</think>\n\nDone." + kEos;
  const ParsedMessage parsed = parse(text, ThinkingMode::thinking);
  EXPECT_EQ(parsed.reasoning_content, "plan");
  EXPECT_EQ(parsed.tool_calls.size(), 1u);
  EXPECT_EQ(parsed.content, "Done.");  // the late closer goes with the reasoning

  // Undeclared: it is reasoning.
  const ParsedMessage undeclared = parse(text, ThinkingMode::thinking, {{"other", {}}});
  EXPECT_EQ(undeclared.reasoning_content, "plan\n\n" + ls_block() + "\n");
  EXPECT_EQ(undeclared.content, "\n\nDone.");

  DsmlOptions options;
  options.in_reasoning = DsmlInReasoning::text;
  options.tools = {{"ls", {}}};
  EXPECT_EQ(parse_completion(text, options).reasoning_content, "plan\n\n" + ls_block() + "\n");
}

TEST(DsmlTolerant, OpenThingsAreClosedByWhatFollows) {
  // Wrapper end missing, then text; invoke end missing, then another invoke; both, then the end.
  const ParsedMessage text_follows =
      parse("\n\n<｜DSML｜tool_calls>\n" + ls_invoke() + "\nDone." + kEos);
  EXPECT_EQ(text_follows.tool_calls.size(), 1u);
  EXPECT_EQ(text_follows.content, "Done.");
  EXPECT_EQ(rules(text_follows), "R4 R15 ");

  const std::string open_invoke =
      "<｜DSML｜invoke name=\"ls\">\n<｜DSML｜parameter name=\"path\" "
      "string=\"true\">a</｜DSML｜parameter>\n";
  const ParsedMessage two = parse("\n\n<｜DSML｜tool_calls>\n" + open_invoke + open_invoke + kEos);
  ASSERT_EQ(two.tool_calls.size(), 2u);
  EXPECT_EQ(two.tool_calls[1].arguments, "{\"path\": \"a\"}");
  EXPECT_EQ(rules(two), "R4 R5 ");
}

TEST(DsmlTolerant, ACutTurnLeavesTheOpenCallOut) {
  const std::string whole = "Go.\n\n" + ls_block();
  const std::size_t separator = whole.find('\n');
  const std::size_t opened = whole.find("tool_calls>") + std::string("tool_calls>").size();
  const std::size_t closed =
      whole.find("</｜DSML｜invoke>") + std::string("</｜DSML｜invoke>").size();
  for (std::size_t n = 0; n <= whole.size(); ++n) {
    SCOPED_TRACE(n);
    const ParsedMessage parsed = parse(whole.substr(0, n));
    EXPECT_EQ(parsed.tool_calls.size(), n >= closed ? 1u : 0u);
    if (n >= opened) {
      EXPECT_EQ(parsed.content, "Go.");
    } else if (n <= separator) {
      EXPECT_EQ(parsed.content, whole.substr(0, n));
    }
  }
  // The same when the token that ends the turn is sampled inside a value.
  const ParsedMessage stopped = parse(whole.substr(0, whole.find("/srv") + 3) + kEos);
  EXPECT_TRUE(stopped.call_cut_off);
  EXPECT_EQ(rules(stopped), "R17 ");
}

TEST(DsmlTolerant, EosInsideAValueIsDataIfMoreFollows) {
  const std::string path = std::string("a") + kEos + "b";
  const ParsedMessage parsed = parse("\n\n" + ls_block(path) + kEos);
  ASSERT_EQ(parsed.tool_calls.size(), 1u);
  EXPECT_EQ(parsed.tool_calls[0].arguments, "{\"path\": \"" + path + "\"}");
}

TEST(DsmlTolerant, OrphanClosersGoOnlyAtTheEnd) {
  EXPECT_EQ(parse(std::string("a\n\n</｜DSML｜invoke> \n</｜DSML｜tool_calls>\n") + kEos).content,
            "a");
  EXPECT_EQ(parse("a</｜DSML｜invoke>").content, "a");
  const std::string quoted = "write </｜DSML｜invoke> to close";
  EXPECT_EQ(parse(quoted + kEos).content, quoted);
  // Closers behind a call that was read go too.
  const ParsedMessage parsed = parse("\n\n" + ls_block() + "\n</｜DSML｜tool_calls>" + kEos);
  EXPECT_EQ(parsed.content, "");
  EXPECT_EQ(rules(parsed), "R16 ");
  // A block that follows them is read.
  EXPECT_EQ(parse("a</｜DSML｜invoke>\n\n" + ls_block() + kEos).tool_calls.size(), 1u);
}

TEST(DsmlTolerant, ValuesTakeTheirTypeFromWhereItIsKnown) {
  const auto arguments = [](const std::string& parameter, const char* signature) {
    const ParsedMessage parsed = parse("\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n" +
                                           parameter + "\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
                                       ThinkingMode::chat, {test::tool_from_signature(signature)});
    return parsed.tool_calls.empty() ? parsed.content : parsed.tool_calls[0].arguments;
  };
  const auto parameter = [](const std::string& attributes, const std::string& value) {
    return "<｜DSML｜parameter " + attributes + ">" + value + "</｜DSML｜parameter>";
  };
  // R12
  EXPECT_EQ(arguments(parameter("name=\"n\"", "5"), "f"), "{\"n\": 5}");
  EXPECT_EQ(arguments(parameter("name=\"n\"", "five"), "f"), "{\"n\": \"five\"}");
  EXPECT_EQ(arguments(parameter("name=\"n\"", "5"), "f(n:string)"), "{\"n\": \"5\"}");
  // R11: only when the schema knows every key, and not the wrapper
  const std::string wrapped = parameter("name=\"input\" string=\"true\"", "{\"a\": 1}");
  EXPECT_EQ(arguments(wrapped, "f(a, b)"), "{\"a\": 1}");
  EXPECT_EQ(arguments(wrapped, "f(b)"), "{\"input\": \"{\\\"a\\\": 1}\"}");
  EXPECT_EQ(arguments(wrapped, "f(a, input)"), "{\"input\": \"{\\\"a\\\": 1}\"}");
  EXPECT_EQ(arguments(wrapped, "f"), "{\"input\": \"{\\\"a\\\": 1}\"}");
  EXPECT_EQ(arguments(wrapped + "\n" + parameter("name=\"b\" string=\"false\"", "2"), "f(a, b)"),
            "{\"input\": \"{\\\"a\\\": 1}\", \"b\": 2}");
  EXPECT_EQ(arguments(parameter("name=\"arguments\" string=\"false\"", "{\"a\":1}"), "f(a)"),
            "{\"a\":1}");
  // R13, R14
  EXPECT_EQ(arguments(parameter("name=\"n\" string=\"false\"", ""), "f"), "{\"n\": \"\"}");
  EXPECT_EQ(arguments(parameter("name=\"n\" string=\"false\"", "1") + "\n" +
                          parameter("name=\"n\" string=\"true\"", "2"),
                      "f"),
            "{\"n\": 1}");
}

TEST(DsmlTolerant, DeclaredToolsComeFromTheRequest) {
  const DeclaredTool tool = declared_tool(Json::parse(
      R"({"name": "f", "parameters": {"properties": {"a": {"type": "string"}, "b": {"type": ["x"]},
          "c": {}}}})"));
  EXPECT_EQ(tool.name, "f");
  ASSERT_EQ(tool.properties.size(), 3u);
  EXPECT_EQ(tool.find("a")->type, "string");
  EXPECT_EQ(tool.find("b")->type, "");
  EXPECT_EQ(tool.find("d"), nullptr);
  EXPECT_TRUE(declared_tool(Json::parse("{}")).name.empty());
}

}  // namespace
}  // namespace hadal::protocol
