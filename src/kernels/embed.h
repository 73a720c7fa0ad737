#pragma once

#include "kernels/registry.h"

namespace hadal {

// y[t, j, :] = table[ids[t], :] for every stream j.
struct EmbedArgs {
  TensorView y;      // [n_tokens, hc_mult, hidden]  bf16 | f32
  TensorView ids;    // [n_tokens]                   i32, checked by the caller
  TensorView table;  // [vocab, hidden]              bf16 | f32
};
inline constexpr KernelName<EmbedArgs> kEmbed{"embed"};

// dtable[ids[t], :] += sum over streams j of dy[t, j, :], tokens ascending.
struct EmbedBackwardArgs {
  TensorView dtable;  // [vocab, hidden]              f32, added to
  TensorView dy;      // [n_tokens, hc_mult, hidden]  f32
  TensorView ids;     // [n_tokens]                   i32
};
inline constexpr KernelName<EmbedBackwardArgs> kEmbedBackward{"embed_backward"};

}  // namespace hadal
