#include "train/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "core/error.h"

namespace hadal::train {

namespace {

// Of all tokens, [0, 1].
double progress_of(const ScheduleConfig& c, const Progress& at) {
  return static_cast<double>(at.tokens) / static_cast<double>(c.total_tokens);
}

// Whether `fraction` of all tokens are done, to the token: sums of fractions are not exact.
bool reached(const ScheduleConfig& c, const Progress& at, double fraction) {
  return at.tokens >= std::llround(fraction * static_cast<double>(c.total_tokens));
}

bool decays(const ScheduleConfig& c, const Progress& at) {
  return reached(c, at, 1.0 - c.lr.decay_fraction);
}

template <class T>
void require(bool ok, const std::string& key, T found, const char* wanted) {
  if (ok) return;
  throw Error(ErrorCode::invalid_argument, fmt::format("{}: {}; wanted {}", key, found, wanted));
}

bool is_fraction(double x) {
  return x >= 0.0 && x <= 1.0;
}

void check_stages(const ScheduleConfig& c) {
  require(!c.stages.empty(), "len_stages", 0, "at least one stage");
  double sum = 0.0;
  bool sparse = false;
  for (std::size_t i = 0; i < c.stages.size(); ++i) {
    const LengthStage& s = c.stages[i];
    const std::string key = fmt::format("len_stages[{}]", i);
    require(s.sequence_length >= 1, key + ".sequence_length", s.sequence_length, "1 or more");
    require(s.fraction > 0.0 && s.fraction <= 1.0, key + ".fraction", s.fraction,
            "a part of all tokens, above 0");
    require(s.sparse || !sparse, key + ".sparse", s.sparse,
            "true, as in the stage before: selection stays on");
    require(i == 0 || s.sequence_length >= c.stages[i - 1].sequence_length,
            key + ".sequence_length", s.sequence_length, "no less than in the stage before");
    sparse = s.sparse;
    sum += s.fraction;
  }
  require(std::fabs(sum - 1.0) < 1e-6, "len_stages", sum, "fractions that make 1 together");
}

}  // namespace

const char* to_string(AttentionPhase phase) {
  switch (phase) {
    case AttentionPhase::dense:
      return "dense";
    case AttentionPhase::indexer_warmup:
      return "indexer_warmup";
    case AttentionPhase::sparse:
      return "sparse";
  }
  return "?";
}

void check(const ScheduleConfig& c) {
  const auto is_rate = [](double x) { return x >= 0.0 && std::isfinite(x); };
  require(c.total_tokens >= 1, "total_tokens", c.total_tokens, "1 or more");
  require(is_rate(c.lr.peak) && c.lr.peak > 0.0, "sched.peak", c.lr.peak, "above 0");
  require(c.lr.end >= 0.0 && c.lr.end <= c.lr.peak, "sched.end", c.lr.end, "0 to sched.peak");
  require(c.lr.warmup_steps >= 0, "sched.warmup", c.lr.warmup_steps, "0 or more steps");
  require(is_fraction(c.lr.decay_fraction), "sched.decay_frac", c.lr.decay_fraction, "0 to 1");
  require(c.batch.tokens >= 1, "batch.tokens1", c.batch.tokens, "1 or more");
  require(c.batch.first_tokens >= 1 && c.batch.first_tokens <= c.batch.tokens, "batch.tokens0",
          c.batch.first_tokens, "1 to batch.tokens1");
  require(is_fraction(c.batch.ramp_fraction), "batch.ramp_frac", c.batch.ramp_fraction, "0 to 1");
  require(c.indexer.warmup_steps >= 0, "indexer.warm_steps", c.indexer.warmup_steps, "0 or more");
  require(is_rate(c.indexer.warmup_lr), "indexer.warm_lr", c.indexer.warmup_lr, "0 or more");
  require(is_rate(c.indexer.loss_weight), "indexer.coef", c.indexer.loss_weight, "0 or more");
  require(is_rate(c.mtp_weight), "mtp.w0", c.mtp_weight, "0 or more");
  require(is_rate(c.mtp_decay_weight), "mtp.w1", c.mtp_decay_weight, "0 or more");
  require(is_rate(c.bias_speed), "moe.bias_speed", c.bias_speed, "0 or more");
  require(is_fraction(c.bias_stop_fraction), "moe.bias_stop_frac", c.bias_stop_fraction, "0 to 1");
  check_stages(c);
}

bool is_finished(const ScheduleConfig& c, const Progress& at) {
  return at.tokens >= c.total_tokens;
}

double learning_rate(const ScheduleConfig& c, const Progress& at) {
  const double warmup = at.step < c.lr.warmup_steps ? static_cast<double>(at.step + 1) /
                                                          static_cast<double>(c.lr.warmup_steps)
                                                    : 1.0;
  const double decay_start = 1.0 - c.lr.decay_fraction;
  if (!decays(c, at) || c.lr.decay_fraction == 0.0) return warmup * c.lr.peak;
  const double into =
      std::clamp((progress_of(c, at) - decay_start) / c.lr.decay_fraction, 0.0, 1.0);
  const double high = 0.5 * (1.0 + std::cos(std::numbers::pi * into));
  return warmup * (c.lr.end + (c.lr.peak - c.lr.end) * high);
}

std::int64_t batch_tokens(const ScheduleConfig& c, const Progress& at,
                          std::int64_t sequence_length) {
  double tokens = static_cast<double>(c.batch.tokens);
  const double done = progress_of(c, at);
  if (done < c.batch.ramp_fraction) {
    const auto first = static_cast<double>(c.batch.first_tokens);
    tokens = first + (tokens - first) * (done / c.batch.ramp_fraction);
  }
  const auto sequences = static_cast<std::int64_t>(tokens / static_cast<double>(sequence_length));
  return std::max<std::int64_t>(1, sequences) * sequence_length;
}

std::size_t stage_at(const ScheduleConfig& c, const Progress& at) {
  double end = 0.0;
  for (std::size_t i = 0; i + 1 < c.stages.size(); ++i) {
    end += c.stages[i].fraction;
    if (!reached(c, at, end)) return i;
  }
  return c.stages.size() - 1;
}

AttentionPhase attention_phase(const ScheduleConfig& c, const Progress& at) {
  if (!c.stages[stage_at(c, at)].sparse) return AttentionPhase::dense;
  return at.indexer_steps < c.indexer.warmup_steps ? AttentionPhase::indexer_warmup
                                                   : AttentionPhase::sparse;
}

StepPlan plan_step(const ScheduleConfig& c, const Progress& at) {
  StepPlan plan;
  plan.phase = attention_phase(c, at);
  plan.stage = stage_at(c, at);
  plan.sequence_length = c.stages[plan.stage].sequence_length;
  plan.batch_tokens = batch_tokens(c, at, plan.sequence_length);
  if (plan.phase == AttentionPhase::indexer_warmup) {
    plan.lr = c.indexer.warmup_lr;
    plan.indexer_loss_weight = c.indexer.loss_weight;
    return plan;  // no language model loss, no MTP, no routing to balance
  }
  plan.lr = learning_rate(c, at);
  plan.mtp_weight = decays(c, at) ? c.mtp_decay_weight : c.mtp_weight;
  plan.bias_speed = reached(c, at, 1.0 - c.bias_stop_fraction) ? 0.0 : c.bias_speed;
  if (plan.phase == AttentionPhase::sparse) plan.indexer_loss_weight = c.indexer.loss_weight;
  return plan;
}

Progress advance(Progress at, const StepPlan& plan, std::int64_t tokens) {
  if (plan.phase == AttentionPhase::indexer_warmup) {
    at.indexer_steps += 1;
  } else {
    at.step += 1;
    at.tokens += tokens;
  }
  return at;
}

}  // namespace hadal::train
