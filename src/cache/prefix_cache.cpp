#include "cache/prefix_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "cache/disk_store.h"
#include "cache/preambles.h"
#include "cache/prefix_tree.h"
#include "core/digest.h"

namespace hadal::cache {

namespace {

using Node = PrefixTree::Node;

std::uint32_t crc_of(const Page& page) {
  std::vector<std::byte> buffer;
  return crc32c(page.read(buffer));
}

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

class PrefixCache::Impl {
 public:
  Impl(PagedKv& kv, const PrefixCacheOptions& options, DiskStore* disk)
      : kv_(kv),
        options_(options),
        disk_(disk),
        hasher_(disk != nullptr ? disk->hasher()
                                : ChainHasher(ChainHasher::random_secret(), kv.layout())),
        page_(kv.page_tokens()),
        tree_(pin_budget(kv, options)) {
    if (disk != nullptr && disk->layout() != kv.layout()) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("the disk cache keeps pages as \"{}\", the engine as \"{}\"; open it "
                              "with the engine's layout",
                              disk->layout(), kv.layout()));
    }
  }

  Hit find(const std::string& domain, std::span<const TokenId> tokens) {
    expire_snapshots();
    if (tokens.empty()) return {};
    Chain chain(*this, domain, tokens, (static_cast<std::int64_t>(tokens.size()) - 1) / page_);
    chain.walk_memory();
    if (options_.verify_rows) verify(chain);
    chain.walk_disk();
    Hit hit;
    hit.shared_tokens = chain.n_known() * page_;
    while (!choose(chain, hit)) {
    }
    return hit;
  }

  void note_preamble(const std::string& domain, std::span<const TokenId> preamble) {
    const std::int64_t n = static_cast<std::int64_t>(preamble.size()) / page_;
    if (n == 0) return;
    ChainKey key = hasher_.root(domain);
    for (std::int64_t i = 0; i < n; ++i) key = hasher_.next(key, page_of(preamble, i));
    if (preambles_.count(key) < 2) return;
    if (Node* node = tree_.find(key, page_of(preamble, n - 1))) tree_.pin(*node);
  }

  // Returns the node of the last page of `tokens`, or null where the chain had to end.
  Node* insert(const std::string& domain, std::span<const TokenId> tokens, std::int64_t slot) {
    const std::span<const PageRef> pages = kv_.pages(slot);
    const auto n = std::min(static_cast<std::int64_t>(tokens.size()) / page_,
                            static_cast<std::int64_t>(pages.size()));
    // A page that is in the tree says where the slot's chain is: what is before it is there, too.
    std::int64_t i = n;
    Node* node = nullptr;
    for (; i > 0 && node == nullptr; --i) {
      node = tree_.find(*pages[static_cast<std::size_t>(i - 1)]);
      if (node == nullptr) continue;
      HADAL_CHECK(node->depth == i && std::ranges::equal(node->tokens, page_of(tokens, i - 1)));
      break;
    }
    ChainKey key = node != nullptr ? node->key : hasher_.root(domain);
    for (; i < n; ++i) {
      const std::span<const TokenId> ids = page_of(tokens, i);
      key = hasher_.next(key, ids);
      Node* known = tree_.find(key, ids);
      if (known != nullptr) {
        if (options_.verify_rows && crc_of(*known->page) != crc_of(*pages[at(i)])) {
          ++statistics_.stale_rows;
          tree_.erase_subtree(*known);
          known = nullptr;
        } else {
          kv_.replace_page(slot, i, known->page);
        }
      }
      if (known == nullptr) {
        known = &tree_.add(node, key, ids, pages[at(i)]);
        if (options_.verify_rows) known->page_crc = crc_of(*known->page);
      }
      node = known;
    }
    if (node == nullptr) return nullptr;
    kv_.freeze(slot, n * page_);
    tree_.touch(*node);
    if (disk_ != nullptr && disk_->strategy() == WindowStrategy::zero) store_pages(*node, kRefuse);
    return node;
  }

  void insert_snapshot(const std::string& domain, std::span<const TokenId> tokens,
                       std::int64_t slot, std::shared_ptr<const Snapshot> snapshot) {
    const std::int64_t position = snapshot->position;
    HADAL_CHECK(position > 0 && position % page_ == 0 &&
                position <= static_cast<std::int64_t>(tokens.size()));
    HADAL_CHECK(snapshot->state.size() == kv_.saved_state_bytes(position));
    Node* node = insert(domain, tokens.first(static_cast<std::size_t>(position)), slot);
    HADAL_CHECK(node != nullptr && node->depth * page_ == position);
    if (options_.verify_rows) node->snapshot_crc = crc32c(snapshot->state);
    tree_.set_snapshot(*node, std::move(snapshot), now());
    if (preambles_.is_shared(node->key)) tree_.pin(*node);
    if (disk_ != nullptr) store(*node, kRefuse);
    expire_snapshots();
  }

