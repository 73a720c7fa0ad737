#include "io/tokenizer.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "io/utf8.h"
#include "tiny_tokenizer.h"

namespace hadal::io {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Case {
  std::string text;
  std::vector<TokenId> ids;
};

// tests/golden/tokenizer/hf_bootstrap_ids.json: what PyPI tokenizers says of 600 difficult texts;
// written by tests/oracle/tokenizer_oracle.py.
const std::vector<Case>& golden_cases() {
  static const std::vector<Case> cases = [] {
    const auto json = nlohmann::json::parse(
        read_text(HADAL_TEST_DATA_DIR "/golden/tokenizer/hf_bootstrap_ids.json"));
    std::vector<Case> result;
    for (const auto& item : json["cases"]) {
      result.push_back({item["text"].get<std::string>(), item["ids"].get<std::vector<TokenId>>()});
    }
    return result;
  }();
  return cases;
}

const Tokenizer& bootstrap() {
  static const Tokenizer tokenizer =
      Tokenizer::load(HADAL_SOURCE_DIR "/models/hadal-bootstrap/tokenizer.json");
  return tokenizer;
}

Tokenizer tiny(const std::vector<std::pair<std::string, std::string>>& merges = {},
               const std::vector<std::string>& added = {}) {
  return Tokenizer::parse(tiny_tokenizer_json(merges, added).dump());
}

TEST(Tokenizer, MatchesHuggingFaceOnTheBootstrapVocabulary) {
  ASSERT_EQ(golden_cases().size(), 600u);
  for (const Case& item : golden_cases()) {
    EXPECT_EQ(bootstrap().encode(item.text), item.ids) << testing::PrintToString(item.text);
  }
}

TEST(Tokenizer, DecodesToTheTextItEncoded) {
  for (const Case& item : golden_cases()) {
    EXPECT_EQ(bootstrap().decode(bootstrap().encode(item.text)), item.text);
    EXPECT_EQ(bootstrap().decode(bootstrap().encode(item.text, SpecialTokens::ignore)), item.text);
  }
}

TEST(Tokenizer, TokensStreamToTheText) {
  for (const Case& item : golden_cases()) {
    Utf8Stream stream;
    std::string text;
    for (const TokenId id : item.ids) {
      const std::string part = stream.feed(bootstrap().token_bytes(id));
      ASSERT_EQ(find_invalid_utf8(part), std::nullopt);
      text += part;
    }
    EXPECT_EQ(text + stream.finish(), item.text);
  }
}

TEST(Tokenizer, KnowsTheBootstrapVocabulary) {
  const Tokenizer& t = bootstrap();
  EXPECT_EQ(t.vocab_size(), 8192);
  EXPECT_EQ(t.n_added_tokens(), 20u);
  EXPECT_EQ(t.token_id("<｜begin▁of▁sentence｜>"), 0);
  EXPECT_EQ(t.token_id("<｜User｜>"), 8179);
  EXPECT_EQ(t.token_bytes(8182), "</think>");
  EXPECT_TRUE(t.is_special(8182));
  EXPECT_FALSE(t.is_special(8174));
  EXPECT_FALSE(t.is_special(-1));
  EXPECT_FALSE(t.is_special(8192));
  EXPECT_EQ(t.token_id("no such token"), std::nullopt);
  EXPECT_EQ(t.token_id(""), std::nullopt);
  for (TokenId id = 0; id < t.vocab_size(); ++id) EXPECT_EQ(t.token_id(t.token_bytes(id)), id);
}

TEST(Tokenizer, DecodeCanLeaveSpecialTokensOut) {
  const std::string text = "<｜User｜>Hi<｜Assistant｜></think>Hello<｜end▁of▁sentence｜>";
  const auto ids = bootstrap().encode(text);
  EXPECT_EQ(bootstrap().decode(ids), text);
  EXPECT_EQ(bootstrap().decode(ids, SpecialTokens::ignore), "HiHello");
}

TEST(Tokenizer, ReadingATextTwiceOrFromThreadsGivesTheSame) {
  std::vector<std::thread> threads;
  std::vector<int> differences(4, 0);
  for (std::size_t t = 0; t < differences.size(); ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = 0; i < 2 * golden_cases().size(); ++i) {
        const Case& item = golden_cases()[(i * (t + 1)) % golden_cases().size()];
        if (bootstrap().encode(item.text) != item.ids) ++differences[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(differences, ElementsAre(0, 0, 0, 0));
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  try {
    (void)bootstrap().encode("caf\xE9 au lait");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::invalid_argument);
    EXPECT_THAT(e.what(), HasSubstr("byte 3 of 12 is 0xE9"));
  }
  const std::vector<TextSegment> segments = {{"ab", true}, {"\xE4", false}, {"\xBD\xA0", true}};
  EXPECT_EQ(bootstrap().decode(bootstrap().encode(segments)), "ab你");  // whole once joined
}

TEST(Tokenizer, RefusesIdsThatAreNoTokens) {
  for (const TokenId id : {-1, 8192, INT32_MIN, INT32_MAX}) {
    try {
      (void)bootstrap().token_bytes(id);
      FAIL() << id;
    } catch (const Error& e) {
      EXPECT_EQ(e.code, ErrorCode::invalid_argument);
      EXPECT_THAT(e.what(), HasSubstr("from 0 to 8191"));
    }
  }
  EXPECT_THROW((void)bootstrap().decode(std::vector<TokenId>{5, 9000}), Error);
}

// ---- segments -----------------------------------------------------------------------------------

TEST(TokenizerSegments, CuttingTrustedTextChangesNothing) {
  std::mt19937 random(11);
  for (const Case& item : golden_cases()) {
    const std::size_t a = random() % (item.text.size() + 1);
    const std::size_t b = a + random() % (item.text.size() + 1 - a);
    const std::vector<TextSegment> segments = {{item.text.substr(0, a), true},
                                               {"", false},
                                               {item.text.substr(a, b - a), true},
                                               {item.text.substr(b), true}};
    EXPECT_EQ(bootstrap().encode(segments), item.ids) << testing::PrintToString(item.text);
  }
}

TEST(TokenizerSegments, UntrustedTextIsWhatIgnoringSaysHoweverCut) {
  std::mt19937 random(12);
  for (const Case& item : golden_cases()) {
    const std::size_t a = random() % (item.text.size() + 1);
    const std::vector<TextSegment> segments = {{item.text.substr(0, a), false},
                                               {item.text.substr(a), false}};
    EXPECT_EQ(bootstrap().encode(segments), bootstrap().encode(item.text, SpecialTokens::ignore));
  }
}

TEST(TokenizerSegments, OrdinaryTextIsTokenisedAcrossBoundaries) {
  // The words, the spaces and the line break are cut; the ids are those of the whole.
  const std::vector<TextSegment> segments = {{"<｜User｜>He", true},
                                             {"llo wor", false},
                                             {"ld\n", true},
                                             {"\n  inde", false},
                                             {"ntation<｜Assistant｜></think>", true}};
  EXPECT_EQ(bootstrap().encode(segments),
            bootstrap().encode("<｜User｜>Hello world\n\n  indentation<｜Assistant｜></think>"));
}

TEST(TokenizerSegments, SpecialTokensNeedTrustForAllTheirBytes) {
  const Tokenizer t = tiny({}, {"<s>", "<s><s>"});
  const TokenId s = 256, ss = 257;
  using Segments = std::vector<TextSegment>;
  EXPECT_THAT(t.encode(Segments{{"<s>", true}}), ElementsAre(s));
  EXPECT_THAT(t.encode(Segments{{"<s>", false}}), ElementsAre('<', 's', '>'));
  EXPECT_THAT(t.encode(Segments{{"<", true}, {"s>", false}}), ElementsAre('<', 's', '>'));
  EXPECT_THAT(t.encode(Segments{{"<", false}, {"s>", true}}), ElementsAre('<', 's', '>'));
  EXPECT_THAT(t.encode(Segments{{"<", true}, {"s", false}, {">", true}}),
              ElementsAre('<', 's', '>'));
  EXPECT_THAT(t.encode(Segments{{"<s", true}, {">", true}}), ElementsAre(s));
  // What follows in untrusted text does not make a longer token of a trusted one.
  EXPECT_THAT(t.encode(Segments{{"<s>", true}, {"<s>", false}}), ElementsAre(s, '<', 's', '>'));
  EXPECT_THAT(t.encode(Segments{{"<s>", true}, {"", false}, {"<s>", true}}), ElementsAre(ss));
  EXPECT_THAT(t.encode(Segments{}), ElementsAre());
}

// ---- added tokens, merges -----------------------------------------------------------------------

TEST(Tokenizer, AddedTokensAreLeftmostThenLongest) {
  const Tokenizer t = tiny({}, {"ab", "abcd", "bcde", "cx"});
  const TokenId ab = 256, abcd = 257, bcde = 258, cx = 259;
  EXPECT_THAT(t.encode("abcde"), ElementsAre(abcd, 'e'));  // not bcde, which begins later
  EXPECT_THAT(t.encode("abcx"), ElementsAre(ab, cx));
  EXPECT_THAT(t.encode("xbcde"), ElementsAre('x', bcde));
  EXPECT_THAT(t.encode("abcde", SpecialTokens::ignore), ElementsAre('a', 'b', 'c', 'd', 'e'));
}

TEST(Tokenizer, NormalizedAddedTokensComeSecond) {
  // As in DeepSeek's file: <｜User｜> is normalized, <think> is not, and the first pass wins even
  // where the second would begin further left.
  auto json = tiny_tokenizer_json({}, {"bc", "abc"});
  json["added_tokens"][1]["normalized"] = true;
  EXPECT_THAT(Tokenizer::parse(json.dump()).encode("abcabc bc"),
              ElementsAre('a', 256, 'a', 256, ' ', 256));
  json["added_tokens"][0]["normalized"] = true;
  EXPECT_THAT(Tokenizer::parse(json.dump()).encode("abcabc bc"), ElementsAre(257, 257, ' ', 256));
}

TEST(Tokenizer, ReadsBothSpellingsOfMerges) {
  auto json = tiny_tokenizer_json({{"Ġ", "a"}, {"Ġa", "b"}});
  EXPECT_THAT(Tokenizer::parse(json.dump()).encode(" abb"), ElementsAre(257, 'b'));
  json["model"]["merges"] = nlohmann::json::parse(R"([["Ġ", "a"], ["Ġa", "b"]])");
  EXPECT_THAT(Tokenizer::parse(json.dump()).encode(" abb"), ElementsAre(257, 'b'));
}

TEST(Tokenizer, IgnoreMergesTakesWholePiecesFromTheVocabulary) {
  auto json = tiny_tokenizer_json({{"b", "c"}});
  json["model"]["vocab"]["abc"] = 257;  // no merge leads here
  EXPECT_THAT(Tokenizer::parse(json.dump()).encode("abc"), ElementsAre('a', 256));
  json["model"]["ignore_merges"] = true;
  EXPECT_THAT(Tokenizer::parse(json.dump()).encode("abc"), ElementsAre(257));
  EXPECT_THAT(Tokenizer::parse(json.dump()).encode("abcd"), ElementsAre('a', 256, 'd'));
}

TEST(Tokenizer, RoundTripsEveryByteSequenceOfAPiece) {
  // No merge may glue bytes that decode otherwise: all two-byte characters and some of the rest.
  std::string text;
  for (unsigned c = 0x80; c < 0x800; ++c) {
    text += static_cast<char>(0xC0 | c >> 6);
    text += static_cast<char>(0x80 | (c & 0x3F));
  }
  for (char c = 0; c >= 0 && c < 127; ++c) text += c;
  EXPECT_EQ(bootstrap().decode(bootstrap().encode(text)), text);
}

TEST(Tokenizer, LongPiecesWork) {
  const std::string letters(1'000'000, 'a');
  EXPECT_EQ(bootstrap().decode(bootstrap().encode(letters)), letters);
  const std::string spaces = std::string(1'000'000, ' ') + "x";
  EXPECT_EQ(bootstrap().decode(bootstrap().encode(spaces)), spaces);
}

TEST(Tokenizer, LoadNamesTheFile) {
  try {
    (void)Tokenizer::load("/no/such/tokenizer.json");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::not_found);
    EXPECT_THAT(e.what(), HasSubstr("/no/such/tokenizer.json"));
  }
  try {
    (void)Tokenizer::load(HADAL_TEST_DATA_DIR "/vectors/dsml/pretokenize.json");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::corrupt_data);
    EXPECT_THAT(e.what(), HasSubstr("pretokenize.json: no \"model\""));
  }
}

}  // namespace
}  // namespace hadal::io
