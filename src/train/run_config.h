// Everything that a training run is told. The program reads it from one TOML file
// (cli/run_config_file.h).
#pragma once

#include <string>
#include <vector>

#include "model/config.h"
#include "train/data_loader.h"
#include "train/optimizer.h"
#include "train/parameters.h"
#include "train/schedule.h"

namespace hadal::train {

// What the forward pass computes in, and the stored form of the weights it multiplies.
enum class Compute : std::uint8_t {
  f32,   // plain f32: the reference
  bf16,  // official roundings, bf16 weights
  qat,   // official roundings, FP4 experts and FP8 linears, as a published checkpoint
};
[[nodiscard]] const char* to_string(Compute compute);

// What to do when a loss or a gradient is not finite.
enum class OnNonFinite : std::uint8_t {
  stop,      // with step and tensor named; the last checkpoint stays
  rollback,  // to the newest snapshot, as after a spike
};

// Source: training.md §2.10 (DeepSeek-V4 §4.2.3); what is unpublished is ours.
struct AnticipatoryConfig {
  bool enable = true;           // switch it on after a spike; false: only roll back
  std::int64_t delay = 8;       // steps between choosing experts and using them
  std::int64_t period = 2000;   // steps that it stays on
  double loss_z = 6.0;          // robust z-score of the log loss, two steps in a row
  double gradient_ratio = 8.0;  // gradient norm over its median
  std::int64_t window = 256;    // steps that the statistics look back
  std::int64_t snapshot_every = 64, rollback_steps = 32;  // at least so many steps back
};

struct RunConfig {
  std::string source;  // file name, for messages
  model::Config model;

  std::string data;  // directory of token shards
  std::uint64_t seed = 1;
  std::int64_t alignment = 1;           // of samples in a row
  std::int64_t micro_batch_tokens = 0;  // that one forward pass holds; 0: the whole batch
  bool recompute = true;                // trade time for memory where the model marks it
  Compute compute = Compute::f32;
  double qat_start = 0.0;  // with compute = "qat": fraction of the tokens before it, in bf16
  // Under mpirun: the experts of every layer are divided over the processes and tokens travel to
  // them. Else every process runs all experts on its own tokens.
  bool expert_parallel = false;
  OnNonFinite on_non_finite = OnNonFinite::stop;

  ScheduleConfig schedule;
  OptimizerOptions optimizer;
  GroupOptions groups;
  std::string newton_schulz = "hybrid";
  double balance_weight = 1e-4;
  AnticipatoryConfig anticipatory;

  std::int64_t eval_every = 100, eval_tokens = 65536;  // 0: never
  std::int64_t sample_every = 500, sample_tokens = 64;
  std::vector<std::string> sample_prompts;
  std::int64_t checkpoint_every = 500, keep_checkpoints = 3;
  std::int64_t hash_every = 0;  // put the checkpoint hash into the metrics; 0: never
};

// Throws Error invalid_argument naming key, found and wanted for values that cannot be.
void check(const RunConfig& config);

}  // namespace hadal::train
