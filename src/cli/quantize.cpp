#include <fmt/format.h>

#include "cli/common.h"
#include "cli/interrupt.h"
#include "cli/model_output.h"
#include "cli/progress.h"
#include "cli/subcommands.h"
#include "model/convert.h"

namespace hadal::cli {

namespace {

struct Options {
  Path model, out;
  ModelOutputOptions output;
  RunOptions run;
};

std::string report_table(const model::ConversionReport& report) {
  std::string out = fmt::format("{:<26}{:>9}{:>14}{:>14}{:>17}\n", "tensors", "number", "before",
                                "after", "relative error");
  const auto row = [&](const std::string& what, std::int64_t n, std::size_t before,
                       std::size_t after, const std::string& error) {
    out += fmt::format("{:<26}{:>9}{:>14}{:>14}{:>17}\n", what, n,
                       format_bytes(static_cast<double>(before)),
                       format_bytes(static_cast<double>(after)), error);
  };
  std::int64_t n_tensors = 0;
  for (const model::ConvertedKind& kind : report.kinds) {
    row(kind.what, kind.n_tensors, kind.bytes_before, kind.bytes_after,
        kind.relative_error > 0 ? fmt::format("{:.4f} %", 100 * kind.relative_error) : "exact");
    n_tensors += kind.n_tensors;
  }
  row("all", n_tensors, report.bytes_before, report.bytes_after, "");
  return out;
}

int run(const Options& options) {
  const io::CheckpointWriterOptions output = options.output.writer_options();
  options.run.apply();
  ThreadPool pool(options.run.threads);
  model::ConversionReport report;
  const InterruptGuard guard;
  {
    ProgressBar bar("quantize", ProgressBar::Unit::bytes);
    report = model::convert_checkpoint(FileSystem::real(), pool, options.model, options.out,
                                       {.format = options.output.weight_format(), .output = output},
                                       [&](std::size_t done, std::size_t total) {
                                         InterruptGuard::throw_if_interrupted();
                                         bar.update(done, total);
                                       });
  }
  print(report_table(report));
  for (const std::string& note : report.notes) print(fmt::format("note: {}\n", note));
  print(fmt::format("{}: {} shard{}, format {}\n", options.out.string(), report.n_shards,
                    report.n_shards == 1 ? "" : "s", options.output.format));
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("-m,--model", options->model,
                 "checkpoint directory to read: bf16, f32, or any format hadal runs")
      ->required();
  app.add_option("-o,--out", options->out, "directory to write; must not exist")->required();
  add_model_output_options(app, options->output);
  add_run_options(app, options->run);
  return [options] { return run(*options); };
}

}  // namespace

const Subcommand kQuantize{
    "quantize", "Convert a checkpoint to the published FP4 + FP8 format, or to another one",
    "  hadal quantize --model trained-bf16 --out my-model\n"
    "  hadal quantize --model trained-bf16 --out my-model --shard-size 15MiB --force\n"
    "  hadal quantize --model DeepSeek-V4-Flash --out flash-bf16 --format bf16\n"
    "\n"
    "Every weight is read once beforehand, and NaN or infinity refused. The result is written to\n"
    "OUT.partial and renamed when it is complete: a full disk or a crash leaves no half model.",
    add};

}  // namespace hadal::cli
