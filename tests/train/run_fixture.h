// Runs that never were, with the shapes that real ones have.
#pragma once

#include <cmath>
#include <string>
#include <utility>

#include "support/fault_file_system.h"
#include "train/run_history.h"

namespace hadal::train {

// Loss falls from 8 as 3 + 5 exp(-rate * step); 1000 tokens and 0.5 s a step.
inline StepRecord made_step(std::int64_t step, double rate = 0.01) {
  StepRecord r;
  r.step = step, r.tokens = 1000 * step, r.time = 1e9 + 0.5 * static_cast<double>(step);
  r.phase = "dense", r.sequence_length = 256, r.batch_tokens = 1000, r.lr = 1e-3;
  r.loss = 3.0 + 5.0 * std::exp(-rate * static_cast<double>(step));
  r.grad_norm = 0.5, r.clipped_grad_norm = 0.5;
  r.seconds.step = 0.5, r.tokens_per_second = 2000, r.peak_memory_bytes = 1 << 20;
  return r;
}

inline EvalRecord made_eval(std::int64_t step, double loss) {
  return {.step = step,
          .tokens = 1000 * step,
          .time = 0,
          .split = "validation",
          .loss = loss,
          .eval_tokens = 64};
}

inline RunHistory made_run(const std::string& name, std::int64_t n_steps, double rate = 0.01) {
  RunHistory run;
  run.name = name;
  for (std::int64_t i = 1; i <= n_steps; ++i) run.steps.push_back(made_step(i, rate));
  return run;
}

inline void write_records(test::FaultFileSystem& fs, const Path& run,
                          const std::vector<RunRecord>& records) {
  std::string text;
  for (const RunRecord& record : records) text += to_json_line(record) + "\n";
  fs.set_content(run / "metrics.jsonl", text);
}

}  // namespace hadal::train
