// A chunk of rows at a time: logits by one product (f32), then one block a row turns them into the
// loss and the gradient dz, then two products make dx and add to dhead. With bf16 operands dz is
// rounded to bf16 for the tensor cores; losses come from f32 logits.
#include "kernels/cross_entropy.h"

#include <algorithm>

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/operands.h"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

// Rows whose logits exist at a time: 128 MiB of them, by the vocabulary alone.
std::int64_t chunk_rows(std::int64_t vocab) {
  return std::clamp<std::int64_t>((std::int64_t{1} << 25) / vocab, 16, 8192);
}

// sum of exp(z - peak) over some logits; together() of any split is the whole's.
struct ExpSum {
  float peak, sum;
};
__device__ ExpSum together(ExpSum a, ExpSum b) {
  const float peak = fmaxf(a.peak, b.peak);
  if (peak == -INFINITY) return {peak, a.sum + b.sum};  // both are empty
  return {peak, a.sum * expf(a.peak - peak) + b.sum * expf(b.peak - peak)};
}
__device__ ExpSum add_four(ExpSum s, float4 z) {
  const float peak = fmaxf(s.peak, fmaxf(fmaxf(z.x, z.y), fmaxf(z.z, z.w)));
  if (peak == -INFINITY) return s;
  const float added = (expf(z.x - peak) + expf(z.y - peak)) + (expf(z.z - peak) + expf(z.w - peak));
  return {peak, s.sum * expf(s.peak - peak) + added};
}

// The order of additions depends on the vocabulary alone. dz may be the memory of z.
template <class Out>
__global__ void __launch_bounds__(kThreads)
    softmax_loss_kernel(float* loss, Out* dz, const float* z, const std::int32_t* targets,
                        int vocab, float scale) {
  __shared__ ExpSum parts[kWarps];
  const std::int64_t row = blockIdx.x;
  const int target = targets[row];
  z += row * vocab;
  const bool wanted = target >= 0;
  const int n_vectors = vocab % 4 == 0 ? vocab / 4 : 0;
  ExpSum s{-INFINITY, 0.0f};
  float logit = 0.0f;
  if (wanted) {
    logit = target < vocab ? z[target] : __int_as_float(0x7fc00000);
    for (int i = static_cast<int>(threadIdx.x); i < n_vectors; i += kThreads) {
      s = add_four(s, reinterpret_cast<const float4*>(z)[i]);
    }
    for (int i = 4 * n_vectors + static_cast<int>(threadIdx.x); i < vocab; i += kThreads) {
      s = together(s, {z[i], isnan(z[i]) ? z[i] : 1.0f});
    }
  }
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    s = together(
        s, {__shfl_xor_sync(0xffffffffu, s.peak, lane), __shfl_xor_sync(0xffffffffu, s.sum, lane)});
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = s;
  __syncthreads();
  s = parts[0];
  for (int w = 1; w < kWarps; ++w) s = together(s, parts[w]);
  if (threadIdx.x == 0) loss[row] = wanted ? s.peak + logf(s.sum) - logit : 0.0f;
  if (dz == nullptr) return;
  dz += row * vocab;
  const float factor = wanted ? scale / s.sum : 0.0f;
  const auto gradient = [&](float logit_of, int i) {
    if (!wanted) return 0.0f;
    const float p = expf(logit_of - s.peak) * factor;
    return i == target ? p - scale : p;
  };
  for (int i = static_cast<int>(threadIdx.x); i < n_vectors; i += kThreads) {
    const float4 v = wanted ? reinterpret_cast<const float4*>(z)[i] : float4{};
    alignas(16) Out out[4];
    put(out[0], gradient(v.x, 4 * i));
    put(out[1], gradient(v.y, 4 * i + 1));
    put(out[2], gradient(v.z, 4 * i + 2));
    put(out[3], gradient(v.w, 4 * i + 3));
    if constexpr (sizeof(Out) == 4) {
      reinterpret_cast<uint4*>(dz)[i] = *reinterpret_cast<const uint4*>(out);
    } else {
      reinterpret_cast<uint2*>(dz)[i] = *reinterpret_cast<const uint2*>(out);
    }
  }
  for (int i = 4 * n_vectors + static_cast<int>(threadIdx.x); i < vocab; i += kThreads) {
    put(dz[i], gradient(wanted ? z[i] : 0.0f, i));
  }
}

}  // namespace

void cross_entropy(Stream& stream, const CrossEntropyArgs& a) {
  const std::int64_t n_tokens = a.x.dim(0), hidden = a.x.dim(1), vocab = a.head->rows();
  if (n_tokens == 0) return;
  HADAL_CHECK(hidden > 0 && vocab > 0 && vocab < INT32_MAX && a.head->cols() == hidden);
  const DType type = operand_type(a.x.dtype(), *a.head);
  const std::int64_t item = type == DType::f32 ? 4 : 2,
                     chunk = std::min(chunk_rows(vocab), n_tokens);
  hadal::cuda::Queue& queue = stream.cuda();
  const Operand head = weight_operand(stream, *a.head, type);
  const Operand x = rows_operand(stream, a.x, ActivationQuant::none, type);
  const Tensor logits = queue.scratch(chunk * vocab * 4);
  const bool gradients = static_cast<bool>(a.dx);
  const Tensor rounded =
      gradients && type == DType::bf16 ? queue.scratch(chunk * vocab * 2) : Tensor();
  std::byte* const dz = !gradients ? nullptr : rounded ? rounded.bytes() : logits.bytes();
  for (std::int64_t t0 = 0; t0 < n_tokens; t0 += chunk) {
    const std::int64_t n = std::min(chunk, n_tokens - t0);
    std::byte* const rows = static_cast<std::byte*>(x.data) + t0 * hidden * item;
    gemm(stream, {.out = {.data = logits.bytes(), .ld = vocab},
                  .a = {.data = rows, .ld = hidden},
                  .b = {.data = head.data, .ld = hidden, .transposed = Transposed::yes},
                  .m = n,
                  .n = vocab,
                  .k = hidden,
                  .operands = type});
    dispatch_activation(type, [&]<class T>() {
      launch(stream, "cross_entropy", softmax_loss_kernel<T>,
             {dim3(static_cast<unsigned>(n)), dim3(kThreads)}, data<float>(a.loss) + t0,
             reinterpret_cast<T*>(dz), reinterpret_cast<const float*>(logits.bytes()),
             data<const std::int32_t>(a.targets) + t0, static_cast<int>(vocab), a.scale);
    });
    if (!gradients) continue;
    gemm(stream, {.out = {.data = data<float>(a.dx) + t0 * hidden, .ld = hidden},
                  .a = {.data = dz, .ld = vocab},
                  .b = {.data = head.data, .ld = hidden},
                  .m = n,
                  .n = hidden,
                  .k = vocab,
                  .operands = type});
    if (!a.dhead) continue;
    gemm(stream, {.out = {.data = a.dhead.bytes(), .ld = hidden},
                  .a = {.data = dz, .ld = vocab, .transposed = Transposed::yes},
                  .b = {.data = rows, .ld = hidden},
                  .m = vocab,
                  .n = hidden,
                  .k = n,
                  .operands = type,
                  .beta = 1.0f});
  }
}

}  // namespace hadal::kernels::cuda
