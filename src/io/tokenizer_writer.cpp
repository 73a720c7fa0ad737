#include "io/tokenizer_writer.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "io/byte_alphabet.h"

namespace hadal::io {
namespace {

using Json = nlohmann::ordered_json;

std::string spelling_of(std::string_view bytes) {
  std::string spelling;
  for (const char c : bytes) spelling += spelling_of_byte(static_cast<unsigned char>(c));
  return spelling;
}

Json byte_level(bool add_prefix_space, bool trim_offsets, bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", trim_offsets},
          {"use_regex", use_regex}};
}

Json pre_tokenizer() {
  Json stages = Json::array();
  for (const std::string_view pattern : kDeepSeekSplitPatterns) {
    stages.push_back({{"type", "Split"},
                      {"pattern", {{"Regex", pattern}}},
                      {"behavior", "Isolated"},
                      {"invert", false}});
  }
  stages.push_back(byte_level(false, true, false));
  return {{"type", "Sequence"}, {"pretokenizers", std::move(stages)}};
}

}  // namespace

Pretokenizer deepseek_pretokenizer() {
  std::vector<SplitRegex> stages;
  for (const std::string_view pattern : kDeepSeekSplitPatterns) stages.emplace_back(pattern);
  return Pretokenizer(std::move(stages));
}

std::string write_tokenizer_json(const TrainedBpe& bpe) {
  Json added = Json::array();
  std::vector<std::pair<std::string, std::size_t>> vocab;
  std::vector<std::string> spellings;
  for (std::size_t i = 0; i < kControlTokens.size(); ++i) {
    const std::size_t id = i < kFirstControlTokens ? i : bpe.tokens.size() + i;
    added.push_back({{"id", id},
                     {"content", kControlTokens[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
    if (i < kFirstControlTokens) vocab.emplace_back(kControlTokens[i], id);
  }
  for (const std::string& bytes : bpe.tokens) {
    spellings.push_back(spelling_of(bytes));
    vocab.emplace_back(spellings.back(), vocab.size());
  }
  Json merges = Json::array();
  for (const Merge& merge : bpe.merges) {
    merges.push_back({spellings[static_cast<std::size_t>(merge.left)],
                      spellings[static_cast<std::size_t>(merge.right)]});
  }
  // As the vector that it is: ordered_json compares a new key with all that are there.
  Json::object_t vocab_object;
  Json::object_t::Container& members = vocab_object;
  for (auto& [spelling, id] : vocab) members.emplace_back(std::move(spelling), id);

  Json root;
  root["version"] = "1.0";
  root["truncation"] = nullptr;
  root["padding"] = nullptr;
  root["added_tokens"] = std::move(added);
  root["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
  root["pre_tokenizer"] = pre_tokenizer();
  root["post_processor"] = byte_level(true, false, true);
  root["decoder"] = byte_level(true, true, true);
  root["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"ignore_merges", false},
                   {"vocab", std::move(vocab_object)},
                   {"merges", std::move(merges)}};
  return root.dump(1) + "\n";
}

}  // namespace hadal::io
