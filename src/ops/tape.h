// The memory of a forward pass that wants gradients: every op that ran, what its backward needs,
// and how to rebuild what was not kept. Ops record themselves when their context has a tape; layers
// do not know. Source: DeepSeek-V4 §3.4.4 (tensor-level checkpointing); ours: docs/adr/0009.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/allocator.h"

namespace hadal {

class ExecContext;
class Backward;

// A tensor that a backward function needs: kept, or rebuilt from its producers when it is asked
// for.
class Saved {
 public:
  Saved() = default;

 private:
  friend class Tape;
  friend class Backward;
  explicit Saved(Tensor tensor) : tensor_(std::move(tensor)) {}
  Saved(VariableId variable, Shape shape) : variable_(variable), shape_(shape) {}
  Tensor tensor_;
  VariableId variable_ = 0;  // 0: tensor_ is kept
  Shape shape_;
};

using TensorList = std::vector<Tensor>;

// One op that ran.
struct Operation {
  const char* name;
  TensorList inputs;   // those without a variable get no gradient
  TensorList outputs;  // each made by Tape::variable; none: a loss, whose backward always runs
  // Adds the gradients of the inputs, given those of the outputs.
  std::function<void(Backward&)> backward;
  // Computes the outputs once more from the same inputs, to the same bits, without a tape. May be
  // empty when no output is ever marked for recomputation.
  std::function<TensorList(ExecContext&, const TensorList& inputs)> replay = nullptr;
};

// Gradients are f32, of the shape of their variable. The gradients of parameters accumulate (+=)
// into buffers that their owner gives; those of activations live as long as backward needs them.
// Nothing here depends on thread timing: the same forward gives the same bits.
class Tape {
 public:
  // Parameters are the variables 1 .. n_parameters. `allocator` must outlive the tape.
  Tape(PoolAllocator& allocator, VariableId n_parameters);

  // Where parameter `id` collects its gradient, f32. A parameter without a buffer is frozen.
  void set_gradient(VariableId id, Tensor gradient);
  [[nodiscard]] bool is_frozen(VariableId id) const;
  // The buffer of a parameter that is stored in `weight`; empty when it is none or frozen.
  [[nodiscard]] Tensor parameter_gradient(const Tensor& weight) const;

  // Marks are ignored while this is off: everything is kept.
  bool recompute_enabled = true;

  // The tensor as a new variable, for an op's output.
  [[nodiscard]] Tensor variable(const Tensor& output);
  [[nodiscard]] Saved save(const Tensor& x);
  void record(Operation operation);
  // Lets go of `x` after its last use in forward; backward rebuilds it from its producer's inputs,
  // which are kept instead (or rebuilt in turn, when they are gone already).
  // Throws Error unsupported when its producer cannot run again.
  void recompute(const Tensor& x);

  // Runs every recorded op backwards and forgets it. Gradients of parameters are added to their
  // buffers. `ctx` is the forward's context or one like it.
  void backward(ExecContext& ctx);
  // Forgets everything recorded: a step that is given up.
  void clear();

  [[nodiscard]] std::size_t n_operations() const { return nodes_.size(); }
  [[nodiscard]] std::size_t n_rebuilt() const { return n_rebuilt_; }  // since construction

 private:
  friend class Backward;
  struct Input {
    VariableId variable = 0;
    std::weak_ptr<std::byte> storage;
    Tensor like;  // shape and dtype, no storage; with storage once the input is kept
    bool kept = false;
  };
  struct Node {
    const char* name;
    std::vector<Input> inputs;
    std::vector<VariableId> outputs;
    std::function<void(Backward&)> backward;
    std::function<TensorList(ExecContext&, const TensorList&)> replay;
  };
  struct Variable {
    std::size_t node = 0;  // its producer
    std::size_t slot = 0;  // which output
    Shape shape;
    bool recomputed = false;
    Tensor rebuilt;
    Tensor gradient;
  };
  [[nodiscard]] bool is_parameter(VariableId id) const { return id <= n_parameters_; }
  [[nodiscard]] Variable& at(VariableId id) { return variables_[id - n_parameters_ - 1]; }
  void mark(VariableId id);
  [[nodiscard]] Tensor rebuild(ExecContext& ctx, VariableId id);
  void add_gradient(ExecContext& ctx, VariableId id, Tensor gradient);
  [[nodiscard]] Tensor gradient_buffer(ExecContext& ctx, VariableId id, const Shape& shape);

  PoolAllocator* allocator_;
  VariableId n_parameters_;
  std::vector<Tensor> parameter_gradients_;
  std::vector<Variable> variables_;
  std::vector<Node> nodes_;
  std::size_t n_rebuilt_ = 0;
};

// What a backward function sees of its op.
class Backward {
 public:
  [[nodiscard]] ExecContext& ctx() const { return *ctx_; }
  [[nodiscard]] Tensor get(const Saved& saved) const;
  // The gradient of output i: f32, zeros when nobody used it.
  [[nodiscard]] Tensor gradient(std::size_t output) const;
  [[nodiscard]] bool has_gradient(std::size_t output) const;
  // Whether input i leads to something that learns.
  [[nodiscard]] bool wants(std::size_t input) const;
  // Hands over the gradient of input i, f32: what an activation's backward kernel wrote (=).
  void accumulate(std::size_t input, Tensor gradient);
  // The buffer that collects the gradient of input i, for kernels that add to it (+=), as those of
  // parameters do. Zeros when it is the first. Empty when nobody wants it.
  [[nodiscard]] Tensor target(std::size_t input) const;

 private:
  friend class Tape;
  Backward(ExecContext& ctx, Tape& tape, const Tape::Node& node)
      : ctx_(&ctx), tape_(&tape), node_(&node) {}
  ExecContext* ctx_;
  Tape* tape_;
  const Tape::Node* node_;
};

// Marks x on the context's tape (Tape::recompute) and returns it; without a tape, or when nothing
// before x learns, only returns it.
Tensor recompute(ExecContext& ctx, Tensor x);

}  // namespace hadal
