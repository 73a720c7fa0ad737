// Who goes next: an order over choices and a budget of rows. No model, no cache.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/generation.h"

namespace hadal::engine {

// Priority first; then who was interrupted; then the fairness key that has received least; then
// arrival. A key that comes back after a pause does not get what it left unused.
// Source: serving.md §5.1.
class Scheduler {
 public:
  // Rows of the model that a key has received.
  void charge(const std::string& fairness_key, std::int64_t n_rows);
  // Call when a generation arrives. `active` are the keys of generations that are under way.
  void arrive(const std::string& fairness_key, std::span<const std::string> active);

  [[nodiscard]] bool before(const Choice& a, const Choice& b) const;
  // Best first.
  void order(std::vector<Choice*>& choices) const;
  // Whose pages go first when they run out: suspended readers, lowest priority, latest arrival.
  // Null when all have been preempted `max_preemptions` times.
  [[nodiscard]] static Choice* victim(std::span<Choice* const> running,
                                      std::int64_t max_preemptions);

 private:
  std::map<std::string, std::int64_t> received_;
};

// Where a prompt chunk that begins at `begin` ends: at most `budget` rows on, at a page boundary
// unless it is the end of the text, and at the next wanted snapshot. `begin` itself when the budget
// does not reach a boundary.
[[nodiscard]] std::int64_t chunk_end(std::int64_t begin, std::int64_t total, std::int64_t budget,
                                     std::int64_t page_tokens,
                                     std::span<const std::int64_t> snapshot_positions);

// Page boundaries of [1, total) at which a prompt's state is worth keeping: below its last token
// (where the answer's think tag stands), every `interval` tokens, and those asked for.
// Source: serving.md §1.10, §5.3.
[[nodiscard]] std::vector<std::int64_t> snapshot_boundaries(std::int64_t total,
                                                            std::int64_t page_tokens,
                                                            std::int64_t interval,
                                                            std::span<const std::int64_t> wanted);

}  // namespace hadal::engine
