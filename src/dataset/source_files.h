// dataset: text and conversations in, token shards out. Knows the format of prompts, so that what a
// model is trained on is rendered by what serves it; knows no model.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"

namespace hadal::dataset {

enum class SourceKind : std::uint8_t {
  text,  // the whole file is a document, or what lies between separators
  jsonl  // a JSON object a line
};

struct SourceFile {
  Path path;
  SourceKind kind = SourceKind::text;
  bool compressed = false;  // zstd
  std::uint64_t nbytes = 0;
  std::int64_t modified_ns = 0;
};

// The files that `inputs` name, in that order: a file by its extension (.jsonl, one of
// `text_extensions`, or either with .zst behind it), a directory by all such files below it, sorted
// by path. Throws Error: not_found for an input that is not there or a directory without any such
// file, invalid_argument for a file of another kind and for one that is named twice.
[[nodiscard]] std::vector<SourceFile> find_sources(std::span<const Path> inputs,
                                                   std::span<const std::string> text_extensions);

// Changes when a file of them does: 64 hexadecimal digits over paths, sizes and times.
[[nodiscard]] std::string digest_of(std::span<const SourceFile> sources);

}  // namespace hadal::dataset
