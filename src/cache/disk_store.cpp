#include "cache/disk_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "core/digest.h"
#include "core/error.h"

namespace hadal::cache {

namespace {

Sha256Digest digest_of(const std::string& fingerprint, const std::string& layout) {
  Sha256 hash;
  hash.update(fmt::format("{}:", fingerprint.size()));
  hash.update(fingerprint);
  hash.update(layout);
  return hash.finish();
}

}  // namespace

const char* to_string(WindowStrategy strategy) {
  switch (strategy) {
    case WindowStrategy::full:
      return "full";
    case WindowStrategy::periodic:
      return "periodic";
    case WindowStrategy::zero:
      return "zero";
  }
  return "?";
}

WindowStrategy parse_window_strategy(std::string_view name) {
  for (const auto s : {WindowStrategy::full, WindowStrategy::periodic, WindowStrategy::zero}) {
    if (name == to_string(s)) return s;
  }
  throw Error(ErrorCode::invalid_argument,
              fmt::format("the window strategy \"{}\" is none of full, periodic, zero", name));
}

std::int64_t snapshot_interval(WindowStrategy strategy, std::int64_t page_tokens,
                               std::int64_t periodic) {
  switch (strategy) {
    case WindowStrategy::full:
      return page_tokens;
    case WindowStrategy::periodic:
      return periodic;
    case WindowStrategy::zero:
      return 0;
  }
  return periodic;
}

DiskStore::DiskStore(FileSystem& fs, Path directory, const KvLayout& layout,
                     const DiskStoreOptions& options)
    : fs_(fs),
      directory_(std::move(directory)),
      options_(options),
      layout_(layout.text()),
      page_tokens_(layout.page_tokens),
      page_bytes_(layout.page_bytes),
      model_(digest_of(options.fingerprint, layout_)),
      queue_(options.queue_bytes) {
  if (options_.pages_per_file < 1 || options_.pages_per_file > 4096) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} pages a file: wanted 1 to 4096", options_.pages_per_file));
  }
  open_directory();
}

DiskStore::~DiskStore() {
  try {
    flush();
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): the order of hits is lost
  }
}

Path DiskStore::path_of(KvFileKind kind, const ChainKey& name) const {
  const std::string hex = to_string(name);
  const bool pages = kind == KvFileKind::pages;
  return directory_ / (pages ? "kv" : "snap") / hex.substr(0, 2) /
         (hex + (pages ? ".kvb" : ".kvs"));
}

// A damaged file is not read again; the next start removes it.
void DiskStore::set_aside(const Path& path) {
  {
    const std::lock_guard lock(mutex_);
    ++statistics_.rejected_files;
  }
  try {
    fs_.rename(path, path.string() + ".bad");
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): the index has forgotten it, which does
  }
}

std::uint64_t DiskStore::now_ms() {  // mutex_ held; never the same twice
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto ms = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
  last_ms_ = std::max(last_ms_ + 1, ms);
  return last_ms_;
}

bool DiskStore::has_page(const ChainKey& key) const {
  const std::lock_guard lock(mutex_);
  return index_.page(key).has_value() || queued_pages_.contains(key);
}

bool DiskStore::has_snapshot(const ChainKey& key) const {
  const std::lock_guard lock(mutex_);
  return index_.snapshot(key) != nullptr || queued_.contains({KvFileKind::snapshot, key});
}

