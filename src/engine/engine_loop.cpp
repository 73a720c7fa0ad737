#include "engine/engine_loop.h"

#include <fmt/format.h>

#include <algorithm>

#include "cache/disk_store.h"
#include "core/error.h"

namespace hadal::engine {

namespace {

using std::chrono::duration;

// A reader that caught up is told by a message; this only bounds how long a mistake can last.
constexpr std::chrono::milliseconds kLongestSleep{200};

double seconds_between(Generation::Clock::time_point begin, Generation::Clock::time_point end) {
  return duration<double>(end - begin).count();
}

EngineOptions checked(EngineOptions options, const LoadedModel& loaded,
                      const cache::DiskStore* disk) {
  if (options.numerics == Numerics::official) {
    const std::string obstacle = loaded.config.official_numerics_obstacle();
    if (!obstacle.empty()) throw Error(ErrorCode::unsupported, obstacle);
  }
  if (loaded.model.n_mtp() == 0) options.draft_tokens = 0;
  const auto positive = [](std::int64_t value, const char* name) {
    if (value >= 1) return;
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} is {}; it must be at least 1", name, value));
  };
  positive(options.max_running, "max_running");
  positive(options.max_step_tokens, "max_step_tokens");
  positive(options.max_long_prefills, "max_long_prefills");
  positive(options.page_tokens, "page_tokens");
  if (!(options.pinned_share >= 0 && options.pinned_share <= 1)) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("pinned_share is {}; it must be from 0 to 1", options.pinned_share));
  }
  if (disk != nullptr) {
    const cache::KvLayout layout(loaded.config, options.numerics, options.page_tokens, 0);
    options.snapshot_interval =
        cache::snapshot_interval(disk->strategy(), layout.page_tokens, options.snapshot_interval);
  }
  return options;
}

}  // namespace

EngineLoop::EngineLoop(Runtime& runtime, const LoadedModel& loaded, const EngineOptions& options,
                       TokenLog* log, cache::DiskStore* disk)
    : loaded_(loaded),
      options_(checked(options, loaded, disk)),
      log_(log),
      kv_(loaded.config,
          {.numerics = options_.numerics,
           .rollback_tokens = options_.draft_tokens > 0 ? options_.draft_tokens + 1 : 0,
           .page_tokens = options_.page_tokens,
           .page_budget_bytes = options_.kv_bytes,
           .memory = runtime.cache_memory()}),
      prefixes_(options_.prefix_cache
                    ? std::make_unique<cache::PrefixCache>(
                          kv_,
                          cache::PrefixCacheOptions{
                              .snapshot_bytes = options_.snapshot_bytes,
                              .pinned_share = options_.pinned_share,
                              .replay = disk != nullptr &&
                                        disk->strategy() == cache::WindowStrategy::zero},
                          disk)
                    : nullptr),
      swap_(FileSystem::real(), options_.swap_directory),
      runner_(runtime.context(options_.numerics), loaded, kv_, options_.draft_tokens > 0),
      context_limit_(loaded.config.max_position_embeddings) {
  if (kv_.n_pages_total() < 2) {
    throw Error(
        ErrorCode::invalid_argument,
        fmt::format("kv_bytes is {}; this model needs at least {} for two pages of {} tokens",
                    options_.kv_bytes, 2 * kv_.page_bytes(), kv_.page_tokens()));
  }
  if (kv_.n_pages_total() < context_limit_ / kv_.page_tokens()) {
    context_limit_ = kv_.n_pages_total() * kv_.page_tokens();
  }
  update_status(true);
  thread_ = std::thread([this] { run(); });
}

EngineLoop::~EngineLoop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
  // What runs goes on after a restart: its history is worth keeping as much as a finished one's.
  for (Choice* choice : choices(Choice::State::running)) release(*choice);
  if (prefixes_) prefixes_->flush();
}

void EngineLoop::post(Message message) {
  {
    const std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(message));
  }
  wake_.notify_one();
}

