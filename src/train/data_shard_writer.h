// Collects documents and writes them as a token shard.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "core/token.h"
#include "train/data_manifest.h"

namespace hadal::train {

// Writes `dir/name` so that it is there completely or not at all: a file with ".tmp" behind its
// name, synced and renamed. What was written is removed when that fails. Throws what `fs` throws.
FileDigest write_atomically(FileSystem& fs, const Path& directory, const std::string& name,
                            std::span<const std::span<const std::byte>> parts);
FileDigest write_atomically(FileSystem& fs, const Path& directory, const std::string& name,
                            std::string_view text);

struct TokenDocument {
  std::vector<TokenId> tokens;
  std::vector<bool> loss;  // by token, whether a loss is taken on it; empty: on every token
  std::uint8_t flags = 0;  // kChatDocument, kFimDocument
  std::int64_t text_bytes = 0;
};

// A shard in memory. Not for use by two threads at once.
class ShardBuilder {
 public:
  // `tokenizer_sha256` as 64 digits.
  ShardBuilder(std::int64_t vocab_size, std::string_view tokenizer_sha256);

  // The document has a token at least, and ids inside the vocabulary (checked).
  void add(const TokenDocument& document);

  [[nodiscard]] const DataCounts& counts() const { return counts_; }

  // Writes what was added since the last call and starts afresh. Throws as write_atomically; what
  // was added stays then.
  [[nodiscard]] ShardInfo write(FileSystem& fs, const Path& directory, const std::string& name);

 private:
  void clear();

  std::int64_t vocab_size_;
  std::array<std::byte, 16> tokenizer_;
  std::vector<TokenId> tokens_;
  std::vector<std::uint64_t> document_ends_;
  std::vector<std::uint8_t> document_flags_;
  std::vector<std::uint8_t> loss_mask_;
  DataCounts counts_;
};

}  // namespace hadal::train
