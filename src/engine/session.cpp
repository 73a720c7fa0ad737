#include "engine/session.h"

#include <algorithm>
#include <chrono>
#include <numeric>

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

std::vector<std::int64_t> row_range(std::int64_t begin, std::int64_t end) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(end - begin));
  std::iota(rows.begin(), rows.end(), begin);
  return rows;
}

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

Runtime::Runtime(int n_threads) : pool_(n_threads) {
  kernels::cpu::register_kernels(registry_);
}

Session::Session(Runtime& runtime, const LoadedModel& loaded, const SessionOptions& options)
    : loaded_(loaded),
      options_(usable(options, loaded)),
      ctx_(runtime.context(options.numerics)),
      kv_(loaded.config, {.numerics = options.numerics,
                          // A step forgets at most its drafts; truncate() one token more.
                          .rollback_tokens = drafting() ? options_.draft_tokens + 1 : 0}),
      slot_(kv_.open()) {}

Session::~Session() = default;

Tensor Session::forward(std::int64_t begin, std::span<const TokenId> ids) {
  model::TokenBatch batch;
  batch.add(ids, begin, slot_);
  return loaded_.model.forward(ctx_, batch, kv_);
}

void Session::reset() {
  kv_.close(slot_);
  slot_ = kv_.open();
  tokens_.clear();
  logits_.clear();
  pending_streams_ = {};
  n_processed_ = 0;
}

// Runs the draft block over positions [begin, begin + n), whose following tokens are known now.
void Session::teach_draft(std::int64_t begin, const Tensor& streams,
                          std::span<const TokenId> next_ids) {
  const auto n = static_cast<std::int64_t>(next_ids.size());
  if (n == 0) return;
  model::TokenBatch batch;
  batch.add(std::span(tokens_).subspan(static_cast<std::size_t>(begin), next_ids.size()), begin,
            slot_);
  (void)loaded_.model.mtp_forward(ctx_, 0, batch, kv_, streams.slice(0, n), next_ids);
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
  const auto shared = std::mismatch(tokens_.begin(), tokens_.end(), prompt.begin(), prompt.end());
  // The last prompt token is always run: its logits are wanted.
  const std::int64_t keep =
      std::min<std::int64_t>({shared.first - tokens_.begin(), n_processed_, total - 1});
  // The rings remember what continuing exactly needs, and rollback_tokens of the past more.
  if (keep < n_processed_ - kv_.rollback_tokens() || keep == 0) {
    reset();
  } else if (keep < n_processed_) {
    pending_streams_ = {};  // of positions that are being forgotten
    n_processed_ = keep;
  }
  // A draft block that missed a position would see a stale row there: start over instead.
  if (drafting() && n_processed_ > 0 && !pending_streams_) reset();
  stats_.reused_tokens += n_processed_;
  tokens_.assign(prompt.begin(), prompt.end());

  const Stopwatch watch;
  while (n_processed_ < total) {
    if (progress && !progress(n_processed_, total)) {
      tokens_.resize(static_cast<std::size_t>(n_processed_));
      throw Error(ErrorCode::cancelled, "the prompt was cancelled");
    }
    const std::int64_t begin = n_processed_;
    const std::int64_t n = std::min(options_.prefill_chunk, total - begin);
    const std::span<const TokenId> ids =
        std::span(tokens_).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(n));
    if (drafting() && pending_streams_) {
      const std::int64_t k = pending_streams_.dim(0);
      teach_draft(begin - k, pending_streams_,
                  std::span(tokens_).subspan(static_cast<std::size_t>(begin - k + 1),
                                             static_cast<std::size_t>(k)));
      pending_streams_ = {};
    }
    const Tensor streams = forward(begin, ids);
    if (drafting()) {
      teach_draft(begin, streams, ids.subspan(1));
      pending_streams_ = streams.slice(n - 1, n);
    }
    n_processed_ += n;
    stats_.prefilled_tokens += n;
    if (n_processed_ == total) {
      const std::int64_t last[] = {n - 1};
      const Tensor logits = loaded_.model.logits(ctx_, streams, last);
      logits_.assign(logits.data<const float>(), logits.data<const float>() + logits.numel());
    }
  }
  stats_.prefill_seconds += watch.seconds();
  if (progress) (void)progress(total, total);
}