  void insert_snapshot(const std::string& domain, std::span<const TokenId> tokens,
                       std::int64_t position, std::int64_t slot) {
    auto snapshot = std::make_shared<Snapshot>();
    snapshot->position = position;
    snapshot->state = kv_.save_state(slot, position);
    insert_snapshot(domain, tokens, slot, std::move(snapshot));
  }

  std::int64_t evict(std::int64_t n, Pins pins) {
    std::int64_t freed = tree_.evict(n);
    if (freed < n && disk_ != nullptr) {
      // Pages that wait to be written are held, too. Those who wait for memory go before them.
      disk_->drop_queued();
      freed += tree_.evict(n - freed);
    }
    while (pins == Pins::release && freed < n && tree_.unpin_oldest()) {
      freed += tree_.evict(n - freed);
    }
    statistics_.evicted_pages += static_cast<std::uint64_t>(freed);
    return freed;
  }

  [[nodiscard]] Statistics statistics() const {
    Statistics s = statistics_;
    s.pages = tree_.n_pages();
    s.snapshots = tree_.n_snapshots();
    s.snapshot_bytes = tree_.snapshot_bytes();
    s.pins = tree_.n_pins();
    s.pinned_pages = tree_.n_pinned_pages();
    s.pinned_bytes = at(s.pinned_pages) * kv_.page_bytes() + tree_.pinned_snapshot_bytes();
    return s;
  }

  void flush() {
    if (disk_ == nullptr) return;
    const bool zero = disk_->strategy() == WindowStrategy::zero;
    for (Node* node : tree_.ends()) {
      if (node->snapshot != nullptr || zero) store(*node, DiskStore::WhenFull::wait);
    }
    disk_->flush();
  }

 private:
  static constexpr DiskStore::WhenFull kRefuse = DiskStore::WhenFull::refuse;

  // A prompt's pages, as far as they are known: nodes first, then what only the disk has.
  class Chain {
   public:
    Chain(Impl& cache, const std::string& domain, std::span<const TokenId> tokens, std::int64_t n)
        : cache_(cache), tokens_(tokens), n_(n), root_(cache.hasher_.root(domain)) {}

    void walk_memory() {
      for (std::int64_t i = 0; i < n_; ++i) {
        const ChainKey key = next_key(i);
        Node* node = cache_.tree_.find(key, page(i));
        if (node == nullptr) break;
        keys.push_back(key);
        nodes.push_back(node);
        held.push_back(node->page);
      }
    }
    void walk_disk() {
      if (cache_.disk_ == nullptr) return;
      for (auto i = static_cast<std::int64_t>(keys.size()); i < n_; ++i) {
        const ChainKey key = next_key(i);
        if (!cache_.disk_->has_page(key)) {
          if (keys.size() == nodes.size()) cache_.disk_->count_miss();
          break;
        }
        keys.push_back(key);
      }
    }
    [[nodiscard]] std::int64_t n_known() const { return static_cast<std::int64_t>(keys.size()); }
    [[nodiscard]] std::int64_t n_nodes() const { return static_cast<std::int64_t>(nodes.size()); }
    [[nodiscard]] std::span<const TokenId> page(std::int64_t i) const {
      return cache_.page_of(tokens_, i);
    }
    // Pages [0, n) become nodes. Fewer where a file or the memory lets us down: then what is known
    // ends there.
    bool load(std::int64_t n) {
      const std::int64_t first = n_nodes();
      if (first >= n) return true;
      std::vector<PageRef> fresh;
      for (std::int64_t i = first; i < n; ++i) {
        PageRef page = cache_.kv_.new_page();
        // `held` keeps this prompt's own pages from going.
        if (page == nullptr && cache_.evict(1, Pins::keep) > 0) page = cache_.kv_.new_page();
        if (page == nullptr) break;
        fresh.push_back(std::move(page));
      }
      const std::size_t begin = at(first), count = fresh.size();
      const auto page_tokens = at(cache_.page_);
      const auto read = static_cast<std::size_t>(cache_.disk_->read_pages(
          std::span(keys).subspan(begin, count),
          tokens_.subspan(begin * page_tokens, count * page_tokens), fresh));
      for (std::size_t i = 0; i < read; ++i) {
        Node* parent = nodes.empty() ? nullptr : nodes.back();
        Node& node = cache_.tree_.add(parent, keys[begin + i],
                                      page(first + static_cast<std::int64_t>(i)), fresh[i]);
        if (cache_.options_.verify_rows) node.page_crc = crc_of(*node.page);
        nodes.push_back(&node);
        held.push_back(node.page);
      }
      if (begin + read == at(n)) return true;
      keys.resize(begin + read);
      return false;
    }

