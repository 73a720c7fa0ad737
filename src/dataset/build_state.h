// How far an unfinished build has come: the file build.json beside its shards.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dataset/document_reader.h"
#include "train/data_manifest.h"

namespace hadal::dataset {

inline constexpr std::string_view kBuildStateName = "build.json";

struct SplitProgress {
  std::vector<train::ShardInfo> shards;  // that are complete
  ReaderPosition position;               // all of the split's documents in front of it are in them
  std::int64_t n_empty = 0, n_bad = 0;   // or were left out
  bool operator==(const SplitProgress&) const = default;
};

struct BuildState {
  std::vector<std::pair<std::string, std::string>> recipe;  // every option that decides the result
  std::string sources;                                      // digest_of them
  std::string tokenizer_sha256;
  std::map<std::string, SplitProgress> splits;
  bool operator==(const BuildState&) const = default;
};

[[nodiscard]] std::string to_json(const BuildState& state);
// Throws Error corrupt_data that begins with `source`.
[[nodiscard]] BuildState parse_build_state(std::string_view json, const std::string& source);

}  // namespace hadal::dataset
