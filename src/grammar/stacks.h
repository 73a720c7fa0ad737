// All the ways in which a text so far can be read by a grammar, at once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "grammar/grammar.h"

namespace hadal::grammar {

// Ways are pairs of a state and an open rule; open rules share their callers, so that ambiguous
// forms do not multiply. step() adds a level and back() takes it off again, which costs nothing:
// that is how a vocabulary is walked. Copies are independent. `tables` must outlive this.
class Stacks {
 public:
  struct Way {
    StateId state;
    std::uint32_t frame;
    bool tainted;  // depends on what is not known; see beneath_unknown()
    bool operator==(const Way&) const = default;
    auto operator<=>(const Way&) const = default;
  };

  Stacks(const Tables& tables, RuleId root);
  // Stands in `state` of a rule of which nothing is known: neither its callers nor its account.
  // What would depend on it is tainted, and where it would end escaped() says so.
  [[nodiscard]] static Stacks beneath_unknown(const Tables& tables, StateId state);

  // Reads one symbol on a new level. False when there is no way left; the level is there all the
  // same.
  bool step(Symbol symbol);
  void back();
  // A new level with only this way of the present one.
  void narrow(Way way);
  [[nodiscard]] std::size_t n_levels() const { return levels_.size(); }
  // Makes the present level the only one, and forgets all that it does not need.
  void commit();

  [[nodiscard]] std::span<const Way> ways() const {
    return std::span(ways_).subspan(levels_.back().ways);
  }
  [[nodiscard]] bool complete() const;  // some way has read a whole text of the root
  [[nodiscard]] bool escaped() const { return escaped_; }       // by the last step
  [[nodiscard]] std::uint32_t reach() const { return reach_; }  // deepest that was counted on
  [[nodiscard]] std::uint32_t depth(const Way& way) const { return frames_[way.frame].depth; }

  // Equal for equal futures, after commit().
  struct Digest {
    std::uint64_t a, b;
    bool operator==(const Digest&) const = default;
  };
  [[nodiscard]] Digest digest() const;

 private:
  struct Frame {
    RuleId rule = 0;
    std::int32_t callers = -1;  // list in callers_
    std::uint32_t depth = 0;
    std::uint32_t words = 0;  // into words_: a bit for each property, then a hash for each key
    std::uint32_t n_words = 0, n_keys = 0;
    std::uint64_t key_hash = 0;  // of the undeclared key that is being read
  };
  struct Caller {
    std::uint32_t frame;
    StateId then;
    std::int32_t next;
    bool tainted;
  };
  struct Level {
    std::uint32_t ways, frames, callers, words;
  };
  struct Opened {  // the frame that this step has opened for a rule
    std::uint32_t step = 0, frame = 0;
  };

  explicit Stacks(const Tables& tables)
      : Stacks(tables, std::vector<Opened>(tables.rules.size())) {}
  Stacks(const Tables& tables, std::vector<Opened> opened)
      : tables_(&tables), opened_(std::move(opened)) {}

  [[nodiscard]] bool frame_is_root(std::uint32_t frame) const {
    return !unknown_base_ && frames_[frame].callers < 0;
  }

  void push_level();
  void open_calls(const Way& way, Symbol symbol);
  [[nodiscard]] std::uint32_t new_frame(RuleId rule, std::uint32_t depth);
  void enter(StateId state, std::uint32_t frame, bool tainted, Symbol symbol);
  [[nodiscard]] bool pass(const Guard& guard, std::uint32_t& frame, Symbol symbol);
  [[nodiscard]] std::uint32_t copy_frame(std::uint32_t frame, std::size_t n_more_words);
  void leave(std::uint32_t frame, bool tainted, Symbol symbol);
  void add(Way way);
  std::uint32_t keep(std::uint32_t frame, Stacks& into, std::vector<std::uint32_t>& kept) const;

  const Tables* tables_;
  std::vector<Frame> frames_;
  std::vector<Caller> callers_;
  std::vector<std::uint64_t> words_;
  std::vector<Way> ways_;
  std::vector<Level> levels_;
  std::vector<Opened> opened_;
  std::vector<Way> at_start_;  // of rules opened by this step
  std::uint32_t n_steps_ = 0, reach_ = 0;
  bool unknown_base_ = false, escaped_ = false;
};

}  // namespace hadal::grammar
