#pragma once

#include "core/quant.h"
#include "kernels/registry.h"

namespace hadal {

// The loss of next-token prediction and its gradients in one pass, a chunk of rows at a time: the
// logits of a whole batch never exist.  With z = head * x and p = softmax(z):
//   loss = -log p[target],   dz = scale * (p - onehot(target)),   dx = dz * head,
//   dhead += dz^T * x
// Rows without a target (-1) have loss 0 and gradient 0.  Source: training.md §4.11.
struct CrossEntropyArgs {
  TensorView loss;          // [n_tokens]          f32, out
  TensorView dx;            // [n_tokens, hidden]  f32, out; empty: no gradients wanted
  TensorView dhead;         // [vocab, hidden]     f32, added to; empty: not wanted
  TensorView x;             // [n_tokens, hidden]  bf16 | f32
  const QuantTensor* head;  // [vocab, hidden]     bf16 | f32
  TensorView targets;       // [n_tokens]          i32: token ids or -1
  float scale = 1;
};
inline constexpr KernelName<CrossEntropyArgs> kCrossEntropy{"cross_entropy"};

}  // namespace hadal
