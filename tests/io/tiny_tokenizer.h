// A tokenizer.json small enough to reason about: the 256 bytes are ids 0 to 255 in order of byte,
// each merge adds the next id, added tokens follow.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "io/byte_alphabet.h"

namespace hadal::io {

inline nlohmann::json tiny_tokenizer_json(
    const std::vector<std::pair<std::string, std::string>>& merges = {},
    const std::vector<std::string>& added = {}) {
  nlohmann::json vocab, merge_list = nlohmann::json::array(), added_list = nlohmann::json::array();
  int id = 0;
  for (; id < 256; ++id) vocab[spelling_of_byte(static_cast<unsigned char>(id))] = id;
  for (const auto& [left, right] : merges) {
    merge_list.push_back(left + " " + right);
    vocab[left + right] = id++;
  }
  for (const std::string& content : added) {
    added_list.push_back({{"id", id++},
                          {"content", content},
                          {"special", true},
                          {"normalized", false},
                          {"single_word", false},
                          {"lstrip", false},
                          {"rstrip", false}});
  }
  return {
      {"version", "1.0"},
      {"added_tokens", added_list},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merge_list}}}};
}

}  // namespace hadal::io
