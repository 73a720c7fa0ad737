#include "cli/preload.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cli/progress.h"

namespace hadal::cli {

namespace {

constexpr std::size_t kPiece = std::size_t{16} << 20;

// Whether every page of [begin, begin + n) of the mapping is in memory. mincore only reports.
bool is_resident(const std::byte* begin, std::size_t n, std::size_t page) {
  std::vector<unsigned char> pages((n + page - 1) / page);
  // NOLINTNEXTLINE: the interface takes a non-const pointer and writes nothing through it.
  if (::mincore(const_cast<std::byte*>(begin), n, pages.data()) != 0) return true;
  return std::all_of(pages.begin(), pages.end(), [](unsigned char p) { return (p & 1) != 0; });
}

}  // namespace

void preload(const Path& directory) {
  std::vector<std::shared_ptr<MappedFile>> files;
  std::size_t total = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    if (entry.path().extension() != ".safetensors") continue;
    files.push_back(MappedFile::open(entry.path()));
    total += files.back()->bytes().size();
  }
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t memory = static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES)) * page;
  if (total > memory / 10 * 8) return;

  ProgressBar bar("load", ProgressBar::Unit::bytes);
  std::vector<std::byte> scratch(kPiece);
  std::size_t done = 0;
  for (const auto& file : files) {
    const auto bytes = file->bytes();
    const int fd = ::open(file->path().c_str(), O_RDONLY | O_CLOEXEC);
    for (std::size_t at = 0; at < bytes.size(); at += kPiece) {
      const std::size_t n = std::min(kPiece, bytes.size() - at);
      if (fd >= 0 && !is_resident(bytes.data() + at, n, page)) {
        // Reading is the fastest way in: no page fault, and the kernel reads ahead. What it cannot
        // read now, the mapping will report later.
        (void)!::pread(fd, scratch.data(), n, static_cast<off_t>(at));
      }
      done += n;
      bar.update(done, total);
    }
    if (fd >= 0) ::close(fd);
  }
}

}  // namespace hadal::cli
