#include "io/tokenizer_spec.h"

#include <gmock/gmock.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "core/error.h"
#include "io/tokenizer.h"
#include "tiny_tokenizer.h"

namespace hadal::io {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

struct BadFile {
  const char* name;
  std::function<void(json&)> change;
  ErrorCode code;
  const char* message;  // part of it
};

json split_stage(const char* behavior) {
  return {
      {"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", behavior}, {"invert", false}};
}

const BadFile kBadFiles[] = {
    {"NoModel", [](json& f) { f.erase("model"); }, ErrorCode::corrupt_data, "no \"model\""},
    {"ModelIsAList", [](json& f) { f["model"] = json::array(); }, ErrorCode::corrupt_data,
     "model: found array, wanted object"},
    {"NoVocab", [](json& f) { f["model"].erase("vocab"); }, ErrorCode::corrupt_data, "\"vocab\""},
    {"NoMerges", [](json& f) { f["model"].erase("merges"); }, ErrorCode::corrupt_data,
     "\"merges\""},
    {"VocabIsAList", [](json& f) { f["model"]["vocab"] = json::array(); }, ErrorCode::corrupt_data,
     "model.vocab: found array"},
    {"IdIsText", [](json& f) { f["model"]["vocab"]["a"] = "97"; }, ErrorCode::corrupt_data,
     "model.vocab[\"a\"]: id is string"},
    {"IdIsAFraction", [](json& f) { f["model"]["vocab"]["a"] = 97.5; }, ErrorCode::corrupt_data,
     "model.vocab[\"a\"]"},
    {"IdIsNegative", [](json& f) { f["model"]["vocab"]["a"] = -1; }, ErrorCode::corrupt_data,
     "id -1 is outside"},
    {"IdIsHuge", [](json& f) { f["model"]["vocab"]["a"] = UINT64_MAX; }, ErrorCode::corrupt_data,
     "is outside [0, 16777215]"},
    {"IdIsLonely", [](json& f) { f["model"]["vocab"]["a"] = 16777215; }, ErrorCode::corrupt_data,
     "highest token id is 16777215, but there are only"},
    {"IdsCollide", [](json& f) { f["model"]["vocab"]["a"] = 98; }, ErrorCode::corrupt_data,
     "share id 98"},
    {"EmptyPiece", [](json& f) { f["model"]["vocab"][""] = 300; }, ErrorCode::corrupt_data,
     "an empty piece"},
    {"MergeOfUnknown", [](json& f) { f["model"]["merges"][0] = "a 字"; }, ErrorCode::corrupt_data,
     "model.merges[0]: \"字\" is not in model.vocab"},
    {"MergeIntoUnknown", [](json& f) { f["model"]["merges"][0] = "x y"; }, ErrorCode::corrupt_data,
     "model.merges[0]: \"xy\" is not in model.vocab"},
    {"MergeOfOne", [](json& f) { f["model"]["merges"][0] = "ab"; }, ErrorCode::corrupt_data,
     "not two pieces"},
    {"MergeOfThree", [](json& f) { f["model"]["merges"][0] = "a b c"; }, ErrorCode::corrupt_data,
     "not two pieces"},
    {"MergeIsANumber", [](json& f) { f["model"]["merges"][0] = 3; }, ErrorCode::corrupt_data,
     "model.merges[0]: found number"},
    {"MergePairOfOne", [](json& f) { f["model"]["merges"][0] = {"a"}; }, ErrorCode::corrupt_data,
     "model.merges[0]: wanted two strings"},
    {"MergesIsAnObject", [](json& f) { f["model"]["merges"] = json::object(); },
     ErrorCode::corrupt_data, "model.merges: found object"},
    {"AddedIsAnObject", [](json& f) { f["added_tokens"] = json::object(); },
     ErrorCode::corrupt_data, "added_tokens: found object"},
    {"AddedWithoutId", [](json& f) { f["added_tokens"][0].erase("id"); }, ErrorCode::corrupt_data,
     "added_tokens[0]: no \"id\""},
    {"AddedWithoutContent", [](json& f) { f["added_tokens"][0].erase("content"); },
     ErrorCode::corrupt_data, "added_tokens[0]: no \"content\""},
    {"AddedEmpty", [](json& f) { f["added_tokens"][0]["content"] = ""; }, ErrorCode::corrupt_data,
     "added_tokens[0].content: empty"},
    {"AddedTwice", [](json& f) { f["added_tokens"][1]["content"] = "<s>"; },
     ErrorCode::corrupt_data, "\"<s>\" appears twice"},
    {"AddedTakesAnId", [](json& f) { f["added_tokens"][0]["id"] = 97; }, ErrorCode::corrupt_data,
     "share id 97"},
    {"AddedDiffersFromVocab", [](json& f) { f["added_tokens"][0]["content"] = "ab"; },
     ErrorCode::corrupt_data, "has id 257, but 256 in model.vocab"},
    {"AddedStrips", [](json& f) { f["added_tokens"][0]["lstrip"] = true; }, ErrorCode::unsupported,
     "added_tokens[0].lstrip: true"},
    {"AddedSingleWord", [](json& f) { f["added_tokens"][0]["single_word"] = true; },
     ErrorCode::unsupported, "added_tokens[0].single_word: true"},
    {"SpecialIsANumber", [](json& f) { f["added_tokens"][0]["special"] = 1; },
     ErrorCode::corrupt_data, "added_tokens[0].special: found number"},
    {"AddedSpellsOtherBytes",
     [](json& f) {
       f["added_tokens"][0]["content"] = spelling_of_byte(0xE9);  // "é", whose bytes are C3 A9
       f["added_tokens"][0]["id"] = 0xE9;
     },
     ErrorCode::unsupported, "spells other bytes"},
    {"Unigram", [](json& f) { f["model"]["type"] = "Unigram"; }, ErrorCode::unsupported,
     "model.type: \"Unigram\""},
    {"Dropout", [](json& f) { f["model"]["dropout"] = 0.1; }, ErrorCode::unsupported,
     "model.dropout: 0.1"},
    {"UnkToken", [](json& f) { f["model"]["unk_token"] = "<unk>"; }, ErrorCode::unsupported,
     "model.unk_token"},
    {"Suffix", [](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }, ErrorCode::unsupported,
     "model.end_of_word_suffix"},
    {"ByteFallback", [](json& f) { f["model"]["byte_fallback"] = true; }, ErrorCode::unsupported,
     "model.byte_fallback"},
    {"Normalizer", [](json& f) { f["normalizer"] = {{"type", "NFC"}}; }, ErrorCode::unsupported,
     "normalizer: \"NFC\""},
    {"NormalizerInSequence",
     [](json& f) {
       f["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}};
     },
     ErrorCode::unsupported, "\"Lowercase\""},
    {"Decoder", [](json& f) { f["decoder"]["type"] = "WordPiece"; }, ErrorCode::unsupported,
     "decoder: \"WordPiece\""},
    {"NoPreTokenizer", [](json& f) { f.erase("pre_tokenizer"); }, ErrorCode::unsupported,
     "pre_tokenizer: absent"},
    {"NoByteLevel", [](json& f) { f["pre_tokenizer"] = split_stage("Isolated"); },
     ErrorCode::unsupported, "no ByteLevel"},
    {"PrefixSpace", [](json& f) { f["pre_tokenizer"]["add_prefix_space"] = true; },
     ErrorCode::unsupported, "add_prefix_space"},
    {"PrefixSpaceByDefault", [](json& f) { f["pre_tokenizer"].erase("add_prefix_space"); },
     ErrorCode::unsupported, "add_prefix_space"},
    {"SplitRemoves", [](json& f) { f["pre_tokenizer"] = split_stage("Removed"); },
     ErrorCode::unsupported, "behavior: \"Removed\""},
    {"SplitMerges", [](json& f) { f["pre_tokenizer"] = split_stage("MergedWithPrevious"); },
     ErrorCode::unsupported, "behavior: \"MergedWithPrevious\""},
    {"OtherStage", [](json& f) { f["pre_tokenizer"] = {{"type", "Metaspace"}}; },
     ErrorCode::unsupported, "\"Metaspace\""},
    {"StageAfterByteLevel",
     [](json& f) {
       f["pre_tokenizer"] = {{"type", "Sequence"},
                             {"pretokenizers", {f["pre_tokenizer"], split_stage("Isolated")}}};
     },
     ErrorCode::unsupported, "pretokenizers[1]: a Split stage after ByteLevel"},
    {"TooManyStages",
     [](json& f) {
       json stages = json::array();
       for (int i = 0; i < 1000; ++i) stages.push_back(split_stage("Isolated"));
       f["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", stages}};
     },
     ErrorCode::unsupported, "more than 32 stages"},
    {"NestedTooDeeply",
     [](json& f) {
       for (int i = 0; i < 1000; ++i) {
         json outer = {{"type", "Sequence"}, {"pretokenizers", json::array()}};
         outer["pretokenizers"].push_back(std::move(f["pre_tokenizer"]));
         f["pre_tokenizer"] = std::move(outer);
       }
     },
     ErrorCode::unsupported, "nested too deeply"},
};

class BadTokenizerFile : public testing::TestWithParam<BadFile> {};

TEST_P(BadTokenizerFile, IsRefusedByName) {
  json file = tiny_tokenizer_json({{"a", "b"}}, {"<s>", "</s>"});
  ASSERT_NO_THROW((void)Tokenizer::parse(file.dump()));
  GetParam().change(file);
  try {
    (void)Tokenizer::parse(file.dump());
    FAIL() << "was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, GetParam().code) << e.what();
    EXPECT_THAT(e.what(), HasSubstr(GetParam().message));
  }
}

INSTANTIATE_TEST_SUITE_P(All, BadTokenizerFile, testing::ValuesIn(kBadFiles),
                         [](const auto& param) { return std::string(param.param.name); });

TEST(TokenizerSpec, RefusesWhatIsNotJson) {
  for (const std::string text : {"", "{", "[]", "null", "\xFF", "{\"model\": \"\\ud800\"}"}) {
    EXPECT_THROW((void)parse_tokenizer_spec(text), Error) << text;
  }
  EXPECT_THROW((void)parse_tokenizer_spec(std::string(1 << 20, '[')), Error);
}

TEST(TokenizerSpec, NullAndAbsentAreAlike) {
  json file = tiny_tokenizer_json({{"a", "b"}});
  for (const char* key : {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                          "byte_fallback", "ignore_merges"}) {
    file["model"][key] = nullptr;
  }
  for (const char* key : {"truncation", "padding", "post_processor", "decoder", "added_tokens"}) {
    file[key] = nullptr;
  }
  file["model"].erase("type");
  const TokenizerSpec spec = parse_tokenizer_spec(file.dump());
  EXPECT_EQ(spec.n_ids, 257u);
  EXPECT_EQ(spec.merges.size(), 1u);
}

TEST(TokenizerSpec, ReadsStagesInOrder) {
  json file = tiny_tokenizer_json();
  file["pre_tokenizer"] = json::parse(R"({"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\p{N}"}, "behavior": "Isolated", "invert": true},
      {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"String": "a.b"}, "behavior": "Isolated", "invert": false}]},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]})");
  const auto patterns = parse_tokenizer_spec(file.dump()).split_patterns;
  ASSERT_EQ(patterns.size(), 3u);
  EXPECT_EQ(patterns[0], R"(\p{N})");
  EXPECT_EQ(patterns[1], R"(a\.b)");
  EXPECT_THAT(patterns[2], HasSubstr(R"(\s+(?!\S))"));
}

}  // namespace
}  // namespace hadal::io
