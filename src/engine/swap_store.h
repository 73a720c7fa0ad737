// Where preempted sequences wait: the host's memory, or files.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cache/paged_kv.h"
#include "core/file.h"

namespace hadal::engine {

// The whole history of one sequence, out of its slot.
class SwapImage {
 public:
  ~SwapImage();  // its file goes with it
  SwapImage(const SwapImage&) = delete;
  SwapImage& operator=(const SwapImage&) = delete;
  [[nodiscard]] std::int64_t position() const { return position_; }
  [[nodiscard]] std::size_t nbytes() const { return nbytes_; }

 private:
  friend class SwapStore;
  SwapImage() = default;
  std::int64_t position_ = 0;
  std::size_t nbytes_ = 0;
  std::vector<std::byte> memory_;  // empty when it lies in a file
  FileSystem* files_ = nullptr;
  Path path_;
  std::uint32_t crc_ = 0;
};

// Not for use by two threads at once; images may be dropped on any.
class SwapStore {
 public:
  // An empty `directory` keeps images in memory. What an earlier process left there is removed: the
  // journal brings its sequences back. Throws Error io when the directory cannot be made.
  SwapStore(FileSystem& files, Path directory);

  // Copies positions [0, position), where the slot stands, out of it. Null when the disk does not
  // take it: then the history is lost and has to be computed again, which costs time only.
  [[nodiscard]] std::unique_ptr<SwapImage> save(const cache::PagedKv& kv, std::int64_t slot,
                                                std::int64_t position);
  // Into a fresh slot with room for the image's positions. False when the image is damaged or gone;
  // the slot is to be closed then.
  [[nodiscard]] bool restore(cache::PagedKv& kv, std::int64_t slot, const SwapImage& image);

 private:
  FileSystem& files_;
  Path directory_;
  std::uint64_t next_ = 0;
};

}  // namespace hadal::engine
