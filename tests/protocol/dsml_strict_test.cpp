#include <gtest/gtest.h>

#include "vectors.h"

namespace hadal::protocol {
namespace {

using test::TestJson;

std::vector<TestJson> well_formed() {
  std::vector<TestJson> cases;
  const auto strict = test::load_vectors("parse_strict.json");
  const auto official = test::load_vectors("official_parse.json");
  for (const auto& c : strict["ok"]) cases.push_back(c);
  for (const auto& c : official["cases"]) cases.push_back(c);
  return cases;
}

TEST(DsmlStrict, ReadsWhatThePublishedParserReads) {
  const std::vector<TestJson> cases = well_formed();
  ASSERT_EQ(cases.size(), 24u + 4u);
  for (const TestJson& c : cases) {
    SCOPED_TRACE(test::text(c, "id"));
    const ParsedMessage parsed =
        parse_completion(test::text(c, "text"), test::parse_options(c, DsmlMode::strict));
    EXPECT_FALSE(parsed.error.has_value());
    EXPECT_FALSE(parsed.call_cut_off);
    EXPECT_EQ(test::to_json(parsed), test::expected_message(c));
  }
}

TEST(DsmlStrict, RejectsWhatThePublishedParserRejects) {
  const auto vectors = test::load_vectors("parse_strict.json");
  ASSERT_EQ(vectors["error"].size(), 19u);
  for (const auto& c : vectors["error"]) {
    SCOPED_TRACE(test::text(c, "id"));
    const ParsedMessage parsed =
        parse_completion(test::text(c, "text"), test::parse_options(c, DsmlMode::strict));
    ASSERT_TRUE(parsed.error.has_value());
    EXPECT_EQ(to_string(*parsed.error), test::text(c, "error"));
  }
}

TEST(DsmlStrict, ATurnCutBetweenTagsIsAnError) {
  DsmlOptions options;
  options.mode = DsmlMode::strict;
  options.thinking_mode = ThinkingMode::chat;
  const std::string whole =
      "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" "
      "string=\"false\">1</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
  EXPECT_FALSE(parse_completion(whole, options).error.has_value());
  for (std::size_t n = 0; n < whole.size(); ++n) {
    EXPECT_TRUE(parse_completion(whole.substr(0, n), options).error.has_value()) << n;
  }
}

TEST(DsmlStrict, KeysAndNamesMayHoldQuotesAndBrackets) {
  DsmlOptions options;
  options.mode = DsmlMode::strict;
  options.thinking_mode = ThinkingMode::chat;
  const ParsedMessage parsed = parse_completion(
      "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke  name=\"a\">b\">\n\n<｜DSML｜parameter "
      "name=\"k\">\" "
      "string=\"true\">v</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
      options);
  EXPECT_FALSE(parsed.error.has_value());
  ASSERT_EQ(parsed.tool_calls.size(), 1u);
  EXPECT_EQ(parsed.tool_calls[0].name, "a\">b");
  EXPECT_EQ(parsed.tool_calls[0].arguments, "{\"k\\\">\": \"v\"}");
}

// The text that was not passed on as anything else comes with the error.
TEST(DsmlStrict, MalformedKeepsTheText) {
  DsmlOptions options;
  options.mode = DsmlMode::strict;
  options.thinking_mode = ThinkingMode::chat;
  const ParsedMessage parsed = parse_completion("one<think>two<｜end▁of▁sentence｜>", options);
  EXPECT_EQ(parsed.content, "one");
  EXPECT_EQ(parsed.malformed_text, "<think>two<｜end▁of▁sentence｜>");
  const std::string call = "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\">1";
  EXPECT_EQ(parse_completion("\n\n<｜DSML｜tool_calls>\n" + call, options).malformed_text, call);
}

}  // namespace
}  // namespace hadal::protocol
