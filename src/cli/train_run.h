// One run of `hadal train`: the directory, and what happens between two steps.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "io/tokenizer.h"
#include "train/checkpoint.h"
#include "train/run_log.h"
#include "train/trainer.h"

namespace hadal::cli {

class TrainProgress;

// RUN/config.toml, config.json, tokenizer.json, metrics.jsonl, tensorboard/, checkpoints/,
// report.html. One run at a time has it; of several processes the first writes, and all of them see
// the directory.
class TrainRun {
 public:
  struct Start {
    bool resume = false;  // from the directory's newest whole checkpoint
    Path weights{};       // a run or checkpoint whose weights a new run begins with; empty: random
  };
  // `config` and the GPU (null: the CPU) must outlive this. Throws Error: invalid_argument when the
  // directory has a run and resume is not asked for; what the trainer and the checkpoints throw.
  TrainRun(const train::RunConfig& config, const Path& directory, const Start& start,
           ThreadPool& pool, parallel::Communicator& ranks, cuda::Queue* gpu = nullptr);
  ~TrainRun();

  // To the end, to Ctrl-C (a checkpoint is saved) or for `max_steps` steps (0: no limit). The exit
  // status.
  int train(std::int64_t max_steps);

 private:
  void create(const Path& weights);
  void resume();
  void save();
  void evaluate();
  void sample();
  void write_report();
  void on_event(const train::EventRecord& event);
  void log(const train::RunRecord& record);
  void say(const std::string& sentence);
  void say_apart(const std::string& sentence) const;  // outside the progress line
  [[nodiscard]] bool is_first() const { return ranks_.rank() == 0; }
  [[nodiscard]] bool interrupted_anywhere() const;

  const train::RunConfig& config_;
  parallel::Communicator& ranks_;
  Path directory_;
  FileSystem& fs_;
  std::shared_ptr<void> lock_;
  train::DataSet data_;
  io::Tokenizer tokenizer_;
  train::Trainer trainer_;
  std::optional<train::RunLog> log_;         // of the first process
  std::unique_ptr<TrainProgress> progress_;  // as well
  std::int64_t saved_step_ = -1;
};

}  // namespace hadal::cli
