#include "train/run_config.h"

#include <fmt/format.h>

namespace hadal::train {

const char* to_string(Compute compute) {
  switch (compute) {
    case Compute::f32:
      return "f32";
    case Compute::bf16:
      return "bf16";
    case Compute::qat:
      return "qat";
  }
  return "";
}

void check(const RunConfig& c) {
  const auto refuse = [&](const char* key, const std::string& found, const char* wanted) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{}: {} is {}; wanted {}", c.source, key, found, wanted));
  };
  if (c.data.empty()) {
    refuse("data.directory", "empty", "a directory that `hadal data build` made");
  }
  check(c.schedule);
  if (c.compute != Compute::f32) {
    if (const std::string why = c.model.official_numerics_obstacle(); !why.empty()) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{}: train.compute is \"{}\", but {}; choose \"f32\"", c.source,
                              to_string(c.compute), why));
    }
  }
  for (const LengthStage& stage : c.schedule.stages) {
    if (stage.sequence_length > c.model.max_position_embeddings) {
      refuse("stages.sequence_length", std::to_string(stage.sequence_length),
             "at most model.max_position_embeddings");
    }
    if (stage.sequence_length % c.alignment != 0) {
      refuse("stages.sequence_length", std::to_string(stage.sequence_length),
             "a multiple of data.alignment");
    }
  }
  if (c.qat_start < 0 || c.qat_start >= 1) {
    refuse("train.qat_start", fmt::format("{}", c.qat_start), "a fraction in [0, 1)");
  }
  if (c.micro_batch_tokens < 0) {
    refuse("train.micro_batch_tokens", std::to_string(c.micro_batch_tokens), "0 or more");
  }
  const AnticipatoryConfig& a = c.anticipatory;
  if (a.delay < 0 || a.delay > 64) {
    refuse("anticipatory.delay", std::to_string(a.delay), "0 to 64");
  }
  if (a.window < 8) refuse("anticipatory.window", std::to_string(a.window), "at least 8");
  if (a.snapshot_every < 1 || a.rollback_steps < 0) {
    refuse("anticipatory.snapshot_every", std::to_string(a.snapshot_every),
           "at least 1, and rollback_steps at least 0");
  }
  if (c.keep_checkpoints < 1) {
    refuse("output.keep_checkpoints", std::to_string(c.keep_checkpoints), "at least 1");
  }
  if (c.sample_every > 0 && c.sample_tokens < 1) {
    refuse("output.sample_tokens", std::to_string(c.sample_tokens), "at least 1");
  }
}

}  // namespace hadal::train
