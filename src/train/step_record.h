// What a training run says about itself, record by record: one JSON line each in RUN/metrics.jsonl.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace hadal::train {

// Where the time of a step went. Parts may overlap and need not add up to the whole.
struct StepSeconds {
  double step = 0;  // wall clock, from the end of the step before
  double data = 0, forward = 0, backward = 0, optimizer = 0;
  double newton_schulz = 0;  // within optimizer
};

// One optimizer step. What a run does not measure stays empty: an absent optional, a vector without
// elements. A measured NaN or infinity is null in JSON and NaN when read back.
//
// Vectors have one element a layer, in the model's order with the MTP blocks last; NaN where a
// layer has no such part.
struct StepRecord {
  std::int64_t step = 0;    // optimizer steps with this one, the indexer's warm-up counted too
  std::int64_t tokens = 0;  // the language model was trained on, with this step
  double time = 0;          // when it ended, seconds since 1970

  std::string phase;  // dense, indexer_warmup, sparse; after pre-training sft, grpo, opd
  std::int64_t stage = 0, sequence_length = 0, batch_tokens = 0;
  double lr = 0;

  double loss = 0;  // nats a token, of the language model alone; NaN in the indexer's warm-up
  std::optional<double> mtp_loss;
  std::optional<double> index_loss;    // KL of the indexer, nats, mean over CSA layers
  std::optional<double> index_recall;  // of the dense attention mass, by the selected entries
  std::optional<double> index_recall_of_best;  // of what the best choice of as many would catch
  std::optional<double> balance_loss;

  double grad_norm = 0;          // of all gradients, before clipping
  double clipped_grad_norm = 0;  // after
  bool clipped = false;
  std::optional<double> muon_update_rms, adamw_update_rms;  // learning rate included, decay not

  std::vector<double> expert_load;          // busiest expert over the mean
  std::vector<std::int64_t> dead_experts;   // experts without a token
  std::vector<double> bias_spread;          // largest minus smallest selection bias
  std::vector<double> gate_clamped;         // shares of SwiGLU inputs that were clamped, 0 to 1:
  std::vector<double> up_clamped_high;      //   gate above, linear branch above,
  std::vector<double> up_clamped_low;       //   linear branch below
  std::vector<double> sink_mass;            // of attention, that went to the sinks
  std::optional<std::int64_t> scale_lifts;  // fp4_scale_lift: FP4 scales raised to stay lossless
  std::optional<double> amax_gain;          // of the composed mHC residual matrices over depth

  StepSeconds seconds;
  double tokens_per_second = 0;
  std::optional<double> executed_flops;  // of the step; attention that was masked out not counted
  std::optional<double> mfu;             // executed over the peak, 0 to 1
  std::int64_t peak_memory_bytes = 0;

  std::string anticipatory = "off";  // anticipatory routing: off, filling, on, draining
  std::string qat = "off";           // off, bf16, fp4
  std::string checkpoint_hash;       // of the weights after this step; usually empty

  std::map<std::string, double> values;  // what only some kind of run has, by name
};

// The loss on held-out text.
struct EvalRecord {
  std::int64_t step = 0, tokens = 0;  // trained when it was measured
  double time = 0;
  std::string split = "validation";
  double loss = 0;  // nats a token
  std::int64_t eval_tokens = 0;
};

// Text that the model wrote while training.
struct SampleRecord {
  std::int64_t step = 0, tokens = 0;
  double time = 0;
  std::string prompt, text;
};

// Kinds that the report knows; there may be others.
namespace event {
inline constexpr std::string_view kSpike = "spike";
inline constexpr std::string_view kRollback = "rollback";  // its step is the one gone back to
inline constexpr std::string_view kPhase = "phase";
inline constexpr std::string_view kCheckpoint = "checkpoint";
inline constexpr std::string_view kResumed = "resumed";
inline constexpr std::string_view kStopped = "stopped";
}  // namespace event

struct EventRecord {
  std::int64_t step = 0, tokens = 0;
  double time = 0;
  std::string what;      // an event:: kind
  std::string sentence;  // for people
};

using RunRecord = std::variant<StepRecord, EvalRecord, SampleRecord, EventRecord>;

// Without a line feed. `kind` is step, eval, sample or event.
[[nodiscard]] std::string to_json_line(const RunRecord& record);

// Fields that it does not know are passed over, and so is a record of an unknown kind: nothing.
// Throws Error corrupt_data, the sentence beginning with `where`, for what is no JSON object with a
// kind and a step, or has a field of another type.
[[nodiscard]] std::optional<RunRecord> parse_record(std::string_view line,
                                                    const std::string& where);

[[nodiscard]] std::int64_t step_of(const RunRecord& record);

}  // namespace hadal::train