std::int64_t DiskStore::read_pages(std::span<const ChainKey> keys, std::span<const TokenId> tokens,
                                   std::span<const PageRef> into) {
  const auto page_tokens = static_cast<std::size_t>(page_tokens_);
  HADAL_CHECK(into.size() == keys.size() && tokens.size() == keys.size() * page_tokens);
  std::size_t done = 0;
  while (done < keys.size()) {
    ChainKey name;
    std::size_t first = 0, n = 0;
    {
      const std::lock_guard lock(mutex_);
      const auto place = index_.page(keys[done]);
      if (!place) break;
      name = place->file->name();
      first = place->index;
      const std::vector<ChainKey>& held = place->file->keys;
      while (done + n < keys.size() && first + n < held.size() && held[first + n] == keys[done + n])
        ++n;
    }
    const Path path = path_of(KvFileKind::pages, name);
    try {
      const std::unique_ptr<ReadableFile> file = fs_.open_read(path);
      const KvFileHeader h = read_kv_header(*file, path.string());
      const std::vector<TokenId> stored = read_kv_tokens(*file, h, path.string());
      const std::span<const TokenId> wanted = tokens.subspan(done * page_tokens, n * page_tokens);
      if (h.model != model_ || h.kind != KvFileKind::pages || h.item_bytes != page_bytes_ ||
          h.page_tokens != page_tokens_ || first + n > h.keys.size() ||
          !std::ranges::equal(wanted,
                              std::span(stored).subspan(first * page_tokens, n * page_tokens))) {
        throw Error(ErrorCode::corrupt_data,
                    path.string() + ": it holds pages of other tokens than its name says");
      }
      std::vector<std::span<std::byte>> buffers;
      std::vector<std::vector<std::byte>> copies;  // of pages that the host cannot write
      buffers.reserve(n), copies.reserve(n);
      for (std::size_t i = 0; i < n; ++i) {
        const Page& page = *into[done + i];
        if (page.on_host()) {
          buffers.emplace_back(page.bytes(), page.nbytes());
        } else {
          buffers.emplace_back(copies.emplace_back(page.nbytes()));
        }
      }
      read_kv_items(*file, h, path.string(), first, buffers);
      for (std::size_t i = 0; i < copies.size(); ++i) into[done + i]->write(copies[i]);
    } catch (const Error& e) {
      {
        const std::lock_guard lock(mutex_);
        index_.remove(KvFileKind::pages, name);
      }
      if (e.code != ErrorCode::not_found) set_aside(path);  // else the writer has just evicted it
      break;
    }
    const std::lock_guard lock(mutex_);
    statistics_.page_hits += n;
    statistics_.bytes_read += n * page_bytes_;
    done += n;
  }
  return static_cast<std::int64_t>(done);
}

std::shared_ptr<const Snapshot> DiskStore::read_snapshot(const ChainKey& key, std::int64_t position,
                                                         std::span<const TokenId> page_tokens) {
  {
    const std::lock_guard lock(mutex_);
    if (index_.snapshot(key) == nullptr) return nullptr;
  }
  const Path path = path_of(KvFileKind::snapshot, key);
  try {
    const std::unique_ptr<ReadableFile> file = fs_.open_read(path);
    const KvFileHeader h = read_kv_header(*file, path.string());
    if (h.model != model_ || h.kind != KvFileKind::snapshot || h.position != position ||
        h.keys.back() != key ||
        !std::ranges::equal(read_kv_tokens(*file, h, path.string()), page_tokens)) {
      throw Error(ErrorCode::corrupt_data,
                  path.string() + ": it holds the state of another text than its name says");
    }
    auto snapshot = std::make_shared<Snapshot>();
    snapshot->position = position;
    snapshot->state.resize(h.item_bytes);
    const std::span<std::byte> buffer(snapshot->state);
    read_kv_items(*file, h, path.string(), 0, {&buffer, 1});
    const std::lock_guard lock(mutex_);
    statistics_.snapshot_hits += 1;
    statistics_.bytes_read += h.item_bytes;
    return snapshot;
  } catch (const Error& e) {
    {
      const std::lock_guard lock(mutex_);
      index_.remove(KvFileKind::snapshot, key);
    }
    if (e.code != ErrorCode::not_found) set_aside(path);
    return nullptr;
  }
}

bool DiskStore::write_pages(const ChainKey& parent, std::int64_t position,
                            std::span<const ChainKey> keys, std::span<const TokenId> tokens,
                            std::span<const PageRef> pages, WhenFull when_full) {
  HADAL_CHECK(!keys.empty() && keys.size() == pages.size() &&
              static_cast<std::int64_t>(keys.size()) <= options_.pages_per_file);
  KvFileHeader header{.kind = KvFileKind::pages,
                      .model = model_,
                      .position = position,
                      .page_tokens = page_tokens_,
                      .item_bytes = page_bytes_,
                      .parent = parent,
                      .keys = {keys.begin(), keys.end()}};
  return enqueue(std::move(header), {tokens.begin(), tokens.end()}, {pages.begin(), pages.end()},
                 nullptr, when_full);
}

bool DiskStore::write_snapshot(const ChainKey& key, std::span<const TokenId> page_tokens,
                               std::shared_ptr<const Snapshot> snapshot, WhenFull when_full) {
  KvFileHeader header{.kind = KvFileKind::snapshot,
                      .model = model_,
                      .position = snapshot->position,
                      .page_tokens = page_tokens_,
                      .item_bytes = snapshot->state.size(),
                      .parent = {},
                      .keys = {key}};
  return enqueue(std::move(header), {page_tokens.begin(), page_tokens.end()}, {},
                 std::move(snapshot), when_full);
}

