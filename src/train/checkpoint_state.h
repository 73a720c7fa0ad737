// What a training checkpoint says about the run it is a part of.
// Format: docs/formats/training_checkpoint.md.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "train/data_manifest.h"
#include "train/run_config.h"
#include "train/trainer_state.h"

namespace hadal::train {

// What may not change between two parts of a run, by key: "model.hidden_size" -> "256". Sizes,
// data, seed, and what decides which optimizer states there are; learning rates and the length of
// the run may change.
using RunIdentity = std::map<std::string, std::string>;
[[nodiscard]] RunIdentity run_identity(const RunConfig& config, const DataManifest& data);

struct CheckpointState {
  TrainerState trainer;
  RunIdentity identity;
  model::Config model;
  // What the forward pass multiplies: f32, bf16 or published (FP4 experts, FP8 linears). For
  // people, and for whoever wonders whether quantisation was on.
  model::WeightFormat weight_format = model::WeightFormat::f32;
  std::map<std::string, std::string> extra;  // whatever else the caller wants back
};

// Everything but tensors and model, without a line feed that matters. Every number comes back to
// the bit.
[[nodiscard]] std::string to_json(const CheckpointState& state);
// `trainer.tensors` and `model` stay empty. Throws Error corrupt_data with `source` in front,
// unsupported for a newer version.
[[nodiscard]] CheckpointState parse_checkpoint_state(std::string_view json,
                                                     const std::string& source);

// 64 hexadecimal digits: SHA-256 over names, types, shapes and bytes of all tensors, in order, and
// over the numbers. Equal runs have equal hashes after every step.
[[nodiscard]] std::string state_hash(const TrainerState& state);

}  // namespace hadal::train