    std::vector<ChainKey> keys;   // of all known pages
    std::vector<Node*> nodes;     // of those in memory
    std::vector<PageRef> held;    // their pages, which so cannot be evicted
    std::set<ChainKey> unusable;  // snapshots that turned out to be missing or damaged

   private:
    [[nodiscard]] ChainKey next_key(std::int64_t i) const {
      return cache_.hasher_.next(i == 0 ? root_ : keys[at(i - 1)], page(i));
    }
    Impl& cache_;
    std::span<const TokenId> tokens_;
    std::int64_t n_;
    ChainKey root_;
  };

  [[nodiscard]] static PinBudget pin_budget(const PagedKv& kv, const PrefixCacheOptions& options) {
    const auto share = [&](auto total) {
      return static_cast<decltype(total)>(options.pinned_share * static_cast<double>(total));
    };
    return {.pages = share(kv.n_pages_total()), .snapshot_bytes = share(options.snapshot_bytes)};
  }
  [[nodiscard]] static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
  [[nodiscard]] double now() const { return options_.now ? options_.now() : steady_seconds(); }
  [[nodiscard]] std::span<const TokenId> page_of(std::span<const TokenId> tokens,
                                                 std::int64_t i) const {
    return tokens.subspan(at(i * page_), at(page_));
  }

  void expire_snapshots() {
    const std::int64_t n =
        tree_.shrink_snapshots(options_.snapshot_bytes, now() - options_.snapshot_seconds);
    statistics_.evicted_snapshots += static_cast<std::uint64_t>(n);
  }

  // Rows that are not those of their tokens any more are an error of ours; they must not be served.
  void verify(Chain& chain) {
    for (std::size_t i = 0; i < chain.nodes.size(); ++i) {
      Node& node = *chain.nodes[i];
      if (node.snapshot != nullptr && crc32c(node.snapshot->state) != node.snapshot_crc) {
        ++statistics_.stale_rows;
        tree_.drop_snapshot(node);
      }
      if (crc_of(*node.page) == node.page_crc) continue;
      ++statistics_.stale_rows;
      chain.keys.resize(i);
      chain.nodes.resize(i);
      chain.held.resize(i);
      tree_.erase_subtree(node);
      return;
    }
  }

  [[nodiscard]] bool has_snapshot(const Chain& chain, std::int64_t i) const {
    const ChainKey& key = chain.keys[at(i)];
    if (i < chain.n_nodes() && chain.nodes[at(i)]->snapshot != nullptr) return true;
    return disk_ != nullptr && !chain.unusable.contains(key) && disk_->has_snapshot(key);
  }

  // Tries the best way to use what is known. False when it failed, and less is known now.
  bool choose(Chain& chain, Hit& hit) {
    const std::int64_t known = chain.n_known();
    const std::int64_t in_memory = chain.n_nodes();
    std::int64_t pages = known;
    while (pages > 0 && !has_snapshot(chain, pages - 1)) --pages;
    if (options_.replay && known > pages) {
      // Exact again after a window a layer; worth it where that begins behind the snapshot.
      const std::int64_t needed = kv_.sliding_window() * kv_.n_layers();
      const std::int64_t from = std::max<std::int64_t>(0, known * page_ - needed) / page_ * page_;
      if (from > pages * page_) {
        if (!chain.load(known)) return false;
        hit.replay_from = from;
        use(chain, hit, known, in_memory);
        return true;
      }
    }
    if (pages == 0) return true;
    if (!chain.load(pages)) return false;
    Node& node = *chain.nodes[at(pages - 1)];
    if (node.snapshot == nullptr && !load_snapshot(node)) {
      chain.unusable.insert(node.key);
      return false;
    }
    tree_.touch_snapshot(node, now());
    hit.snapshot = node.snapshot;
    hit.replay_from = pages * page_;
    use(chain, hit, pages, in_memory);
    return true;
  }

  bool load_snapshot(Node& node) {
    const std::int64_t position = node.depth * page_;
    auto snapshot = disk_->read_snapshot(node.key, position, node.tokens);
    if (snapshot == nullptr || snapshot->state.size() != kv_.saved_state_bytes(position)) {
      return false;
    }
    if (options_.verify_rows) node.snapshot_crc = crc32c(snapshot->state);
    tree_.set_snapshot(node, std::move(snapshot), now());
    from_disk_ = true;
    return true;
  }

