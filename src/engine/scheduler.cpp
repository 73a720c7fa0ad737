#include "engine/scheduler.h"

#include <algorithm>
#include <tuple>

namespace hadal::engine {

void Scheduler::charge(const std::string& fairness_key, std::int64_t n_rows) {
  received_[fairness_key] += n_rows;
}

void Scheduler::arrive(const std::string& fairness_key, std::span<const std::string> active) {
  if (std::find(active.begin(), active.end(), fairness_key) != active.end()) return;
  // It starts level with the one that has received least. Keys that left take no memory.
  std::map<std::string, std::int64_t> kept;
  std::int64_t least = -1;
  for (const std::string& key : active) {
    const std::int64_t received = received_[key];
    kept[key] = received;
    least = least < 0 ? received : std::min(least, received);
  }
  kept[fairness_key] = std::max<std::int64_t>(0, least);
  received_ = std::move(kept);
}

bool Scheduler::before(const Choice& a, const Choice& b) const {
  const auto key = [&](const Choice& c) {
    const Generation& g = *c.generation;
    const auto received = received_.find(g.request.fairness_key);
    const bool interrupted = g.resumed || g.n_preemptions > 0;
    return std::tuple(-g.request.priority, !interrupted,
                      interrupted || received == received_.end() ? 0 : received->second, g.arrival,
                      c.index);
  };
  return key(a) < key(b);
}

void Scheduler::order(std::vector<Choice*>& choices) const {
  std::sort(choices.begin(), choices.end(),
            [&](const Choice* a, const Choice* b) { return before(*a, *b); });
}

Choice* Scheduler::victim(std::span<Choice* const> running, std::int64_t max_preemptions) {
  const auto key = [](const Choice& c) {
    const Generation& g = *c.generation;
    return std::tuple(g.suspended, -g.request.priority, g.arrival, c.index);
  };
  Choice* found = nullptr;
  for (Choice* c : running) {
    if (c->generation->n_preemptions >= max_preemptions) continue;
    if (found == nullptr || key(*c) > key(*found)) found = c;
  }
  return found;
}

std::int64_t chunk_end(std::int64_t begin, std::int64_t total, std::int64_t budget,
                       std::int64_t page_tokens, std::span<const std::int64_t> snapshot_positions) {
  std::int64_t end = std::min(total, begin + budget);
  if (end < total) end = std::max(begin, end / page_tokens * page_tokens);
  const auto next = std::upper_bound(snapshot_positions.begin(), snapshot_positions.end(), begin);
  if (next != snapshot_positions.end()) end = std::min(end, *next);
  return end;
}

std::vector<std::int64_t> snapshot_boundaries(std::int64_t total, std::int64_t page_tokens,
                                              std::int64_t interval,
                                              std::span<const std::int64_t> wanted) {
  std::vector<std::int64_t> positions;
  const auto add = [&](std::int64_t position) {
    const std::int64_t boundary = position / page_tokens * page_tokens;
    if (boundary > 0 && boundary < total) positions.push_back(boundary);
  };
  add(total - 1);
  for (const std::int64_t position : wanted) add(position);
  if (interval > 0) {
    for (std::int64_t position = interval; position < total; position += interval) add(position);
  }
  std::sort(positions.begin(), positions.end());
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  return positions;
}

}  // namespace hadal::engine
