// EngineLoop's memory: who gets a slot and pages, who gives them back, and what later prompts keep.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "engine/engine_loop.h"

namespace hadal::engine {

namespace {

// A prompt that shares this much more than the nearest snapshot serves was worth one there.
// Source: serving.md §5.3.
constexpr std::int64_t kDiscoveredPrefix = 512;

}  // namespace

Generation* EngineLoop::find(const std::string& stream) {
  for (const auto& generation : generations_) {
    if (generation->request.stream == stream) return generation.get();
  }
  return nullptr;
}

void EngineLoop::handle(Request& request) {
  std::vector<std::string> active;
  for (const auto& g : generations_) active.push_back(g->request.fairness_key);
  scheduler_.arrive(request.fairness_key, active);

  const bool known = find(request.stream) != nullptr;
  auto owned = std::make_unique<Generation>();
  Generation& g = *owned;
  generations_.push_back(std::move(owned));
  g.request = std::move(request);
  g.arrival = arrivals_++;
  g.resumed = !g.request.drawn.empty();
  g.stats.prompt_tokens = static_cast<std::int64_t>(g.request.prompt.size());
  for (std::int32_t i = 0; i < g.request.n_choices; ++i) {
    g.choices.push_back(std::make_unique<Choice>());
    Choice& c = *g.choices.back();
    c.generation = &g;
    c.index = i;
    c.state = i > 0 && !g.resumed ? Choice::State::forking : Choice::State::waiting;
    c.text.tokens = g.request.prompt;
    c.text.n_prompt = g.stats.prompt_tokens;
    c.text.top_logprobs = g.request.top_logprobs;
  }
  try {
    if (known) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("a generation named {} is under way already", g.request.stream));
    }
    if (prefixes_ && g.request.preamble_tokens > 0) {
      prefixes_->note_preamble(
          g.request.cache_domain,
          std::span(g.request.prompt).first(static_cast<std::size_t>(g.request.preamble_tokens)));
    }
    for (const auto& choice : g.choices) {
      Choice& c = *choice;
      const auto index = static_cast<std::size_t>(c.index);
      SamplingParams sampling = g.request.sampling;
      sampling.choice = static_cast<std::uint32_t>(c.index);
      c.sampler = std::make_unique<Sampler>(std::move(sampling), loaded_.config.vocab_size);
      c.text.sampler = c.sampler.get();
      c.sampler->see_prompt(g.request.prompt);
      if (g.request.make_constraint) c.constraint = g.request.make_constraint(c.index);
      c.text.constraint = c.constraint.get();
      if (g.request.make_observer) c.observer = g.request.make_observer(c.index);
      if (index >= g.request.drawn.size()) continue;
      // An interrupted answer: everyone sees its tokens once more, in order.
      const Request::Drawn& drawn = g.request.drawn[index];
      if (drawn.finished) {
        c.state = Choice::State::finished;
        continue;
      }
      bool stopped = false;
      for (const TokenId token : drawn.tokens) {
        c.text.tokens.push_back(token);
        c.sampler->see_output(token);
        if (c.constraint) c.constraint->accept(token);
        const std::vector<TokenId>& stops = g.request.stop_tokens;
        stopped = std::find(stops.begin(), stops.end(), token) != stops.end() ||
                  (c.observer && c.observer->ends_with(token));
      }
      // The crash fell between the last token and its end.
      if (stopped) {
        finish(c, FinishReason::stop);
      } else if ((g.request.max_tokens > 0 && c.text.n_output() >= g.request.max_tokens) ||
                 c.text.n_tokens() >= context_limit_) {
        finish(c, FinishReason::length);
      }
    }
  } catch (const std::exception& error) {
    for (const auto& choice : g.choices) finish(*choice, FinishReason::error, error.what());
  }
}

void EngineLoop::handle(const Cancel& cancel) {
  Generation* g = find(cancel.stream);
  if (g == nullptr) return;
  for (const auto& choice : g->choices) finish(*choice, FinishReason::cancelled);
}

void EngineLoop::handle(const Suspend& suspend) {
  if (Generation* g = find(suspend.stream)) g->suspended = suspend.suspended;
}

void EngineLoop::handle(const Preempt& message) {
  Generation* g = find(message.stream);
  if (g == nullptr) return;
  for (const auto& choice : g->choices) {
    if (choice->state == Choice::State::running) preempt(*choice);
  }
}

