// A checkpoint directory in the making.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "io/safetensors.h"

namespace hadal::io {

enum class Existing : std::uint8_t {
  refuse,   // a directory of that name is an error
  replace,  // it is removed once its successor is complete, if it is empty or has a config.json
};

struct CheckpointWriterOptions {
  // Data bytes a shard takes at most; a tensor (with its scale) that is larger has its own.
  std::size_t shard_bytes = std::size_t{4} << 30;
  Existing existing = Existing::refuse;
};

// Writes `<directory>.partial`: shards model-0000N-of-0000M.safetensors, their index and whatever
// else is given. finish() renames it to `directory`; whoever looks earlier, or after a failure,
// finds nothing under that name (or what was there before). The destructor removes what was not
// finished.
class CheckpointWriter {
 public:
  // `decls` in reading order; a ".scale" directly behind its ".weight" stays in the same shard.
  // `fs` must outlive this. Throws Error: invalid_argument when the directory exists and must not
  // be replaced, or for an impossible declaration; what `fs` throws.
  CheckpointWriter(FileSystem& fs, const Path& directory, std::vector<TensorDecl> decls,
                   const CheckpointWriterOptions& options);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // The order in which tensors must come: shard by shard, inside one by falling alignment.
  [[nodiscard]] const std::vector<TensorDecl>& order() const { return order_; }
  [[nodiscard]] std::size_t n_shards() const { return shard_sizes_.size(); }
  [[nodiscard]] std::size_t total_bytes() const { return total_bytes_; }

  // The next bytes of tensor `name`, as SafetensorsWriter::write.
  void write(std::string_view name, std::span<const std::byte> bytes);
  void write(std::string_view name, const TensorView& tensor);

  // config.json, tokenizer.json, ...; any time before finish().
  void write_file(const std::string& file_name, std::span<const std::byte> bytes);
  void write_file(const std::string& file_name, std::string_view text);

  void finish();  // throws invalid_argument when data is missing

 private:
  SafetensorsWriter& writer_of(std::string_view name);
  void close_shard();
  [[nodiscard]] std::string shard_name(std::size_t index) const;

  FileSystem& fs_;
  Path directory_, partial_;
  Existing existing_;
  std::vector<TensorDecl> order_;
  std::vector<std::size_t> shard_sizes_;  // tensors in each
  std::size_t total_bytes_ = 0;
  std::map<std::string, std::string> weight_map_;
  std::unique_ptr<SafetensorsWriter> shard_;
  std::size_t next_shard_ = 0;  // to be opened next
  std::size_t shard_end_ = 0;   // first place in order_ beyond the open shard
  std::size_t next_tensor_ = 0;
  bool finished_ = false;
};

}  // namespace hadal::io
