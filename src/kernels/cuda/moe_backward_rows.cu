// Memory is all that these wait for: four values a thread where rows allow it.
#include "kernels/cuda/moe_backward_rows.h"

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/cuda/device/vector.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 128;
static_assert(kMaxGradientTopk <= kThreads);

// One block a row.
template <class T, class C>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(C* xs, C* dys, const T* x, const float* dy, const std::int32_t* assignment,
                  int topk, int hidden) {
  const std::int64_t row = blockIdx.x;
  const std::int32_t a = assignment[row];
  const std::int64_t from = a < 0 ? 0 : std::int64_t{a / topk} * hidden;
  const std::int64_t to = row * hidden;
  if (hidden % 4 == 0) {
    for (int c = static_cast<int>(threadIdx.x) * 4; c < hidden; c += kThreads * 4) {
      put_four(xs + to + c, a < 0 ? float4{} : load_four(x + from + c));
      put_four(dys + to + c, a < 0 ? float4{} : load_four(dy + from + c));
    }
    return;
  }
  for (int c = static_cast<int>(threadIdx.x); c < hidden; c += kThreads) {
    put(xs[to + c], a < 0 ? 0.0f : load(x[from + c]));
    put(dys[to + c], a < 0 ? 0.0f : dy[from + c]);
  }
}

// One warp a row.
template <class T, class C>
__global__ void __launch_bounds__(kThreads)
    swiglu_backward_kernel(C* gate, C* up, C* mid, SwigluRows r) {
  const std::int64_t row = std::int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (row >= r.n_rows) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int32_t a = r.assignment == nullptr ? 0 : r.assignment[row];
  const float weight = r.assignment == nullptr ? 1.0f : a < 0 ? 0.0f : r.weights[a];
  const float cap = r.limit > 0.0f ? r.limit : INFINITY;
  gate += row * r.width;
  up += row * r.width;
  mid += row * r.width;
  float dweight = 0.0f;
  const auto one = [&](float& gate_value, float& up_value, float& mid_value) {
    const float g0 = rounded<T>(gate_value), u0 = rounded<T>(up_value), d = mid_value;
    const float g = g0 > cap ? cap : g0;
    const float u1 = u0 > cap ? cap : u0;
    const float u = u1 < -cap ? -cap : u1;
    const float sigmoid = 1.0f / (1.0f + expf(-g));
    const float silu = g * sigmoid, product = silu * u, scaled = weight * d;
    dweight += d * product;
    gate_value = g0 > cap ? 0.0f : scaled * u * (sigmoid * (1.0f + g * (1.0f - sigmoid)));
    up_value = u0 > cap || u0 < -cap ? 0.0f : scaled * silu;
    mid_value = rounded<T>(weight * product);
  };
  if (r.width % 4 == 0) {
    for (int c = lane * 4; c < r.width; c += 32 * 4) {
      float4 g = load_four(gate + c), u = load_four(up + c), m = load_four(mid + c);
      one(g.x, u.x, m.x);
      one(g.y, u.y, m.y);
      one(g.z, u.z, m.z);
      one(g.w, u.w, m.w);
      put_four(gate + c, g);
      put_four(up + c, u);
      put_four(mid + c, m);
    }
  } else {
    for (int c = lane; c < r.width; c += 32) {
      float g = load(gate[c]), u = load(up[c]), m = load(mid[c]);
      one(g, u, m);
      put(gate[c], g);
      put(up[c], u);
      put(mid[c], m);
    }
  }
  dweight = warp_sum(dweight);
  if (lane == 0 && r.dweights != nullptr && a >= 0) r.dweights[a] = dweight;
}

// One block a token.
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(float* dx, const float* dxs, const std::int32_t* row_of, std::int64_t row0,
                   std::int64_t n_rows, int topk, int hidden, bool first) {
  __shared__ std::int32_t own[kMaxGradientTopk], ascending[kMaxGradientTopk];
  const std::int64_t token = blockIdx.x;
  const int slot = static_cast<int>(threadIdx.x);
  if (slot < topk) own[slot] = row_of[token * topk + slot];
  __syncthreads();
  if (slot < topk) {
    int rank = 0;
    for (int k = 0; k < topk; ++k) rank += own[k] < own[slot] ? 1 : 0;
    ascending[rank] = own[slot];
  }
  __syncthreads();
  const auto each = [&](auto&& add) {
    for (int k = 0; k < topk; ++k) {
      const std::int64_t row = ascending[k] - row0;
      if (row >= 0 && row < n_rows) add(dxs + row * hidden);
    }
  };
  dx += token * hidden;
  if (hidden % 4 == 0) {
    for (int c = slot * 4; c < hidden; c += kThreads * 4) {
      float4 sum = first ? float4{} : load_four(dx + c);
      each([&](const float* row) {
        const float4 v = load_four(row + c);
        sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
      });
      put_four(dx + c, sum);
    }
    return;
  }
  for (int c = slot; c < hidden; c += kThreads) {
    float sum = first ? 0.0f : dx[c];
    each([&](const float* row) { sum += row[c]; });
    dx[c] = sum;
  }
}

}  // namespace

void gather_expert_rows(Stream& stream, const TensorView& xs, const TensorView& dys,
                        const TensorView& x, const TensorView& dy, const std::int32_t* assignment,
                        std::int64_t topk) {
  dispatch_activation(x.dtype(), [&]<class T>() {
    dispatch_activation(xs.dtype(), [&]<class C>() {
      launch(stream, "gather_expert_rows", gather_kernel<T, C>,
             {dim3(static_cast<unsigned>(xs.dim(0))), dim3(kThreads)}, data<C>(xs), data<C>(dys),
             data<const T>(x), data<const float>(dy), assignment, static_cast<int>(topk),
             static_cast<int>(x.dim(1)));
    });
  });
}

void swiglu_backward(Stream& stream, const TensorView& gate, const TensorView& up,
                     const TensorView& mid, DType activation, const SwigluRows& rows) {
  dispatch_activation(activation, [&]<class T>() {
    dispatch_activation(gate.dtype(), [&]<class C>() {
      launch(stream, "swiglu_backward", swiglu_backward_kernel<T, C>,
             {dim3(blocks_for(rows.n_rows, kThreads / 32)), dim3(kThreads)}, data<C>(gate),
             data<C>(up), data<C>(mid), rows);
    });
  });
}

void scatter_expert_rows(Stream& stream, const TensorView& dx, const float* dxs,
                         const TensorView& row_of, std::int64_t row0, std::int64_t n_rows,
                         std::int64_t topk, bool first) {
  launch(stream, "scatter_expert_rows", scatter_kernel,
         {dim3(static_cast<unsigned>(dx.dim(0))), dim3(kThreads)}, data<float>(dx), dxs,
         data<const std::int32_t>(row_of), row0, n_rows, static_cast<int>(topk),
         static_cast<int>(dx.dim(1)), first);
}

}  // namespace hadal::kernels::cuda
