#include "protocol/json_text.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "vectors.h"

namespace hadal::protocol {
namespace {

TEST(JsonText, PrintsAsPythonDoes) {
  const auto vectors = test::load_vectors("json_dump.json");
  ASSERT_EQ(vectors["cases"].size(), 12u);
  for (const auto& c : vectors["cases"]) {
    SCOPED_TRACE(test::text(c, "id"));
    EXPECT_EQ(Json::parse(test::text(c, "source")).dump(), test::text(c, "expected"));
  }
}

TEST(JsonText, FloatsTakePythonsLayout) {
  // python3 -c "import json; print(json.dumps([...]))"
  EXPECT_EQ(Json::parse("[100.0,1.25e2,1e-7,0.00012,12345678901234567890.0,9999999999999998.0,"
                        "0.1e1,2.5e-3,1e-400,-1e-400]")
                .dump(),
            "[100.0, 125.0, 1e-07, 0.00012, 1.2345678901234567e+19, 9999999999999998.0, 1.0, "
            "0.0025, 0.0, -0.0]");
}

TEST(JsonText, LongIntegersKeepTheirDigits) {
  const std::string digits(400, '7');
  EXPECT_EQ(Json::parse(digits).dump(), digits);
  EXPECT_EQ(Json::parse("[-" + digits + "]").dump(), "[-" + digits + "]");
}

TEST(JsonText, LastOfEqualKeysWinsInLongObjectsToo) {
  std::string source = "{", expected = "{";
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 40; ++i) {
      source += '"' + std::to_string(i) + "\":" + std::to_string(i + 100 * round) + ",";
      if (round == 1) {
        expected += '"' + std::to_string(i) + "\": " + std::to_string(i + 100) + ", ";
      }
    }
  }
  source += "\"x\":0}", expected += "\"x\": 0}";
  EXPECT_EQ(Json::parse(source).dump(), expected);
}

TEST(JsonText, RefusesWhatIsNotJson) {
  for (const char* source : {"", "{", "[1,]", "{\"a\":1,}", "nul", "1 2", "'a'", "01", "NaN",
                             "\"\\ud800\"", "\"\xff\"", "\"a\nb\""}) {
    SCOPED_TRACE(source);
    EXPECT_FALSE(Json::try_parse(source).has_value());
    EXPECT_FALSE(is_json(source));
    try {
      static_cast<void>(Json::parse(source));
      ADD_FAILURE() << "no exception";
    } catch (const Error& e) {
      EXPECT_EQ(e.code, ErrorCode::invalid_argument);
      EXPECT_NE(std::string(e.what()).find("column"), std::string::npos) << e.what();
    }
  }
}

TEST(JsonText, RefusesWhatTheParserUnderneathLetsThrough) {
  using namespace std::string_literals;
  for (const std::string& source : {"1\0"s, "{}\0rest"s, "\xEF\xBB\xBF{}"s}) {
    EXPECT_FALSE(is_json(source));
    EXPECT_FALSE(Json::try_parse(source).has_value());
    EXPECT_THROW(static_cast<void>(Json::parse(source)), Error);
  }
}

TEST(JsonText, NestingIsBounded) {
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_EQ(Json::parse(nested(Json::kMaxDepth)).dump(), nested(Json::kMaxDepth));
  EXPECT_FALSE(Json::try_parse(nested(Json::kMaxDepth + 1)).has_value());
  EXPECT_FALSE(Json::try_parse(std::string(1000000, '[')).has_value());
  EXPECT_TRUE(is_json(nested(100000)));  // no tree, no limit
}

TEST(JsonText, TruthIsPythons) {
  for (const char* source : {"null", "false", "0", "-0", "0.0", "\"\"", "[]", "{}"}) {
    EXPECT_FALSE(Json::parse(source).truthy()) << source;
  }
  for (const char* source : {"true", "1", "0.5", "\"0\"", "[0]", "{\"a\":0}"}) {
    EXPECT_TRUE(Json::parse(source).truthy()) << source;
  }
}

TEST(JsonText, EscapedPiecesJoinToTheEscapedWhole) {
  const std::string whole = "a\"b\\c\n\x01\x7fé😀";
  EXPECT_EQ(json_string(whole), "\"a\\\"b\\\\c\\n\\u0001\x7fé😀\"");
  for (std::size_t at = 0; at <= whole.size(); ++at) {
    std::string joined;
    append_json_escaped(joined, whole.substr(0, at));
    append_json_escaped(joined, whole.substr(at));
    EXPECT_EQ('"' + joined + '"', json_string(whole));
  }
}

}  // namespace
}  // namespace hadal::protocol
