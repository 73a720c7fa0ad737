#include "core/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

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
  explicit PosixWritableFile(const Path& path)
      : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (fd_.get() < 0) throw_errno("create", path_);
  }
  using WritableFile::append;
  void append(std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t n = ::write(fd_.get(), bytes.data(), bytes.size());
      if (n < 0) {
        if (errno == EINTR) continue;
        throw_errno("write", path_);
      }
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    }
  }
  void sync() override {
    if (::fsync(fd_.get()) != 0) throw_errno("sync", path_);
  }
  void close() override {
    if (::close(fd_.release()) != 0) throw_errno("close", path_);
  }

 private:
  Path path_;
  FileDescriptor fd_;
};

class PosixFileSystem final : public FileSystem {
 public:
  std::unique_ptr<WritableFile> create(const Path& path) override {
    return std::make_unique<PosixWritableFile>(path);
  }
  void rename(const Path& from, const Path& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) throw_errno("rename to", to);
    const Path parent = to.has_parent_path() ? to.parent_path() : Path(".");
    const FileDescriptor directory(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (directory.get() >= 0) ::fsync(directory.get());
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
