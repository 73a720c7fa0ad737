#include "core/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace hadal {

namespace {

[[noreturn]] void throw_errno(const char* action, const Path& path) {
  const int error = errno;
  throw Error(error == ENOENT ? ErrorCode::not_found : ErrorCode::io,
              fmt::format("cannot {} {}: {}", action, path.string(), std::strerror(error)));
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

class PosixWritableFile final : public WritableFile {
 public:
  PosixWritableFile(const Path& path, int flags)
      : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0644)) {
    if (fd_.get() < 0) throw_errno("create", path_);
    position_ = size();
  }
  using WritableFile::append;
  void append(std::span<const std::byte> bytes) override {
    write_at(position_, bytes);
    position_ += bytes.size();
  }
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t n = ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (n < 0) {
        if (errno == EINTR) continue;
        throw_errno("write", path_);
      }
      bytes = bytes.subspan(static_cast<std::size_t>(n));
      offset += static_cast<std::uint64_t>(n);
    }
  }
  void preallocate(std::uint64_t nbytes) override {
    int result = 0;
    do result = ::fallocate(fd_.get(), 0, 0, static_cast<off_t>(nbytes));
    while (result != 0 && errno == EINTR);
    if (result == 0) return;
    if (errno != EOPNOTSUPP) throw_errno("reserve space for", path_);
    // A file system without reservations: only the size, then.
    if (size() < nbytes && ::ftruncate(fd_.get(), static_cast<off_t>(nbytes)) != 0) {
      throw_errno("extend", path_);
    }
  }
  void truncate(std::uint64_t nbytes) override {
    if (::ftruncate(fd_.get(), static_cast<off_t>(nbytes)) != 0) throw_errno("truncate", path_);
    position_ = std::min(position_, nbytes);
  }
  void sync() override {
    if (::fsync(fd_.get()) != 0) throw_errno("sync", path_);
  }
  void sync_data() override {
    if (::fdatasync(fd_.get()) != 0) throw_errno("sync", path_);
  }
  void close() override {
    if (::close(fd_.release()) != 0) throw_errno("close", path_);
  }

 private:
  [[nodiscard]] std::uint64_t size() const {
    struct stat status{};
    if (::fstat(fd_.get(), &status) != 0) throw_errno("stat", path_);
    return static_cast<std::uint64_t>(status.st_size);
  }
  Path path_;
  FileDescriptor fd_;
  std::uint64_t position_ = 0;
};

class PosixReadableFile final : public ReadableFile {
 public:
  explicit PosixReadableFile(const Path& path)
      : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_.get() < 0) throw_errno("open", path_);
    struct stat status{};
    if (::fstat(fd_.get(), &status) != 0) throw_errno("stat", path_);
    if (!S_ISREG(status.st_mode)) {
      throw Error(ErrorCode::io, fmt::format("cannot read {}: not a regular file", path_.string()));
    }
  }
  [[nodiscard]] std::size_t read(std::uint64_t offset, std::span<std::byte> into) const override {
    std::size_t done = 0;
    while (done < into.size()) {
      const ssize_t n = ::pread(fd_.get(), into.data() + done, into.size() - done,
                                static_cast<off_t>(offset + done));
      if (n < 0) {
        if (errno == EINTR) continue;
        throw_errno("read", path_);
      }
      if (n == 0) break;
      done += static_cast<std::size_t>(n);
    }
    return done;
  }
  [[nodiscard]] std::uint64_t size() const override {
    struct stat status{};
    if (::fstat(fd_.get(), &status) != 0) throw_errno("stat", path_);
    return static_cast<std::uint64_t>(status.st_size);
  }

 private:
  Path path_;
  FileDescriptor fd_;
};

