// Files. Everything that writes goes through FileSystem, so that a test can lose power, run out of
// disk or tear a write on cue.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

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

// Output to one file, by one thread at a time. Everything throws Error io with the path and the
// cause. close() must be called for the data to count; a destructor that runs first abandons it.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  // Behind what was appended before (and behind what the file had when open_append found it). A
  // write that fails may have left a part of its bytes.
  virtual void append(std::span<const std::byte> bytes) = 0;
  // Over what lies at `offset`; does not move where append goes on.
  virtual void write_at(std::uint64_t offset, std::span<const std::byte> bytes) = 0;
  // Takes the disk's blocks for bytes [0, nbytes) and makes the file at least that long: zeros
  // where nothing was written. append still goes on where it stood.
  virtual void preallocate(std::uint64_t nbytes) = 0;
  virtual void truncate(std::uint64_t nbytes) = 0;  // append goes on there, if it stood behind
  virtual void sync() = 0;       // data and what describes the file on stable storage
  virtual void sync_data() = 0;  // data, and of the rest what reading it needs
  virtual void close() = 0;
  void append(std::string_view text) {
    append(std::span(reinterpret_cast<const std::byte*>(text.data()), text.size()));
  }
};

// Reads by position, from any thread, of a file that may be written meanwhile.
class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  // Fills `into` from `offset` on; returns how much, less than asked only where the file ends.
  [[nodiscard]] virtual std::size_t read(std::uint64_t offset, std::span<std::byte> into) const = 0;
  [[nodiscard]] virtual std::uint64_t size() const = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  // Empty, whatever was there. The name itself is durable after sync_directory.
  [[nodiscard]] virtual std::unique_ptr<WritableFile> create(const Path& path) = 0;
  [[nodiscard]] virtual std::unique_ptr<WritableFile> open_append(const Path& path) = 0;
  // Throws not_found when there is no such file.
  [[nodiscard]] virtual std::unique_ptr<ReadableFile> open_read(const Path& path) = 0;
  virtual void rename(const Path& from, const Path& to) = 0;  // atomic; the directory is synced
  virtual void remove_all(const Path& path) = 0;
  virtual bool remove(const Path& path) = 0;  // a file; false when there was none
  virtual void create_directories(const Path& path) = 0;
  virtual void sync_directory(const Path& path) = 0;  // its names on stable storage

  struct Entry {
    std::string name;  // within the directory
    bool is_directory = false;
    std::uint64_t size = 0;  // of a file, in bytes
  };
  // Nobody else gets this lock, in this process or another, while the result lives. Creates the
  // file `path`. Throws io when somebody has it.
  [[nodiscard]] virtual std::shared_ptr<void> lock(const Path& path) = 0;

  // By name. Throws not_found when there is no such directory.
  [[nodiscard]] virtual std::vector<Entry> list(const Path& directory) = 0;
  [[nodiscard]] virtual bool exists(const Path& path) = 0;
  // Bytes that this process may still write to the disk that holds `path`, which exists.
  [[nodiscard]] virtual std::uint64_t free_space(const Path& path) = 0;

  [[nodiscard]] std::uint64_t file_size(const Path& path) { return open_read(path)->size(); }
  [[nodiscard]] std::vector<std::byte> read_all(const Path& path);

  [[nodiscard]] static FileSystem& real();  // the operating system's
};

// The whole file as text. Throws as MappedFile::open.
[[nodiscard]] std::string read_text(const Path& path);

}  // namespace hadal