void EngineLoop::validate(const Request& request) const {
  const auto refuse = [](const std::string& sentence) {
    throw Error(ErrorCode::invalid_argument, sentence);
  };
  const auto n = static_cast<std::int64_t>(request.prompt.size());
  if (n == 0) refuse("the prompt is empty");
  if (n >= context_limit_) {
    refuse(fmt::format("the prompt has {} tokens, and the context {}; shorten the prompt{}", n,
                       context_limit_,
                       context_limit_ < loaded_.config.max_position_embeddings
                           ? " or give the server more KV memory"
                           : ""));
  }
  if (request.n_choices < 1 || request.n_choices > options_.max_running) {
    refuse(
        fmt::format("n is {}; it must be from 1 to {}", request.n_choices, options_.max_running));
  }
  for (const TokenId id : request.prompt) {
    if (id < 0 || id >= loaded_.config.vocab_size) {
      refuse(fmt::format("token id {} in the prompt is outside the vocabulary [0, {})", id,
                         loaded_.config.vocab_size));
    }
  }
  if (request.preamble_tokens < 0 || request.preamble_tokens > n) {
    refuse(
        fmt::format("preamble_tokens is {}; the prompt has {} tokens", request.preamble_tokens, n));
  }
  request.sampling.validate(loaded_.config.vocab_size);
  if (request.sink == nullptr) refuse("the request has no sink");
}

EngineStatus EngineLoop::status() const {
  const std::lock_guard lock(mutex_);
  EngineStatus status = status_;
  // What waits in the inbox is waiting, too.
  for (const Message& message : inbox_)
    status.n_waiting += std::holds_alternative<Request>(message);
  const bool busy = !idle_ || !inbox_.empty();
  status.seconds_since_step = busy ? seconds_between(last_step_, Generation::Clock::now()) : 0.0;
  return status;
}

void EngineLoop::run() noexcept {
  for (bool idle = true;;) {
    receive(idle);
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
    }
    try {
      idle = !step();
    } catch (const std::exception& error) {
      // Not a request's fault that a job could carry. Whoever runs is told; the rest goes on.
      for (Choice* choice : choices(Choice::State::running)) {
        finish(*choice, FinishReason::error, error.what());
      }
    }
    update_status(idle);
    publish();
  }
}

void EngineLoop::receive(bool may_wait) {
  std::vector<Message> messages;
  {
    std::unique_lock lock(mutex_);
    if (may_wait) {
      wake_.wait_for(lock, kLongestSleep, [&] { return stopping_ || !inbox_.empty(); });
    }
    if (stopping_) return;
    messages.swap(inbox_);
    if (!messages.empty() && idle_) {
      idle_ = false;
      last_step_ = Generation::Clock::now();
    }
  }
  for (Message& message : messages) {
    std::visit([&](auto& m) { handle(m); }, message);
  }
}

bool EngineLoop::step() {
  const auto begin = Generation::Clock::now();
  const double forward_before = runner_.forward_seconds();
  admit();
  Plan planned = plan();
  std::vector<BatchJob>& jobs = planned.jobs;
  if (jobs.empty()) return !publications_.empty();
  StepReport report;
  std::vector<std::int64_t> begins;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    begins.push_back(jobs[i].sequence->n_read);
    (planned.choices[i]->reading() ? report.prefill_rows : report.decode_rows) +=
        std::max<std::int64_t>(1, jobs[i].n_rows);
  }
  runner_.run(jobs);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    Choice& choice = *planned.choices[i];
    if (!jobs[i].error) keep_history(choice, begins[i]);
    take(jobs[i], choice);
  }
  report.seconds = seconds_between(begin, Generation::Clock::now());
  report.forward_seconds = runner_.forward_seconds() - forward_before;
  counters_.steps += 1;
  counters_.step_seconds += report.seconds;
  counters_.forward_seconds += report.forward_seconds;
  if (step_observer_) step_observer_(report);
  return true;
}

EngineLoop::Plan EngineLoop::plan() {
  Plan plan;
  std::int64_t budget = options_.max_step_tokens;
  plan_decodes(plan, budget);
  plan_prompts(plan, budget);
  return plan;
}

