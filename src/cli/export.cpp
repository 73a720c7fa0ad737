// `hadal export`: a model from a training run.
#include "train/export.h"

#include <fmt/format.h>

#include "cli/common.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/subcommands.h"
#include "core/units.h"

namespace hadal::cli {

namespace {

struct Options {
  Path from, to, tokenizer;
  std::string format = "published", shard_size = "4GiB";
  std::int64_t step = -1;
  bool force = false;
  RunOptions run;
};

model::WeightFormat format_from(const std::string& name) {
  using model::WeightFormat;
  for (const auto format :
       {WeightFormat::published, WeightFormat::fp8, WeightFormat::bf16, WeightFormat::f32}) {
    if (name == model::to_string(format)) return format;
  }
  throw CLI::ValidationError("--format", name);
}

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
  const std::size_t shard_bytes = parse_size(options.shard_size);
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
    report = train::export_checkpoint(
        fs, pool, saved, options.to,
        {.format = format_from(options.format),
         .output = {.shard_bytes = shard_bytes,
                    .existing = options.force ? io::Existing::replace : io::Existing::refuse},
         .tokenizer = tokenizer_directory(options, saved.directory())},
        [&](std::size_t done, std::size_t total) {
          InterruptGuard::throw_if_interrupted();
          bar.update(done, total);
        });
  }
  for (const std::string& note : report.notes) print(fmt::format("note: {}\n", note));
  print(fmt::format("{}: step {} of {}, format {}, {} in {} shard{}\n", options.to.string(),
                    saved.step(), saved.directory().string(), options.format,
                    format_bytes(static_cast<double>(report.nbytes)), report.n_shards,
                    report.n_shards == 1 ? "" : "s"));
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("RUN", options->from, "a training run, or one of its checkpoints")->required();
  app.add_option("OUT", options->to, "model directory to write; must not exist")->required();
  app.add_option("--format", options->format,
                 "published: FP4 experts, FP8 linears; fp8: FP8 experts, too; bf16 and f32: no "
                 "scales")
      ->check(CLI::IsMember({"published", "fp8", "bf16", "f32"}))
      ->capture_default_str();
  app.add_option("--step", options->step,
                 "of this step's checkpoint; default: the newest whole one")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--tokenizer", options->tokenizer,
                 "directory with a tokenizer.json; default: the run's own");
  app.add_option("--shard-size", options->shard_size, "largest file to write, such as 15MiB")
      ->capture_default_str();
  app.add_flag("--force", options->force, "replace the output directory when it exists");
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
