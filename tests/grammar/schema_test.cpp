// Schemas as grammars: what they admit, what they refuse, and what becomes of impossible ones.
#include "grammar/schema.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "grammar/schema_check.h"
#include "grammar/walk.h"

namespace hadal::grammar {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Case {
  const char* name;
  std::string schema;
  std::vector<std::string> admitted, refused;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> kCases{
      {"types", R"({"type":["string","null"]})", {"\"x\"", "null"}, {"1", "true", "[]"}},
      {"integer", R"({"type":"integer"})", {"0", "-12"}, {"1.5", "1e3", "-"}},
      {"object",
       R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"}},
          "required":["a","b"],"additionalProperties":false})",
       {R"({"a": 1, "b": "x"})", R"({"b":"x","a":1})"},
       {R"({"a": 1})", "{}", R"({"a":1,"b":"x","c":2})", R"({"a":1,"a":1,"b":""})",
        R"({"a":"1","b":"x"})"}},
      {"optional",
       R"({"type":"object","properties":{"a":{"type":"integer"},"ab":{"type":"null"},
          "abc":{"type":"boolean"}},"additionalProperties":false})",
       {"{}", R"({"abc":true})", R"({"ab":null,"abc":false,"a":0})", R"({"a":1, "ab":null})"},
       {R"({"abcd":1})", R"({"":1})", R"({"a":1,})", R"({"a":null})"}},
      {"additional",
       R"({"type":"object","properties":{"é":{"type":"integer"}},
          "additionalProperties":{"type":"boolean"}})",
       {R"({"é":1,"è":true,"x":false})", R"({"":true})", R"({"e":true,"é":1})"},
       {R"({"é":true})", R"({"x":1})", R"({"\u00e9":true})", R"({"é":1,"é":2})"}},
      {"keys with escapes",
       R"({"type":"object","properties":{"a\"b":{"type":"integer"},
          "tab\tkey":{"type":"null"},"\u0001":{"type":"null"}},"additionalProperties":false})",
       {R"({"a\"b":1,"tab\tkey":null,"\u0001":null})"},
       {R"({"a":1})"}},
      {"open by default",
       R"({"type":"object","properties":{"a":{"type":"null"}}})",
       {R"({"a":null,"z":[1,{"y":2}]})", "{}"},
       {R"({"a":1})"}},
      {"required but not declared",
       R"({"type":"object","required":["x"]})",
       {R"({"x":1})", R"({"y":2,"x":1})"},
       {"{}", R"({"y":1})"}},
      {"enum",
       R"({"enum":["red","reddish","gr\"een",3,null,1.5,[1,2],{"a":[]}]})",
       {R"("red")", R"("reddish")", R"("gr\"een")", "3", "null", "1.5", "[1,2]", "[1, 2]",
        R"({"a": []})", R"({"a":[]})"},
       {R"("re")", R"("redd")", "2", "[1]", "[2,1]", "{}"}},
      {"enum of one type", R"({"type":"string","enum":["a",1]})", {"\"a\""}, {"1"}},
      {"const", R"({"const":{"k":"v"}})", {R"({"k":"v"})", R"({ "k" : "v" })"}, {"{}"}},
      {"anyOf",
       R"({"anyOf":[{"type":"integer"},{"type":"object","properties":{"t":{"const":"x"},
          "v":{"type":"string"}},"required":["t","v"],"additionalProperties":false},
          {"type":"object","properties":{"t":{"const":"y"},"v":{"type":"number"}},
          "required":["t","v"],"additionalProperties":false}]})",
       {"5", R"({"t":"x","v":"s"})", R"({"t":"y","v":1.5})", R"({"v":1.5,"t":"y"})"},
       {R"({"t":"x","v":1})", R"({"t":"y","v":"s"})", R"({"v":"s","t":"y"})"}},
      {"anyOf with siblings",
       R"({"type":"object","properties":{"a":{"type":"integer"}},
          "anyOf":[{"required":["a"]},{"properties":{"b":{"type":"null"}},"required":["b"]}]})",
       {R"({"a":1})", R"({"b":null})", R"({"b":null,"a":3})"},
       {"{}", R"({"a":"x"})"}},
      {"allOf",
       R"({"allOf":[{"type":"object","properties":{"a":{"type":"integer"}},
          "required":["a"]},{"properties":{"b":{"type":"string"}},"required":["b"]}],
          "additionalProperties":true})",
       {R"({"a":1,"b":"x"})"},
       {R"({"a":1})", R"({"b":"x"})", R"({"a":1,"b":2})"}},
      {"allOf of bounds",
       R"({"allOf":[{"type":"number"},{"type":"integer","minimum":3},
          {"minimum":5,"maximum":9}]})",
       {"5", "9"},
       {"4", "10", "5.5"}},
      {"references",
       R"({"$ref":"#/$defs/pair","$defs":{"pair":{"type":"array","prefixItems":[
          {"$ref":"#/$defs/n"},{"$ref":"#/$defs/n"}],"items":false,"minItems":2},
          "n":{"type":"integer"}}})",
       {"[1,2]", "[1, -2]"},
       {"[1]", "[1,2,3]", "[\"a\",1]", "[]"}},
      {"a tree",
       R"({"type":"object","properties":{"v":{"type":"integer"},"l":{"anyOf":[
          {"$ref":"#"},{"type":"null"}]},"r":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},
          "required":["v","l","r"],"additionalProperties":false})",
       {R"({"v":1,"l":null,"r":{"v":2,"l":null,"r":null}})"},
       {R"({"v":1})", R"({"v":1,"l":{},"r":null})"}},
      {"items",
       R"({"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":3})",
       {"[1,2]", "[1, 2, 3]"},
       {"[]", "[1]", "[1,2,3,4]", "[1,null]"}},
      {"few items", R"({"type":"array","maxItems":1})", {"[]", "[{}]"}, {"[1,2]"}},
      {"no items", R"({"type":"array","maxItems":0})", {"[]", "[ ]"}, {"[1]"}},
      {"prefix and rest",
       R"({"prefixItems":[{"type":"string"}],"items":{"type":"integer"}})",
       {"[]", "[\"a\"]", "[\"a\",1,2,3]"},
       {"[1]", "[\"a\",\"b\"]"}},
      {"lengths",
       R"({"type":"string","minLength":2,"maxLength":3})",
       {"\"ab\"", "\"äöü\"", R"("\n\u00e9")", R"("\uD83D\uDE00x")", "\"😀😀\""},
       {"\"\"", "\"a\"", "\"abcd\"", R"("\uD83D\uDE00")"}},
      {"at least", R"({"type":"string","minLength":2})", {"\"ab\"", "\"abcdef\""}, {"\"a\""}},
      {"range",
       R"({"type":"integer","minimum":-12,"maximum":105})",
       {"-12", "-9", "-1", "0", "7", "99", "100", "105"},
       {"-13", "-20", "106", "110", "1000"}},
      {"from below",
       R"({"type":"integer","exclusiveMinimum":9})",
       {"10", "11", "99", "12345"},
       {"9", "1", "-10", "0"}},
      {"from above",
       R"({"type":"integer","maximum":-5})",
       {"-5", "-6", "-10", "-555"},
       {"-4", "0", "5", "-1"}},
      {"not negative", R"({"type":"number","minimum":0})", {"0", "0.5", "12e3"}, {"-1"}},
      {"anything", "{}", {"1", "\"a\"", "{\"a\":[]}"}, {}},
      {"descriptions do nothing",
       R"({"type":"null","title":"t","description":"d","default":1,
          "examples":[1],"x-mine":{"pattern":"a"}})",
       {"null"},
       {"1"}},
  };
  return kCases;
}

