// Every tensor that a config implies, and a checkpoint held against that list.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/quant.h"
#include "io/safetensors.h"
#include "model/config.h"

namespace hadal::model {

// What a tensor may be stored as. The first of each list is the published form.
enum class WeightRole : std::uint8_t {
  linear,       // f8_e4m3 + 128x128 scales | bf16 | f32
  expert,       // f4_e2m1 + 1x32 scales | f8_e4m3 + 128x128 scales | bf16 | f32
  matrix,       // bf16 | f32: embed, head, gate, compressors, weights_proj; never quantised
  norm,         // bf16 | f32
  f32_only,     // f32; a file's bf16 is widened: mHC, sinks, ape, selection bias
  token_table,  // i64 | i32: tid2eid
};

// f16 is accepted wherever bf16 is, and widened to f32, which is exact. Scales are ue8m0 or f32.
struct ExpectedWeight {
  std::string name;  // official, with its ".weight" where it has one
  Shape shape;       // logical: an FP4 expert says [out, in]
  WeightRole role;
};

// In file order: embed, layers, mtp, head. Memory is proportional to the number of tensors, which
// Config::finalize bounds.  Source: architecture.md §2.2.
[[nodiscard]] std::vector<ExpectedWeight> expected_weights(const Config& config);

// "layers.0.attn.wq_a.weight" -> "layers.0.attn.wq_a.scale".
[[nodiscard]] std::string scale_name(std::string_view weight_name);
// Of a weight [rows, cols]: the number of blocks each way, partial ones included.
[[nodiscard]] Shape scale_shape(const Shape& weight, const QuantBlock& block);

// Which storage a whole checkpoint is written in.
enum class WeightFormat : std::uint8_t {
  published,  // fp4 experts, fp8 linears, bf16 rest (V4-Flash, V4-Pro)
  fp8,        // fp8 experts too (V4-*-Base)
  bf16,       // no scales
  f32,
};

// The tensors of such a checkpoint as its files declare them, scales included. tid2eid is i64.
[[nodiscard]] std::vector<io::TensorDecl> stored_tensors(const Config& config, WeightFormat format);

struct BindOptions {
  bool check_finite = false;  // scan every value for NaN and infinity: reads the whole checkpoint
};

// Weights by their official names, checked against the config. Shares the checkpoint's mapping.
class BoundWeights {
 public:
  // Throws one Error corrupt_data that lists up to ten problems: missing, wrong shape, wrong
  // dtype, missing scale, an expert id out of range or twice in a row of tid2eid, a NaN.
  [[nodiscard]] static BoundWeights bind(const io::Checkpoint& checkpoint, const Config& config,
                                         const BindOptions& options = {});

  // Weights that somebody else owns and may change in place, such as a trainer's; `provide` is
  // asked for every expected one, in file order. The tensors' variables stay with them. Throws
  // Error invalid_argument on a wrong shape.
  [[nodiscard]] static BoundWeights from_memory(
      const Config& config, const std::function<QuantTensor(const ExpectedWeight&)>& provide);

  // The same weights, bound with `config`, as tensors elsewhere, such as on a GPU. `move` is asked
  // for each in file order, so that those of neighbouring experts can lie one after the other.
  // Norms and other small vectors come as f32, which is what layers want of them.
  [[nodiscard]] BoundWeights moved(const Config& config,
                                   const std::function<Tensor(const Tensor&)>& move) const;

  // A two-dimensional weight: roles linear, expert, matrix. No scale when it is bf16 or f32.
  [[nodiscard]] const QuantTensor& linear(std::string_view name) const;
  // Roles norm (bf16 | f32), f32_only (f32), token_table (i32), matrix (bf16 | f32).
  [[nodiscard]] const Tensor& plain(std::string_view name) const;
  [[nodiscard]] bool contains(std::string_view name) const;

  [[nodiscard]] std::size_t nbytes() const { return nbytes_; }  // of all bound tensors
  [[nodiscard]] const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  struct Bound {
    QuantTensor weight;
    WeightRole role;
  };
  const Bound& at(std::string_view name) const;
  std::unordered_map<std::string, Bound> by_name_;
  std::vector<std::string> warnings_;
  std::size_t nbytes_ = 0;
};

}  // namespace hadal::model
