#include "io/pretokenizer.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "io/tokenizer_spec.h"

namespace hadal::io {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> split(const std::vector<std::string>& patterns, std::string_view text) {
  std::vector<SplitRegex> stages;
  for (const std::string& pattern : patterns) stages.emplace_back(pattern);
  RegexScratch scratch;
  std::vector<std::string> pieces;
  Pretokenizer(std::move(stages)).split(text, scratch, [&](std::string_view piece) {
    pieces.emplace_back(piece);
  });
  return pieces;
}

std::vector<std::string> deepseek_patterns() {
  return parse_tokenizer_spec(read_text(HADAL_SOURCE_DIR "/models/hadal-bootstrap/tokenizer.json"))
      .split_patterns;
}

// tests/vectors/dsml/pretokenize.json: pieces after the three Split stages, computed by another
// implementation.
TEST(Pretokenizer, MatchesTheDeepSeekVectors) {
  const auto vectors = nlohmann::json::parse(
      read_text(HADAL_TEST_DATA_DIR "/vectors/dsml/pretokenize.json"))["cases"];
  ASSERT_EQ(vectors.size(), 32u);
  const auto patterns = deepseek_patterns();
  for (const auto& item : vectors) {
    EXPECT_EQ(split(patterns, item["text"].get<std::string>()),
              item["pieces"].get<std::vector<std::string>>())
        << item["id"];
  }
}

TEST(Pretokenizer, StagesNest) {
  // The second stage sees the spaces alone: \s+(?!\S) takes both, where over the whole text it
  // would leave one for what follows.
  EXPECT_THAT(split({R"(\p{N}+)", R"(\s+(?!\S)|\s)"}, "a  12"), ElementsAre("a", "  ", "12"));
  EXPECT_THAT(split({R"(\s+(?!\S)|\s)"}, "a  12"), ElementsAre("a", " ", " ", "12"));
  // Nor does a lookbehind see past its piece.
  EXPECT_THAT(split({"b", "(?<=b)c|c"}, "abcc"), ElementsAre("a", "b", "c", "c"));
  EXPECT_THAT(split({"b", "(?<=b)c"}, "abcc"), ElementsAre("a", "b", "cc"));
}

TEST(Pretokenizer, WithoutStagesTextIsOnePiece) {
  EXPECT_THAT(split({}, "a b"), ElementsAre("a b"));
  EXPECT_THAT(split({}, ""), ElementsAre());
  EXPECT_THAT(split(deepseek_patterns(), ""), ElementsAre());
}

TEST(Pretokenizer, AMatchOfNothingCutsAndGoesOn) {
  EXPECT_THAT(split({"x*"}, "好axxb"), ElementsAre("好", "a", "xx", "b"));
  EXPECT_THAT(split({"(?=b)"}, "abb"), ElementsAre("a", "b", "b"));
  EXPECT_THAT(split({"$"}, "a\nb"), ElementsAre("a", "\nb"));  // at every line, as in Ruby
}

TEST(Pretokenizer, ByteLevelPatternIsGpt2s) {
  EXPECT_THAT(split({std::string(kByteLevelPattern)}, "I'd've said  it's 12½%!\n x"),
              ElementsAre("I", "'d", "'ve", " said", " ", " it", "'s", " 12½", "%!", "\n", " x"));
}

TEST(Pretokenizer, LongRunsTakeLinearTime) {
  // A quadratic splitter or a stack per character would not come back from these.
  const auto patterns = deepseek_patterns();
  EXPECT_EQ(split(patterns, std::string(2'000'000, 'a')).size(), 1u);
  EXPECT_EQ(split(patterns, std::string(2'000'000, ' ') + "a").size(), 2u);
  EXPECT_EQ(split(patterns, std::string(300'000, '1')).size(), 100'000u);
  EXPECT_EQ(split(patterns, std::string(2'000'000, '=')).size(), 1u);
  EXPECT_EQ(split(patterns, std::string(300'000, '\x01')).size(), 1u);
}

// ---- the regex dialect --------------------------------------------------------------------------

bool matches(const std::string& pattern, std::string_view text) {
  RegexScratch scratch;
  return SplitRegex(pattern).find(text, 0, scratch).has_value();
}

TEST(SplitRegex, SpaceIsUnicodeWhiteSpace) {
  const std::vector<std::string> spaces = {
      "\t",     "\n",     "\v",     "\f",     "\r",     " ",      "\u0085", "\u00A0", "\u1680",
      "\u2000", "\u2005", "\u200A", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};
  const std::vector<std::string> others = {
      "\u180E", "\u200B", "\u2060", "\uFEFF", "\u001C", "\u001F", "\u0084", "\u0086",
      "\u2027", "\u202A", "\u2FFF", "\u3001", "a",      "é",      "😀",     "\U0010FFFF"};
  for (const char* space : {R"(\s)", R"([\s])", R"([x\s])", R"([^\S])"}) {
    for (const auto& c : spaces)
      EXPECT_TRUE(matches(space, c)) << space << " " << testing::PrintToString(c);
    for (const auto& c : others)
      EXPECT_FALSE(matches(space, c)) << space << " " << testing::PrintToString(c);
  }
  for (const char* other : {R"(\S)", R"([\S])", R"([^\s])"}) {
    for (const auto& c : spaces)
      EXPECT_FALSE(matches(other, c)) << other << " " << testing::PrintToString(c);
    for (const auto& c : others)
      EXPECT_TRUE(matches(other, c)) << other << " " << testing::PrintToString(c);
  }
}

TEST(SplitRegex, ClassesAreUnicode) {
  EXPECT_TRUE(matches(R"(\d)", "३"));
  EXPECT_FALSE(matches(R"(\d)", "½"));
  EXPECT_TRUE(matches(R"(\p{N})", "½"));
  EXPECT_TRUE(matches(R"(\p{Lu})", "Ё"));
  EXPECT_TRUE(matches(R"((?i:É))", "é"));
  EXPECT_TRUE(matches(R"(\u4E00)", "一"));
  EXPECT_TRUE(matches(R"(^[\x{4E00}-\x{9FA5}]+$)", "一龥"));
  EXPECT_FALSE(matches(".", "\n"));
  EXPECT_TRUE(matches("^.$", "\r"));
}

TEST(SplitRegex, TakesPatternsOfOtherTokenizers) {
  for (
      const char* pattern :
      {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
       R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*)",
       R"([^\r\n\p{L}\p{N}]?+\p{L}+|\s++$)", R"((?:^|\A)(?<!x)(?<=y)?(?>a|b)(?=c)\z)"}) {
    EXPECT_NO_THROW(SplitRegex{pattern}) << pattern;
  }
}

TEST(SplitRegex, RefusesWhatThePcreWouldReadDifferently) {
  for (const char* pattern :
       {R"(\w+)",     R"([\W])",        R"(a\b)",    R"(\h)",     R"(\v)",
        R"(\R)",      R"(\K)",          R"(\C)",     R"(\G)",     R"(\1)",
        R"([a[bc]])", R"([[:alpha:]])", R"([a&&b])", R"([])",     R"(a{,3})",
        R"(a{2}+)",   R"(a{2}?)",       R"((?m:a))", R"((?x) a)", R"((?<n>a))",
        R"((*UTF)a)", R"((?C1)a)",      R"(\xE9)",   R"(\pL)",    R"(\u12)"}) {
    try {
      SplitRegex regex(pattern);
      ADD_FAILURE() << pattern << " was accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code, ErrorCode::unsupported) << pattern;
      EXPECT_THAT(e.what(), HasSubstr(pattern));
    }
  }
}

TEST(SplitRegex, RefusesWhatDoesNotCompile) {
  for (const char* pattern : {"(", "[a", "a)", R"(\p{Nonsense})", R"(\p{L)", "a\\", R"(\x{110000})",
                              R"(\x{)", "(?<=a*)b", "*"}) {
    EXPECT_THROW(SplitRegex{pattern}, Error) << pattern;
  }
  EXPECT_THROW(SplitRegex{std::string(1 << 20, 'a')}, Error);
}

TEST(SplitRegex, GivesUpOnEndlessBacktracking) {
  const SplitRegex regex("(a+)+[bc]");
  RegexScratch scratch;
  try {
    (void)regex.find(std::string(80, 'a') + "d", 0, scratch);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::unsupported);
    EXPECT_THAT(e.what(), HasSubstr("gave up on a text of 81 bytes"));
  }
}

TEST(SplitRegex, EscapedTextMatchesItself) {
  const std::string text = R"(a.b*c+?^$|(x)[y]{1}\d ▁)";
  RegexScratch scratch;
  const auto span = SplitRegex(escape_regex(text)).find("__" + text + "__", 0, scratch);
  ASSERT_TRUE(span);
  EXPECT_EQ(span->begin, 2u);
  EXPECT_EQ(span->end, 2 + text.size());
}

}  // namespace
}  // namespace hadal::io
