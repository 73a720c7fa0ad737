#include "engine/session.h"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

namespace hadal::engine {

namespace {

class Stopwatch {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

SessionOptions usable(SessionOptions options, const LoadedModel& loaded) {
  if (loaded.model.n_mtp() == 0) options.draft_tokens = 0;
  options.prefill_chunk = std::max<std::int64_t>(1, options.prefill_chunk);
  if (options.numerics == Numerics::official) {
    const std::string obstacle = loaded.config.official_numerics_obstacle();
    if (!obstacle.empty()) throw Error(ErrorCode::unsupported, obstacle);
  }
  return options;
}

}  // namespace

Runtime::Runtime(int n_threads, std::optional<int> gpu)
    : pool_(n_threads),
      queue_(gpu ? std::make_unique<cuda::Queue>(*gpu) : nullptr),
      stream_(queue_ ? Stream(pool_, *queue_) : Stream(pool_)) {
  kernels::cpu::register_kernels(registry_);
  kernels::cuda::register_kernels(registry_);
}

Session::Session(Runtime& runtime, const LoadedModel& loaded, const SessionOptions& options)
    : loaded_(loaded),
      options_(usable(options, loaded)),
      kv_(loaded.config,
          {.numerics = options.numerics,
           // A step forgets at most its drafts; truncate() one token more.
           .rollback_tokens = options_.draft_tokens > 0 ? options_.draft_tokens + 1 : 0,
           // Nobody shares these pages, and the indexer is quicker over long ones.
           .page_tokens = 1024,
           .memory = runtime.cache_memory()}),
      runner_(runtime.context(options.numerics), loaded, kv_, options_.draft_tokens > 0) {
  text_.slot = kv_.open();
}

Session::~Session() = default;

void Session::reset() {
  kv_.close(text_.slot);
  text_ = {};
  text_.slot = kv_.open();
}

void Session::run(BatchJob& job) {
  runner_.run({&job, 1});
  if (job.error) throw Error(*job.error);
}

void Session::set_prompt(std::span<const TokenId> prompt, const PrefillProgress& progress) {
  const auto total = static_cast<std::int64_t>(prompt.size());
  if (total == 0) throw Error(ErrorCode::invalid_argument, "the prompt is empty");
  if (total > context_limit()) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("the prompt has {} tokens, the model's context {}; shorten the prompt",
                            total, context_limit()));
  }
  for (const TokenId id : prompt) {
    if (id < 0 || id >= config().vocab_size) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("token id {} in the prompt is outside the vocabulary [0, {})", id,
                              config().vocab_size));
    }
  }
  const auto shared =
      std::mismatch(text_.tokens.begin(), text_.tokens.end(), prompt.begin(), prompt.end());
  // The last prompt token is always run: its logits are wanted.
  const std::int64_t keep =
      std::min<std::int64_t>({shared.first - text_.tokens.begin(), text_.n_read, total - 1});
  // The rings remember what continuing exactly needs, and rollback_tokens of the past more.
  if (keep < text_.n_read - kv_.rollback_tokens() || keep == 0) {
    reset();
  } else if (keep < text_.n_read) {
    text_.pending_streams = {};  // of positions that are being forgotten
    text_.n_read = keep;
  }
  // A draft block that missed a position would see a stale row there: start over instead.
  if (drafting() && text_.n_read > 0 && !text_.pending_streams) reset();
  stats_.reused_tokens += text_.n_read;
  text_.tokens.assign(prompt.begin(), prompt.end());
  text_.n_prompt = total;
  text_.logits.clear();

  const Stopwatch watch;
  while (text_.n_read < total) {
    if (progress && !progress(text_.n_read, total)) {
      text_.tokens.resize(static_cast<std::size_t>(text_.n_read));
      throw Error(ErrorCode::cancelled, "the prompt was cancelled");
    }
    BatchJob job{.sequence = &text_,
                 .n_rows = std::min(options_.prefill_chunk, text_.n_unread()),
                 .keep_logits = true};
    run(job);
    stats_.prefilled_tokens += job.n_rows;
  }
  stats_.prefill_seconds += watch.seconds();
  if (progress) (void)progress(total, total);
}

std::vector<SampledToken> Session::step(Sampler& sampler, std::int64_t first_index) {
  HADAL_CHECK(!text_.tokens.empty());
  const Stopwatch watch;
  std::vector<SampledToken> drawn;
  if (text_.n_tokens() >= context_limit()) return drawn;
  text_.sampler = &sampler;
  text_.n_prompt = text_.n_tokens() - first_index;
  BatchJob job{.sequence = &text_,
               .n_rows = text_.n_unread(),  // none when fresh from the prompt, else the newest
               .n_drafts = options_.draft_tokens};
  run(job);
  for (const DrawnToken& d : job.drawn) drawn.push_back(d.token);
  stats_.drafted_tokens += job.n_drafted;
  if (job.n_rows > 0) stats_.accepted_drafts += static_cast<std::int64_t>(drawn.size()) - 1;
  stats_.decode_steps += 1;
  stats_.decoded_tokens += static_cast<std::int64_t>(drawn.size());
  stats_.decode_seconds += watch.seconds();
  return drawn;
}

void Session::truncate(std::int64_t n) {
  HADAL_CHECK(n >= 1 && n <= text_.n_tokens());
  if (n == text_.n_tokens()) return;
  text_.tokens.resize(static_cast<std::size_t>(n));
  // The newest token is run again by the next step: logits of the past were not kept.
  const std::int64_t keep = std::min(text_.n_read, n - 1);
  const std::int64_t forgotten = text_.n_read - keep;
  HADAL_CHECK(forgotten <= kv_.rollback_tokens());
  if (text_.pending_streams && forgotten > 0) {
    const std::int64_t left = text_.pending_streams.dim(0) - forgotten;
    text_.pending_streams = left > 0 ? text_.pending_streams.slice(0, left) : Tensor();
  }
  text_.n_read = keep;
}

}  // namespace hadal::engine
