#include "cache/disk_index.h"

#include <utility>

namespace hadal::cache {

void DiskIndex::add(File file) {
  remove(file.kind, file.name());
  nbytes_ += file.nbytes;
  order_.insert(rank(file));
  if (file.kind == KvFileKind::pages) {
    // A page may lie in several files: of prompts that were written before it was known.
    for (std::size_t i = 0; i < file.keys.size(); ++i) pages_[file.keys[i]] = {file.name(), i};
  }
  const Name name{file.kind, file.name()};
  files_.emplace(name, std::move(file));
}

void DiskIndex::remove(KvFileKind kind, const ChainKey& name) {
  const auto found = files_.find({kind, name});
  if (found == files_.end()) return;
  const File& file = found->second;
  nbytes_ -= file.nbytes;
  order_.erase(rank(file));
  if (kind == KvFileKind::pages) {
    for (const ChainKey& key : file.keys) {
      const auto page = pages_.find(key);
      if (page != pages_.end() && page->second.first == name) pages_.erase(page);
    }
  }
  files_.erase(found);
}

std::optional<DiskIndex::Place> DiskIndex::page(const ChainKey& key) const {
  const auto found = pages_.find(key);
  if (found == pages_.end()) return std::nullopt;
  return Place{find(KvFileKind::pages, found->second.first), found->second.second};
}

const DiskIndex::File* DiskIndex::snapshot(const ChainKey& key) const {
  return find(KvFileKind::snapshot, key);
}

const DiskIndex::File* DiskIndex::find(KvFileKind kind, const ChainKey& name) const {
  const auto found = files_.find({kind, name});
  return found == files_.end() ? nullptr : &found->second;
}

void DiskIndex::touch(std::span<const ChainKey> keys, std::uint64_t now_ms) {
  for (const ChainKey& key : keys) {
    const auto page = pages_.find(key);
    if (page != pages_.end()) set_last_hit(KvFileKind::pages, page->second.first, now_ms);
    set_last_hit(KvFileKind::snapshot, key, now_ms);
  }
}

void DiskIndex::set_last_hit(KvFileKind kind, const ChainKey& name, std::uint64_t ms) {
  const auto found = files_.find({kind, name});
  if (found == files_.end() || found->second.last_hit >= ms) return;
  order_.erase(rank(found->second));
  found->second.last_hit = ms;
  order_.insert(rank(found->second));
}

const DiskIndex::File* DiskIndex::oldest() const {
  return order_.empty() ? nullptr : find(order_.begin()->name.kind, order_.begin()->name.key);
}

std::vector<const DiskIndex::File*> DiskIndex::files() const {
  std::vector<const File*> files;
  files.reserve(files_.size());
  for (const auto& [name, file] : files_) files.push_back(&file);
  return files;
}

}  // namespace hadal::cache