// All of them: a decode never waits for a prompt.
void EngineLoop::plan_decodes(Plan& plan, std::int64_t& budget) {
  const auto ready = [](const Choice& c) {
    return c.state == Choice::State::running && !c.generation->suspended &&
           (!c.reading() || !c.text.logits.empty());
  };
  std::vector<Choice*> decodes = choices(Choice::State::running);
  std::erase_if(decodes, [&](const Choice* c) { return !ready(*c); });
  scheduler_.order(decodes);
  const bool drafting = options_.draft_tokens > 0 &&
                        static_cast<std::int64_t>(decodes.size()) <= options_.max_draft_batch;
  const auto drafts_of = [&](const Choice& c) {
    if (!drafting || !c.text.pending_streams) return std::int64_t{0};
    const std::int64_t wanted = c.generation->request.max_tokens;
    std::int64_t n = std::min(options_.draft_tokens, context_limit_ - c.text.n_tokens() - 1);
    if (wanted > 0) n = std::min(n, wanted - c.text.n_output() - 1);
    return std::max<std::int64_t>(0, n);
  };
  // Making room for one may send another away, so the jobs are made when all have theirs.
  std::vector<Choice*> granted;
  for (Choice* c : decodes) {
    if (!ready(*c)) continue;
    if (make_room(*c, c->text.n_tokens() + drafts_of(*c))) granted.push_back(c);
  }
  for (Choice* c : granted) {
    if (!ready(*c)) continue;
    const std::int64_t n_drafts = drafts_of(*c);
    budget -= 1 + n_drafts;
    scheduler_.charge(c->generation->request.fairness_key, 1);
    plan.add(*c, {.n_rows = c->text.n_unread(), .n_drafts = n_drafts});
  }
}

void EngineLoop::plan_prompts(Plan& plan, std::int64_t& budget) {
  std::vector<Choice*> prompts = choices(Choice::State::running);
  std::erase_if(prompts, [](const Choice* c) {
    return c->generation->suspended || !c->reading() || !c->text.logits.empty();
  });
  scheduler_.order(prompts);
  bool first = true;
  for (Choice* c : prompts) {
    // However many decode, one prompt advances by a page.
    const std::int64_t mine = first ? std::max(budget, kv_.page_tokens()) : budget;
    first = false;
    if (mine <= 0) break;
    const std::int64_t total = c->text.n_tokens();
    const std::int64_t end =
        chunk_end(c->text.n_read, total, mine, kv_.page_tokens(), c->snapshot_positions);
    const std::int64_t rows = end - c->text.n_read;
    if (rows == 0) continue;
    bool shared = false;
    for (const auto& other : c->generation->choices) {
      shared |= other->state == Choice::State::forking;
    }
    budget -= rows;
    scheduler_.charge(c->generation->request.fairness_key, rows);
    plan.add(*c, {.n_rows = rows, .keep_logits = shared && end == total});
  }
}

std::vector<Choice*> EngineLoop::choices(Choice::State state) const {
  std::vector<Choice*> found;
  for (const auto& generation : generations_) {
    for (const auto& choice : generation->choices) {
      if (choice->state == state) found.push_back(choice.get());
    }
  }
  return found;
}

// What a job did: prompts advance, tokens go out, choices end.
void EngineLoop::take(BatchJob& job, Choice& choice) {
  Generation& g = *choice.generation;
  if (job.error) {
    finish(choice, FinishReason::error, job.error->what());
    return;
  }
  counters_.drafted_tokens += static_cast<std::uint64_t>(job.n_drafted);
  if (job.drawn.size() > 1) counters_.accepted_drafts += job.drawn.size() - 1;
  if (!g.prompt_published && choice.text.n_read < g.stats.prompt_tokens) {
    g.request.sink->on_progress(choice.text.n_read, g.stats.prompt_tokens);
  }
  const bool prompt_read = choice.text.n_read >= choice.text.n_prompt;
  if (prompt_read && !g.prompt_published) {
    g.prompt_published = true;
    const auto now = Generation::Clock::now();
    g.stats.prefill_seconds = seconds_between(g.admitted.value_or(now), now);
    publication(g).prompt = g.stats;
    counters_.prompt_tokens += static_cast<std::uint64_t>(g.stats.prompt_tokens);
  }
  if (job.keep_logits && prompt_read) fork(choice);

  // The runner has appended what was drawn; what lies beyond an end never existed.
  const std::int64_t first = choice.text.n_output() - static_cast<std::int64_t>(job.drawn.size());
  for (std::size_t i = 0; i < job.drawn.size(); ++i) {
    const SampledToken& drawn = job.drawn[i].token;
    TokenEvent event{.choice = choice.index,
                     .index = first + static_cast<std::int64_t>(i),
                     .token = drawn.token,
                     .logprob = drawn.logprob};
    for (const SampledToken& top : job.drawn[i].top) event.top.push_back({top.token, top.logprob});
    const std::vector<TokenId>& stops = g.request.stop_tokens;
    event.is_stop_token = std::find(stops.begin(), stops.end(), drawn.token) != stops.end();
    const bool stopped = event.is_stop_token ||
                         (choice.observer != nullptr && choice.observer->ends_with(drawn.token));
    const std::int64_t n_output = event.index + 1;
    const bool full = (g.request.max_tokens > 0 && n_output >= g.request.max_tokens) ||
                      choice.text.n_prompt + n_output >= context_limit_;
    publication(g).tokens.push_back(std::move(event));
    counters_.generated_tokens += 1;
    if (!stopped && !full) continue;
    choice.text.tokens.resize(static_cast<std::size_t>(choice.text.n_prompt + n_output));
    finish(choice, stopped ? FinishReason::stop : FinishReason::length);
    return;
  }
}

