// The weights that a model in training multiplies: the masters, or what a checkpoint would hold.
#pragma once

#include <cstdint>
#include <span>

#include "io/checkpoint_writer.h"
#include "kernels/registry.h"
#include "model/convert.h"
#include "model/weight_layout.h"
#include "train/parameters.h"

namespace hadal::train {

// In format f32 these are the masters themselves. Otherwise every weight is stored as a checkpoint
// of `format` stores it and made again from its master after each step; gradients of the stored
// values go to the master unchanged (straight through). Experts in FP4 keep to values that FP8
// holds exactly. So a forward pass with official numerics computes what an engine computes that
// loads the exported checkpoint, to the bit.  Source: DeepSeek-V4 §5.2.1; training.md §3.
class WorkingWeights {
 public:
  // `store` must outlive this; where it is, this is. refresh() is called once.
  WorkingWeights(const ParameterStore& store, model::WeightFormat format, ThreadPool& pool);

  struct Refreshed {
    std::int64_t n_lifted = 0;  // FP4 tiles whose scale was raised (fp4_scale_lift)
  };
  // From the masters of now, but for parameters whose byte in `skipped` (by file order; empty:
  // none) is 1. The tensors that a model was bound to change in place. Throws Error corrupt_data
  // naming the weight when a master is not finite.
  Refreshed refresh(ThreadPool& pool, std::span<const std::uint8_t> skipped = {});

  [[nodiscard]] model::WeightFormat format() const { return format_; }
  // For a Model; every trained weight carries its parameter's variable.
  [[nodiscard]] model::BoundWeights bind() const;

  // Writes config.json and all tensors as refreshed last, with io::CheckpointWriter's promises. The
  // tokenizer and other files are the caller's, who calls finish().
  void write(io::CheckpointWriter& writer, const model::ConvertProgress& progress = nullptr) const;
  // What `write` needs declared.
  [[nodiscard]] std::vector<io::TensorDecl> declarations() const;
  // Bytes beside the masters.
  [[nodiscard]] std::size_t nbytes() const;

 private:
  [[nodiscard]] QuantTensor make(const ParameterInfo& info, const Tensor& master);
  [[noreturn]] void throw_not_finite(const Parameter& p, std::int64_t element) const;

  const ParameterStore* store_;
  model::WeightFormat format_;
  RunMemory memory_;
  KernelRegistry registry_;
  std::vector<QuantTensor> weights_;  // by parameter, in file order
};

}  // namespace hadal::train
