// Files. Everything that writes goes through FileSystem, so that a test can lose power, run out of
// disk or tear a write on cue.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace hadal {

using Path = std::filesystem::path;

// A whole file, read-only, mapped. Tensors that look into it share ownership.
class MappedFile {
 public:
  // Throws Error: not_found when there is no such file, io when it cannot be opened or mapped.
  [[nodiscard]] static std::shared_ptr<MappedFile> open(const Path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }
  [[nodiscard]] const Path& path() const { return path_; }

 private:
  MappedFile(Path path, const std::byte* data, std::size_t size);
  Path path_;
  const std::byte* data_;
  std::size_t size_;
};

// Sequential output. close() must be called for the data to count; a destructor that runs first
// abandons it.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  virtual void append(
      std::span<const std::byte> bytes) = 0;  // throws Error io, path and cause named
  virtual void sync() = 0;                    // data on stable storage
  virtual void close() = 0;
  void append(std::string_view text) {
    append(std::span(reinterpret_cast<const std::byte*>(text.data()), text.size()));
  }
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  [[nodiscard]] virtual std::unique_ptr<WritableFile> create(const Path& path) = 0;
  virtual void rename(const Path& from, const Path& to) = 0;  // atomic; the directory is synced
  virtual void remove_all(const Path& path) = 0;
  virtual void create_directories(const Path& path) = 0;

  [[nodiscard]] static FileSystem& real();  // the operating system's
};

// The whole file as text. Throws as MappedFile::open.
[[nodiscard]] std::string read_text(const Path& path);

}  // namespace hadal
