// Small states of a run, a function of the step alone, so that whoever finds a checkpoint knows
// what has to be in it.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/rng.h"
#include "train/checkpoint.h"
#include "train/small_config.h"

namespace hadal::test {

struct StateShape {
  std::int64_t scale = 1;  // of the tensors' sizes
};

inline train::CheckpointState state_at(std::int64_t step, StateShape shape = {}) {
  train::CheckpointState state;
  train::TrainerState& s = state.trainer;
  Rng rng(static_cast<std::uint64_t>(step) + 1);
  s.progress = {.tokens = 1000 * step, .step = step - step / 3, .indexer_steps = step / 3};
  s.loader = {.seed = 0xfedcba9876543210u,
              .n_documents = 77,
              .n_tokens = 12345,
              .alignment = 4,
              .window_documents = 64,
              .window_tokens = 1 << 20,
              .epoch = step / 10,
              .next_document = step % 10,
              .windows = {{.epoch = step / 10,
                           .begin = 3,
                           .end = 40,
                           .sequence_length = 128,
                           .n_rows_taken = step}},
              .n_samples = 5 * step,
              .n_inputs = 6 * step,
              .n_targets = 7 * step};
  for (int i = 0; i < 5; ++i) {
    s.spikes.log_losses.push_back(static_cast<double>(rng.next_normal()) / 3);
    s.spikes.gradient_norms.push_back(std::ldexp(1.0 / 3, i * 300 - 900));
  }
  s.spikes.gradient_norms.insert(s.spikes.gradient_norms.end(), {5e-324, HUGE_VAL, -0.0});
  s.spikes.was_high = step % 2 == 1;
  s.anticipatory_steps = step % 5;
  s.choices_ahead = step % 3;
  s.in_warmup = step % 4 == 0;
  const auto add = [&](const std::string& name, Shape dims, DType dtype) {
    Tensor t = Tensor::zeros(dims, dtype);
    for (std::size_t i = 0; i < t.nbytes(); ++i) t.bytes()[i] = std::byte(rng.next_u32());
    s.tensors.push_back({name, t});
  };
  add("embed.weight", {7 * shape.scale, 5}, DType::f32);
  add("layers.0.ffn.gate.tid2eid", {3, 2}, DType::i32);
  add("layers.0.attn.sinks", {3}, DType::f32);
  add("adamw.steps", {1}, DType::i64);
  add("empty", {0, 4}, DType::f32);
  add("muon.momentum.layers.0.attn.wq_b.weight:0-4", {4, 9 * shape.scale}, DType::f32);
  state.identity = {{"model.hidden_size", "32"}, {"data.seed", "1"}};
  state.model = small_config();
  state.weight_format = model::WeightFormat::bf16;
  state.extra = {{"note", "Grüße\n\"x\""}};
  return state;
}

// Tensors of the same shapes, of other bytes.
inline std::vector<train::NamedTensor> room_for(const train::CheckpointState& state) {
  std::vector<train::NamedTensor> room;
  for (const train::NamedTensor& t : state.trainer.tensors) {
    Tensor other = Tensor::zeros(t.tensor.shape(), t.tensor.dtype());
    if (other.nbytes() > 0) std::memset(other.bytes(), 0x5a, other.nbytes());
    room.push_back({t.name, other});
  }
  return room;
}

// Whether it holds exactly state_at(its step).
[[nodiscard]] inline ::testing::AssertionResult holds_its_state(const train::SavedCheckpoint& saved,
                                                                StateShape shape = {}) {
  const train::CheckpointState wanted = state_at(saved.step(), shape);
  if (to_json(saved.state()) != to_json(wanted)) {
    return ::testing::AssertionFailure() << "state.json is " << to_json(saved.state());
  }
  if (model::to_json(saved.state().model) != model::to_json(wanted.model)) {
    return ::testing::AssertionFailure() << "another model config";
  }
  train::TrainerState found = saved.state().trainer;
  found.tensors = room_for(wanted);
  saved.read(found.tensors);
  if (train::state_hash(found) != train::state_hash(wanted.trainer)) {
    return ::testing::AssertionFailure() << "tensors differ";
  }
  return ::testing::AssertionSuccess();
}

}  // namespace hadal::test
