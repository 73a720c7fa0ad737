// Builds a directory of token shards.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/file.h"
#include "dataset/document_encoder.h"
#include "train/data_manifest.h"

namespace hadal::dataset {

enum class BadDocuments : std::uint8_t { stop, skip };

struct BuildOptions {
  std::vector<Path> inputs;  // files and directories, see find_sources
  std::vector<std::string> text_extensions = {"txt", "md"};
  std::string separator;  // between the documents of a text file; empty: a file is a document
  Path tokenizer;         // a tokenizer.json
  Path out;
  EncodeOptions encode;
  double validation =
      0;  // part of the documents, chosen by content, that the training must not see
  std::int64_t shard_tokens = std::int64_t{1} << 25;  // a shard closes before it is larger
  BadDocuments bad = BadDocuments::stop;
  int n_threads = 0;  // 0: every core; the result does not depend on it
};

struct BuildProgress {
  std::size_t n_files_done = 0, n_files = 0;
  std::uint64_t n_bytes_done = 0, n_bytes = 0;  // of the files as they are
  std::int64_t n_documents = 0, n_tokens = 0;   // made so far, in an earlier run too
  std::int64_t n_tokens_now = 0;                // made by this run
  std::int64_t n_shards = 0;
};

struct BuildResult {
  train::DataManifest manifest;
  bool resumed = false;
  std::vector<std::string> bad_documents;  // the sentences of the first few that were left out
};

// Reads all documents of the inputs and writes options.out, through `fs`: shards of each split as
// they fill up, build.json behind each of them, and at last the manifest. Stopped at any moment,
// by an exception out of `progress`, by a kill or by a full disk, it goes on from the last complete
// shard when it is called again with the same options, and makes the same bytes as without the
// stop; at most a shard's worth of work is lost. One process at a time works on a directory.
// Throws Error: invalid_argument when options.out is a finished or a foreign directory, or an
// unfinished build with other options, inputs or tokenizer; what DocumentReader, DocumentEncoder
// and `fs` throw.
BuildResult build_data(FileSystem& fs, const BuildOptions& options,
                       const std::function<void(const BuildProgress&)>& progress = {});

}  // namespace hadal::dataset
