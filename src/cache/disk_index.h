// Which file holds what, and which goes first. It knows names and sizes, and reads nothing.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "cache/kv_file.h"

namespace hadal::cache {

class DiskIndex {
 public:
  struct File {
    KvFileKind kind = KvFileKind::pages;
    std::vector<ChainKey> keys;  // of its pages; the last one names the file
    std::int64_t position = 0;
    std::uint64_t nbytes = 0;
    std::uint64_t last_hit = 0;  // ms since 1970
    [[nodiscard]] const ChainKey& name() const { return keys.back(); }
  };
  struct Place {
    const File* file = nullptr;
    std::size_t index = 0;  // of the page in it
  };

  void add(File file);  // a file of the same kind and name is replaced
  void remove(KvFileKind kind, const ChainKey& name);
  [[nodiscard]] std::optional<Place> page(const ChainKey& key) const;
  [[nodiscard]] const File* snapshot(const ChainKey& key) const;
  [[nodiscard]] const File* find(KvFileKind kind, const ChainKey& name) const;
  // All files that hold one of these, pages and snapshots alike, were used now.
  void touch(std::span<const ChainKey> keys, std::uint64_t now_ms);
  void set_last_hit(KvFileKind kind, const ChainKey& name, std::uint64_t ms);

  // The longest unused file, of those used at the same time the one farthest down its chain: what
  // is before it can be used without it. Null when there is none.
  [[nodiscard]] const File* oldest() const;
  [[nodiscard]] std::uint64_t nbytes() const { return nbytes_; }
  [[nodiscard]] std::size_t n_files() const { return files_.size(); }
  [[nodiscard]] std::vector<const File*> files() const;

 private:
  struct Name {
    KvFileKind kind;
    ChainKey key;
    friend auto operator<=>(const Name&, const Name&) = default;
  };
  struct Rank {
    std::uint64_t last_hit;
    std::int64_t from_the_end;
    Name name;
    friend auto operator<=>(const Rank&, const Rank&) = default;
  };
  [[nodiscard]] static Rank rank(const File& file) {
    return {file.last_hit, -file.position, {file.kind, file.name()}};
  }

  std::map<Name, File> files_;
  std::unordered_map<ChainKey, std::pair<ChainKey, std::size_t>, ChainKeyHash> pages_;
  std::set<Rank> order_;
  std::uint64_t nbytes_ = 0;
};

}  // namespace hadal::cache
