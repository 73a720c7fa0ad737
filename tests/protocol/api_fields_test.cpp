#include "protocol/api_fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "api_support.h"

namespace hadal::protocol {
namespace {

using test::refusal;
using testing::ElementsAre;
using testing::HasSubstr;

enum class Fruit : std::uint8_t { apple, pear };
constexpr NamedValue<Fruit> kFruits[] = {{.name = "apple", .value = Fruit::apple},
                                         {.name = "pear", .value = Fruit::pear}};

TEST(ApiFields, ReadWhatIsThere) {
  const Json json = Json::parse(
      R"({"t": "text", "b": true, "i": -3, "n": 2, "x": 0.5, "a": [1], "o": {"k": "v"},
          "w": "pear", "null": null})");
  Fields fields(json, "");
  EXPECT_EQ(*fields.text("t"), "text");
  EXPECT_EQ(fields.boolean("b"), true);
  EXPECT_EQ(fields.integer("i", {.min = -3, .max = 3}), -3);
  EXPECT_EQ(fields.number("n", {.min = 0, .max = 2}), 2.0);
  EXPECT_EQ(fields.number("x", {.min = 0, .max = 2}), 0.5);
  EXPECT_EQ(fields.array("a")->size(), 1u);
  EXPECT_EQ(fields.object("o")->required_text("k"), "v");
  EXPECT_EQ(fields.word("w", kFruits), Fruit::pear);
  EXPECT_EQ(fields.text("null"), nullptr);
  EXPECT_EQ(fields.text("missing"), nullptr);
  EXPECT_FALSE(fields.boolean("missing") || fields.integer("missing") || fields.object("missing") ||
               fields.word("missing", kFruits) || fields.number("null", {.min = 0, .max = 1}));
}

TEST(ApiFields, RefusalsNameThePathTheFoundAndTheWanted) {
  const auto read = [](const char* text, auto&& member) {
    const Json json = Json::parse(text);
    return refusal([&] {
      Fields fields(json, "a[2]");
      (void)member(fields);
    });
  };
  const auto text = [](Fields& f) { return f.text("k"); };
  const auto small = [](Fields& f) { return f.integer("k", {.min = 1, .max = 9}); };
  const auto number = [](Fields& f) { return f.number("k", {.min = 0, .max = 2}); };
  EXPECT_EQ(read("3", text), "400 a[2] | a[2]: found 3, wanted an object");
  EXPECT_EQ(read(R"({"k": 17})", text), "400 a[2].k | a[2].k: found 17, wanted a string");
  EXPECT_EQ(read(R"({"k": [1]})", text), "400 a[2].k | a[2].k: found an array, wanted a string");
  EXPECT_EQ(read(R"({"k": null})", [](Fields& f) { return f.required_text("k"); }),
            "400 a[2].k | a[2].k: is missing");
  EXPECT_EQ(read(R"({"k": "yes"})", [](Fields& f) { return f.boolean("k"); }),
            "400 a[2].k | a[2].k: found \"yes\", wanted true or false");
  EXPECT_EQ(read(R"({"k": 10})", small),
            "400 a[2].k | a[2].k: found 10, wanted an integer from 1 to 9");
  EXPECT_EQ(read(R"({"k": 0})", small),
            "400 a[2].k | a[2].k: found 0, wanted an integer from 1 to 9");
  EXPECT_EQ(read(R"({"k": 2.0})", small),
            "400 a[2].k | a[2].k: found 2.0, wanted an integer from 1 to 9");
  EXPECT_EQ(read(R"({"k": 1})", [](Fields& f) { return f.integer("k", {.min = 2}); }),
            "400 a[2].k | a[2].k: found 1, wanted an integer of at least 2");
  EXPECT_EQ(read(R"({"k": 9223372036854775808})", [](Fields& f) { return f.integer("k"); }),
            "400 a[2].k | a[2].k: found 9223372036854775808, wanted an integer of 64 bits");
  EXPECT_EQ(read(R"({"k": 2.5})", number),
            "400 a[2].k | a[2].k: found 2.5, wanted a number from 0 to 2");
  EXPECT_EQ(read(R"({"k": "1"})", number),
            "400 a[2].k | a[2].k: found \"1\", wanted a number from 0 to 2");
  EXPECT_EQ(
      read(R"({"k": 0})",
           [](Fields& f) { return f.number("k", {.min = 0, .max = 1, .without_min = true}); }),
      "400 a[2].k | a[2].k: found 0, wanted a number above 0 and up to 1");
  EXPECT_EQ(read(R"({"k": 0})",
                 [](Fields& f) {
                   return f.number("k", {.min = 0, .max = HUGE_VAL, .without_min = true});
                 }),
            "400 a[2].k | a[2].k: found 0, wanted a number above 0");
  EXPECT_EQ(read(R"({"k": "plum"})", [](Fields& f) { return f.word("k", kFruits); }),
            "400 a[2].k | a[2].k: found \"plum\", wanted one of apple, pear");
}

TEST(ApiFields, NumbersOfAnySizeAreJudged) {
  for (const char* huge : {"1e400", "-1e400", "1e4000"}) {
    const Json json = Json::parse(huge);
    EXPECT_THAT(refusal([&] { (void)number_of(json, "k", {.min = 0, .max = HUGE_VAL}); }),
                HasSubstr("wanted a number of at least 0"))
        << huge;
  }
  const Json integer = Json::parse(std::string(400, '9'));
  EXPECT_THAT(refusal([&] { (void)number_of(integer, "k", {.min = 0, .max = 1}); }),
              HasSubstr("found " + std::string(64, '9') + "..., wanted"));
  EXPECT_THAT(refusal([&] { (void)integer_of(integer, "k", {}); }), HasSubstr("wanted an integer"));
}

TEST(ApiFields, LongValuesAreCutBetweenCharacters) {
  std::string text = std::string(63, 'x') + "é" + std::string(10, 'y');
  EXPECT_EQ(refusal([&] { (void)bool_of(Json(text), "k"); }),
            "400 k | k: found \"" + std::string(63, 'x') + "...\", wanted true or false");
}

TEST(ApiFields, UnknownMembersAreNamedOnceWithoutIndices) {
  const Json json = Json::parse(R"({"known": 1, "x": 2, "ignored": 3})");
  std::vector<std::string> unknown;
  for (const char* path : {"messages[0]", "messages[17]"}) {
    Fields fields(json, path);
    (void)fields.integer("known");
    fields.ignore({"ignored"});
    fields.unknown(unknown);
  }
  EXPECT_THAT(unknown, ElementsAre("messages[].x"));
}

TEST(ApiFields, ManyMembersAreRefused) {
  Json::Object object(257);
  for (std::size_t i = 0; i < object.size(); ++i) object[i].key = std::to_string(i);
  EXPECT_EQ(refusal([&] { Fields(Json(object), ""); }),
            "400 - | the request body: has 257 members; no more than 256 are read");
  object.pop_back();
  const Json json(object);
  Fields fields(json, "");
  std::vector<std::string> unknown;
  fields.unknown(unknown);
  EXPECT_EQ(unknown.size(), 64u);
}

TEST(ApiFields, WhatIsGivenInVainIsRefused) {
  const Json json = Json::parse(R"({"off": false, "null": null, "on": {}})");
  Fields fields(json, "");
  fields.refuse_if_given("off", "why");
  fields.refuse_if_given("null", "why");
  fields.refuse_if_given("missing", "why");
  EXPECT_EQ(refusal([&] { fields.refuse_if_given("on", "is not to be had"); }),
            "400 on | on: is not to be had");
}

}  // namespace
}  // namespace hadal::protocol
