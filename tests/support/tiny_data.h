// A directory of token shards whose language can be learnt: each token follows from the two before
// it, with some noise, so that losses fall well below the unigram entropy within a few steps.
#pragma once

#include <unistd.h>

#include <filesystem>

#include "core/digest.h"
#include "core/rng.h"
#include "train/data_set.h"
#include "train/data_shard_writer.h"

namespace hadal::test {

struct TinyDataOptions {
  std::int64_t vocab_size = 96;
  std::int64_t n_documents = 400;
  std::int64_t document_tokens = 100;  // on average
  std::uint64_t seed = 11;
};

inline std::vector<TokenId> tiny_document(const TinyDataOptions& o, Rng& rng) {
  const auto n =
      o.document_tokens / 2 +
      static_cast<std::int64_t>(rng.next_below(static_cast<std::uint32_t>(o.document_tokens)));
  const auto usable = static_cast<std::uint32_t>(o.vocab_size - 4);
  std::vector<TokenId> ids{static_cast<TokenId>(4 + rng.next_below(usable)),
                           static_cast<TokenId>(4 + rng.next_below(usable))};
  while (std::ssize(ids) < n) {
    const auto a = static_cast<std::uint32_t>(ids[ids.size() - 1] - 4);
    const auto b = static_cast<std::uint32_t>(ids[ids.size() - 2] - 4);
    const bool noise = rng.next_below(10) == 0;
    ids.push_back(static_cast<TokenId>(
        4 + (noise ? rng.next_below(usable) : (3 * a + (b % 4) + 1) % usable)));
  }
  return ids;
}

// Writes the shards of both splits and their manifest to `directory`.
inline void write_tiny_data(const Path& directory, const TinyDataOptions& o = {}) {
  FileSystem& fs = FileSystem::real();
  fs.create_directories(directory);
  train::DataManifest manifest;
  manifest.vocab_size = o.vocab_size;
  manifest.tokenizer = train::write_atomically(fs, directory, "tokenizer.json", "{}");
  manifest.begin_token = 0, manifest.end_token = 1, manifest.pad_token = 2;
  Rng rng(o.seed);
  for (const std::string_view split : {train::kTrainSplit, train::kValidationSplit}) {
    train::ShardBuilder builder(o.vocab_size, manifest.tokenizer.sha256);
    const std::int64_t n = split == train::kTrainSplit ? o.n_documents : o.n_documents / 10;
    std::vector<std::uint64_t> counts(static_cast<std::size_t>(o.vocab_size));
    for (std::int64_t i = 0; i < n; ++i) {
      train::TokenDocument document;
      document.tokens = tiny_document(o, rng);
      document.tokens.insert(document.tokens.begin(), TokenId{0});
      document.tokens.push_back(1);
      for (const TokenId id : document.tokens) ++counts[static_cast<std::size_t>(id)];
      builder.add(document);
    }
    train::SplitInfo info{.name = std::string(split), .shards = {}, .frequencies = {}};
    info.shards.push_back(builder.write(fs, directory, std::string(split) + "-00000.tokens"));
    info.frequencies = train::write_atomically(
        fs, directory, std::string(split) + ".frequencies",
        std::vector<std::span<const std::byte>>{std::as_bytes(std::span(counts))});
    manifest.splits.push_back(std::move(info));
  }
  static_cast<void>(train::write_atomically(fs, directory, std::string(train::kManifestName),
                                            train::to_json(manifest)));
}

// A fresh directory that goes away again.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& name)
      : path_(std::filesystem::temp_directory_path() /
              ("hadal-" + name + "-" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] const Path& path() const { return path_; }

 private:
  Path path_;
};

}  // namespace hadal::test
