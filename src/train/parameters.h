// What is trained: every weight of a model as f32, its gradient, and who updates it how.
// train: from text to weights. It runs the model forward and backward and owns what only training
// knows: optimizers, schedules, initial weights.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "model/config.h"
#include "model/weight_layout.h"
#include "train/run_memory.h"

namespace hadal::train {

enum class ParameterGroup : std::uint8_t {
  muon,    // matrices: orthogonalised momentum
  adamw,   // embedding, head, and what is no matrix
  frozen,  // no gradient: tid2eid, and gate.bias, which the load balance moves
};
[[nodiscard]] const char* to_string(ParameterGroup group);

// Rows [begin, end) of a parameter.
struct RowRange {
  std::int64_t begin, end;
  friend bool operator==(const RowRange&, const RowRange&) = default;
};

struct ParameterInfo {
  VariableId id;  // 1 + its place in model::expected_weights(): its variable on a tape
  std::string name;
  Shape shape;
  model::WeightRole role;
  ParameterGroup group;
  bool decays;      // whether weight decay applies
  bool of_indexer;  // learns from the indexer's loss alone
  // Muon only: the logically independent matrices it is made of, in order, covering all rows. Each
  // is orthogonalised on its own, so the split is a part of what a checkpoint means.
  std::vector<RowRange> matrices;
};

// Where the published text leaves a choice.  Source: training.md §1.2.
struct GroupOptions {
  bool split_heads = false;                 // wq_b by heads; false: whole
  bool hyper_connections_on_adamw = false;  // the dynamic matrices hc_*_fn
  bool matrices_on_adamw = false;           // everything: the control experiment without Muon
};

// One entry a weight, in file order. Allocates nothing of a model's size.
[[nodiscard]] std::vector<ParameterInfo> parameter_layout(const model::Config& config,
                                                          const GroupOptions& options = {});

// One unit of orthogonalisation.
struct LogicalMatrix {
  VariableId parameter;
  RowRange rows;
  std::int64_t cols;
  bool expert;  // of a routed expert
  [[nodiscard]] std::int64_t n_rows() const { return rows.end - rows.begin; }
};

// Of all Muon parameters, in file order. Its index is a matrix's id wherever matrices are divided.
[[nodiscard]] std::vector<LogicalMatrix> logical_matrices(std::span<const ParameterInfo> layout);

struct Parameter {
  ParameterInfo info;
  Tensor value;     // f32, variable info.id; tid2eid: i32, no variable
  Tensor gradient;  // f32, the shape of value; empty when frozen
};

// Owns values and gradients. Tensors handed out share them, so they follow every update.
class ParameterStore {
 public:
  // All values and gradients zero; initialise() or a checkpoint fills them. With a GPU they are in
  // its memory, and its queue must outlive this.
  explicit ParameterStore(model::Config config, const GroupOptions& options = {},
                          cuda::Queue* gpu = nullptr);

  [[nodiscard]] const model::Config& config() const { return config_; }
  [[nodiscard]] std::span<const Parameter> parameters() const { return parameters_; }
  [[nodiscard]] const Parameter& at(VariableId id) const;
  // Throws not_found.
  [[nodiscard]] const Parameter& at(std::string_view name) const;
  [[nodiscard]] std::span<const LogicalMatrix> matrices() const { return matrices_; }

  [[nodiscard]] cuda::Queue* gpu() const { return values_memory_.gpu(); }  // null: on the host
  // A value, for whoever saves or restores it.
  [[nodiscard]] NamedTensor named(const Parameter& p) const {
    return {p.info.name, p.value, gpu()};
  }

  void zero_gradients(ThreadPool& pool);
  // Bytes of values and gradients.
  [[nodiscard]] std::size_t nbytes() const;

 private:
  model::Config config_;
  RunMemory values_memory_, gradients_memory_;
  std::vector<Parameter> parameters_;
  std::vector<LogicalMatrix> matrices_;
  std::unordered_map<std::string, std::size_t> by_name_;
};

}  // namespace hadal::train
