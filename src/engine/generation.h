// What the engine knows of a request while it lives. Touched by the engine's thread only.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cache/prefix_cache.h"
#include "engine/batch_runner.h"
#include "engine/request.h"
#include "engine/swap_store.h"

namespace hadal::engine {

struct Generation;

// One answer: a sequence, and what decides about it.
struct Choice {
  enum class State : std::uint8_t {
    forking,  // waits for choice 0 to read the prompt that they share
    waiting,  // for pages: new, or preempted
    running,  // has a slot
    finished
  };

  Generation* generation = nullptr;
  std::int32_t index = 0;
  State state = State::waiting;
  Sequence text;
  std::unique_ptr<Sampler> sampler;
  std::unique_ptr<grammar::Constraint> constraint;
  std::unique_ptr<TokenObserver> observer;

  std::unique_ptr<SwapImage> swapped;             // waiting: its history, if it was saved
  std::shared_ptr<const cache::Snapshot> passed;  // the newest page boundary
  std::vector<std::int64_t> snapshot_positions;   // page boundaries ahead, ascending
  std::int64_t exact_from = 0;  // states before are of a replay whose window is not yet filled
  std::int64_t cached_to = 0;   // what the prefix cache knows of this text

  [[nodiscard]] bool reading() const { return text.n_unread() > 1 || !has_drawn(); }
  [[nodiscard]] bool has_drawn() const { return text.n_output() > 0; }
};

struct Generation {
  using Clock = std::chrono::steady_clock;

  Request request;
  std::vector<std::unique_ptr<Choice>> choices;
  std::uint64_t arrival = 0;
  bool resumed = false;    // goes before new ones: someone has waited long already
  bool suspended = false;  // its reader is slow
  std::int64_t n_preemptions = 0;

  PromptStats stats;
  bool prompt_published = false;
  Clock::time_point submitted = Clock::now();
  std::optional<Clock::time_point> admitted;

  [[nodiscard]] bool finished() const {
    for (const auto& choice : choices) {
      if (choice->state != Choice::State::finished) return false;
    }
    return true;
  }
};

}  // namespace hadal::engine
