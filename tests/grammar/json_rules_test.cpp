// JSON without a schema: what is a value, what is not, and that walks never get stuck.
#include "grammar/json_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "grammar/schema_check.h"
#include "grammar/walk.h"
#include "io/utf8.h"

namespace hadal::grammar {
namespace {

const auto& any_json() {
  static const auto grammar = schema_grammar("true");
  return grammar;
}

TEST(JsonRules, WholeValuesAreAdmitted) {
  for (const char* text : {"null",
                           "true",
                           "false",
                           "0",
                           "-0",
                           "12",
                           "-7.25",
                           "1e5",
                           "1E+05",
                           "2.5e-300",
                           "\"\"",
                           "\"a b\"",
                           R"("\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00")",
                           "\"Grüße, 世界 😀\"",
                           "[]",
                           "[ ]",
                           "[1,2,3]",
                           "[1, 2, 3]",
                           "[1 , 2 ]",
                           "{}",
                           "{ }",
                           R"({"a": 1, "b": [true, null]})",
                           R"({"a":1,"b":[true,null]})",
                           R"({"a" : {"b" : {"c" : []}}})",
                           R"([[[[[[1]]]]]])",
                           "123456789012345678901234567890"}) {
    EXPECT_TRUE(admits(any_json(), text)) << text;
  }
}

TEST(JsonRules, WhatIsNoValueIsRefused) {
  for (const char* text : {"",
                           " 1",
                           "\n1",
                           "nul",
                           "01",
                           "+1",
                           "1.",
                           ".5",
                           "1e",
                           "1e1234",
                           "--1",
                           "'a'",
                           "\"a",
                           "\"\n\"",
                           "\"\x01\"",
                           R"("\x")",
                           R"("\u12")",
                           R"("\uD83D")",
                           R"("\uD83Dx")",
                           R"("\uDE00")",
                           "\"\xFF\"",
                           "\"\xC0\xAF\"",
                           "\"\xED\xA0\x80\"",
                           "\"\xF5\x80\x80\x80\"",
                           "[1",
                           "[,]",
                           "[1,]",
                           "[1 2]",
                           "[1,  2]",
                           "[\n1]",
                           "{\"a\"}",
                           "{\"a\":}",
                           "{\"a\":1,}",
                           "{a:1}",
                           "{\"a\":1 \"b\":2}",
                           "{\"a\":  1}",
                           "1 1",
                           "{} "}) {
    Matcher matcher(any_json(), any_json()->root());
    EXPECT_FALSE(matcher.accept_text(text) && matcher.complete()) << text;
  }
}

TEST(JsonRules, NestingEndsWhereItMust) {
  for (const char* open : {"[", "{\"a\":"}) {
    Matcher matcher(any_json(), any_json()->root());
    int depth = 0;
    while (matcher.accept_text(open)) ASSERT_LT(++depth, 100);
    EXPECT_GE(depth, 60) << open;
    // One less deep, everything can still be closed.
    std::string text;
    for (int i = 0; i < depth; ++i) text += open;
    text += open[0] == '[' ? "" : "1";
    for (int i = 0; i < depth; ++i) text += open[0] == '[' ? "]" : "}";
    EXPECT_TRUE(admits(any_json(), text)) << text;
  }
}

// The model opens brackets as long as it may. All that opens must close.
TEST(JsonRules, MasksAreNeverEmptyAtTheDeepEnd) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Rng rng(seed);
    Matcher matcher(any_json(), any_json()->root());
    TokenMask mask(bootstrap_tokenizer().vocab_size());
    std::string text;
    for (int n = 0; n < 400; ++n) {
      matcher.fill(mask);
      std::vector<TokenId> allowed = allowed_tokens(mask);
      ASSERT_TRUE(!allowed.empty() || matcher.complete()) << text;
      if (allowed.empty()) break;
      TokenId id = pick(allowed, 0, rng);
      for (const char* opener : {"[", "{\"", "{", "\"", ":"}) {
        const auto wanted = bootstrap_tokenizer().token_id(opener);
        if (wanted && mask.allows(*wanted) && rng.next_below(3) > 0) id = *wanted;
      }
      text += bootstrap_tokenizer().token_bytes(id);
      ASSERT_TRUE(matcher.accept(id)) << text;
    }
  }
}

TEST(JsonRules, WalksParse) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const std::string text = walk(any_json(), seed);
    EXPECT_TRUE(SchemaCheck::Json::accept(text)) << text;
    EXPECT_FALSE(io::find_invalid_utf8(text)) << text;
  }
}

TEST(JsonRules, ValuesInTagsNeverSpellTheCloser) {
  const CommonRules& common = common_rules();
  const auto reads = [&](RuleId rule, std::string_view text) {
    Matcher matcher(common.grammar, rule);
    return matcher.accept_text(text);
  };
  const std::string closer = "</｜DSML｜parameter>";
  EXPECT_TRUE(reads(common.json.string, "\"" + closer + "\""));
  EXPECT_FALSE(reads(common.json_in_tags.string, "\"" + closer + "\""));
  EXPECT_FALSE(reads(common.json_in_tags.string, "\"//｜/｜DSML｜parameter\""));
  EXPECT_FALSE(reads(common.json_in_tags.string, "\"\\/｜DSML｜parameter\""));
  EXPECT_TRUE(reads(common.json_in_tags.string, "\"/｜DSML｜paramete/ ｜DSML｜parameter\""));
  EXPECT_TRUE(reads(common.json_in_tags.string, "\"</｜DSML｜invoke>\""));
  // In free text the closer is made of its token; spelt by others it is not let through.
  EXPECT_TRUE(reads(common.text_in_tags, "a </b> </ </｜DSML｜invoke> \n\t"));
  EXPECT_FALSE(reads(common.text_in_tags, "a " + closer));
  Matcher text(common.grammar, common.text_in_tags);
  EXPECT_TRUE(text.accept_text("x </"));
  EXPECT_FALSE(text.complete());
  EXPECT_TRUE(text.accept(*bootstrap_tokenizer().token_id("｜DSML｜")));
  EXPECT_TRUE(text.accept_text("parameter>"));
  EXPECT_TRUE(text.complete());
}

}  // namespace
}  // namespace hadal::grammar
