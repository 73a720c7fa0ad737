// Reads the documents of a directory of token shards.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "core/token.h"
#include "train/data_manifest.h"

namespace hadal::train {

class TokenShard;

// How much is looked at before the first token is used.
enum class VerifyData : std::uint8_t {
  checksums,  // every byte of every file
  sizes,      // sizes and headers; ids are checked as they are read
};

// The documents of one split, numbered over all its shards. Files are mapped, nothing is copied but
// what is asked for. Copies share the mappings; all members may be called from many threads.
class DocumentSet {
 public:
  [[nodiscard]] std::int64_t n_documents() const { return counts_.n_documents; }
  [[nodiscard]] std::int64_t n_tokens() const { return counts_.n_tokens; }
  [[nodiscard]] const DataCounts& counts() const { return counts_; }

  [[nodiscard]] std::int64_t n_tokens(std::int64_t document) const;
  [[nodiscard]] std::uint8_t flags(std::int64_t document) const;  // kChatDocument, kFimDocument
  // Tokens [begin, begin + into.size()) of the document. Throws Error corrupt_data for an id that
  // the manifest's vocabulary does not have.
  void copy_tokens(std::int64_t document, std::int64_t begin, std::span<TokenId> into) const;
  // Whether a loss is taken on a token.
  [[nodiscard]] bool has_loss(std::int64_t document, std::int64_t token) const;
  // On how many of the tokens [begin, end).
  [[nodiscard]] std::int64_t count_loss(std::int64_t document, std::int64_t begin,
                                        std::int64_t end) const;

 private:
  friend class DataSet;
  struct Place {
    const TokenShard* shard;
    std::int64_t begin, end;  // tokens of the shard
  };
  [[nodiscard]] Place find(std::int64_t document) const;

  std::vector<std::shared_ptr<const TokenShard>> shards_;
  std::vector<std::int64_t> first_document_;  // of each shard
  DataCounts counts_;
};

class DataSet {
 public:
  // Throws Error: not_found without a manifest or a file that it names; corrupt_data, with the
  // file's name, for one that is not as the manifest says (cut off, changed, of another tokenizer).
  [[nodiscard]] static DataSet open(const Path& directory,
                                    VerifyData verify = VerifyData::checksums);

  [[nodiscard]] const DataManifest& manifest() const { return manifest_; }
  [[nodiscard]] const Path& directory() const { return directory_; }
  [[nodiscard]] bool has_split(std::string_view name) const;
  // Throws Error not_found with the names that there are.
  [[nodiscard]] const DocumentSet& split(std::string_view name) const;
  // How often each token occurs in the split's documents, by id. Throws as open().
  [[nodiscard]] std::vector<std::uint64_t> frequencies(std::string_view split) const;

 private:
  Path directory_;
  DataManifest manifest_;
  std::vector<DocumentSet> splits_;  // as in the manifest
};

// Adds the tokens of a whole shard, as bytes, to the counts by id. Throws Error corrupt_data when
// it is none or has a token beyond `frequencies`.
void count_tokens(std::span<const std::byte> shard, std::span<std::uint64_t> frequencies);

// One shard, mapped and checked against what the manifest says of it. Throws as DataSet::open.
class TokenShard {
 public:
  TokenShard(const Path& directory, const ShardInfo& info, const DataManifest& manifest,
             VerifyData verify);

  [[nodiscard]] std::int64_t n_documents() const { return std::ssize(document_ends_); }
  [[nodiscard]] std::int64_t document_begin(std::int64_t document) const {
    return document == 0 ? 0 : document_end(document - 1);
  }
  [[nodiscard]] std::int64_t document_end(std::int64_t document) const {
    return static_cast<std::int64_t>(document_ends_[static_cast<std::size_t>(document)]);
  }
  [[nodiscard]] std::uint8_t flags(std::int64_t document) const {
    return document_flags_[static_cast<std::size_t>(document)];
  }
  void copy(std::int64_t begin, std::span<TokenId> into) const;
  [[nodiscard]] bool has_loss(std::int64_t token) const;
  [[nodiscard]] std::int64_t count_loss(std::int64_t begin, std::int64_t end) const;

 private:
  std::shared_ptr<MappedFile> file_;
  std::span<const std::uint16_t> narrow_;  // one of these two
  std::span<const std::uint32_t> wide_;
  std::span<const std::uint64_t> document_ends_;
  std::span<const std::uint8_t> document_flags_;
  std::span<const std::uint8_t> loss_mask_;  // empty: a loss on every token
  std::int64_t vocab_size_;
};

}  // namespace hadal::train
