#include "engine/batch_runner.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>

#include "ops/elementwise.h"

namespace hadal::engine {

// Tokens to read, then guesses.
struct BatchRunner::Pass {
  std::vector<TokenId> ids;
  std::int64_t begin = 0;         // first row of the batch
  std::int64_t n_text = 0;        // rows that are text; the rest are guesses
  std::int64_t start = 0;         // position of the first row
  std::int64_t first_logit = -1;  // row of the logits tensor; -1: none wanted
  std::int64_t accepted = 0;      // guesses that were right

  [[nodiscard]] std::int64_t n_rows() const { return static_cast<std::int64_t>(ids.size()); }
};

namespace {

std::span<const TokenId> part(const std::vector<TokenId>& tokens, std::int64_t begin,
                              std::int64_t n) {
  return std::span(tokens).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(n));
}

std::span<float> row_of(const Tensor& logits, std::int64_t row) {
  const std::int64_t vocab = logits.dim(1);
  return {logits.data<float>() + row * vocab, static_cast<std::size_t>(vocab)};
}

// What the constraint, if any, allows next; `storage` holds it.
const grammar::TokenMask* mask_of(grammar::Constraint* constraint, std::int64_t vocab_size,
                                  std::optional<grammar::TokenMask>& storage) {
  if (constraint == nullptr) return nullptr;
  if (!storage) storage.emplace(vocab_size);
  return constraint->fill(*storage) ? &*storage : nullptr;
}

// Draws the next token of a sequence as its output token `index` and lets everyone see it.
DrawnToken draw_token(Sequence& s, std::span<float> logits, std::int64_t index,
                      std::optional<grammar::TokenMask>& storage) {
  const auto vocab_size = static_cast<std::int64_t>(logits.size());
  DrawnToken drawn;
  if (s.top_logprobs > 0) drawn.top = top_logprobs(logits, s.top_logprobs);
  drawn.token = s.sampler->sample(logits, index, mask_of(s.constraint, vocab_size, storage));
  s.sampler->see_output(drawn.token.token);
  if (s.constraint != nullptr) s.constraint->accept(drawn.token.token);
  return drawn;
}

// The sequence's next tokens, from its rows of the logits. Returns how many guesses were right.
std::int64_t draw(BatchJob& job, std::span<const TokenId> guesses, const Tensor& logits,
                  std::int64_t first_logit) {
  Sequence& s = *job.sequence;
  std::optional<grammar::TokenMask> storage;
  std::int64_t accepted = 0;
  for (std::size_t row = 0; row <= guesses.size(); ++row) {
    job.drawn.push_back(draw_token(s, row_of(logits, first_logit + static_cast<std::int64_t>(row)),
                                   s.n_output() + static_cast<std::int64_t>(row), storage));
    // A guess is right when it is the token that the target draws with the same noise.
    if (row == guesses.size() || job.drawn.back().token.token != guesses[row]) break;
    ++accepted;
  }
  for (const DrawnToken& d : job.drawn) s.tokens.push_back(d.token.token);
  return accepted;
}

}  // namespace

BatchRunner::BatchRunner(ExecContext ctx, const LoadedModel& loaded, cache::PagedKv& kv,
                         bool drafting)
    : ctx_(ctx), loaded_(loaded), kv_(kv), drafting_(drafting && loaded.model.n_mtp() > 0) {}

void BatchRunner::run(std::span<BatchJob> jobs) {
  if (jobs.empty()) return;
  try {
    run_pass(jobs);
    return;
  } catch (const Error& error) {
    if (jobs.size() == 1) {
      jobs.front().error.emplace(error);
      return;
    }
  }
  // Passes throw before anything is drawn, and histories are found by position: what this one
  // wrote is simply written again.
  for (BatchJob& job : jobs) run({&job, 1});
}