void EngineLoop::admit() {
  std::vector<Choice*> waiting = choices(Choice::State::waiting);
  std::erase_if(waiting, [](const Choice* c) { return c->generation->suspended; });
  if (waiting.empty()) return;
  scheduler_.order(waiting);
  const std::vector<Choice*> running = choices(Choice::State::running);
  auto n_running = static_cast<std::int64_t>(running.size());
  const auto is_long = [&](const Choice* c) {
    return c->text.n_unread() > options_.long_prefill_tokens;
  };
  std::int64_t n_long = std::count_if(running.begin(), running.end(), is_long);
  for (Choice* c : waiting) {
    if (n_running >= options_.max_running) break;
    if (is_long(c) && !c->swapped && n_long >= options_.max_long_prefills) continue;
    if (!start(*c, Pins::keep)) {
      // It waits for pages, and those behind it with it: they would take what it waits for.
      if (n_running > 0) break;
      // Nobody runs who could give some back; not even a pin is worth refusing it.
      if (!start(*c, Pins::release)) {
        finish(*c, FinishReason::error,
               fmt::format(
                   "the text needs {} pages of KV memory and only {} of {} can be freed; give "
                   "the server more KV memory",
                   kv_.pages_for(c->text.n_tokens()) + 1, kv_.n_pages_free(), kv_.n_pages_total()));
        continue;
      }
    }
    ++n_running;
    if (is_long(c)) ++n_long;
  }
}

bool EngineLoop::free_pages(std::int64_t n, Pins pins) {
  const std::int64_t missing = n - kv_.n_pages_free();
  if (missing <= 0) return true;
  if (prefixes_) prefixes_->evict(missing, pins);
  return kv_.n_pages_free() >= n;
}

// Gives a waiting choice a slot with its history as far as it is known, and pages for all of its
// text. False when there are not enough.
bool EngineLoop::start(Choice& c, Pins pins) {
  Generation& g = *c.generation;
  const std::int64_t total = c.text.n_tokens();
  const auto admitted = [&](std::int64_t slot, std::int64_t n_read) {
    c.text.slot = slot;
    c.text.n_read = n_read;
    c.text.pending_streams = {};
    c.state = Choice::State::running;
    if (!g.admitted) {
      g.admitted = Generation::Clock::now();
      g.stats.queue_seconds = std::chrono::duration<double>(*g.admitted - g.submitted).count();
    }
  };
  if (c.swapped) {
    if (!free_pages(kv_.pages_for(total) + 1, pins)) return false;
    const std::int64_t slot = kv_.open();
    HADAL_CHECK(kv_.reserve(slot, total));
    const std::int64_t position = c.swapped->position();
    const bool whole = swap_.restore(kv_, slot, *c.swapped);
    c.swapped.reset();
    if (whole) {
      admitted(slot, position);
      return true;
    }
    kv_.close(slot);  // a damaged image: the tokens are here, so the history can be computed again
  }
  c.text.logits.clear();
  cache::PrefixCache::Hit hit;
  if (prefixes_) hit = prefixes_->find(g.request.cache_domain, c.text.tokens);
  const std::int64_t wanted = kv_.pages_for(total) + 1 - kv_.pages_for(hit.position);
  if (!free_pages(wanted, pins)) return false;  // the hit holds its own
  const std::int64_t slot = kv_.open();
  if (hit.position > 0) kv_.adopt(slot, hit.pages);
  if (hit.snapshot != nullptr) kv_.restore_state(slot, hit.position, hit.snapshot->state);
  HADAL_CHECK(kv_.reserve(slot, total));
  if (!g.admitted) {
    g.stats.cached_tokens = hit.replay_from;
    g.stats.replayed_tokens = std::max<std::int64_t>(0, hit.shared_tokens - hit.replay_from);
    counters_.prefix_queries += static_cast<std::uint64_t>(g.stats.prompt_tokens);
    counters_.prefix_hits += static_cast<std::uint64_t>(hit.replay_from);
    counters_.cached_tokens += static_cast<std::uint64_t>(hit.replay_from);
    counters_.replayed_tokens += static_cast<std::uint64_t>(g.stats.replayed_tokens);
  }
  if (prefixes_) {
    std::vector<std::int64_t> positions = g.request.snapshot_positions;
    if (g.request.preamble_tokens > 0) positions.push_back(g.request.preamble_tokens);
    positions.push_back(c.text.n_prompt - 1);
    if (hit.shared_tokens - hit.position > kDiscoveredPrefix) {
      positions.push_back(hit.shared_tokens);
    }
    c.snapshot_positions =
        snapshot_boundaries(total, kv_.page_tokens(), options_.snapshot_interval, positions);
    std::erase_if(c.snapshot_positions, [&](std::int64_t p) { return p <= hit.position; });
  }
  c.cached_to = c.exact_from = hit.position;
  admitted(slot, hit.replay_from);
  return true;
}

// Room for a running choice to grow to `end_position`, at others' cost if need be. False when it
// has to wait, or has gone itself.
bool EngineLoop::make_room(Choice& c, std::int64_t end_position) {
  while (!kv_.reserve(c.text.slot, end_position)) {
    const std::int64_t missing =
        kv_.pages_for(end_position) - static_cast<std::int64_t>(kv_.pages(c.text.slot).size());
    if (free_pages(missing, Pins::keep)) continue;
    const std::vector<Choice*> running = choices(Choice::State::running);
    if (running.size() == 1) {
      if (free_pages(missing, Pins::release)) continue;
      finish(c, FinishReason::error,
             fmt::format("the KV memory of {} pages is used up; give the server more",
                         kv_.n_pages_total()));
      return false;
    }
    Choice* victim = Scheduler::victim(running, options_.max_preemptions);
    // All were sent away too often already. Someone has to go, or nobody would move again.
    if (victim == nullptr) {
      victim = Scheduler::victim(running, std::numeric_limits<std::int64_t>::max());
    }
    preempt(*victim);
    if (victim == &c) return false;
  }
  return true;
}

