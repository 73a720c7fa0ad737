// The tree of known pages and who goes first when memory runs short. It knows no disk and no slots.
#pragma once

#include <list>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "cache/chain_key.h"
#include "cache/page_pool.h"
#include "cache/snapshot.h"

namespace hadal::cache {

// What pinned prefixes may hold together.
struct PinBudget {
  std::int64_t pages = 0;
  std::size_t snapshot_bytes = 0;
};

class PrefixTree {
 public:
  explicit PrefixTree(const PinBudget& budget) : pin_budget_(budget) {}

  struct Node {
    ChainKey key;
    Node* parent = nullptr;  // null: the first page of its chain
    std::int64_t depth = 0;  // pages up to this one, itself included
    std::vector<TokenId> tokens;
    PageRef page;
    std::shared_ptr<const Snapshot> snapshot;  // at the end of this page; or null
    std::uint32_t page_crc = 0, snapshot_crc = 0;

    // The tree's own bookkeeping.
    std::int64_t n_children = 0;
    std::int64_t n_pins = 0;  // pinned nodes at or below this one
    bool pinned = false;
    std::uint64_t used = 0;  // ticks
    std::uint64_t snapshot_used = 0;
    double snapshot_time = 0;  // seconds
  };

  // Null unless the page's tokens are these, too.
  [[nodiscard]] Node* find(const ChainKey& key, std::span<const TokenId> tokens) const;
  [[nodiscard]] Node* find(const Page& page) const;
  // A new leaf. Its key is not in the tree, its page neither.
  Node& add(Node* parent, const ChainKey& key, std::span<const TokenId> tokens, PageRef page);
  // This node and all before it were used now.
  void touch(Node& node);

  void set_snapshot(Node& node, std::shared_ptr<const Snapshot> snapshot, double now);
  void touch_snapshot(Node& node, double now);
  void drop_snapshot(Node& node);
  // Drops unpinned snapshots that were not used since `time`, then the longest unused ones until
  // the rest takes at most `budget`. Returns how many went.
  std::int64_t shrink_snapshots(std::size_t budget, double time);

  // Pages and snapshot of a pinned prefix stay. The newest pins that the budget has room for do;
  // pinning again makes it the newest. One that is larger than the whole budget is not pinned.
  void pin(Node& node);
  // The pin that was asked for longest ago; false when there is none.
  bool unpin_oldest();

  // Drops longest unused leaves whose page nobody else holds and that no pin needs, until `n` pages
  // were given back or there is none left. Returns how many.
  std::int64_t evict(std::int64_t n);
  // Drops a node and everything behind it.
  void erase_subtree(Node& node);

  [[nodiscard]] std::int64_t n_pages() const { return static_cast<std::int64_t>(nodes_.size()); }
  [[nodiscard]] std::int64_t n_pins() const { return static_cast<std::int64_t>(pins_.size()); }
  [[nodiscard]] std::int64_t n_pinned_pages() const { return n_pinned_pages_; }
  [[nodiscard]] std::size_t pinned_snapshot_bytes() const { return pinned_snapshot_bytes_; }
  [[nodiscard]] std::size_t snapshot_bytes() const { return snapshot_bytes_; }
  [[nodiscard]] std::int64_t n_snapshots() const { return n_snapshots_; }
  // Those that end a chain or hold a snapshot, the longest unused first.
  [[nodiscard]] std::vector<Node*> ends() const;

 private:
  using Order = std::set<std::pair<std::uint64_t, Node*>>;
  void unpin(Node& node);
  void hold_pin_budget();
  void erase_leaf(Node& node);

  const PinBudget pin_budget_;
  std::unordered_map<ChainKey, std::unique_ptr<Node>, ChainKeyHash> nodes_;
  std::unordered_map<const Page*, Node*> by_page_;
  Order leaves_;           // by last use
  Order snapshots_;        // of nodes that are not pinned themselves, by last use
  std::list<Node*> pins_;  // the oldest first
  std::uint64_t tick_ = 0;
  std::int64_t n_pinned_pages_ = 0, n_snapshots_ = 0;
  std::size_t snapshot_bytes_ = 0, pinned_snapshot_bytes_ = 0;
};

}  // namespace hadal::cache