bool DiskStore::enqueue(KvFileHeader header, std::vector<TokenId> tokens,
                        std::vector<PageRef> pages, std::shared_ptr<const Snapshot> snapshot,
                        WhenFull when_full) {
  const Name name{header.kind, header.keys.back()};
  const std::vector<ChainKey> keys = header.keys;
  const std::uint64_t nbytes = header.file_bytes();
  {
    const std::lock_guard lock(mutex_);
    header.created_ms = now_ms();
    queued_.insert(name);
    if (name.kind == KvFileKind::pages) queued_pages_.insert(keys.begin(), keys.end());
  }
  const auto forget = [this, name, keys] {
    queued_.erase(name);
    if (name.kind == KvFileKind::pages) {
      for (const ChainKey& key : keys) queued_pages_.erase(key);
    }
  };
  const bool accepted = queue_.push(
      nbytes,
      [this, forget, header = std::move(header), tokens = std::move(tokens),
       pages = std::move(pages), snapshot = std::move(snapshot)]() mutable {
        std::vector<std::span<const std::byte>> items;
        std::vector<std::vector<std::byte>> copies(pages.size());
        for (std::size_t i = 0; i < pages.size(); ++i) items.push_back(pages[i]->read(copies[i]));
        if (snapshot != nullptr) items.emplace_back(snapshot->state);
        write(std::move(header), tokens, items);
        const std::lock_guard lock(mutex_);
        forget();
      },
      when_full);
  if (!accepted) {
    const std::lock_guard lock(mutex_);
    forget();
    ++statistics_.dropped_writes;
  }
  return accepted;
}

// On the writer's thread.
void DiskStore::write(KvFileHeader header, std::span<const TokenId> tokens,
                      std::span<const std::span<const std::byte>> items) noexcept {
  const Path path = path_of(header.kind, header.keys.back());
  const Path temporary = path.string() + ".tmp";
  try {
    if (!make_room(header.file_bytes())) {
      const std::lock_guard lock(mutex_);
      ++statistics_.dropped_writes;
      return;
    }
    fs_.create_directories(path.parent_path());
    write_kv_file(fs_, temporary, header, tokens, items);
    fs_.rename(temporary, path);
    const std::lock_guard lock(mutex_);
    statistics_.bytes_written += header.file_bytes();
    const std::uint64_t nbytes = header.file_bytes();
    index_.add({.kind = header.kind,
                .keys = std::move(header.keys),
                .position = header.position,
                .nbytes = nbytes,
                .last_hit = header.created_ms});
  } catch (const std::exception&) {
    {
      const std::lock_guard lock(mutex_);
      ++statistics_.failed_writes;
    }
    try {
      (void)fs_.remove(temporary);
    } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): the next start removes it
    }
  }
}

// Whether a file of this size may be written, after older ones went for it.
bool DiskStore::make_room(std::uint64_t nbytes) {
  if (nbytes > options_.budget_bytes) return false;
  while (true) {
    Path path;
    {
      const std::lock_guard lock(mutex_);
      if (index_.nbytes() + nbytes <= options_.budget_bytes) break;
      const DiskIndex::File* oldest = index_.oldest();
      if (oldest == nullptr) break;
      path = path_of(oldest->kind, oldest->name());
      index_.remove(oldest->kind, ChainKey(oldest->name()));
      ++statistics_.evicted_files;
    }
    (void)fs_.remove(path);
  }
  return fs_.free_space(directory_) >= options_.min_free_bytes + nbytes;
}

void DiskStore::touch(std::span<const ChainKey> keys) {
  const std::lock_guard lock(mutex_);
  index_.touch(keys, now_ms());
}

void DiskStore::drop_queued() {
  const std::size_t n = queue_.clear();
  const std::lock_guard lock(mutex_);
  statistics_.dropped_writes += n;
  queued_.clear();
  queued_pages_.clear();
}

void DiskStore::flush() {
  queue_.drain();
  save_hits();
}

DiskStore::Statistics DiskStore::statistics() const {
  const std::lock_guard lock(mutex_);
  Statistics s = statistics_;
  s.bytes = index_.nbytes();
  s.files = index_.n_files();
  return s;
}

void DiskStore::count_miss() {
  const std::lock_guard lock(mutex_);
  ++statistics_.misses;
}

}  // namespace hadal::cache
