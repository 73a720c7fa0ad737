// The directory of a disk cache: who may use it, what is in it, and in which order it was used.
#include <algorithm>
#include <cstring>

#include "cache/disk_store.h"
#include "core/digest.h"
#include "core/error.h"

namespace hadal::cache {

namespace {

constexpr std::uint64_t kHitsMagic = 0x0031737469686b68;  // "hkhits1\0"

struct HitRecord {  // of the file `hits`
  std::array<std::byte, 16> key;
  std::uint64_t last_hit_ms;
  std::uint32_t kind;
  std::uint32_t reserved;
};
static_assert(sizeof(HitRecord) == 32);

// What users said to the model lies in there. The file system may know no modes.
void make_private(const Path& path, std::filesystem::perms mode) {
  std::error_code ignored;
  std::filesystem::permissions(path, mode, ignored);
}

}  // namespace

void DiskStore::open_directory() {
  const bool fresh = !fs_.exists(directory_);
  fs_.create_directories(directory_ / "kv");
  fs_.create_directories(directory_ / "snap");
  if (fresh) make_private(directory_, std::filesystem::perms::owner_all);
  lock_ = fs_.lock(directory_ / "lock");
  hasher_ = std::make_unique<ChainHasher>(load_secret(), to_hex(model_));
  list_files();
  load_hits();
}

ChainHasher::Secret DiskStore::load_secret() {
  using std::filesystem::perms;
  const Path path = directory_ / "secret";
  ChainHasher::Secret secret;
  if (fs_.exists(path)) {
    const std::vector<std::byte> bytes = fs_.read_all(path);
    if (bytes.size() == secret.size()) {
      std::ranges::copy(bytes, secret.begin());
      return secret;
    }
  }
  // Names under another secret are never asked for again.
  for (const char* folder : {"kv", "snap"}) {
    fs_.remove_all(directory_ / folder);
    fs_.create_directories(directory_ / folder);
  }
  secret = ChainHasher::random_secret();
  const Path temporary = directory_ / "secret.tmp";
  const std::unique_ptr<WritableFile> file = fs_.create(temporary);
  // Before there is anything to see.
  make_private(temporary, perms::owner_read | perms::owner_write);
  file->append(std::span<const std::byte>(secret));
  file->sync();
  file->close();
  fs_.rename(temporary, path);
  return secret;
}

void DiskStore::list_files() {
  for (const KvFileKind kind : {KvFileKind::pages, KvFileKind::snapshot}) {
    const Path parent = directory_ / (kind == KvFileKind::pages ? "kv" : "snap");
    for (const FileSystem::Entry& folder : fs_.list(parent)) {
      if (folder.is_directory) list_folder(kind, parent / folder.name);
    }
  }
}

void DiskStore::list_folder(KvFileKind kind, const Path& folder) {
  for (const FileSystem::Entry& entry : fs_.list(folder)) {
    const Path path = folder / entry.name;
    const std::string extension = path.extension().string();
    if (extension == ".tmp" || extension == ".bad") {  // of a writer that died; of the last run
      fs_.remove(path);
      continue;
    }
    if (entry.is_directory) continue;
    try {
      const KvFileHeader h = read_kv_header(*fs_.open_read(path), path.string());
      // Names of another model's files, or under another secret, are never asked for.
      if (h.model != model_ || h.page_tokens != page_tokens_ ||
          (kind == KvFileKind::pages && h.item_bytes != page_bytes_)) {
        fs_.remove(path);
        ++statistics_.foreign_files;
        continue;
      }
      if (h.kind != kind || path != path_of(kind, h.keys.back())) {
        set_aside(path);
        continue;
      }
      index_.add({.kind = kind,
                  .keys = h.keys,
                  .position = h.position,
                  .nbytes = h.file_bytes(),
                  .last_hit = h.created_ms});
    } catch (const Error&) {
      set_aside(path);
    }
  }
}

// The order of last hits is a convenience: a damaged record is as good as none.
void DiskStore::load_hits() {
  const Path path = directory_ / "hits";
  try {
    if (!fs_.exists(path)) return;
    const std::vector<std::byte> bytes = fs_.read_all(path);
    std::uint64_t magic = 0;
    std::uint32_t crc = 0;
    constexpr std::size_t kHead = 16;
    if (bytes.size() < kHead || (bytes.size() - kHead) % sizeof(HitRecord) != 0) return;
    std::memcpy(&magic, bytes.data(), 8);
    std::memcpy(&crc, bytes.data() + 8, 4);
    const std::span<const std::byte> body = std::span(bytes).subspan(kHead);
    if (magic != kHitsMagic || crc32c(body) != crc) return;
    for (std::size_t at = 0; at < body.size(); at += sizeof(HitRecord)) {
      HitRecord record;
      std::memcpy(&record, body.data() + at, sizeof record);
      index_.set_last_hit(static_cast<KvFileKind>(record.kind), ChainKey{record.key},
                          record.last_hit_ms);
      last_ms_ = std::max(last_ms_, record.last_hit_ms);
    }
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): see above
  }
}

void DiskStore::save_hits() {
  std::vector<std::byte> bytes(16);
  {
    const std::lock_guard lock(mutex_);
    for (const DiskIndex::File* file : index_.files()) {
      const HitRecord record{file->name().bytes, file->last_hit,
                             static_cast<std::uint32_t>(file->kind), 0};
      const std::span<const std::byte> view = std::as_bytes(std::span(&record, 1));
      bytes.insert(bytes.end(), view.begin(), view.end());
    }
  }
  const std::uint32_t crc = crc32c(std::span<const std::byte>(bytes).subspan(16));
  std::memcpy(bytes.data(), &kHitsMagic, 8);
  std::memcpy(bytes.data() + 8, &crc, 4);
  const Path temporary = directory_ / "hits.tmp";
  const std::unique_ptr<WritableFile> file = fs_.create(temporary);
  file->append(std::span<const std::byte>(bytes));
  file->sync_data();
  file->close();
  fs_.rename(temporary, directory_ / "hits");
}

}  // namespace hadal::cache