TEST(Schema, AdmitsWhatItSays) {
  for (const Case& c : cases()) {
    const auto grammar = schema_grammar(c.schema);
    const SchemaCheck check(c.schema);
    for (const std::string& text : c.admitted) {
      EXPECT_TRUE(admits(grammar, text)) << c.name << ": " << text;
      EXPECT_TRUE(check.valid(SchemaCheck::Json::parse(text))) << c.name << ": " << text;
    }
    for (const std::string& text : c.refused) {
      EXPECT_FALSE(admits(grammar, text, false)) << c.name << ": " << text;
    }
  }
}

TEST(Schema, WalksAreValid) {
  for (const Case& c : cases()) {
    // Where any key may come, a random walk does not find the one that has to.
    const std::string_view name = c.name;
    const bool is_too_open =
        name == "required but not declared" || name == "allOf" || name == "anyOf with siblings";
    if (is_too_open) continue;
    const auto grammar = schema_grammar(c.schema);
    const SchemaCheck check(c.schema);
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
      const std::string text = walk(grammar, seed);
      const auto value = SchemaCheck::Json::parse(text, nullptr, false);
      ASSERT_FALSE(value.is_discarded()) << c.name << ": " << text;
      EXPECT_TRUE(check.valid(value)) << c.name << ": " << text;
    }
  }
}

