// Gradients of an op by the tape, and by central differences of its slow obvious form in double.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "core/rng.h"
#include "support/context.h"

namespace hadal::test {

using Values = std::vector<double>;      // a tensor, row-major
using ValuesList = std::vector<Values>;  // one per input or output

inline Tensor random_f32(Shape shape, std::uint64_t seed, float scale = 1.0f) {
  Rng rng(seed);
  Tensor t = Tensor::empty(shape, DType::f32);
  for (std::int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = scale * rng.next_normal();
  return t;
}

inline Values values_of(const TensorView& t) {
  Values v;
  for (std::int64_t i = 0; i < t.numel(); ++i) {
    v.push_back(t.dtype() == DType::bf16 ? to_float(t.data<const bf16>()[i])
                                         : t.data<const float>()[i]);
  }
  return v;
}

// Gives x[i] the variable i + 1 of `tape`, with a zero gradient buffer (f32, the same shape).
inline TensorList as_parameters(Tape& tape, TensorList x, TensorList& gradients) {
  gradients.clear();
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto id = static_cast<VariableId>(i + 1);
    x[i] = x[i].as_variable(id);
    gradients.push_back(Tensor::zeros(x[i].shape(), DType::f32));
    tape.set_gradient(id, gradients.back());
  }
  return x;
}

// Adds the loss sum(weights * y): from here on y has the gradient `weights`.
inline void add_probe(Tape& tape, const Tensor& y, const Tensor& weights) {
  tape.record({.name = "probe", .inputs = {y}, .outputs = {}, .backward = [weights](Backward& b) {
                 b.accumulate(0, weights);
               }});
}

using TapedOp = std::function<TensorList(ExecContext&, const TensorList&)>;

// d/dx of sum over outputs k of sum(probe_k * y_k), where probe_k is random_f32(shape, 1000 + k).
inline TensorList tape_gradients(TestContext& tc, const TensorList& x, const TapedOp& op) {
  Tape tape(tc.allocator, static_cast<VariableId>(x.size()));
  TensorList gradients;
  const TensorList variables = as_parameters(tape, x, gradients);
  tc.ctx.set_tape(&tape);
  const TensorList y = op(tc.ctx, variables);
  for (std::size_t k = 0; k < y.size(); ++k) {
    add_probe(tape, y[k], random_f32(y[k].shape(), 1000 + k));
  }
  tape.backward(tc.ctx);
  tc.ctx.set_tape(nullptr);
  return gradients;
}

using Reference = std::function<ValuesList(const ValuesList&)>;

// The same by central differences of `op` in double.
inline ValuesList central_differences(const ValuesList& x, const Reference& op) {
  std::vector<Values> probes;
  const auto loss = [&](const ValuesList& at) {
    const ValuesList y = op(at);
    double sum = 0;
    for (std::size_t k = 0; k < y.size(); ++k) {
      if (probes.size() <= k) {
        probes.push_back(values_of(random_f32({static_cast<std::int64_t>(y[k].size())}, 1000 + k)));
      }
      for (std::size_t i = 0; i < y[k].size(); ++i) sum += probes[k][i] * y[k][i];
    }
    return sum;
  };
  loss(x);
  ValuesList gradients;
  ValuesList at = x;
  for (std::size_t i = 0; i < x.size(); ++i) {
    Values g;
    for (std::size_t k = 0; k < x[i].size(); ++k) {
      const double h = 1e-5 * std::max(1.0, std::abs(x[i][k]));
      at[i][k] = x[i][k] + h;
      const double up = loss(at);
      at[i][k] = x[i][k] - h;
      const double down = loss(at);
      at[i][k] = x[i][k];
      g.push_back((up - down) / (2 * h));
    }
    gradients.push_back(std::move(g));
  }
  return gradients;
}

inline double relative_l2(const TensorView& found, const Values& wanted) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double f = found.data<const float>()[i];
    error += (f - wanted[i]) * (f - wanted[i]);
    norm += wanted[i] * wanted[i];
  }
  return norm == 0 ? std::sqrt(error) : std::sqrt(error / norm);
}

// Whether the tape's gradients of `op` at x are those of `reference`. The differences are good to
// about 1e-9; f32 kernels sum a few hundred terms, so 2e-5 leaves room for rounding and none for a
// wrong term.
inline void expect_gradients(const TensorList& x, const TapedOp& op, const Reference& reference,
                             double tolerance = 2e-5) {
  TestContext tc(Numerics::fp32);
  const TensorList found = tape_gradients(tc, x, op);
  ValuesList at;
  for (const Tensor& t : x) at.push_back(values_of(t));
  const ValuesList wanted = central_differences(at, reference);
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_LT(relative_l2(found[i], wanted[i]), tolerance) << "input " << i;
  }
}

inline bool same_bits(const TensorView& a, const TensorView& b) {
  return a.nbytes() == b.nbytes() && std::memcmp(a.bytes(), b.bytes(), a.nbytes()) == 0;
}

}  // namespace hadal::test