void EngineLoop::finish(Choice& choice, FinishReason reason, std::string error) {
  if (choice.state == Choice::State::finished) return;
  release(choice);
  Generation& g = *choice.generation;
  publication(g).finished.push_back({.choice = choice.index,
                                     .reason = reason,
                                     .error = std::move(error),
                                     .n_tokens = choice.text.n_output()});
  // Whoever waited for this one's prompt has to read it alone, or shares its fate.
  for (const auto& other : g.choices) {
    if (other->state != Choice::State::forking) continue;
    if (reason == FinishReason::error || reason == FinishReason::cancelled) {
      finish(*other, reason, publication(g).finished.front().error);
    } else {
      other->state = Choice::State::waiting;
    }
  }
}

EngineLoop::Publication& EngineLoop::publication(Generation& generation) {
  Publication& p = publications_[&generation];
  if (p.sink == nullptr) {
    p.sink = generation.request.sink;
    p.stream = &generation.request.stream;
  }
  return p;
}

void EngineLoop::publish() {
  if (publications_.empty()) return;
  auto batch = std::make_shared<std::vector<Publication>>();
  for (auto& [generation, publication] : publications_) batch->push_back(std::move(publication));
  publications_.clear();
  const auto show = [batch] {
    for (const Publication& p : *batch) {
      if (p.prompt) p.sink->on_prompt(*p.prompt);
      if (!p.tokens.empty()) p.sink->on_tokens(p.tokens);
      for (const Finish& finish : p.finished) p.sink->on_finish(finish);
    }
  };
  if (log_ == nullptr) {
    show();
  } else {
    std::vector<TokenLog::Token> tokens;
    std::vector<TokenLog::Closed> closed;
    for (const Publication& p : *batch) {
      for (const TokenEvent& event : p.tokens) tokens.push_back({p.stream, &event});
      for (const Finish& finish : p.finished) closed.push_back({p.stream, &finish});
    }
    log_->commit(tokens, closed, show);
  }
  std::erase_if(generations_, [](const auto& g) { return g->finished(); });
}

void EngineLoop::update_status(bool idle) {
  EngineStatus s = counters_;
  for (const auto& generation : generations_) {
    for (const auto& choice : generation->choices) {
      if (choice->state == Choice::State::running) {
        s.n_running += 1;
        s.n_prefilling += choice->reading() ? 1 : 0;
      } else if (choice->state != Choice::State::finished) {
        s.n_waiting += 1;
        s.n_preempted += generation->n_preemptions > 0 ? 1 : 0;
      }
    }
  }
  s.pages_total = kv_.n_pages_total();
  s.pages_used = kv_.n_pages_used();
  s.page_bytes = kv_.page_bytes_held();
  s.state_bytes = kv_.state_bytes_held();
  if (prefixes_) {
    const cache::PrefixCache::Statistics cached = prefixes_->statistics();
    s.pages_cached = cached.pages;
    s.snapshot_bytes = cached.snapshot_bytes;
    s.pinned_prefixes = cached.pins;
    s.pages_pinned = cached.pinned_pages;
    s.pinned_bytes = cached.pinned_bytes;
  }
  const std::lock_guard lock(mutex_);
  status_ = s;
  idle_ = idle;
  last_step_ = Generation::Clock::now();
}

}  // namespace hadal::engine
