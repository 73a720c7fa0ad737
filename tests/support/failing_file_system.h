// A disk that fills up on cue, and directories to use it in.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <string>

#include "core/error.h"
#include "core/file.h"

namespace hadal::test {

// The real file system until it was asked for `limit` operations (create, append, sync, close,
// rename); the next one and all later ones fail as a full disk does. Removing always works, and so
// does a rename behind the one that failed: it needs no space.
class FailingFileSystem final : public FileSystem {
 public:
  explicit FailingFileSystem(int limit = std::numeric_limits<int>::max()) : limit_(limit) {}
  [[nodiscard]] int n_operations() const { return n_operations_; }

  std::unique_ptr<WritableFile> create(const Path& path) override {
    count(path);
    return std::make_unique<File>(*this, path, FileSystem::real().create(path));
  }
  std::unique_ptr<WritableFile> open_append(const Path& path) override {
    count(path);
    return std::make_unique<File>(*this, path, FileSystem::real().open_append(path));
  }
  std::unique_ptr<ReadableFile> open_read(const Path& path) override {
    return FileSystem::real().open_read(path);
  }
  bool remove(const Path& path) override { return FileSystem::real().remove(path); }
  void sync_directory(const Path& path) override {
    count(path);
    FileSystem::real().sync_directory(path);
  }
  std::shared_ptr<void> lock(const Path& path) override { return FileSystem::real().lock(path); }
  std::vector<Entry> list(const Path& directory) override {
    return FileSystem::real().list(directory);
  }
  bool exists(const Path& path) override { return FileSystem::real().exists(path); }
  std::uint64_t free_space(const Path& path) override {
    return FileSystem::real().free_space(path);
  }
  void rename(const Path& from, const Path& to) override {
    if (n_operations_ <= limit_) count(to);
    FileSystem::real().rename(from, to);
  }
  void remove_all(const Path& path) override { FileSystem::real().remove_all(path); }
  void create_directories(const Path& path) override {
    count(path);
    FileSystem::real().create_directories(path);
  }

 private:
  class File final : public WritableFile {
   public:
    File(FailingFileSystem& fs, Path path, std::unique_ptr<WritableFile> file)
        : fs_(fs), path_(std::move(path)), file_(std::move(file)) {}
    using WritableFile::append;
    void append(std::span<const std::byte> bytes) override {
      fs_.count(path_);
      file_->append(bytes);
    }
    void write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
      fs_.count(path_);
      file_->write_at(offset, bytes);
    }
    void preallocate(std::uint64_t nbytes) override {
      fs_.count(path_);
      file_->preallocate(nbytes);
    }
    void truncate(std::uint64_t nbytes) override {
      fs_.count(path_);
      file_->truncate(nbytes);
    }
    void sync() override {
      fs_.count(path_);
      file_->sync();
    }
    void sync_data() override {
      fs_.count(path_);
      file_->sync_data();
    }
    void close() override {
      fs_.count(path_);
      file_->close();
    }

   private:
    FailingFileSystem& fs_;
    Path path_;
    std::unique_ptr<WritableFile> file_;
  };

  void count(const Path& path) {
    if (n_operations_++ >= limit_) {
      throw Error(ErrorCode::io, "cannot write " + path.string() + ": No space left on device");
    }
  }
  int limit_;
  int n_operations_ = 0;
};

// An empty directory that goes with the test.
class ScratchDirectory {
 public:
  explicit ScratchDirectory(const std::string& purpose = "test") {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string(test->test_suite_name()) + "." + test->name();
    for (char& c : name) c = c == '/' ? '_' : c;
    path_ = std::filesystem::temp_directory_path() /
            ("hadal-" + name + "-" + purpose + "-" + std::to_string(::getpid()));
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~ScratchDirectory() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;

  [[nodiscard]] Path operator/(const std::string& name) const { return path_ / name; }
  [[nodiscard]] const Path& path() const { return path_; }
  [[nodiscard]] std::size_t n_entries() const {
    std::size_t n = 0;
    for (const auto& entry : std::filesystem::directory_iterator(path_))
      n += entry.exists() ? 1 : 0;
    return n;
  }

 private:
  Path path_;
};

inline void write_text(const Path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

}  // namespace hadal::test