void BatchRunner::run_pass(std::span<BatchJob> jobs) {
  const std::vector<std::vector<TokenId>> guesses = draft(jobs);
  model::TokenBatch batch;
  std::vector<Pass> passes(jobs.size());
  std::vector<std::int64_t> wanted;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const Sequence& s = *jobs[i].sequence;
    Pass& pass = passes[i];
    pass.start = s.n_read;
    pass.n_text = jobs[i].n_rows;
    jobs[i].n_drafted = static_cast<std::int64_t>(guesses[i].size());
    HADAL_CHECK(pass.n_text <= s.n_unread());
    if (pass.n_text == 0) continue;  // its logits were kept
    const std::span<const TokenId> text = part(s.tokens, s.n_read, pass.n_text);
    pass.ids.assign(text.begin(), text.end());
    pass.ids.insert(pass.ids.end(), guesses[i].begin(), guesses[i].end());
    pass.begin = batch.n_tokens();
    batch.add(pass.ids, pass.start, s.slot);
    if (pass.n_text < s.n_unread()) continue;
    pass.first_logit = static_cast<std::int64_t>(wanted.size());
    for (std::int64_t row = pass.n_text - 1; row < pass.n_rows(); ++row) {
      wanted.push_back(pass.begin + row);
    }
  }
  Tensor streams, logits;
  if (batch.n_tokens() > 0) {
    const auto begin = std::chrono::steady_clock::now();
    streams = loaded_.model.forward(ctx_, batch, kv_);
    if (!wanted.empty()) {
      logits = ctx_.to_host(loaded_.model.logits(ctx_, streams, wanted));
    }
    forward_seconds_ +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  ctx_.stream().pool().parallel_for(
      static_cast<std::int64_t>(jobs.size()), 1, [&](std::int64_t begin, std::int64_t end) {
        for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
          BatchJob& job = jobs[i];
          Sequence& s = *job.sequence;
          Pass& pass = passes[i];
          try {
            if (pass.n_text == 0) {
              std::optional<grammar::TokenMask> storage;
              job.drawn.push_back(draw_token(s, s.logits, s.n_output(), storage));
              s.tokens.push_back(job.drawn.back().token.token);
              s.logits.clear();
            } else if (pass.first_logit >= 0 && job.keep_logits) {
              const std::span<const float> kept = row_of(logits, pass.first_logit);
              s.logits.assign(kept.begin(), kept.end());
            } else if (pass.first_logit >= 0) {
              pass.accepted = draw(job, guesses[i], logits, pass.first_logit);
            }
            // Rejected positions are simply written over later.
            s.n_read += pass.n_text + pass.accepted;
          } catch (const Error& error) {
            job.error.emplace(error);
          }
        }
      });
  if (drafting_ && streams) teach(jobs, passes, streams);
}