TEST(Schema, IntegerRangesHoldForEveryInteger) {
  for (const auto& [low, high] : {std::pair{-3, 3}, {0, 0}, {7, 12}, {-120, -95}, {98, 203}}) {
    const auto grammar =
        schema_grammar(fmt::format(R"({{"type":"integer","minimum":{},"maximum":{}}})", low, high));
    for (int i = -300; i <= 300; ++i) {
      EXPECT_EQ(admits(grammar, std::to_string(i), false), low <= i && i <= high)
          << i << " in " << low << ".." << high;
    }
  }
}

TEST(Schema, RecursionGoesDownToTheLimitAndUpAgain) {
  const auto grammar = schema_grammar(
      R"({"type":"object","properties":{"next":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},
          "required":["next"],"additionalProperties":false})");
  Matcher matcher(grammar, grammar->root());
  int depth = 0;
  while (matcher.accept_text("{\"next\":")) ASSERT_LT(++depth, 100);
  EXPECT_GE(depth, 60);
  std::string text;
  for (int i = 0; i < depth; ++i) text += "{\"next\":";
  text += "null" + std::string(static_cast<std::size_t>(depth), '}');
  EXPECT_TRUE(admits(grammar, text));
}

// What is optional but would need more depth than is left is not begun.
TEST(Schema, NoMemberIsBegunThatCannotEnd) {
  const auto grammar = schema_grammar(
      R"({"type":"object","properties":{"a":{"$ref":"#"},"deep":{"$ref":"#/$defs/d"}},
          "additionalProperties":false,
          "$defs":{"d":{"type":"array","minItems":1,"items":{"type":"array","minItems":1,
          "items":{"type":"null"}}}}})");
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    Rng rng(seed);
    Matcher matcher(grammar, grammar->root());
    TokenMask mask(bootstrap_tokenizer().vocab_size());
    std::string text;
    for (int i = 0; i < 58; ++i) text += "{\"a\":";
    ASSERT_TRUE(matcher.accept_text(text));
    for (int n = 0; n < 300 && !matcher.complete(); ++n) {
      matcher.fill(mask);
      const std::vector<TokenId> allowed = allowed_tokens(mask);
      ASSERT_FALSE(allowed.empty()) << text;
      const TokenId id = pick(allowed, n < 60 ? 0 : 500, rng);
      text += bootstrap_tokenizer().token_bytes(id);
      ASSERT_TRUE(matcher.accept(id));
    }
    EXPECT_TRUE(SchemaCheck::Json::accept(text)) << text;
  }
}

TEST(Schema, AmbiguityDoesNotMultiply) {
  const auto grammar = schema_grammar(
      R"({"anyOf":[{"type":"object","properties":{"c":{"$ref":"#"}},"additionalProperties":false},
          {"type":"object","properties":{"c":{"$ref":"#"},"x":{"type":"null"}},
          "additionalProperties":false}]})");
  std::string text;
  for (int i = 0; i < 50; ++i) text += "{\"c\":";
  text += "{}";
  for (int i = 0; i < 49; ++i) text += ",\"x\":null}";
  text += "}";
  EXPECT_TRUE(admits(grammar, text, false));
}

TEST(Schema, TenThousandValuesAreNoBurden) {
  std::string schema = R"({"enum":[)";
  for (int i = 0; i < 10000; ++i) schema += fmt::format("{}\"value-{}\"", i == 0 ? "" : ",", i * 7);
  schema += "]}";
  const auto grammar = schema_grammar(schema);
  EXPECT_TRUE(admits(grammar, "\"value-69993\""));
  EXPECT_FALSE(admits(grammar, "\"value-69994\"", false));
}

