#include "engine/swap_store.h"

#include <fmt/format.h>

#include "core/digest.h"
#include "core/error.h"

namespace hadal::engine {

SwapImage::~SwapImage() {
  if (files_ == nullptr) return;
  try {
    files_->remove(path_);
  } catch (const Error&) {  // the next start removes it
  }
}

SwapStore::SwapStore(FileSystem& files, Path directory)
    : files_(files), directory_(std::move(directory)) {
  if (directory_.empty()) return;
  files_.create_directories(directory_);
  for (const FileSystem::Entry& entry : files_.list(directory_)) {
    if (entry.name.ends_with(".swap")) files_.remove(directory_ / entry.name);
  }
}

std::unique_ptr<SwapImage> SwapStore::save(const cache::PagedKv& kv, std::int64_t slot,
                                           std::int64_t position) {
  std::unique_ptr<SwapImage> image(new SwapImage());
  image->position_ = position;
  std::vector<std::byte> bytes = kv.save_state(slot, position);
  const auto pages = kv.pages(slot).first(static_cast<std::size_t>(kv.pages_for(position)));
  bytes.reserve(bytes.size() + pages.size() * kv.page_bytes());
  std::vector<std::byte> copy;
  for (const cache::PageRef& page : pages) {
    const std::span<const std::byte> content = page->read(copy);
    bytes.insert(bytes.end(), content.begin(), content.end());
  }
  image->nbytes_ = bytes.size();
  image->crc_ = crc32c(bytes);
  if (directory_.empty()) {
    image->memory_ = std::move(bytes);
    return image;
  }
  image->path_ = directory_ / fmt::format("{:08}.swap", next_++);
  try {
    image->files_ = &files_;
    const auto file = files_.create(image->path_);
    file->append(bytes);
    file->close();
  } catch (const Error&) {
    return nullptr;
  }
  return image;
}

bool SwapStore::restore(cache::PagedKv& kv, std::int64_t slot, const SwapImage& image) {
  std::vector<std::byte> read;
  std::span<const std::byte> bytes = image.memory_;
  if (image.files_ != nullptr) {
    try {
      read = files_.read_all(image.path_);
    } catch (const Error&) {
      return false;
    }
    bytes = read;
  }
  if (bytes.size() != image.nbytes_ || crc32c(bytes) != image.crc_) return false;
  const std::size_t state = kv.saved_state_bytes(image.position_);
  kv.restore_state(slot, image.position_, bytes.first(state));
  bytes = bytes.subspan(state);
  for (const cache::PageRef& page :
       kv.pages(slot).first(static_cast<std::size_t>(kv.pages_for(image.position_)))) {
    page->write(bytes.first(page->nbytes()));
    bytes = bytes.subspan(page->nbytes());
  }
  return true;
}

}  // namespace hadal::engine