// The newest token of each job is drawn but not read. Guesses the tokens after it.
std::vector<std::vector<TokenId>> BatchRunner::draft(std::span<const BatchJob> jobs) {
  std::vector<std::vector<TokenId>> guesses(jobs.size());
  struct Drafter {
    std::size_t job;
    std::int64_t wanted;
    std::unique_ptr<grammar::Constraint> constraint;
    std::int64_t last_row = 0;
  };
  std::vector<Drafter> drafters;
  model::TokenBatch batch;
  std::vector<Tensor> parts;
  std::vector<TokenId> next;
  if (!drafting_) return guesses;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const Sequence& s = *jobs[i].sequence;
    const std::int64_t wanted =
        std::min(jobs[i].n_drafts, loaded_.config.max_position_embeddings - s.n_tokens());
    if (wanted <= 0 || jobs[i].n_rows != 1 || s.n_unread() != 1 || !s.pending_streams) continue;
    const std::int64_t k = s.pending_streams.dim(0), begin = s.n_read - k;
    batch.add(part(s.tokens, begin, k), begin, s.slot);
    const std::span<const TokenId> following = part(s.tokens, begin + 1, k);
    next.insert(next.end(), following.begin(), following.end());
    parts.push_back(s.pending_streams);
    drafters.push_back({i, wanted, s.constraint != nullptr ? s.constraint->clone() : nullptr,
                        batch.n_tokens() - 1});
  }
  if (drafters.empty()) return guesses;

  Tensor streams =
      loaded_.model.mtp_forward(ctx_, 0, batch, kv_, ops::concat_rows(ctx_, parts), next);
  for (std::int64_t depth = 0;; ++depth) {
    std::vector<std::int64_t> rows;
    for (const Drafter& d : drafters) rows.push_back(d.last_row);
    const Tensor logits = ctx_.to_host(loaded_.model.mtp_logits(ctx_, 0, streams, rows));
    ctx_.stream().pool().parallel_for(
        static_cast<std::int64_t>(drafters.size()), 1, [&](std::int64_t begin, std::int64_t end) {
          for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
            Drafter& d = drafters[i];
            const Sequence& s = *jobs[d.job].sequence;
            std::optional<grammar::TokenMask> storage;
            const std::span<float> row = row_of(logits, static_cast<std::int64_t>(i));
            try {
              const TokenId guess =
                  s.sampler
                      ->sample(row, s.n_output() + depth,
                               mask_of(d.constraint.get(), logits.dim(1), storage))
                      .token;
              guesses[d.job].push_back(guess);
              s.sampler->see_output(guess);
              if (d.constraint) d.constraint->accept(guess);
            } catch (const Error&) {
              d.wanted = 0;  // a damaged draft block costs its guesses, not the answer
            }
          }
        });
    // Deeper guesses feed the block its own streams in place of the model's.
    model::TokenBatch deeper;
    std::vector<Tensor> last;
    std::vector<TokenId> following;
    std::vector<Drafter> going_on;
    for (Drafter& d : drafters) {
      const std::vector<TokenId>& g = guesses[d.job];
      if (static_cast<std::int64_t>(g.size()) >= d.wanted) continue;
      const Sequence& s = *jobs[d.job].sequence;
      const TokenId at = g.size() == 1 ? s.tokens.back() : g[g.size() - 2];
      deeper.add({&at, 1}, s.n_read + depth, s.slot);
      following.push_back(g.back());
      last.push_back(streams.slice(d.last_row, d.last_row + 1));
      going_on.push_back(std::move(d));
      going_on.back().last_row = deeper.n_tokens() - 1;
    }
    drafters = std::move(going_on);
    if (drafters.empty()) break;
    streams =
        loaded_.model.mtp_forward(ctx_, 0, deeper, kv_, ops::concat_rows(ctx_, last), following);
  }
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    for (auto g = guesses[i].rbegin(); g != guesses[i].rend(); ++g) {
      jobs[i].sequence->sampler->forget_output(*g);
    }
  }
  return guesses;
}

// Runs the draft block over read positions whose following tokens are known; the last ones wait.
void BatchRunner::teach(std::span<const BatchJob> jobs, std::span<const Pass> passes,
                        const Tensor& streams) {
  model::TokenBatch batch;
  std::vector<Tensor> parts;
  std::vector<TokenId> next;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const Pass& pass = passes[i];
    if (pass.n_text == 0 || jobs[i].error) continue;
    Sequence& s = *jobs[i].sequence;
    const std::int64_t end = pass.begin + pass.n_text + pass.accepted;
    if (pass.n_text == 1 && (jobs[i].n_drafts > 0 || !s.pending_streams)) {
      // Decoding: what the draft saw it knows; these rows it sees with the next draft.
      s.pending_streams = streams.slice(pass.begin, end);
      continue;
    }
    std::int64_t begin = pass.start;
    if (s.pending_streams) {
      begin -= s.pending_streams.dim(0);
      parts.push_back(s.pending_streams);
    }
    const std::int64_t n = pass.start + pass.n_text + pass.accepted - 1 - begin;
    if (end - 1 > pass.begin) parts.push_back(streams.slice(pass.begin, end - 1));
    if (n > 0) {
      batch.add(part(s.tokens, begin, n), begin, s.slot);
      const std::span<const TokenId> following = part(s.tokens, begin + 1, n);
      next.insert(next.end(), following.begin(), following.end());
    }
    s.pending_streams = streams.slice(end - 1, end);
  }
  if (batch.n_tokens() == 0) return;
  (void)loaded_.model.mtp_forward(ctx_, 0, batch, kv_, ops::concat_rows(ctx_, parts), next);
}

}  // namespace hadal::engine
