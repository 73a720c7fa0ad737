// `hadal export`: a model from a training run.
#include "train/export.h"

#include <fmt/format.h>

#include "cli/common.h"
#include "cli/interrupt.h"
#include "cli/model_output.h"
#include "cli/progress.h"
#include "cli/subcommands.h"
#include "core/units.h"

namespace hadal::cli {

namespace {

struct Options {
  Path from, to, tokenizer;
  ModelOutputOptions output;
  std::int64_t step = -1;
  RunOptions run;
};

// The run keeps the tokenizer that its data was made with. `from` is the run or a checkpoint in it.
Path tokenizer_directory(const Options& options, const Path& checkpoint) {
  if (!options.tokenizer.empty()) {
    return std::filesystem::is_directory(options.tokenizer) ? options.tokenizer
                                                            : options.tokenizer.parent_path();
  }
  const Path run = std::filesystem::absolute(checkpoint).parent_path().parent_path();
  return std::filesystem::exists(run / "tokenizer.json") ? run : Path();
}

int run(const Options& options) {
  const io::CheckpointWriterOptions output = options.output.writer_options();
  options.run.apply();
  ThreadPool pool(options.run.threads);
  FileSystem& fs = FileSystem::real();
  const train::SavedCheckpoint saved = train::find_checkpoint(
      fs, options.from, options.step < 0 ? std::nullopt : std::optional<std::int64_t>(options.step),
      remark);
  train::ExportReport report;
  const InterruptGuard guard;
  {
    ProgressBar bar("export", ProgressBar::Unit::bytes);
    report =
        train::export_checkpoint(fs, pool, saved, options.to,
                                 {.format = options.output.weight_format(),
                                  .output = output,
                                  .tokenizer = tokenizer_directory(options, saved.directory())},
                                 [&](std::size_t done, std::size_t total) {
                                   InterruptGuard::throw_if_interrupted();
                                   bar.update(done, total);
                                 });
  }
  for (const std::string& note : report.notes) print(fmt::format("note: {}\n", note));
  print(fmt::format("{}: step {} of {}, format {}, {} in {} shard{}\n", options.to.string(),
                    saved.step(), saved.directory().string(), options.output.format,
                    format_bytes(static_cast<double>(report.nbytes)), report.n_shards,
                    report.n_shards == 1 ? "" : "s"));
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("RUN", options->from, "a training run, or one of its checkpoints")->required();
  app.add_option("OUT", options->to, "model directory to write; must not exist")->required();
  app.add_option("--step", options->step,
                 "of this step's checkpoint; default: the newest whole one")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--tokenizer", options->tokenizer,
                 "directory with a tokenizer.json; default: the run's own");
  add_model_output_options(app, options->output);
  add_run_options(app, options->run);
  return [options] { return run(*options); };
}

}  // namespace

const Subcommand kExport{
    "export", "Write a model directory from a training run's checkpoint",
    "  hadal export runs/nano models/nano && hadal chat -m models/nano\n"
    "  hadal export runs/nano models/nano-500 --step 500\n"
    "  hadal export runs/nano models/nano-hf --format bf16\n"
    "\n"
    "The rounding is the trainer's own: with train.compute = \"qat\" the exported model computes\n"
    "what the trainer computed, to the bit. The result is written to OUT.partial and renamed when\n"
    "it is complete.",
    add};

}  // namespace hadal::cli