// The newest token is drawn but not processed. Guesses the tokens after it.
std::vector<TokenId> Session::draft(Sampler& sampler, std::int64_t first_index) {
  std::vector<TokenId> drafts;
  const std::int64_t k = pending_streams_.dim(0), begin = n_processed_ - k;
  const std::int64_t room = context_limit() - n_tokens();
  const std::int64_t wanted = std::min(options_.draft_tokens, room);
  if (wanted <= 0) return drafts;
  model::TokenBatch batch;
  batch.add(
      std::span(tokens_).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(k)),
      begin, slot_);
  Tensor streams = loaded_.model.mtp_forward(
      ctx_, 0, batch, kv_, pending_streams_,
      std::span(tokens_).subspan(static_cast<std::size_t>(begin + 1), static_cast<std::size_t>(k)));
  for (std::int64_t i = 0;; ++i) {
    const std::int64_t last[] = {streams.dim(0) - 1};
    const Tensor logits = loaded_.model.mtp_logits(ctx_, 0, streams, last);
    const SampledToken guess = sampler.sample(
        {logits.data<float>(), static_cast<std::size_t>(logits.numel())}, first_index + i);
    drafts.push_back(guess.token);
    sampler.see_output(guess.token);
    if (static_cast<std::int64_t>(drafts.size()) == wanted) break;
    // Deeper guesses feed the block its own streams in place of the model's.
    const TokenId at = i == 0 ? tokens_.back() : drafts[drafts.size() - 2];
    model::TokenBatch next;
    next.add({&at, 1}, n_processed_ + i, slot_);
    streams = loaded_.model.mtp_forward(ctx_, 0, next, kv_, streams.slice(last[0], last[0] + 1),
                                        {&drafts.back(), 1});
  }
  for (auto it = drafts.rbegin(); it != drafts.rend(); ++it) sampler.forget_output(*it);
  return drafts;
}

std::vector<SampledToken> Session::step(Sampler& sampler, std::int64_t first_index) {
  HADAL_CHECK(!tokens_.empty());
  const Stopwatch watch;
  std::vector<SampledToken> drawn;
  if (n_processed_ == n_tokens()) {  // fresh from the prompt: its logits are waiting
    if (n_tokens() >= context_limit()) return drawn;
    drawn.push_back(sampler.sample(logits_, first_index));
  } else {
    if (n_tokens() >= context_limit()) return drawn;
    std::vector<TokenId> ids = {tokens_.back()};
    if (drafting() && pending_streams_) {
      const std::vector<TokenId> drafts = draft(sampler, first_index);
      ids.insert(ids.end(), drafts.begin(), drafts.end());
      stats_.drafted_tokens += static_cast<std::int64_t>(drafts.size());
    }
    const std::int64_t begin = n_processed_;
    const auto n = static_cast<std::int64_t>(ids.size());
    const Tensor streams = forward(begin, ids);
    const Tensor logits = loaded_.model.logits(ctx_, streams, row_range(0, n));
    const std::int64_t vocab = config().vocab_size;
    std::int64_t accepted = 0;
    for (std::int64_t row = 0; row < n; ++row) {
      const SampledToken token = sampler.sample(
          {logits.data<float>() + row * vocab, static_cast<std::size_t>(vocab)}, first_index + row);
      drawn.push_back(token);
      // A draft is right when it is the token that the target draws with the same noise.
      if (row + 1 < n && token.token != ids[static_cast<std::size_t>(row) + 1]) break;
      if (row + 1 < n) {
        sampler.see_output(token.token);
        ++accepted;
      }
    }
    for (std::int64_t i = accepted; i-- > 0;) {
      sampler.forget_output(drawn[static_cast<std::size_t>(i)].token);
    }
    stats_.accepted_drafts += accepted;
    n_processed_ = begin + accepted + 1;  // rejected positions are simply written over later
    if (drafting()) pending_streams_ = streams.slice(0, accepted + 1);
  }
  for (const SampledToken& token : drawn) {
    tokens_.push_back(token.token);
    sampler.see_output(token.token);
  }
  stats_.decode_steps += 1;
  stats_.decoded_tokens += static_cast<std::int64_t>(drawn.size());
  stats_.decode_seconds += watch.seconds();
  return drawn;
}

void Session::truncate(std::int64_t n) {
  HADAL_CHECK(n >= 1 && n <= n_tokens());
  if (n == n_tokens()) return;
  tokens_.resize(static_cast<std::size_t>(n));
  // The newest token is run again by the next step: logits of the past were not kept.
  const std::int64_t keep = std::min(n_processed_, n - 1);
  const std::int64_t forgotten = n_processed_ - keep;
  HADAL_CHECK(forgotten <= kv_.rollback_tokens());
  if (pending_streams_ && forgotten > 0) {
    const std::int64_t left = pending_streams_.dim(0) - forgotten;
    pending_streams_ = left > 0 ? pending_streams_.slice(0, left) : Tensor();
  }
  n_processed_ = keep;
}

}  // namespace hadal::engine
