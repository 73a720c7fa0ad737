// Files in memory that lose power, run full, refuse to sync and die in the middle of a write.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/rng.h"

namespace hadal::test {

// A disk of its own. Two states of every file: what reads see, and what would survive a power loss
// (the content at the last sync, under names that sync_directory or rename made durable).
// Any thread.
class FaultFileSystem final : public FileSystem {
 public:
  // --- faults ---

  // The machine goes down and comes up again. Unsynced bytes are gone; with a seed, any sectors of
  // 512 bytes of them may have reached the disk, in any order, and so may any change of a size.
  // Open handles fail from here on.
  void power_loss(std::optional<std::uint64_t> torn_seed = std::nullopt) {
    const std::lock_guard lock(mutex_);
    ++boot_;
    locks_.clear();
    killed_ = false;
    kill_budget_ = kUnlimited;
    operation_budget_ = kUnlimited;
    Rng rng(torn_seed.value_or(0));
    for (auto it = files_.begin(); it != files_.end();) {
      Node& node = *it->second;
      if (!node.name_durable && !(torn_seed && rng.next_below(2) == 0)) {
        it = files_.erase(it);
        continue;
      }
      node.name_durable = true;
      if (torn_seed) {
        tear(node, rng);
      } else {
        node.live = node.durable;
      }
      node.durable = node.live;
      ++it;
    }
    for (auto& [path, node] : durable_names_) {  // removed, but the removal was not synced
      if (!files_.contains(path) && !(torn_seed && rng.next_below(2) == 0)) {
        node->live = node->durable;
        files_[path] = node;
      }
    }
    durable_names_ = files_;
    for (const auto& [name, node] : files_) add_directories(Path(name).parent_path());
  }

  // The process dies when it has written `n` bytes more: that write stops short, and everything
  // afterwards throws, until restart(). Nothing that was written is lost.
  void kill_after_bytes(std::uint64_t n) {
    const std::lock_guard lock(mutex_);
    kill_budget_ = n;
  }
  // The same after `n` operations more (create, write, sync, rename, remove; how many a call counts
  // for is not promised, only that every one of them is reached by some n).
  void kill_after_operations(std::uint64_t n) {
    const std::lock_guard lock(mutex_);
    operation_budget_ = n;
  }
  void restart() {
    const std::lock_guard lock(mutex_);
    ++boot_;
    locks_.clear();
    killed_ = false;
    kill_budget_ = kUnlimited;
    operation_budget_ = kUnlimited;
  }

  // Bytes all files together may have.
  void set_capacity(std::uint64_t nbytes) {
    const std::lock_guard lock(mutex_);
    capacity_ = nbytes;
  }
  void fail_syncs(bool fail) {
    const std::lock_guard lock(mutex_);
    fail_syncs_ = fail;
  }
  // While held, a sync waits (a disk that takes its time).
  void hold_syncs(bool hold) {
    const std::lock_guard lock(mutex_);
    hold_syncs_ = hold;
    released_.notify_all();
  }

  // --- what happened ---

  [[nodiscard]] std::uint64_t n_syncs() const { return locked(n_syncs_); }
  [[nodiscard]] std::uint64_t n_writes() const { return locked(n_writes_); }
  [[nodiscard]] std::uint64_t bytes_written() const { return locked(bytes_written_); }

  // Content as it is, for tests that damage files.
  [[nodiscard]] std::string content(const Path& path) const {
    const std::lock_guard lock(mutex_);
    return find(path)->live;
  }
  void set_content(const Path& path, std::string text) {
    const std::lock_guard lock(mutex_);
    auto& node = files_[key(path)];
    if (!node) node = std::make_shared<Node>();
    node->live = std::move(text);
    node->durable = node->live;
    node->name_durable = true;
    durable_names_[key(path)] = node;
  }

  // --- FileSystem ---

