#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/f32_rows.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/simd.h"
#include "kernels/linear.h"

namespace hadal::kernels::cpu {

void linear(Stream&, const LinearArgs&);

namespace {

// Turns a row of logits into scale * softmax and returns log(sum(exp(z))).
HADAL_SIMD_CLONES float softmax_row(float* z, std::int64_t n, float scale) {
  float peak = z[0];
  for (std::int64_t i = 1; i < n; ++i) peak = z[i] > peak ? z[i] : peak;
  for (std::int64_t i = 0; i < n; ++i) z[i] = exp_f32(z[i] - peak);
  const float sum = lane_sum(n, [&](std::int64_t i) { return z[i]; });
  const float factor = scale / sum;
  for (std::int64_t i = 0; i < n; ++i) z[i] *= factor;
  return peak + std::log(sum);
}

// Rows whose logits exist at a time: a few MiB, by the vocabulary alone.
std::int64_t chunk_rows(std::int64_t vocab) {
  return std::clamp<std::int64_t>((std::int64_t{1} << 20) / vocab, 16, 2048);
}

}  // namespace

void cross_entropy(Stream& stream, const CrossEntropyArgs& a) {
  const std::int64_t n_tokens = a.x.dim(0), hidden = a.x.dim(1), vocab = a.head->rows();
  const std::int64_t chunk = chunk_rows(vocab);
  thread_local std::vector<float> logits, head_buffer, x_buffer;
  logits.resize(static_cast<std::size_t>(std::min(chunk, n_tokens) * vocab));
  const float* head = a.dx ? f32_rows(stream.pool(), *a.head, head_buffer) : nullptr;
  const auto* targets = a.targets.data<const std::int32_t>();
  auto* loss = a.loss.data<float>();
  for (std::int64_t t0 = 0; t0 < n_tokens; t0 += chunk) {
    const std::int64_t t1 = std::min(n_tokens, t0 + chunk), n = t1 - t0;
    const TensorView x = a.x.slice(t0, t1);
    const TensorView z(reinterpret_cast<std::byte*>(logits.data()), {n, vocab}, DType::f32);
    linear(stream, LinearArgs{.y = z, .x = x, .weight = a.head});
    float* rows = logits.data();
    stream.pool().parallel_for(n, 4, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        float* row = rows + i * vocab;
        const std::int32_t target = targets[t0 + i];
        if (target < 0) {
          loss[t0 + i] = 0;
          std::fill_n(row, vocab, 0.0f);
          continue;
        }
        const float logit = row[target];
        loss[t0 + i] = softmax_row(row, vocab, a.scale) - logit;
        row[target] -= a.scale;
      }
    });
    if (!a.dx) continue;
    const MatrixView dz{rows, n, vocab, vocab};
    std::vector<GemmProblem> problems{{.c = {a.dx.data<float>() + t0 * hidden, n, hidden, hidden},
                                       .a = dz,
                                       .b = {const_cast<float*>(head), vocab, hidden, hidden}}};
    if (a.dhead) {
      const float* values = f32_rows(stream.pool(), x, ActivationQuant::none, x_buffer);
      problems.push_back({.c = {a.dhead.data<float>(), vocab, hidden, hidden},
                          .a = dz,
                          .b = {const_cast<float*>(values), n, hidden, hidden},
                          .transpose_a = Transposed::yes,
                          .beta = 1.0f});
    }
    gemm_batch(stream.pool(), problems);
  }
}

}  // namespace hadal::kernels::cpu
