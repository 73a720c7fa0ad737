#include "cache/prefix_tree.h"

#include <algorithm>

namespace hadal::cache {

PrefixTree::Node* PrefixTree::find(const ChainKey& key, std::span<const TokenId> tokens) const {
  const auto found = nodes_.find(key);
  if (found == nodes_.end() || !std::ranges::equal(found->second->tokens, tokens)) return nullptr;
  return found->second.get();
}

PrefixTree::Node* PrefixTree::find(const Page& page) const {
  const auto found = by_page_.find(&page);
  return found == by_page_.end() ? nullptr : found->second;
}

PrefixTree::Node& PrefixTree::add(Node* parent, const ChainKey& key,
                                  std::span<const TokenId> tokens, PageRef page) {
  HADAL_CHECK(!nodes_.contains(key) && !by_page_.contains(page.get()));
  auto owned = std::make_unique<Node>();
  Node& node = *owned;
  node.key = key;
  node.parent = parent;
  node.depth = parent == nullptr ? 1 : parent->depth + 1;
  node.tokens.assign(tokens.begin(), tokens.end());
  node.page = std::move(page);
  node.used = ++tick_;
  by_page_[node.page.get()] = &node;
  nodes_[key] = std::move(owned);
  leaves_.emplace(node.used, &node);
  if (parent != nullptr && parent->n_children++ == 0) leaves_.erase({parent->used, parent});
  return node;
}

void PrefixTree::touch(Node& node) {
  ++tick_;
  for (Node* n = &node; n != nullptr; n = n->parent) {
    const bool leaf = n->n_children == 0;
    if (leaf) leaves_.erase({n->used, n});
    n->used = tick_;
    if (leaf) leaves_.emplace(n->used, n);
  }
}

void PrefixTree::set_snapshot(Node& node, std::shared_ptr<const Snapshot> snapshot, double now) {
  drop_snapshot(node);
  snapshot_bytes_ += snapshot->state.size();
  if (node.pinned) pinned_snapshot_bytes_ += snapshot->state.size();
  n_snapshots_ += 1;
  node.snapshot = std::move(snapshot);
  touch_snapshot(node, now);
  hold_pin_budget();
}

void PrefixTree::touch_snapshot(Node& node, double now) {
  snapshots_.erase({node.snapshot_used, &node});
  node.snapshot_used = ++tick_;
  node.snapshot_time = now;
  if (!node.pinned) snapshots_.emplace(node.snapshot_used, &node);
}

void PrefixTree::drop_snapshot(Node& node) {
  if (node.snapshot == nullptr) return;
  snapshots_.erase({node.snapshot_used, &node});
  snapshot_bytes_ -= node.snapshot->state.size();
  if (node.pinned) pinned_snapshot_bytes_ -= node.snapshot->state.size();
  n_snapshots_ -= 1;
  node.snapshot.reset();
}

std::int64_t PrefixTree::shrink_snapshots(std::size_t budget, double time) {
  std::int64_t n = 0;
  while (!snapshots_.empty()) {
    Node& oldest = *snapshots_.begin()->second;
    if (oldest.snapshot_time >= time && snapshot_bytes_ <= budget) break;
    drop_snapshot(oldest);
    ++n;
  }
  return n;
}

void PrefixTree::pin(Node& node) {
  // It would only push the others out, and then itself.
  if (node.depth > pin_budget_.pages) return;
  if (node.pinned) {
    pins_.remove(&node);  // it becomes the newest
  } else {
    node.pinned = true;
    for (Node* n = &node; n != nullptr; n = n->parent) n_pinned_pages_ += n->n_pins++ == 0 ? 1 : 0;
    if (node.snapshot != nullptr) {
      snapshots_.erase({node.snapshot_used, &node});
      pinned_snapshot_bytes_ += node.snapshot->state.size();
    }
  }
  pins_.push_back(&node);
  hold_pin_budget();
}

void PrefixTree::hold_pin_budget() {
  while (n_pinned_pages_ > pin_budget_.pages ||
         pinned_snapshot_bytes_ > pin_budget_.snapshot_bytes) {
    if (!unpin_oldest()) break;
  }
}

bool PrefixTree::unpin_oldest() {
  if (pins_.empty()) return false;
  unpin(*pins_.front());
  return true;
}

void PrefixTree::unpin(Node& node) {
  pins_.remove(&node);
  node.pinned = false;
  for (Node* n = &node; n != nullptr; n = n->parent) n_pinned_pages_ -= --n->n_pins == 0 ? 1 : 0;
  if (node.snapshot != nullptr) {
    snapshots_.emplace(node.snapshot_used, &node);
    pinned_snapshot_bytes_ -= node.snapshot->state.size();
  }
}

std::int64_t PrefixTree::evict(std::int64_t n) {
  std::int64_t freed = 0;
  for (auto it = leaves_.begin(); it != leaves_.end() && freed < n;) {
    Node& leaf = *it->second;
    // A page that a sequence, a hit or a writer holds as well would give nothing back.
    if (leaf.n_pins > 0 || leaf.page.use_count() > 1) {
      ++it;
      continue;
    }
    const Node* parent = leaf.parent;
    const std::uint64_t used = leaf.used;
    erase_leaf(leaf);
    ++freed;
    // The page before it may be the next to go: it was used no earlier, but maybe at the same time.
    it = parent != nullptr && parent->n_children == 0
             ? leaves_.lower_bound({std::min(used, parent->used), nullptr})
             : leaves_.lower_bound({used, nullptr});
  }
  return freed;
}

void PrefixTree::erase_leaf(Node& node) {
  HADAL_CHECK(node.n_children == 0);
  if (node.pinned) unpin(node);
  drop_snapshot(node);
  leaves_.erase({node.used, &node});
  by_page_.erase(node.page.get());
  Node* parent = node.parent;
  if (parent != nullptr && --parent->n_children == 0) leaves_.emplace(parent->used, parent);
  const ChainKey key = node.key;  // the argument may be the node's own
  nodes_.erase(key);
}

void PrefixTree::erase_subtree(Node& node) {
  std::vector<Node*> doomed;
  for (const auto& [key, candidate] : nodes_) {
    const Node* n = candidate.get();
    while (n != nullptr && n->depth > node.depth) n = n->parent;
    if (n == &node) doomed.push_back(candidate.get());
  }
  std::ranges::sort(doomed, std::greater<>(), &Node::depth);
  for (Node* n : doomed) erase_leaf(*n);
}

std::vector<PrefixTree::Node*> PrefixTree::ends() const {
  std::vector<Node*> ends;
  for (const auto& [key, node] : nodes_) {
    if (node->n_children == 0 || node->snapshot != nullptr) ends.push_back(node.get());
  }
  std::ranges::sort(ends, {}, [](const Node* node) { return std::pair(node->used, node->depth); });
  return ends;
}

}  // namespace hadal::cache
