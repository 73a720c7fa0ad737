#include "cli/train_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "cli/common.h"
#include "cli/interrupt.h"
#include "cli/readable.h"
#include "cli/report_config.h"
#include "cli/run_config_file.h"
#include "cli/train_progress.h"
#include "core/units.h"
#include "train/data_shard_writer.h"
#include "train/export.h"
#include "train/report.h"
#include "train/run_history.h"

namespace hadal::cli {

namespace {

double unix_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string count_text(const train::ParameterStore& store) {
  std::int64_t n = 0;
  for (const train::Parameter& p : store.parameters()) {
    if (p.info.group != train::ParameterGroup::frozen) n += p.value.numel();
  }
  return format_count(static_cast<double>(n));
}

}  // namespace

TrainRun::TrainRun(const train::RunConfig& config, const Path& directory, const Start& start,
                   ThreadPool& pool, parallel::Communicator& ranks, cuda::Queue* gpu)
    : config_(config),
      ranks_(ranks),
      directory_(directory),
      fs_(FileSystem::real()),
      data_(train::DataSet::open(config.data)),
      tokenizer_(io::Tokenizer::load(Path(config.data) / data_.manifest().tokenizer.file)),
      trainer_(config, data_, pool, ranks, gpu) {
  if (is_first()) {
    fs_.create_directories(directory_);
    lock_ = fs_.lock(directory_ / "lock");
  }
  ranks_.barrier();
  const bool exists = fs_.exists(directory_ / "config.toml");
  if (exists && !start.resume) {
    throw Error(
        ErrorCode::invalid_argument,
        fmt::format("{} has a run already; go on with --resume, or choose another directory",
                    directory_.string()));
  }
  if (!exists && start.resume) {
    throw Error(ErrorCode::not_found,
                fmt::format("{} has no run to resume (no config.toml); start one without --resume",
                            directory_.string()));
  }
  ranks_.barrier();  // everybody has looked before anybody writes
  if (start.resume)
    resume();
  else
    create(start.weights);
  ranks_.barrier();
}

TrainRun::~TrainRun() = default;

void TrainRun::create(const Path& weights) {
  if (!weights.empty()) {
    const train::SavedCheckpoint from = train::find_checkpoint(
        fs_, weights, std::nullopt, [&](const std::string& sentence) { say_apart(sentence); });
    from.read_weights(trainer_.parameters());
    trainer_.resumed();
    say_apart(fmt::format("weights of {}, step {}", from.directory().string(), from.step()));
  }
  if (!is_first()) return;
  // The config last: a directory with one is a run.
  const auto copy = [&](const char* name) {
    const Path from = Path(config_.data) / name;
    if (!fs_.exists(from)) return;
    static_cast<void>(train::write_atomically(fs_, directory_, name, read_text(from)));
  };
  copy("tokenizer.json");
  copy("tokenizer_config.json");
  static_cast<void>(
      train::write_atomically(fs_, directory_, "config.json", model::to_json(config_.model)));
  log_.emplace(fs_, directory_, train::RunLogOptions{.time = unix_time()});
  static_cast<void>(train::write_atomically(fs_, directory_, "config.toml", to_toml(config_)));
}

void TrainRun::resume() {
  const Path checkpoints = directory_ / train::kCheckpointsName;
  const auto saved = train::latest_checkpoint(
      fs_, checkpoints, [&](const std::string& sentence) { say_apart(sentence); });
  if (!saved) {
    say_apart("the run has no checkpoint yet; it begins again");
  } else {
    saved->expect_identity(train::run_identity(config_, data_.manifest()));
    saved->read(trainer_.prepare_restore(saved->state().trainer).tensors);
    trainer_.resumed();
    saved_step_ = trainer_.n_steps();
  }
  ranks_.barrier();  // all have read
  if (!is_first()) return;
  if (saved) static_cast<void>(train::remove_checkpoints_after(fs_, checkpoints, saved_step_));
  log_.emplace(fs_, directory_,
               train::RunLogOptions{.resume_step = trainer_.n_steps(), .time = unix_time()});
  for (const std::string& sentence : log_->dropped().damaged) remark(sentence);
  train::EventRecord event;
  event.step = trainer_.n_steps();
  event.tokens = trainer_.progress().tokens;
  event.time = unix_time();
  event.what = train::event::kResumed;
  event.sentence =
      saved ? fmt::format("from {}", saved->directory().filename().string()) : "from the start";
  log_->write(event);
}

void TrainRun::save() {
  if (saved_step_ == trainer_.n_steps()) return;
  train::CheckpointState state;
  state.trainer = trainer_.state();
  saved_step_ = trainer_.n_steps();
  if (!is_first()) return;
  log_->sync();
  state.identity = train::run_identity(config_, data_.manifest());
  state.model = config_.model;
  state.weight_format = trainer_.working_weights().format();
  const train::SaveReport report = train::save_checkpoint(
      fs_, directory_ / train::kCheckpointsName, state, {.keep = config_.keep_checkpoints});
  for (const std::string& warning : report.warnings) say(warning);
}

void TrainRun::evaluate() {
  const auto record = trainer_.evaluate();
  if (!record) return;
  log(*record);
  say(fmt::format("step {}: validation loss {:.4f}", record->step, record->loss));
}

void TrainRun::sample() {
  for (const std::string& prompt : config_.sample_prompts) {
    std::vector<TokenId> ids;
    if (data_.manifest().begin_token >= 0) ids.push_back(data_.manifest().begin_token);
    const std::vector<TokenId> words = tokenizer_.encode(prompt);
    ids.insert(ids.end(), words.begin(), words.end());
    train::SampleRecord record;
    record.step = trainer_.n_steps();
    record.tokens = trainer_.progress().tokens;
    record.time = unix_time();
    record.prompt = prompt;
    record.text = tokenizer_.decode(trainer_.continue_greedily(ids, config_.sample_tokens));
    log(record);
    say(fmt::format("step {}: {}", record.step, readable(prompt + record.text)));
  }
}

void TrainRun::write_report() {
  if (!is_first()) return;
  log_->sync();
  std::vector<train::RunHistory> runs{train::load_run(fs_, directory_)};
  runs.front().config = config_rows(directory_);
  static_cast<void>(
      train::write_atomically(fs_, directory_, "report.html", train::html_report(runs)));
}

void TrainRun::log(const train::RunRecord& record) {
  if (log_) log_->write(record);
}

void TrainRun::say(const std::string& sentence) {
  if (progress_) progress_->say(sentence);
}

void TrainRun::say_apart(const std::string& sentence) const {
  if (is_first()) remark(sentence);
}

void TrainRun::on_event(const train::EventRecord& event) {
  log(event);
  say(event.sentence);
  // What lies behind a rollback belongs to a path that was left.
  if (event.what != train::event::kRollback) return;
  saved_step_ = std::min(saved_step_, trainer_.n_steps());
  if (!is_first()) return;
  static_cast<void>(train::remove_checkpoints_after(fs_, directory_ / train::kCheckpointsName,
                                                    trainer_.n_steps()));
}

// Ctrl-C may reach some processes a step before the others.
bool TrainRun::interrupted_anywhere() const {
  std::int64_t flag = InterruptGuard::flag().load() ? 1 : 0;
  ranks_.all_reduce_sum(std::span(&flag, 1));
  return flag > 0;
}

int TrainRun::train(std::int64_t max_steps) {
  const InterruptGuard guard;
  if (is_first()) progress_ = std::make_unique<TrainProgress>(config_.schedule.total_tokens);
  say(fmt::format("{}: {} parameters, {} training tokens a pass over the data{}",
                  directory_.string(), count_text(trainer_.parameters()),
                  format_count(static_cast<double>(data_.split(train::kTrainSplit).n_tokens())),
                  ranks_.size() > 1 ? fmt::format(", {} processes", ranks_.size()) : ""));
  trainer_.on_event = [&](const train::EventRecord& event) { on_event(event); };
  const auto is_due = [&](std::int64_t every) {
    return every > 0 && trainer_.n_steps() % every == 0;
  };
  std::int64_t n = 0;
  bool interrupted = false;
  while (!trainer_.is_finished() && !interrupted && (max_steps == 0 || n < max_steps)) {
    train::StepRecord record = trainer_.step();
    ++n;
    if (is_due(config_.hash_every)) record.checkpoint_hash = train::state_hash(trainer_.state());
    log(record);
    if (progress_) progress_->add(record);
    if (is_due(config_.eval_every)) evaluate();
    if (is_due(config_.sample_every)) sample();
    if (is_due(config_.checkpoint_every)) save();
    interrupted = interrupted_anywhere();
  }
  if (trainer_.is_finished()) evaluate();
  save();
  if (progress_) progress_->finish();
  write_report();
  progress_.reset();
  if (interrupted) {
    say_apart(fmt::format("stopped after step {}; go on with: hadal train --resume -o {}",
                          trainer_.n_steps(), directory_.string()));
    return kInterruptedStatus;
  }
  if (is_first()) {
    print(fmt::format("{}: step {}, {} tokens; curves in {}\n", directory_.string(),
                      trainer_.n_steps(),
                      format_count(static_cast<double>(trainer_.progress().tokens)),
                      (directory_ / "report.html").string()));
  }
  return 0;
}

}  // namespace hadal::cli
