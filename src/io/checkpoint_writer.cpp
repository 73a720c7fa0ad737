#include "io/checkpoint_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/error.h"

namespace hadal::io {

namespace {

// "out/" and "./out" are "out": the names beside it are made by appending.
Path plain_path(const Path& path) {
  Path plain = path.lexically_normal();
  if (plain.filename().empty()) plain = plain.parent_path();
  if (plain.empty() || plain == "." || plain == ".." || plain == plain.root_path()) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("\"{}\" is no name for a new directory", path.string()));
  }
  return plain;
}

void expect_replaceable(const Path& directory, Existing existing) {
  std::error_code error;
  const auto status = std::filesystem::symlink_status(directory, error);
  if (!std::filesystem::exists(status)) return;
  if (!std::filesystem::is_directory(status)) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} exists and is no directory; choose another name or remove it",
                            directory.string()));
  }
  if (existing == Existing::refuse) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} exists; choose another name, or --force to replace it",
                            directory.string()));
  }
  if (!std::filesystem::is_empty(directory, error) &&
      !std::filesystem::exists(directory / "config.json")) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} is no model directory (it has files, but no config.json) and is "
                            "not replaced; choose another name",
                            directory.string()));
  }
}

// Whole bytes of the type that a reader wants aligned. Packed nibbles are read as bytes, so a
// weight and its scale stay side by side.
int alignment_bits(const TensorDecl& decl) {
  return std::max(bits(decl.dtype), 8);
}

bool is_scale_of(const TensorDecl& scale, const TensorDecl& weight) {
  constexpr std::string_view kWeight = ".weight", kScale = ".scale";
  const std::string_view s = scale.name, w = weight.name;
  return s.ends_with(kScale) && w.ends_with(kWeight) &&
         s.substr(0, s.size() - kScale.size()) == w.substr(0, w.size() - kWeight.size());
}

}  // namespace

CheckpointWriter::CheckpointWriter(FileSystem& fs, const Path& directory,
                                   std::vector<TensorDecl> decls,
                                   const CheckpointWriterOptions& options)
    : fs_(fs),
      directory_(plain_path(directory)),
      partial_(directory_.string() + ".partial"),
      existing_(options.existing) {
  expect_replaceable(directory_, existing_);

  std::vector<std::vector<TensorDecl>> shards;
  std::size_t room = 0;
  for (std::size_t i = 0; i < decls.size();) {
    const std::size_t end =
        i + 1 < decls.size() && is_scale_of(decls[i + 1], decls[i]) ? i + 2 : i + 1;
    std::size_t size = 0;
    for (std::size_t j = i; j < end; ++j) size += nbytes(decls[j].shape, decls[j].dtype);
    if (shards.empty() || size > room) {
      shards.emplace_back();
      room = std::max(options.shard_bytes, size);
    }
    room -= size;
    total_bytes_ += size;
    for (; i < end; ++i) shards.back().push_back(std::move(decls[i]));
  }
  for (auto& shard : shards) {
    std::stable_sort(shard.begin(), shard.end(), [](const TensorDecl& a, const TensorDecl& b) {
      return alignment_bits(a) > alignment_bits(b);
    });
    shard_sizes_.push_back(shard.size());
    std::move(shard.begin(), shard.end(), std::back_inserter(order_));
  }
  std::size_t place = 0;
  for (std::size_t s = 0; s < shard_sizes_.size(); ++s) {
    for (std::size_t k = 0; k < shard_sizes_[s]; ++k, ++place) {
      weight_map_.emplace(order_[place].name, shard_name(s));
    }
  }
  fs_.remove_all(partial_);  // of a run that was killed
  fs_.create_directories(partial_);
}

CheckpointWriter::~CheckpointWriter() {
  if (finished_) return;
  shard_.reset();
  try {
    fs_.remove_all(partial_);
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch)
    // The reason why nothing was finished is on its way to the user; this one is a consequence.
  }
}

std::string CheckpointWriter::shard_name(std::size_t index) const {
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, shard_sizes_.size());
}

void CheckpointWriter::close_shard() {
  if (!shard_) return;
  shard_->finish();
  shard_.reset();
}

SafetensorsWriter& CheckpointWriter::writer_of(std::string_view name) {
  // The place of `name`: the tensor being written, or a later one past tensors without bytes.
  while (next_tensor_ < order_.size() && order_[next_tensor_].name != name) ++next_tensor_;
  if (next_tensor_ == order_.size()) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{}: {} is not declared or comes too late", directory_.string(), name));
  }
  while (!shard_ || next_tensor_ >= shard_end_) {
    close_shard();
    const auto begin = order_.begin() + static_cast<std::ptrdiff_t>(shard_end_);
    const std::size_t n = shard_sizes_[next_shard_];
    // transformers refuses a file that does not say "pt".
    shard_ = std::make_unique<SafetensorsWriter>(
        fs_, partial_ / shard_name(next_shard_),
        std::vector<TensorDecl>(begin, begin + static_cast<std::ptrdiff_t>(n)),
        std::map<std::string, std::string>{{"format", "pt"}});
    shard_end_ += n;
    ++next_shard_;
  }
  return *shard_;
}

void CheckpointWriter::write(std::string_view name, std::span<const std::byte> bytes) {
  writer_of(name).write(name, bytes);
}

void CheckpointWriter::write(std::string_view name, const TensorView& tensor) {
  writer_of(name).write(name, tensor);
}

void CheckpointWriter::write_file(const std::string& file_name, std::span<const std::byte> bytes) {
  const auto file = fs_.create(partial_ / file_name);
  file->append(bytes);
  file->sync();
  file->close();
}

void CheckpointWriter::write_file(const std::string& file_name, std::string_view text) {
  write_file(file_name, std::as_bytes(std::span(text.data(), text.size())));
}

void CheckpointWriter::finish() {
  // The last shard, and shards of nothing but tensors without bytes.
  while (next_shard_ < shard_sizes_.size() || shard_) {
    if (!shard_) (void)writer_of(order_.at(shard_end_).name);
    close_shard();
  }
  write_file("model.safetensors.index.json", index_json(weight_map_, total_bytes_));

  std::error_code ignored;
  if (!std::filesystem::exists(directory_, ignored)) {
    fs_.rename(partial_, directory_);
  } else {
    // Two renames: in between neither name is a half-written directory.
    expect_replaceable(directory_, existing_);
    const Path old = directory_.string() + ".replaced";
    fs_.remove_all(old);
    fs_.rename(directory_, old);
    try {
      fs_.rename(partial_, directory_);
    } catch (const Error& error) {
      try {
        fs_.rename(old, directory_);
      } catch (const Error&) {
        throw Error(error.code,
                    fmt::format("{}; what was there before is now {}", error.what(), old.string()));
      }
      throw;
    }
    finished_ = true;
    fs_.remove_all(old);
  }
  finished_ = true;
}

}  // namespace hadal::io