class PosixFileSystem final : public FileSystem {
 public:
  std::unique_ptr<WritableFile> create(const Path& path) override {
    return std::make_unique<PosixWritableFile>(path, O_TRUNC);
  }
  std::unique_ptr<WritableFile> open_append(const Path& path) override {
    return std::make_unique<PosixWritableFile>(path, 0);
  }
  std::unique_ptr<ReadableFile> open_read(const Path& path) override {
    return std::make_unique<PosixReadableFile>(path);
  }
  void rename(const Path& from, const Path& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) throw_errno("rename to", to);
    const Path parent = to.has_parent_path() ? to.parent_path() : Path(".");
    const FileDescriptor directory(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (directory.get() >= 0) ::fsync(directory.get());
  }
  bool remove(const Path& path) override {
    if (::unlink(path.c_str()) == 0) return true;
    if (errno != ENOENT) throw_errno("remove", path);
    return false;
  }
  void sync_directory(const Path& path) override {
    const FileDescriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (directory.get() < 0) throw_errno("open directory", path);
    if (::fsync(directory.get()) != 0) throw_errno("sync directory", path);
  }
  std::shared_ptr<void> lock(const Path& path) override {
    auto fd =
        std::make_shared<FileDescriptor>(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (fd->get() < 0) throw_errno("create", path);
    if (::flock(fd->get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) throw_errno("lock", path);
      throw Error(ErrorCode::io,
                  fmt::format("{} is locked: another hadal works in this directory; stop it, or "
                              "name another directory",
                              path.string()));
    }
    return fd;
  }
  std::vector<Entry> list(const Path& directory) override {
    std::error_code error;
    std::vector<Entry> entries;
    std::filesystem::directory_iterator it(directory, error);
    for (const std::filesystem::directory_iterator end; !error && it != end; it.increment(error)) {
      std::error_code gone;  // a file removed since it was listed is no error
      Entry entry{.name = it->path().filename().string(), .is_directory = it->is_directory(gone)};
      if (!entry.is_directory) {
        entry.size = it->file_size(gone);
        if (gone) continue;
      }
      entries.push_back(std::move(entry));
    }
    if (error) {
      throw Error(
          error == std::errc::no_such_file_or_directory ? ErrorCode::not_found : ErrorCode::io,
          fmt::format("cannot list {}: {}", directory.string(), error.message()));
    }
    std::sort(entries.begin(), entries.end(),
              [](const Entry& a, const Entry& b) { return a.name < b.name; });
    return entries;
  }
  bool exists(const Path& path) override {
    std::error_code error;
    return std::filesystem::exists(path, error);
  }
  std::uint64_t free_space(const Path& path) override {
    struct statvfs status{};
    if (::statvfs(path.c_str(), &status) != 0) throw_errno("ask for the free space of", path);
    return std::uint64_t{status.f_bavail} * status.f_frsize;
  }
  void remove_all(const Path& path) override {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error) {
      throw Error(ErrorCode::io,
                  fmt::format("cannot remove {}: {}", path.string(), error.message()));
    }
  }
  void create_directories(const Path& path) override {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) {
      throw Error(ErrorCode::io,
                  fmt::format("cannot create directory {}: {}", path.string(), error.message()));
    }
  }
};

}  // namespace

MappedFile::MappedFile(Path path, const std::byte* data, std::size_t size)
    : path_(std::move(path)), data_(data), size_(size) {}

std::shared_ptr<MappedFile> MappedFile::open(const Path& path) {
  const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) throw_errno("open", path);
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) throw_errno("stat", path);
  if (!S_ISREG(status.st_mode)) {
    throw Error(ErrorCode::io, fmt::format("cannot read {}: not a regular file", path.string()));
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  void* data = nullptr;
  if (size > 0) {  // mmap refuses an empty range
    data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
    if (data == MAP_FAILED) throw_errno("map", path);
  }
  return std::shared_ptr<MappedFile>(new MappedFile(path, static_cast<std::byte*>(data), size));
}

MappedFile::~MappedFile() {
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast): munmap takes what mmap gave
  if (size_ > 0) ::munmap(const_cast<std::byte*>(data_), size_);
}

std::vector<std::byte> FileSystem::read_all(const Path& path) {
  const auto file = open_read(path);
  std::vector<std::byte> bytes(file->size());
  bytes.resize(file->read(0, bytes));
  return bytes;
}

FileSystem& FileSystem::real() {
  static PosixFileSystem file_system;
  return file_system;
}

std::string read_text(const Path& path) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace hadal
