// Everything that changes while training, as pure functions of how far it is.
// Source: training.md §2.1, §2.3, §7.2, §7.3.
#pragma once

#include <cstdint>
#include <vector>

namespace hadal::train {

struct LearningRateConfig {
  double peak = 2.7e-4, end = 2.7e-5;
  std::int64_t warmup_steps = 2000;  // linear; the first step has peak / warmup_steps
  double decay_fraction = 0.2;       // of all tokens, the last: a half cosine from peak to end
};

struct BatchConfig {
  std::int64_t first_tokens = 0, tokens = 0;  // a step at the start, and after the ramp
  double ramp_fraction = 0.0;                 // of all tokens, the first: linear
};

struct LengthStage {
  std::int64_t sequence_length = 0;
  double fraction = 0.0;  // of all tokens; those of all stages make 1
  bool sparse = false;    // CSA layers select; once on, it stays on
};

// What CSA layers attend to, and what learns.
enum class AttentionPhase : std::uint8_t {
  dense,           // every visible entry; the indexer does not learn
  indexer_warmup,  // still dense; nothing but the indexer learns, from its own loss
  sparse,          // the selected entries; everything learns
};
[[nodiscard]] const char* to_string(AttentionPhase phase);

struct IndexerConfig {
  std::int64_t warmup_steps = 1000;  // 0 for a model without CSA layers
  double warmup_lr = 1e-3;
  double loss_weight = 1.0;
};

struct ScheduleConfig {
  std::int64_t total_tokens = 0;  // of the language model; the indexer's warm-up is not counted
  LearningRateConfig lr;
  BatchConfig batch;
  std::vector<LengthStage> stages;
  IndexerConfig indexer;
  double mtp_weight = 0.3, mtp_decay_weight = 0.1;  // the second from where the lr falls
  double bias_speed = 1e-3;
  double bias_stop_fraction = 0.05;  // of all tokens, the last: the selection bias rests
};

// Where a run is. Steps of the indexer's warm-up are counted apart.
struct Progress {
  std::int64_t tokens = 0;  // trained on
  std::int64_t step = 0;    // steps done
  std::int64_t indexer_steps = 0;
  friend bool operator==(const Progress&, const Progress&) = default;
};

// What the next step is.
struct StepPlan {
  AttentionPhase phase = AttentionPhase::dense;
  std::size_t stage = 0;
  std::int64_t sequence_length = 0;
  std::int64_t batch_tokens = 0;  // a multiple of sequence_length, at least one sequence
  double lr = 0, mtp_weight = 0, bias_speed = 0, indexer_loss_weight = 0;
};

// Throws Error invalid_argument naming the key, what was found and what is wanted.
void check(const ScheduleConfig& config);

[[nodiscard]] bool is_finished(const ScheduleConfig& config, const Progress& at);
// Of a checked config.
[[nodiscard]] StepPlan plan_step(const ScheduleConfig& config, const Progress& at);
// After a step of that plan which trained on `tokens` tokens.
[[nodiscard]] Progress advance(Progress at, const StepPlan& plan, std::int64_t tokens);

// The parts, for plots and tests.
[[nodiscard]] double learning_rate(const ScheduleConfig& config, const Progress& at);
[[nodiscard]] std::int64_t batch_tokens(const ScheduleConfig& config, const Progress& at,
                                        std::int64_t sequence_length);
[[nodiscard]] std::size_t stage_at(const ScheduleConfig& config, const Progress& at);
[[nodiscard]] AttentionPhase attention_phase(const ScheduleConfig& config, const Progress& at);

}  // namespace hadal::train