void EngineLoop::preempt(Choice& c) {
  counters_.preemptions += 1;
  c.generation->n_preemptions += 1;
  // A replay is repeated: its pages are others' and final, which an image would not tell.
  if (options_.preemption == EngineOptions::Preemption::swap && c.text.n_read >= c.exact_from) {
    c.swapped = swap_.save(kv_, c.text.slot, c.text.n_read);
  }
  std::unique_ptr<SwapImage> image = std::move(c.swapped);
  std::vector<float> logits;
  if (image != nullptr) logits = std::move(c.text.logits);
  release(c);
  c.state = Choice::State::waiting;
  c.swapped = std::move(image);
  c.text.logits = std::move(logits);
  if (c.swapped == nullptr) c.text.n_read = 0;
}

// Gives back slot and pages; what later prompts can use stays in the prefix cache.
void EngineLoop::release(Choice& c) {
  c.state = Choice::State::finished;
  c.swapped.reset();
  c.text.logits.clear();
  c.text.pending_streams = {};
  if (c.text.slot < 0) return;
  if (prefixes_) {
    const std::int64_t n = std::min(c.text.n_read, c.text.n_tokens());
    const auto known = std::span(c.text.tokens).first(static_cast<std::size_t>(n));
    const std::string& domain = c.generation->request.cache_domain;
    if (c.passed != nullptr && c.passed->position > c.cached_to && c.passed->position <= n) {
      prefixes_->insert_snapshot(domain, known, c.text.slot, c.passed);
    }
    prefixes_->insert(domain, known, c.text.slot);
  }
  c.passed.reset();
  kv_.close(c.text.slot);
  c.text.slot = -1;
}

// Takes the state at a page boundary that the step has reached or passed, and hands it to the
// prefix cache where it is wanted.
void EngineLoop::keep_history(Choice& c, std::int64_t begin) {
  if (!prefixes_) return;
  const std::int64_t n_read = c.text.n_read;
  const std::int64_t boundary = n_read / kv_.page_tokens() * kv_.page_tokens();
  if (boundary <= begin || n_read - boundary > kv_.rollback_tokens()) return;
  if (boundary < c.exact_from) return;
  auto snapshot = std::make_shared<cache::Snapshot>();
  snapshot->position = boundary;
  snapshot->state = kv_.save_state(c.text.slot, boundary);
  c.passed = snapshot;
  const Request& request = c.generation->request;
  const auto wanted = std::find(c.snapshot_positions.begin(), c.snapshot_positions.end(), boundary);
  const bool spaced = options_.snapshot_interval > 0 && boundary % options_.snapshot_interval == 0;
  if (wanted == c.snapshot_positions.end() && !spaced) return;
  prefixes_->insert_snapshot(request.cache_domain,
                             std::span(c.text.tokens).first(static_cast<std::size_t>(boundary)),
                             c.text.slot, snapshot);
  c.cached_to = boundary;
  if (boundary <= c.text.n_prompt && !c.generation->prompt_published) {
    c.generation->stats.written_tokens = boundary - c.generation->stats.cached_tokens;
  }
}

// The prompt is read: whoever waited for it begins here, on the same pages, with a copy of what is
// not shared.
void EngineLoop::fork(Choice& first) {
  const std::int64_t position = first.text.n_read;
  const auto n_full = static_cast<std::size_t>(position / kv_.page_tokens());
  for (const auto& other : first.generation->choices) {
    Choice& c = *other;
    if (c.state != Choice::State::forking) continue;
    c.state = Choice::State::waiting;
    const auto n_running = static_cast<std::int64_t>(choices(Choice::State::running).size());
    const std::int64_t n_private = kv_.pages_for(position) - static_cast<std::int64_t>(n_full);
    // Without room it reads the prompt alone, later; most of it lies in the prefix cache.
    if (n_running >= options_.max_running || !free_pages(n_private, Pins::keep)) continue;
    const std::int64_t slot = kv_.open();
    const std::span<const cache::PageRef> pages = kv_.pages(first.text.slot);
    kv_.adopt(slot, pages.first(n_full));
    HADAL_CHECK(kv_.reserve(slot, position));
    for (std::size_t i = n_full; i < pages.size() && i < kv_.pages(slot).size(); ++i) {
      std::memcpy(kv_.pages(slot)[i]->bytes(), pages[i]->bytes(), pages[i]->nbytes());
    }
    kv_.restore_state(slot, position, kv_.save_state(first.text.slot, position));
    c.text.slot = slot;
    c.text.n_read = position;
    c.text.logits = first.text.logits;
    c.text.pending_streams = first.text.pending_streams;
    c.passed = first.passed;
    c.cached_to = first.cached_to;
    c.exact_from = first.exact_from;
    c.state = Choice::State::running;
  }
}

}  // namespace hadal::engine