  void use(const Chain& chain, Hit& hit, std::int64_t pages, std::int64_t in_memory) {
    hit.position = pages * page_;
    hit.pages.assign(chain.held.begin(), chain.held.begin() + pages);
    hit.from_disk = std::exchange(from_disk_, false) || pages > in_memory;
    tree_.touch(*chain.nodes[at(pages - 1)]);
    if (disk_ != nullptr) disk_->touch(std::span(chain.keys).first(at(pages)));
  }

  void store(Node& node, DiskStore::WhenFull when_full) {
    if (!store_pages(node, when_full) || node.snapshot == nullptr ||
        disk_->strategy() == WindowStrategy::zero || disk_->has_snapshot(node.key)) {
      return;
    }
    disk_->touch(keys_of(path_to(node)));
    disk_->write_snapshot(node.key, node.tokens, node.snapshot, when_full);
  }

  [[nodiscard]] static std::vector<Node*> path_to(Node& last) {
    std::vector<Node*> path;
    for (Node* n = &last; n != nullptr; n = n->parent) path.push_back(n);
    std::ranges::reverse(path);
    return path;
  }
  [[nodiscard]] static std::vector<ChainKey> keys_of(std::span<Node* const> path) {
    std::vector<ChainKey> keys;
    for (const Node* n : path) keys.push_back(n->key);
    return keys;
  }

  // Writes the pages up to this one that no file has, in runs. False when one was refused: then
  // what comes behind it would be of no use.
  bool store_pages(Node& last, DiskStore::WhenFull when_full) {
    const std::vector<Node*> path = path_to(last);
    const std::vector<ChainKey> keys = keys_of(path);
    std::vector<TokenId> tokens;
    std::vector<PageRef> pages;
    std::size_t first = 0;
    const auto write_run = [&] {
      if (pages.empty()) return true;
      // What is before the new file must not be evicted for it.
      disk_->touch(std::span(keys).first(first));
      const Node* parent = path[first]->parent;
      const bool accepted = disk_->write_pages(
          parent != nullptr ? parent->key : ChainKey{}, static_cast<std::int64_t>(first) * page_,
          std::span(keys).subspan(first, pages.size()), tokens, pages, when_full);
      tokens.clear();
      pages.clear();
      return accepted;
    };
    for (std::size_t i = 0; i < path.size(); ++i) {
      if (disk_->has_page(keys[i])) {
        if (!write_run()) return false;
        continue;
      }
      if (pages.empty()) first = i;
      tokens.insert(tokens.end(), path[i]->tokens.begin(), path[i]->tokens.end());
      pages.push_back(path[i]->page);
      if (static_cast<std::int64_t>(pages.size()) == disk_->pages_per_file() && !write_run()) {
        return false;
      }
    }
    return write_run();
  }

  PagedKv& kv_;
  const PrefixCacheOptions options_;
  DiskStore* disk_;
  const ChainHasher hasher_;
  const std::int64_t page_;  // tokens
  PrefixTree tree_;
  Preambles preambles_;
  Statistics statistics_;
  bool from_disk_ = false;
};

PrefixCache::PrefixCache(PagedKv& kv, const PrefixCacheOptions& options, DiskStore* disk)
    : impl_(std::make_unique<Impl>(kv, options, disk)) {}
PrefixCache::~PrefixCache() = default;

PrefixCache::Hit PrefixCache::find(const std::string& domain, std::span<const TokenId> tokens) {
  return impl_->find(domain, tokens);
}

void PrefixCache::note_preamble(const std::string& domain, std::span<const TokenId> preamble) {
  impl_->note_preamble(domain, preamble);
}

void PrefixCache::insert(const std::string& domain, std::span<const TokenId> tokens,
                         std::int64_t slot) {
  (void)impl_->insert(domain, tokens, slot);
}

void PrefixCache::insert_snapshot(const std::string& domain, std::span<const TokenId> tokens,
                                  std::int64_t position, std::int64_t slot) {
  impl_->insert_snapshot(domain, tokens, position, slot);
}

void PrefixCache::insert_snapshot(const std::string& domain, std::span<const TokenId> tokens,
                                  std::int64_t slot, std::shared_ptr<const Snapshot> snapshot) {
  impl_->insert_snapshot(domain, tokens, slot, std::move(snapshot));
}

std::int64_t PrefixCache::evict(std::int64_t n_pages, Pins pins) {
  return impl_->evict(n_pages, pins);
}

std::int64_t PrefixCache::n_pages() const {
  return impl_->statistics().pages;
}
std::size_t PrefixCache::snapshot_bytes() const {
  return impl_->statistics().snapshot_bytes;
}
PrefixCache::Statistics PrefixCache::statistics() const {
  return impl_->statistics();
}
void PrefixCache::flush() {
  impl_->flush();
}

}  // namespace hadal::cache