std::string message_of(const std::string& schema, SchemaMode mode = SchemaMode::strict,
                       GrammarBudget budget = {}) {
  try {
    (void)schema_grammar(schema, mode, budget);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Schema, WhatCannotBeEnforcedIsNamedUnderStrict) {
  for (const char* word : {"pattern", "format", "multipleOf", "patternProperties", "uniqueItems",
                           "not", "if", "minProperties", "contains"}) {
    const std::string schema =
        fmt::format(R"({{"type":"object","properties":{{"p":{{"{}":true}}}}}})", word);
    EXPECT_THAT(message_of(schema),
                AllOf(HasSubstr(fmt::format("'{}'", word)), HasSubstr("#/properties/p")))
        << word;
    EXPECT_EQ(message_of(schema, SchemaMode::tolerant), "") << word;
  }
  EXPECT_THAT(message_of(R"({"type":"number","maximum":1.5})"), HasSubstr("'maximum'"));
  EXPECT_EQ(message_of(R"({"type":"number","maximum":1.5})", SchemaMode::tolerant), "");
  EXPECT_EQ(message_of(R"({"type":"array","uniqueItems":false})"), "");
}

TEST(Schema, MistakesAreNamed) {
  EXPECT_THAT(message_of("{"), HasSubstr("not JSON"));
  EXPECT_THAT(message_of("[]"), HasSubstr("wanted an object or a boolean"));
  EXPECT_THAT(message_of(R"({"type":"strnig"})"), HasSubstr("\"strnig\" is unknown"));
  EXPECT_THAT(message_of(R"({"type":7})"), HasSubstr("7 is unknown"));
  EXPECT_THAT(message_of(R"({"enum":"a"})"), HasSubstr("enum must be a list"));
  EXPECT_THAT(message_of(R"({"anyOf":[]})"), HasSubstr("anyOf must be a list"));
  EXPECT_THAT(message_of(R"({"$ref":"#/nowhere"})"), HasSubstr("leads nowhere"));
  EXPECT_THAT(message_of(R"({"$ref":"other.json"})"), HasSubstr("out of the document"));
  EXPECT_THAT(message_of(R"({"type":"string","minLength":-1})"), HasSubstr("minLength is -1"));
  EXPECT_THAT(message_of(R"({"type":"array","maxItems":"x"})"), HasSubstr("maxItems"));
  EXPECT_THAT(message_of(R"({"properties":[]})"), HasSubstr("properties must be"));
  EXPECT_THAT(message_of(R"({"required":[1]})"), HasSubstr("required must be"));
  EXPECT_THAT(message_of(R"({"minimum":"a"})"), HasSubstr("minimum is \"a\""));
}

TEST(Schema, WhatAdmitsNothingIsSaidSo) {
  for (const char* schema :
       {"false", R"({"enum":[]})", R"({"$ref":"#"})", R"({"type":"string","enum":[1]})",
        R"({"type":"object","properties":{"n":{"$ref":"#"}},"required":["n"]})",
        R"({"type":"object","required":["x"],"additionalProperties":false})",
        R"({"type":"array","items":{"$ref":"#"},"minItems":1})",
        R"({"type":"array","minItems":3,"maxItems":2})",
        R"({"type":"array","prefixItems":[true],"items":false,"minItems":2})",
        R"({"type":"integer","minimum":3,"maximum":2})",
        R"({"type":"string","minLength":3,"maxLength":2})",
        R"({"allOf":[{"type":"string"},{"type":"null"}]})"}) {
    EXPECT_THAT(message_of(schema), HasSubstr("admits no value")) << schema;
  }
  // An optional member that nothing fits just never comes.
  const auto grammar = schema_grammar(
      R"({"type":"object","properties":{"a":false,"b":{"type":"null"}},
          "additionalProperties":false})");
  EXPECT_TRUE(admits(grammar, R"({"b":null})"));
  EXPECT_FALSE(admits(grammar, R"({"a":1})", false));
  for (std::uint64_t seed = 0; seed < 5; ++seed) (void)walk(grammar, seed);
}

TEST(Schema, BombsSpendTheBudgetAndNoMore) {
  std::string doubling = R"({"$defs":{"d0":{"type":"null"})";
  for (int i = 1; i <= 60; ++i) {
    doubling += fmt::format(
        R"(,"d{0}":{{"allOf":[{{"anyOf":[{{"$ref":"#/$defs/d{1}"}},{{"$ref":"#/$defs/d{1}"}}]}},
            {{"minLength":{0}}}]}})",
        i, i - 1);
  }
  doubling += R"(},"$ref":"#/$defs/d60"})";
  std::string nested(5000, '[');
  const GrammarBudget small{.max_states = 20000, .max_time = std::chrono::milliseconds(60000)};
  for (const std::string& schema :
       {doubling, std::string(R"({"type":"string","maxLength":1000000})"),
        std::string(R"({"type":"array","items":{"type":"null"},"minItems":1000000000})"),
        std::string(R"({"allOf":[{"$ref":"#"},{"type":"object"}]})"),
        std::string(R"({"properties":{"a":{"allOf":[{"$ref":"#"},{"required":["a"]}]}}})"),
        R"({"const":)" + nested + std::string(5000, ']') + "}"}) {
    EXPECT_THAT(message_of(schema, SchemaMode::strict, small), HasSubstr("too complex"))
        << schema.substr(0, 100);
  }
  EXPECT_THAT(message_of(R"({"type":"array","minItems":100000000})", SchemaMode::strict,
                         {.max_states = 1U << 30U, .max_time = std::chrono::milliseconds(1)}),
              HasSubstr("too complex"));
}

}  // namespace
}  // namespace hadal::grammar
