#include "ops/tape.h"

#include <cstring>

#include <fmt/format.h>

#include "kernels/elementwise.h"
#include "ops/exec_context.h"

namespace hadal {

Tape::Tape(PoolAllocator& allocator, VariableId n_parameters)
    : allocator_(&allocator),
      n_parameters_(n_parameters),
      parameter_gradients_(std::size_t{n_parameters} + 1) {}

void Tape::set_gradient(VariableId id, Tensor gradient) {
  HADAL_CHECK(id > 0 && is_parameter(id) && gradient.dtype() == DType::f32);
  parameter_gradients_[id] = std::move(gradient);
}

bool Tape::is_frozen(VariableId id) const {
  return is_parameter(id) && !parameter_gradients_[id];
}

Tensor Tape::parameter_gradient(const Tensor& weight) const {
  return is_parameter(weight.variable()) ? parameter_gradients_[weight.variable()] : Tensor();
}

Tensor Tape::variable(const Tensor& output) {
  variables_.push_back(
      {.node = nodes_.size(), .shape = output.shape(), .rebuilt = {}, .gradient = {}});
  return output.as_variable(n_parameters_ + static_cast<VariableId>(variables_.size()));
}

Saved Tape::save(const Tensor& x) {
  const VariableId id = x.variable();
  if (id != 0 && !is_parameter(id) && at(id).recomputed) return {id, x.shape()};
  return Saved(x.detached());
}

void Tape::record(Operation operation) {
  Node node{.name = operation.name,
            .inputs = {},
            .outputs = {},
            .backward = std::move(operation.backward),
            .replay = std::move(operation.replay)};
  for (const Tensor& x : operation.inputs) {
    Input input{.variable = x.variable(),
                .storage = x.storage(),
                .like = Tensor({}, x.shape(), x.dtype()),
                .kept = false};
    // Parameters and constants outlive the step.
    if (is_parameter(input.variable)) input.like = x.detached(), input.kept = true;
    node.inputs.push_back(std::move(input));
  }
  for (std::size_t slot = 0; slot < operation.outputs.size(); ++slot) {
    const VariableId id = operation.outputs[slot].variable();
    HADAL_CHECK(id > n_parameters_ && at(id).node == nodes_.size());
    at(id).slot = slot;
    node.outputs.push_back(id);
  }
  nodes_.push_back(std::move(node));
}

void Tape::recompute(const Tensor& x) {
  if (recompute_enabled && x.variable() > n_parameters_) mark(x.variable());
}

void Tape::mark(VariableId id) {
  if (at(id).recomputed) return;
  Node& node = nodes_[at(id).node];
  if (!node.replay) {
    throw Error(
        ErrorCode::unsupported,
        fmt::format("recompute: the result of {} cannot be computed again; keep it", node.name));
  }
  at(id).recomputed = true;
  for (Input& input : node.inputs) {
    if (input.kept) continue;
    if (input.variable > n_parameters_ && at(input.variable).recomputed) continue;
    if (std::shared_ptr<std::byte> storage = input.storage.lock()) {
      input.like = Tensor(std::move(storage), input.like.shape(), input.like.dtype());
      input.kept = true;
    } else {
      HADAL_CHECK(input.variable > n_parameters_);
      mark(input.variable);
    }
  }
}

Tensor Tape::rebuild(ExecContext& ctx, VariableId id) {
  if (Tensor done = at(id).rebuilt) return done;
  const Node& node = nodes_[at(id).node];
  TensorList inputs;
  for (const Input& input : node.inputs) {
    inputs.push_back(input.kept ? input.like
                                : rebuild(ctx, input.variable).reshape(input.like.shape()));
  }
  ExecContext plain = ctx.without_tape();
  const TensorList outputs = node.replay(plain, inputs);
  HADAL_CHECK(outputs.size() == node.outputs.size());
  n_rebuilt_ += 1;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (Variable& v = at(node.outputs[i]); v.recomputed) v.rebuilt = outputs[i].detached();
  }
  return at(id).rebuilt;
}

void Tape::add_gradient(ExecContext& ctx, VariableId id, Tensor gradient) {
  HADAL_CHECK(gradient.dtype() == DType::f32);
  const auto add = [&](const Tensor& to) {
    ctx.launch(kAddInPlace, DType::f32,
               AddInPlaceArgs{.y = to, .x = gradient.view().reshape(to.shape())});
  };
  if (is_parameter(id)) return add(parameter_gradients_[id]);
  Variable& v = at(id);
  if (!v.gradient) {
    v.gradient = gradient.reshape(v.shape).detached();
    return;
  }
  if (v.gradient.storage().use_count() > 1) {  // shared with another variable's: not ours to change
    const Tensor own = allocator_->empty(v.shape, DType::f32);
    ctx.stream().copy(v.gradient, own);
    v.gradient = own;
  }
  add(v.gradient);
}

Tensor Tape::gradient_buffer(ExecContext& ctx, VariableId id, const Shape& shape) {
  if (is_parameter(id)) return parameter_gradients_[id];
  Variable& v = at(id);
  if (!v.gradient) {
    v.gradient = allocator_->empty(v.shape, DType::f32);
    ctx.stream().zero(v.gradient);
  } else if (v.gradient.storage().use_count() > 1) {
    const Tensor own = allocator_->empty(v.shape, DType::f32);
    ctx.stream().copy(v.gradient, own);
    v.gradient = own;
  }
  return v.gradient.reshape(shape);
}

void Tape::backward(ExecContext& ctx) {
  ExecContext plain = ctx.without_tape();
  while (!nodes_.empty()) {
    Node& node = nodes_.back();
    bool runs = node.outputs.empty();
    for (const VariableId id : node.outputs) runs |= static_cast<bool>(at(id).gradient);
    if (runs) {
      Backward b(plain, *this, node);
      node.backward(b);
    }
    // Variables are numbered in the order of their nodes, so these are the newest ones.
    for (const VariableId id : node.outputs) {
      HADAL_CHECK(id >= n_parameters_ + variables_.size() + 1 - node.outputs.size());
      at(id) = {};
    }
    variables_.resize(variables_.size() - node.outputs.size());
    nodes_.pop_back();
  }
}

void Tape::clear() {
  nodes_.clear();
  variables_.clear();
}

Tensor Backward::get(const Saved& saved) const {
  if (saved.variable_ == 0) return saved.tensor_;
  return tape_->rebuild(*ctx_, saved.variable_).reshape(saved.shape_);
}

bool Backward::has_gradient(std::size_t output) const {
  return static_cast<bool>(tape_->at(node_->outputs[output]).gradient);
}

Tensor Backward::gradient(std::size_t output) const {
  const VariableId id = node_->outputs[output];
  return tape_->gradient_buffer(*ctx_, id, tape_->at(id).shape);
}

bool Backward::wants(std::size_t input) const {
  const VariableId id = node_->inputs[input].variable;
  return id != 0 && !tape_->is_frozen(id);
}

void Backward::accumulate(std::size_t input, Tensor gradient) {
  if (wants(input)) {
    tape_->add_gradient(*ctx_, node_->inputs[input].variable, std::move(gradient));
  }
}

Tensor Backward::target(std::size_t input) const {
  if (!wants(input)) return {};
  const Tape::Input& in = node_->inputs[input];
  return tape_->gradient_buffer(*ctx_, in.variable, in.like.shape());
}

Tensor recompute(ExecContext& ctx, Tensor x) {
  if (Tape* tape = ctx.tape_for(x)) tape->recompute(x);
  return x;
}

}  // namespace hadal
