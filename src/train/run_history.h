// A run as its metrics tell it, and what can be said of it in a few numbers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/file.h"
#include "train/step_record.h"

namespace hadal::train {

struct RunHistory {
  std::string name;  // of its directory
  Path directory;
  std::vector<std::pair<std::string, std::string>> config;  // key and value, as its owner fills it
  std::string config_text;                                  // config.toml; empty: there is none

  std::vector<StepRecord> steps;  // step and tokens never fall
  // What a rollback gave up, each as it was trained.
  std::vector<std::vector<StepRecord>> abandoned;
  std::vector<EvalRecord> evals;  // of what was kept
  std::vector<SampleRecord> samples;
  std::vector<EventRecord> events;    // all that happened
  std::vector<std::string> warnings;  // a sentence a damaged line
};

// `run`: the directory of a run, or its metrics.jsonl. Lines that cannot be read are passed over
// with a warning. Throws Error: not_found when there is no run, corrupt_data when it has not one
// step.
[[nodiscard]] RunHistory load_run(FileSystem& fs, const Path& run);

// Training time after each step, in seconds: the steps' own, so that pauses do not count.
[[nodiscard]] std::vector<double> training_seconds(const RunHistory& run);

// The loss of steps on a straight line through what lies around each, with weights that halve every
// `half_life` steps: a falling curve is not lagged behind, its ends included. NaN losses are passed
// over.
[[nodiscard]] std::vector<double> smoothed_loss(const std::vector<StepRecord>& steps,
                                                double half_life);
[[nodiscard]] double smoothing_half_life(std::size_t n_steps);

// Of measured layers; NaN when there is none.
[[nodiscard]] double layers_max(const std::vector<double>& layers);
[[nodiscard]] double layers_mean(const std::vector<double>& layers);
// Middle of the finite ones, the lower of two; NaN when there is none.
[[nodiscard]] double median(std::vector<double> values);

struct SummaryRow {
  std::string label, value, note;  // note: may be empty
  bool warns = false;              // worth a second look
};
// The run in a few rows, the important first: "Training loss", "3.214", "smoothed over 20 steps".
// The labels, "" in the value where it has none, are the same for every run.
[[nodiscard]] std::vector<SummaryRow> summarize(const RunHistory& run);

// Which loss two runs are compared by.
enum class LossCurve : std::uint8_t { validation, train };

// How many tokens a run took to a loss that another one ended with.
struct EqualLoss {
  std::string reference, other;  // names
  LossCurve curve = LossCurve::validation;
  double loss = 0;                     // the reference's last
  double reference_tokens = 0;         // that it took
  std::optional<double> other_tokens;  // at which the other was there first; none: never
  bool at_most = false;                // its first loss that was measured was below already
  double other_best = 0;               // the lowest of the other
  [[nodiscard]] std::optional<double> ratio() const;  // other over reference: below 1 it was faster
};
// By validation loss where both have one, else by smoothed training loss; between two points of a
// curve on the straight line. Nothing where one of them has no finite loss.
[[nodiscard]] std::optional<EqualLoss> tokens_to_equal_loss(const RunHistory& reference,
                                                            const RunHistory& other);
// As a sentence.
[[nodiscard]] std::string to_string(const EqualLoss& equal);

}  // namespace hadal::train
