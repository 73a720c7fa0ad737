// Small data sets, written as the builder writes them.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/digest.h"
#include "support/failing_file_system.h"
#include "train/data_manifest.h"
#include "train/data_set.h"
#include "train/data_shard_format.h"
#include "train/data_shard_writer.h"

namespace hadal::test {

struct DataOptions {
  std::int64_t vocab_size = 1000;
  std::int64_t documents_per_shard = 1000;
};

// `documents` as the train split of a data set in `directory`.
inline train::DataManifest write_data(const Path& directory,
                                      const std::vector<train::TokenDocument>& documents,
                                      const DataOptions& options = {}) {
  FileSystem& fs = FileSystem::real();
  fs.create_directories(directory);
  train::DataManifest manifest{.vocab_size = options.vocab_size};
  manifest.begin_token = 0;
  manifest.end_token = 1;
  manifest.pad_token = 2;
  manifest.tokenizer = train::write_atomically(fs, directory, "tokenizer.json", "{}");
  train::SplitInfo split{.name = "train", .shards = {}, .frequencies = {}};
  std::vector<std::uint64_t> frequencies(static_cast<std::size_t>(options.vocab_size));
  train::ShardBuilder builder(options.vocab_size, manifest.tokenizer.sha256);
  const auto close = [&] {
    if (builder.counts().n_documents == 0) return;
    split.shards.push_back(
        builder.write(fs, directory, "train-" + std::to_string(split.shards.size()) + ".tok"));
  };
  for (const train::TokenDocument& document : documents) {
    builder.add(document);
    for (const TokenId id : document.tokens) ++frequencies[static_cast<std::size_t>(id)];
    if (builder.counts().n_documents == options.documents_per_shard) close();
  }
  close();
  const std::span<const std::byte> bytes = std::as_bytes(std::span(frequencies));
  split.frequencies =
      train::write_atomically(fs, directory, "train.frequencies", std::span(&bytes, 1));
  manifest.splits.push_back(split);
  (void)train::write_atomically(fs, directory, std::string(train::kManifestName),
                                to_json(manifest));
  return manifest;
}

// Documents of these lengths, whose tokens tell them apart: token t of document d is
// (100 d + t) modulo the vocabulary.
inline std::vector<train::TokenDocument> numbered_documents(const std::vector<int>& lengths,
                                                            int vocab_size = 1000) {
  std::vector<train::TokenDocument> documents;
  for (std::size_t d = 0; d < lengths.size(); ++d) {
    train::TokenDocument document;
    for (int t = 0; t < lengths[d]; ++t) {
      document.tokens.push_back((100 * static_cast<int>(d) + t) % vocab_size);
    }
    document.text_bytes = 4 * lengths[d];
    documents.push_back(std::move(document));
  }
  return documents;
}

}  // namespace hadal::test