  std::unique_ptr<WritableFile> create(const Path& path) override { return open(path, true); }
  std::unique_ptr<WritableFile> open_append(const Path& path) override { return open(path, false); }
  std::unique_ptr<ReadableFile> open_read(const Path& path) override {
    const std::lock_guard lock(mutex_);
    return std::make_unique<In>(*this, find(path));
  }
  void rename(const Path& from, const Path& to) override {
    const std::lock_guard lock(mutex_);
    check_alive();
    if (directories_.contains(key(from))) return rename_directory(key(from), key(to));
    auto node = find(from);
    files_.erase(key(from));
    durable_names_.erase(key(from));
    node->name_durable = true;
    files_[key(to)] = node;
    durable_names_[key(to)] = node;
  }
  void remove_all(const Path& path) override {
    const std::lock_guard lock(mutex_);
    check_alive();
    const std::string prefix = key(path) + "/";
    std::erase_if(
        files_, [&](const auto& f) { return f.first == key(path) || f.first.starts_with(prefix); });
    std::erase_if(directories_,
                  [&](const auto& d) { return d == key(path) || d.starts_with(prefix); });
  }
  bool remove(const Path& path) override {
    const std::lock_guard lock(mutex_);
    check_alive();
    return files_.erase(key(path)) > 0;
  }
  void create_directories(const Path& path) override {
    const std::lock_guard lock(mutex_);
    check_alive();
    add_directories(path);
  }
  void sync_directory(const Path& path) override {
    std::unique_lock lock(mutex_);
    begin_sync(lock, path);
    std::erase_if(durable_names_, [&](const auto& f) {
      return Path(f.first).parent_path() == Path(key(path)) && !files_.contains(f.first);
    });
    for (auto& [name, node] : files_) {
      if (Path(name).parent_path() != Path(key(path))) continue;
      node->name_durable = true;
      durable_names_[name] = node;
    }
  }
  std::shared_ptr<void> lock(const Path& path) override {
    const std::lock_guard guard(mutex_);
    auto& holder = locks_[key(path)];
    if (!holder.expired()) throw Error(ErrorCode::io, path.string() + " is locked");
    auto lock = std::make_shared<int>(0);
    holder = lock;
    return lock;
  }
  std::vector<Entry> list(const Path& directory) override {
    const std::lock_guard lock(mutex_);
    if (!directories_.contains(key(directory))) {
      throw Error(ErrorCode::not_found,
                  "cannot list " + directory.string() + ": no such directory");
    }
    std::map<std::string, Entry> entries;
    for (const auto& [name, node] : files_) {
      if (Path(name).parent_path() != Path(key(directory))) continue;
      const std::string base = Path(name).filename().string();
      entries[base] = {.name = base, .size = node->live.size()};
    }
    for (const std::string& name : directories_) {
      if (Path(name).parent_path() != Path(key(directory))) continue;
      const std::string base = Path(name).filename().string();
      entries[base] = {.name = base, .is_directory = true};
    }
    std::vector<Entry> list;
    for (auto& [name, entry] : entries) list.push_back(entry);
    return list;
  }
  bool exists(const Path& path) override {
    const std::lock_guard lock(mutex_);
    return files_.contains(key(path)) || directories_.contains(key(path));
  }
  std::uint64_t free_space(const Path&) override {
    const std::lock_guard lock(mutex_);
    return capacity_ - std::min(capacity_, used());
  }

 private:
  static constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max() / 2;
  static constexpr std::size_t kSector = 512;

  struct Node {
    std::string live, durable;
    bool name_durable = false;
  };
  using NodePtr = std::shared_ptr<Node>;

  class In final : public ReadableFile {
   public:
    In(FaultFileSystem& fs, NodePtr node) : fs_(fs), node_(std::move(node)) {}
    std::size_t read(std::uint64_t offset, std::span<std::byte> into) const override {
      const std::lock_guard lock(fs_.mutex_);
      if (offset >= node_->live.size()) return 0;
      const std::size_t n = std::min(into.size(), node_->live.size() - offset);
      std::memcpy(into.data(), node_->live.data() + offset, n);
      return n;
    }
    std::uint64_t size() const override {
      const std::lock_guard lock(fs_.mutex_);
      return node_->live.size();
    }

   private:
    FaultFileSystem& fs_;
    NodePtr node_;
  };

  class Out final : public WritableFile {
   public:
    Out(FaultFileSystem& fs, Path path, NodePtr node)
        : fs_(fs),
          path_(std::move(path)),
          node_(std::move(node)),
          boot_(fs.boot_),
          position_(node_->live.size()) {}
    using WritableFile::append;
    void append(std::span<const std::byte> bytes) override {
      const std::lock_guard lock(fs_.mutex_);
      check();
      fs_.write(*node_, path_, position_, bytes);
      position_ += bytes.size();
    }
    void write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
      const std::lock_guard lock(fs_.mutex_);
      check();
      fs_.write(*node_, path_, offset, bytes);
    }
    void preallocate(std::uint64_t nbytes) override {
      const std::lock_guard lock(fs_.mutex_);
      check();
      if (nbytes <= node_->live.size()) return;
      if (fs_.used() + (nbytes - node_->live.size()) > fs_.capacity_) full(path_);
      node_->live.resize(nbytes);
    }
    void truncate(std::uint64_t nbytes) override {
      const std::lock_guard lock(fs_.mutex_);
      check();
      node_->live.resize(nbytes);
      position_ = std::min(position_, nbytes);
    }
    void sync() override { sync_data(); }
    void sync_data() override {
      std::unique_lock lock(fs_.mutex_);
      check();
      fs_.begin_sync(lock, path_);
      check();
      node_->durable = node_->live;
    }
    void close() override {}

   private:
    void check() const {
      fs_.check_alive();
      if (boot_ != fs_.boot_) throw Error(ErrorCode::io, "the machine that opened this is gone");
    }
    FaultFileSystem& fs_;
    Path path_;
    NodePtr node_;
    std::uint64_t boot_;
    std::uint64_t position_;
  };

