// Which beginnings of prompts came more than once, of those that came last.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <unordered_map>
#include <utility>

#include "cache/chain_key.h"

namespace hadal::cache {

// Outlives the pages that it counts: a beginning that comes often and is evicted in between each
// time is the one that a pin is for. Bounded, since clients choose the beginnings.
class Preambles {
 public:
  explicit Preambles(std::size_t capacity = 4096) : capacity_(capacity) {}

  // Counts this one; returns how often it came, as far as that is remembered.
  std::uint64_t count(const ChainKey& key) {
    const auto found = places_.find(key);
    if (found == places_.end()) {
      counts_.emplace_front(key, 0);
      places_.emplace(key, counts_.begin());
    } else {
      counts_.splice(counts_.begin(), counts_, found->second);
    }
    if (counts_.size() > capacity_) {
      places_.erase(counts_.back().first);
      counts_.pop_back();
    }
    return ++counts_.front().second;
  }
  [[nodiscard]] bool is_shared(const ChainKey& key) const {
    const auto found = places_.find(key);
    return found != places_.end() && found->second->second > 1;
  }

 private:
  using Counts = std::list<std::pair<ChainKey, std::uint64_t>>;  // the newest first
  std::size_t capacity_;
  Counts counts_;
  std::unordered_map<ChainKey, Counts::iterator, ChainKeyHash> places_;
};

}  // namespace hadal::cache
