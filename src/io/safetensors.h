// safetensors: u64 little-endian header length, a JSON header, then raw little-endian row-major
// data. Reading maps the file; types are kept as they are.
// Source: github.com/huggingface/safetensors (format), architecture.md §2.1.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/digest.h"
#include "core/file.h"
#include "core/tensor.h"

namespace hadal::io {

// What a header says of one tensor.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::f32;
  std::string dtype_name;  // as in the file: "F8_E4M3", "I8", "BOOL" (whose dtype is u8), ...
  Shape shape;
  std::size_t offset = 0;  // of the first byte, from the start of the file
  std::size_t nbytes = 0;
};

// One file. Copies share the mapping.
class SafetensorsFile {
 public:
  // Throws Error: not_found or io as MappedFile::open; corrupt_data when the header contradicts the
  // format or the file's size; unsupported for a dtype or a rank that hadal has no type for.
  [[nodiscard]] static SafetensorsFile open(const Path& path);
  // The same from memory that the file then shares; `name` is for messages.
  [[nodiscard]] static SafetensorsFile parse(std::shared_ptr<std::byte> storage, std::size_t size,
                                             std::string name);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  [[nodiscard]] const SafetensorsEntry* find(std::string_view name) const;  // null when absent
  // Looks into the mapping, which is read-only. Data that a foreign writer left at an address that
  // its type does not allow is copied.
  [[nodiscard]] Tensor tensor(const SafetensorsEntry& entry) const;
  [[nodiscard]] Tensor tensor(std::string_view name) const;  // throws not_found
  // Whether tensor() looks into the mapping; otherwise it copies.
  [[nodiscard]] bool is_aligned(const SafetensorsEntry& entry) const;
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  std::string name_;
  std::shared_ptr<std::byte> storage_;
  std::vector<SafetensorsEntry> entries_;  // in the order of the header
  std::unordered_map<std::string, std::size_t> by_name_;
  std::map<std::string, std::string> metadata_;
};

// The tensors of a directory: model.safetensors.index.json with its shards, or one file.
class Checkpoint {
 public:
  // `path` is the directory or a single .safetensors file. Throws Error: not_found when there is
  // no checkpoint or a shard is missing; corrupt_data for a broken index or one that names a tensor
  // its shard lacks; and what SafetensorsFile::open throws.
  [[nodiscard]] static Checkpoint open(const Path& path);
  // Throws corrupt_data when two files hold the same name.
  [[nodiscard]] static Checkpoint from_files(std::vector<SafetensorsFile> files, std::string name);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] bool contains(std::string_view name) const { return find(name) != nullptr; }
  [[nodiscard]] const SafetensorsEntry* find(std::string_view name) const;
  [[nodiscard]] Tensor tensor(std::string_view name) const;  // throws not_found
  [[nodiscard]] bool is_aligned(std::string_view name) const;
  [[nodiscard]] std::vector<std::string> names() const;  // file by file, in header order
  [[nodiscard]] std::size_t size() const { return by_name_.size(); }
  [[nodiscard]] std::size_t total_bytes() const;  // of the tensors' data

 private:
  struct Place {
    std::size_t file = 0;
    std::size_t entry = 0;
  };
  const Place& place(std::string_view name) const;  // throws not_found
  std::string name_;
  std::vector<SafetensorsFile> files_;
  std::unordered_map<std::string, Place> by_name_;
};

// What a writer is told before it sees data. `dtype_name` empty: the usual name of the dtype.
// f4_e2m1 is written as the published checkpoints do, packed in I8 with half the columns.
struct TensorDecl {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;  // logical
  std::string dtype_name;
};

// Stable sort by falling element size: in that order every tensor of a file is aligned.
[[nodiscard]] std::vector<TensorDecl> aligned_order(std::vector<TensorDecl> decls);

// Streams a file: the header from the declarations, then data in their order. The file appears
// under its name when finish() returns; until then there is only `<path>.partial`.
class SafetensorsWriter {
 public:
  // `fs` must outlive this, and so must `digest`, which is told every byte of the file. Throws
  // invalid_argument on a duplicate or impossible declaration.
  SafetensorsWriter(FileSystem& fs, Path path, std::vector<TensorDecl> decls,
                    const std::map<std::string, std::string>& metadata = {},
                    Sha256* digest = nullptr);

  // The next bytes of tensor `name`. A tensor may come in pieces; tensors come in order. Throws
  // invalid_argument when `name` is not the one due or has no room for so many bytes.
  void write(std::string_view name, std::span<const std::byte> bytes);
  void write(std::string_view name, const TensorView& tensor);  // whole, dtype and size checked
  void finish();  // throws invalid_argument when data is missing

 private:
  void append(std::span<const std::byte> bytes);

  FileSystem& fs_;
  Path path_;
  std::vector<TensorDecl> decls_;
  Sha256* digest_;
  std::unique_ptr<WritableFile> file_;
  std::size_t current_ = 0;  // tensor being written
  std::size_t written_ = 0;  // bytes of it
};

// Text of model.safetensors.index.json.
[[nodiscard]] std::string index_json(const std::map<std::string, std::string>& weight_map,
                                     std::size_t total_size);

}  // namespace hadal::io
