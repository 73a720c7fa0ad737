#include "grammar/stacks.h"

#include <algorithm>

namespace hadal::grammar {
namespace {

// Above this many ways a level is sorted at its end instead of searched at every addition.
constexpr std::size_t kSearched = 32;

std::uint64_t mixed(std::uint64_t h, std::uint64_t v) {
  h ^= v + 0x9E3779B97F4A7C15U + (h << 6) + (h >> 2);
  h *= 0xBF58476D1CE4E5B9U;
  h ^= h >> 29;
  h *= 0x94D049BB133111EBU;
  return h ^ (h >> 32);
}

}  // namespace

Stacks::Stacks(const Tables& tables, RuleId root) : Stacks(tables) {
  levels_.push_back({});
  const std::uint32_t frame = new_frame(root, 0);
  add({.state = tables.rules[root].start, .frame = frame, .tainted = false});
}

Stacks Stacks::beneath_unknown(const Tables& tables, StateId state) {
  Stacks stacks(tables);
  stacks.unknown_base_ = true;
  stacks.levels_.push_back({});
  stacks.frames_.emplace_back();
  stacks.add({.state = state, .frame = 0, .tainted = false});
  return stacks;
}

void Stacks::push_level() {
  levels_.push_back({.ways = static_cast<std::uint32_t>(ways_.size()),
                     .frames = static_cast<std::uint32_t>(frames_.size()),
                     .callers = static_cast<std::uint32_t>(callers_.size()),
                     .words = static_cast<std::uint32_t>(words_.size())});
}

void Stacks::back() {
  const Level& level = levels_.back();
  ways_.resize(level.ways);
  frames_.resize(level.frames);
  callers_.resize(level.callers);
  words_.resize(level.words);
  levels_.pop_back();
}

void Stacks::narrow(Way way) {
  push_level();
  ways_.push_back(way);
}

// Rules are opened, with all their callers, before any of them reads: one symbol may end a rule.
bool Stacks::step(Symbol symbol) {
  const std::size_t begin = levels_.back().ways, end = ways_.size();
  push_level();
  if (++n_steps_ == 0) std::fill(opened_.begin(), opened_.end(), Opened{});
  escaped_ = false;
  at_start_.clear();
  for (std::size_t i = begin; i < end; ++i) {
    if (tables_->states[ways_[i].state].n_calls > 0) open_calls(ways_[i], symbol);
  }
  for (std::size_t i = 0; i < at_start_.size(); ++i) {
    const Way way = at_start_[i];
    if (tables_->states[way.state].n_calls > 0) open_calls(way, symbol);
  }
  const auto read = [&](const Way& way) {
    const State& state = tables_->states[way.state];
    for (const Edge& edge : tables_->edges_of(state)) {
      if (edge.first <= symbol && symbol <= edge.last) {
        enter(edge.target, way.frame, way.tainted, symbol);
      }
    }
  };
  for (std::size_t i = begin; i < end; ++i) read(Way(ways_[i]));
  for (const Way& way : at_start_) read(way);

  const auto first = ways_.begin() + static_cast<std::ptrdiff_t>(end);
  if (ways_.size() - end > kSearched) {
    std::sort(first, ways_.end());
    ways_.erase(std::unique(first, ways_.end()), ways_.end());
  }
  return ways_.size() > end;
}

void Stacks::open_calls(const Way& way, Symbol symbol) {
  const std::uint32_t depth = frames_[way.frame].depth + 1;
  for (const Call& call : tables_->calls_of(tables_->states[way.state])) {
    const Rule& rule = tables_->rules[call.rule];
    if (symbol < kTokenSymbol) {
      if (!rule.first_bytes.test(symbol)) continue;
    } else if (std::find(rule.first_tokens.begin(), rule.first_tokens.end(), symbol) ==
               rule.first_tokens.end()) {
      continue;
    }
    if (depth + rule.height > kMaxDepth) continue;
    reach_ = std::max(reach_, depth + std::max(rule.height, rule.tallest));
    Opened& opened = opened_[call.rule];
    const bool is_open = opened.step == n_steps_ && frames_[opened.frame].depth == depth;
    if (!is_open) {
      opened = {.step = n_steps_, .frame = new_frame(call.rule, depth)};
      at_start_.push_back({.state = rule.start, .frame = opened.frame, .tainted = way.tainted});
    }
    Frame& frame = frames_[opened.frame];
    callers_.push_back(
        {.frame = way.frame, .then = call.then, .next = frame.callers, .tainted = way.tainted});
    frame.callers = static_cast<std::int32_t>(callers_.size() - 1);
  }
}

// Properties that do not fit into the depth that is left count as having come.
std::uint32_t Stacks::new_frame(RuleId id, std::uint32_t depth) {
  const Rule& rule = tables_->rules[id];
  Frame frame;
  frame.rule = id;
  frame.depth = depth;
  frame.words = static_cast<std::uint32_t>(words_.size());
  frame.n_words = static_cast<std::uint32_t>(rule.absent.size());
  words_.insert(words_.end(), rule.absent.begin(), rule.absent.end());
  if (depth + rule.tallest > kMaxDepth) {
    for (std::uint32_t i = 0; i < rule.n_properties; ++i) {
      if (depth + rule.need_heights[i] > kMaxDepth) {
        words_[frame.words + i / 64] |= std::uint64_t{1} << (i % 64);
      }
    }
  }
  frames_.push_back(frame);
  return static_cast<std::uint32_t>(frames_.size() - 1);
}

void Stacks::enter(StateId id, std::uint32_t frame, bool tainted, Symbol symbol) {
  const State& state = tables_->states[id];
  if (state.guard >= 0) {
    const Guard& guard = tables_->guards[static_cast<std::size_t>(state.guard)];
    if (unknown_base_ && frame == 0) {
      tainted |=
          guard.any_left || guard.need >= 0 || guard.complete || guard.mark >= 0 || guard.key_end;
    } else if (!pass(guard, frame, symbol)) {
      return;
    }
  }
  const bool ends_all = state.accepting && frame_is_root(frame);
  if (state.n_edges > 0 || state.n_calls > 0 || ends_all) {
    add({.state = id, .frame = frame, .tainted = tainted});
  }
  if (state.accepting) leave(frame, tainted, symbol);
}

bool Stacks::pass(const Guard& guard, std::uint32_t& frame, Symbol symbol) {
  const Frame& open = frames_[frame];
  const Rule& rule = tables_->rules[open.rule];
  const std::uint64_t* words = words_.data() + open.words;
  const auto fits = [&](std::int32_t need) {
    return open.depth + rule.need_heights[static_cast<std::size_t>(need)] <= kMaxDepth;
  };
  const auto has_come = [&](std::uint32_t i) { return (words[i / 64] >> (i % 64) & 1U) != 0; };
  if (guard.any_left && !(guard.extra >= 0 && fits(guard.extra))) {
    std::uint32_t i = guard.first;
    while (i < guard.last && has_come(i)) ++i;
    if (i == guard.last) return false;
  }
  if (guard.need >= 0 && !fits(guard.need)) return false;
  if (guard.complete) {
    for (std::size_t w = 0; w < rule.required.size(); ++w) {
      if ((rule.required[w] & ~words[w]) != 0) return false;
    }
  }
  if (guard.mark >= 0) {
    const auto i = static_cast<std::uint32_t>(guard.mark);
    if (has_come(i)) return false;
    frame = copy_frame(frame, 0);
    words_[frames_[frame].words + i / 64] |= std::uint64_t{1} << (i % 64);
    frames_[frame].key_hash = 0;
  }
  if (guard.key_byte) {
    frame = copy_frame(frame, 0);
    frames_[frame].key_hash = mixed(frames_[frame].key_hash, symbol);
  }
  if (guard.key_end) {
    const std::uint64_t hash = open.key_hash;
    const std::uint64_t* keys = words + open.n_words;
    if (std::find(keys, keys + open.n_keys, hash) != keys + open.n_keys) return false;
    frame = copy_frame(frame, 1);
    words_.back() = hash;
    ++frames_[frame].n_keys;
    frames_[frame].key_hash = 0;
  }
  return true;
}

std::uint32_t Stacks::copy_frame(std::uint32_t from, std::size_t n_more_words) {
  Frame frame = frames_[from];
  const std::size_t n = frame.n_words + frame.n_keys;
  const std::size_t begin = words_.size();
  words_.resize(begin + n + n_more_words);
  std::copy_n(words_.begin() + frame.words, n, words_.begin() + static_cast<std::ptrdiff_t>(begin));
  frame.words = static_cast<std::uint32_t>(begin);
  frames_.push_back(frame);
  return static_cast<std::uint32_t>(frames_.size() - 1);
}

void Stacks::leave(std::uint32_t frame, bool tainted, Symbol symbol) {
  if (unknown_base_ && frame == 0) {
    escaped_ = true;
    return;
  }
  for (std::int32_t i = frames_[frame].callers; i >= 0;) {
    const Caller caller = callers_[static_cast<std::size_t>(i)];
    enter(caller.then, caller.frame, tainted || caller.tainted, symbol);
    i = caller.next;
  }
}

void Stacks::add(Way way) {
  const std::size_t begin = levels_.back().ways;
  if (ways_.size() - begin <= kSearched) {
    for (std::size_t i = begin; i < ways_.size(); ++i) {
      if (ways_[i] == way) return;
    }
  }
  ways_.push_back(way);
}

bool Stacks::complete() const {
  for (const Way& way : ways()) {
    if (tables_->states[way.state].accepting && frame_is_root(way.frame)) return true;
  }
  return false;
}

// Callers before their callees, so that one pass can digest them.
std::uint32_t Stacks::keep(std::uint32_t index, Stacks& into,
                           std::vector<std::uint32_t>& kept) const {
  if (kept[index] != 0) return kept[index] - 1;
  Frame frame = frames_[index];
  std::int32_t list = -1;
  for (std::int32_t i = frame.callers; i >= 0;) {
    const Caller& caller = callers_[static_cast<std::size_t>(i)];
    const std::uint32_t to = keep(caller.frame, into, kept);
    into.callers_.push_back({.frame = to, .then = caller.then, .next = list, .tainted = false});
    list = static_cast<std::int32_t>(into.callers_.size() - 1);
    i = caller.next;
  }
  frame.callers = list;
  const auto from = words_.begin() + frame.words;
  frame.words = static_cast<std::uint32_t>(into.words_.size());
  into.words_.insert(into.words_.end(), from, from + frame.n_words + frame.n_keys);
  into.frames_.push_back(frame);
  kept[index] = static_cast<std::uint32_t>(into.frames_.size());
  return kept[index] - 1;
}

void Stacks::commit() {
  Stacks into(*tables_, std::move(opened_));
  std::vector<std::uint32_t> kept(frames_.size(), 0);
  into.levels_.push_back({});
  for (const Way& way : ways()) {
    into.ways_.push_back(
        {.state = way.state, .frame = keep(way.frame, into, kept), .tainted = false});
  }
  into.n_steps_ = n_steps_;
  into.at_start_ = std::move(at_start_);
  *this = std::move(into);
}

Stacks::Digest Stacks::digest() const {
  std::vector<Digest> frames;
  frames.reserve(frames_.size());
  for (const Frame& frame : frames_) {
    Digest d{.a = frame.rule, .b = ~std::uint64_t{frame.rule}};
    const auto add = [](Digest& to, std::uint64_t v) {
      to.a = mixed(to.a, v);
      to.b = mixed(to.b ^ 0xA5A5A5A5A5A5A5A5U, v * 0x9FB21C651E98DF25U + 1);
    };
    add(d, frame.depth);
    add(d, frame.key_hash);
    add(d, frame.n_words);
    for (std::uint32_t i = 0; i < frame.n_words + frame.n_keys; ++i) {
      add(d, words_[frame.words + i]);
    }
    Digest callers{.a = 0, .b = 0};  // a set: summed
    for (std::int32_t i = frame.callers; i >= 0;) {
      const Caller& caller = callers_[static_cast<std::size_t>(i)];
      Digest one = frames[caller.frame];
      add(one, caller.then);
      callers.a += one.a;
      callers.b += one.b;
      i = caller.next;
    }
    add(d, callers.a);
    add(d, callers.b);
    frames.push_back(d);
  }
  Digest all{.a = ways().size(), .b = 1};
  for (const Way& way : ways()) {
    const Digest& frame = frames[way.frame];
    all.a += mixed(frame.a, way.state);
    all.b += mixed(frame.b, ~std::uint64_t{way.state});
  }
  return all;
}

}  // namespace hadal::grammar
