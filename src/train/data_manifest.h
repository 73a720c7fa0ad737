// What a directory of token shards says about itself.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file.h"
#include "core/token.h"

namespace hadal::train {

inline constexpr std::string_view kManifestName = "manifest.json";
inline constexpr std::string_view kTrainSplit = "train";
inline constexpr std::string_view kValidationSplit = "validation";

// What can be counted of a shard, a split or everything.
struct DataCounts {
  std::int64_t n_documents = 0;
  std::int64_t n_tokens = 0;
  std::int64_t n_loss_tokens = 0;  // tokens that a loss is taken on
  std::int64_t text_bytes = 0;     // of the documents as text, control tokens not counted
  std::int64_t n_chat_documents = 0;
  std::int64_t n_fim_documents = 0;

  DataCounts& operator+=(const DataCounts& other);
  bool operator==(const DataCounts&) const = default;
};

struct FileDigest {
  std::string file;  // within the directory
  std::uint64_t nbytes = 0;
  std::string sha256;  // 64 lower-case digits
  bool operator==(const FileDigest&) const = default;
};

struct ShardInfo {
  FileDigest digest;
  DataCounts counts;
  bool operator==(const ShardInfo&) const = default;
};

struct SplitInfo {
  std::string name;  // train, validation
  std::vector<ShardInfo> shards;
  // u64 little endian by token id: how often each occurs in the split's documents.
  FileDigest frequencies;

  [[nodiscard]] DataCounts counts() const;  // of all shards
  bool operator==(const SplitInfo&) const = default;
};

struct DataManifest {
  std::int64_t vocab_size = 0;  // ids are below it
  FileDigest tokenizer{};       // a copy of the tokenizer.json that made the tokens
  TokenId begin_token = -1, end_token = -1, pad_token = -1;

  std::int64_t n_source_files = 0, source_bytes = 0;
  std::int64_t n_empty_documents = 0;  // left out
  std::int64_t n_bad_documents = 0;    // left out because the builder was told to
  std::vector<std::pair<std::string, std::string>> recipe{};  // how it was made, for people

  std::vector<SplitInfo> splits{};  // by name, those with documents

  // Bytes that a token takes in the shards: 2 up to 65,536 tokens, 4 above.
  [[nodiscard]] int token_bytes() const { return vocab_size <= 65536 ? 2 : 4; }
  [[nodiscard]] const SplitInfo* find_split(std::string_view name) const;
  bool operator==(const DataManifest&) const = default;
};

[[nodiscard]] std::string to_json(const DataManifest& manifest);
// Throws Error corrupt_data for what is no such manifest or contradicts itself, unsupported for a
// newer version; the sentence begins with `source`.
[[nodiscard]] DataManifest parse_manifest(std::string_view json, const std::string& source);

// Throws Error: not_found when there is no manifest (the directory is none of token shards, or the
// build that writes it has not finished), as parse_manifest.
[[nodiscard]] DataManifest load_manifest(const Path& directory);

// Throws Error invalid_argument when a model with `vocab_size` tokens cannot read these ids.
void expect_vocabulary(const DataManifest& manifest, const Path& directory,
                       std::int64_t model_vocab_size);

}  // namespace hadal::train