  [[noreturn]] static void full(const Path& path) {
    throw Error(ErrorCode::io, "cannot write " + path.string() + ": No space left on device");
  }
  static std::string key(const Path& path) {
    std::string text = path.lexically_normal().generic_string();
    while (text.size() > 1 && text.back() == '/') text.pop_back();
    return text;
  }
  std::uint64_t locked(const std::uint64_t& counter) const {
    const std::lock_guard lock(mutex_);
    return counter;
  }
  void check_alive() {
    if (operation_budget_ != kUnlimited && operation_budget_-- == 0) killed_ = true;
    if (killed_) throw Error(ErrorCode::io, "the process was killed");
  }
  void add_directories(const Path& path) {
    for (Path p = path; !key(p).empty() && p != p.parent_path(); p = p.parent_path()) {
      directories_.insert(key(p));
    }
  }
  // The names within move along; they are as durable as they were.
  void rename_directory(const std::string& from, const std::string& to) {
    const auto is_below = [](const std::string& name, const std::string& directory) {
      return name.starts_with(directory + "/");
    };
    const auto taken = [&](const auto& f) { return is_below(f.first, to); };
    if (std::any_of(files_.begin(), files_.end(), taken) || files_.contains(to)) {
      throw Error(ErrorCode::io, "cannot rename to " + to + ": Directory not empty");
    }
    for (auto* names : {&files_, &durable_names_}) {
      std::map<std::string, NodePtr> moved;
      for (const auto& [name, node] : *names) {
        moved[is_below(name, from) ? to + name.substr(from.size()) : name] = node;
      }
      *names = std::move(moved);
    }
    std::set<std::string> directories;
    for (const std::string& name : directories_) {
      const bool moves = name == from || is_below(name, from);
      directories.insert(moves ? to + name.substr(from.size()) : name);
    }
    directories_ = std::move(directories);
  }
  NodePtr find(const Path& path) const {
    const auto it = files_.find(key(path));
    if (it == files_.end()) {
      throw Error(ErrorCode::not_found, "cannot open " + path.string() + ": no such file");
    }
    return it->second;
  }
  std::unique_ptr<WritableFile> open(const Path& path, bool empty) {
    const std::lock_guard lock(mutex_);
    check_alive();
    if (!directories_.contains(key(path.parent_path()))) {
      throw Error(ErrorCode::not_found, "cannot create " + path.string() + ": no such directory");
    }
    auto& node = files_[key(path)];
    if (!node) node = std::make_shared<Node>();
    if (empty) node->live.clear();
    return std::make_unique<Out>(*this, path, node);
  }
  [[nodiscard]] std::uint64_t used() const {
    std::uint64_t sum = 0;
    for (const auto& [name, node] : files_) sum += node->live.size();
    return sum;
  }
  void write(Node& node, const Path& path, std::uint64_t offset, std::span<const std::byte> bytes) {
    ++n_writes_;
    std::uint64_t n = bytes.size();
    const std::uint64_t end = offset + n;
    const std::uint64_t growth = end > node.live.size() ? end - node.live.size() : 0;
    const std::uint64_t room = capacity_ - std::min(capacity_, used());
    if (growth > room) n -= std::min(n, growth - room);
    const bool is_full = n < bytes.size();
    const bool dies = n > kill_budget_;
    n = std::min(n, kill_budget_);
    kill_budget_ -= kill_budget_ == kUnlimited ? 0 : n;
    if (n > 0) {
      if (offset + n > node.live.size()) node.live.resize(offset + n);
      std::memcpy(node.live.data() + offset, bytes.data(), n);
    }
    bytes_written_ += n;
    if (dies) {
      killed_ = true;
      check_alive();
    }
    if (is_full) full(path);
  }
  void begin_sync(std::unique_lock<std::mutex>& lock, const Path& path) {
    check_alive();
    released_.wait(lock, [&] { return !hold_syncs_; });
    ++n_syncs_;
    if (fail_syncs_) {
      throw Error(ErrorCode::io, "cannot sync " + path.string() + ": Input/output error");
    }
  }
  static void tear(Node& node, Rng& rng) {
    std::string text = node.durable;
    if (node.live.size() != text.size() && rng.next_below(2) == 0) text.resize(node.live.size());
    for (std::size_t at = 0; at < text.size(); at += kSector) {
      if (rng.next_below(2) != 0 || at >= node.live.size()) continue;
      const std::size_t n = std::min({kSector, text.size() - at, node.live.size() - at});
      std::memcpy(text.data() + at, node.live.data() + at, n);
    }
    node.live = std::move(text);
  }

  mutable std::mutex mutex_;
  std::condition_variable released_;
  std::map<std::string, NodePtr> files_, durable_names_;
  std::set<std::string> directories_;
  std::map<std::string, std::weak_ptr<int>> locks_;
  std::uint64_t boot_ = 0, capacity_ = kUnlimited, kill_budget_ = kUnlimited;
  std::uint64_t operation_budget_ = kUnlimited;
  bool killed_ = false, fail_syncs_ = false, hold_syncs_ = false;
  std::uint64_t n_syncs_ = 0, n_writes_ = 0, bytes_written_ = 0;
};

}  // namespace hadal::test
