#include "cli/model_output.h"

namespace hadal::cli {

model::WeightFormat ModelOutputOptions::weight_format() const {
  using model::WeightFormat;
  for (const auto known :
       {WeightFormat::published, WeightFormat::fp8, WeightFormat::bf16, WeightFormat::f32}) {
    if (format == model::to_string(known)) return known;
  }
  throw CLI::ValidationError("--format", format);
}

io::CheckpointWriterOptions ModelOutputOptions::writer_options() const {
  return {.shard_bytes = parse_size(shard_size),
          .existing = force ? io::Existing::replace : io::Existing::refuse};
}

void add_model_output_options(CLI::App& app, ModelOutputOptions& options) {
  app.add_option("--format", options.format,
                 "published: FP4 experts, FP8 linears; fp8: FP8 experts, too; bf16 and f32: no "
                 "scales")
      ->check(CLI::IsMember({"published", "fp8", "bf16", "f32"}))
      ->capture_default_str();
  app.add_option("--shard-size", options.shard_size, "largest file to write, such as 15MiB")
      ->capture_default_str();
  app.add_flag("--force", options.force, "replace the output directory when it exists");
}

}  // namespace hadal::cli
