#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "kernels/cpu/expert_rows.h"
#include "kernels/cpu/f32_rows.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/simd.h"
#include "kernels/moe.h"

namespace hadal::kernels::cpu {

namespace {

// From gate, up and the gradient `mid` of the hidden row, in place: gate and up become their own
// gradients, mid the hidden row that forward multiplied with down_proj. Returns the gradient of the
// routing weight.
template <class T>
HADAL_SIMD_INLINE float swiglu_backward_as(float* __restrict gate, float* __restrict up,
                                           float* __restrict mid, float weight, float limit,
                                           std::int64_t n) {
  constexpr std::int64_t kBlock = 256;
  const float cap = limit > 0.0f ? limit : INFINITY;
  float lanes[kLanes] = {};
  float products[kBlock];
  for (std::int64_t c = 0; c < n; c += kBlock) {
    const std::int64_t width = std::min(kBlock, n - c);
    for (std::int64_t i = 0; i < width; ++i) {
      const float g0 = rounded<T>(gate[c + i]), u0 = rounded<T>(up[c + i]), d = mid[c + i];
      const float g = g0 > cap ? cap : g0;
      const float u1 = u0 > cap ? cap : u0;
      const float u = u1 < -cap ? -cap : u1;
      const float sigmoid = 1.0f / (1.0f + exp_f32(-g));
      const float silu = g * sigmoid, product = silu * u, scaled = weight * d;
      products[i] = d * product;
      gate[c + i] = g0 > cap ? 0.0f : scaled * u * (sigmoid * (1.0f + g * (1.0f - sigmoid)));
      up[c + i] = u0 > cap || u0 < -cap ? 0.0f : scaled * silu;
      mid[c + i] = rounded<T>(weight * product);
    }
    for (std::int64_t i = width; i % kLanes != 0; ++i) products[i] = 0.0f;
    for (std::int64_t i = 0; i < width; i += kLanes) {
      for (int l = 0; l < kLanes; ++l) lanes[l] += products[i + l];
    }
  }
  return fold_lanes(lanes);
}
// The activation type as a tag: gate, up and mid are f32 whatever it is.
HADAL_SIMD_CLONES float swiglu_backward(float, float* gate, float* up, float* mid, float weight,
                                        float limit, std::int64_t n) {
  return swiglu_backward_as<float>(gate, up, mid, weight, limit, n);
}
HADAL_SIMD_CLONES float swiglu_backward(bf16, float* gate, float* up, float* mid, float weight,
                                        float limit, std::int64_t n) {
  return swiglu_backward_as<bf16>(gate, up, mid, weight, limit, n);
}

template <class T>
HADAL_SIMD_INLINE void copy_row_as(float* to, const T* from, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}
HADAL_SIMD_CLONES void copy_row(float* to, const float* from, std::int64_t n) {
  copy_row_as(to, from, n);
}
HADAL_SIMD_CLONES void copy_row(float* to, const bf16* from, std::int64_t n) {
  copy_row_as(to, from, n);
}
HADAL_SIMD_CLONES void add_row(float* to, const float* from, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// Rows at a time: their copies and pre-activations are all the memory that this takes.
constexpr std::int64_t kMaxRows = 4096;
// Weights that are widened to f32 at a time, in elements.
constexpr std::int64_t kMaxWidened = std::int64_t{1} << 23;

// Rows [row0, row0 + n_rows) of the sorted assignments, or tokens of a shared expert.
struct Run {
  const ExpertWeights* weights;
  const ExpertGradients* gradients;
  std::int64_t row0, n_rows;
};

struct Widened {
  std::vector<float> gate_proj, up_proj, down_proj;
};

// Kept from call to call.
struct Scratch {
  ExpertRows routing;
  std::vector<std::int32_t> ascending;   // [n_tokens, topk] rows of a token, ascending
  std::vector<std::int32_t> assignment;  // [n_assignments] inverse of row_of
  std::vector<float> x, dy, gate, up, mid, dx, rounded_x, rounded_mid;
  std::vector<Widened> weights;
};

class ExpertsBackward {
 public:
  ExpertsBackward(Stream& stream, const MoeExpertsBackwardArgs& a, Scratch& s)
      : pool_(stream.pool()), a_(a), s_(s), hidden_(a.x.dim(1)) {}

  void run() {
    if (a_.dx) std::memset(a_.dx.bytes(), 0, a_.dx.nbytes());
    if (!a_.routed.empty()) {
      sort();
      std::vector<Run> runs;
      for (std::size_t e = 0; e < a_.routed.size(); ++e) {
        add_runs(runs, a_.routed[e], a_.drouted[e], s_.routing.expert_row[e],
                 s_.routing.expert_row[e + 1]);
      }
      in_groups(runs, Kind::routed);
    }
    // One after another, so that a token's sum has one order.
    for (std::size_t i = 0; i < a_.shared.size(); ++i) {
      std::vector<Run> runs;
      add_runs(runs, a_.shared[i], a_.dshared[i], 0, a_.x.dim(0));
      in_groups(runs, Kind::shared);
    }
  }

 private:
  enum class Kind : std::uint8_t { routed, shared };

  void sort() {
    sort_by_expert(a_.experts, a_.weights, static_cast<std::int64_t>(a_.routed.size()), s_.routing);
    const std::int64_t topk = a_.experts.dim(1);
    s_.ascending = s_.routing.row_of;
    for (auto row = s_.ascending.begin(); row != s_.ascending.end(); row += topk) {
      std::sort(row, row + topk);
    }
    s_.assignment.resize(s_.routing.row_of.size());
    for (std::size_t i = 0; i < s_.assignment.size(); ++i) {
      s_.assignment[static_cast<std::size_t>(s_.routing.row_of[i])] = static_cast<std::int32_t>(i);
    }
  }

  static void add_runs(std::vector<Run>& runs, const ExpertWeights& weights,
                       const ExpertGradients& gradients, std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; row += kMaxRows) {
      runs.push_back({&weights, &gradients, row, std::min(kMaxRows, end - row)});
    }
  }

  // Neighbouring runs share a batch of products as far as the memory for them reaches.
  void in_groups(const std::vector<Run>& runs, Kind kind) {
    std::size_t begin = 0;
    std::int64_t rows = 0, widened = 0;
    const auto widens = [](const QuantTensor& w) {
      return w.data.dtype() == DType::f32 ? 0 : w.data.numel();
    };
    for (std::size_t i = 0; i <= runs.size(); ++i) {
      const std::int64_t more_rows = i < runs.size() ? runs[i].n_rows : 0;
      const std::int64_t more = i < runs.size() ? widens(runs[i].weights->gate_proj) +
                                                      widens(runs[i].weights->up_proj) +
                                                      widens(runs[i].weights->down_proj)
                                                : 0;
      const bool full = i > begin && (rows + more_rows > kMaxRows || widened + more > kMaxWidened);
      if (i > begin && (full || i == runs.size())) {
        group(std::span(runs).subspan(begin, i - begin), rows, kind);
        begin = i, rows = 0, widened = 0;
      }
      rows += more_rows, widened += more;
    }
  }

  void group(std::span<const Run> runs, std::int64_t n_rows, Kind kind) {
    const QuantTensor& gate_proj = runs.front().weights->gate_proj;
    const QuantTensor& down_proj = runs.front().weights->down_proj;
    const std::int64_t row0 = runs.front().row0, width = gate_proj.rows();
    resize(n_rows, width);
    gather(kind, row0, n_rows);
    const float* x = rounded_rows(s_.x, n_rows, hidden_, gate_proj, s_.rounded_x);
    const MatrixView xs = matrix(x, n_rows, hidden_), dys = matrix(s_.dy.data(), n_rows, hidden_);
    const MatrixView gates = matrix(s_.gate.data(), n_rows, width);
    const MatrixView ups = matrix(s_.up.data(), n_rows, width);
    const MatrixView mids = matrix(s_.mid.data(), n_rows, width);
    const MatrixView dxs = matrix(s_.dx.data(), n_rows, hidden_);

    struct Matrices {
      MatrixView gate_proj, up_proj, down_proj;
    };
    std::vector<Matrices> weights;
    std::vector<GemmProblem> problems;
    if (s_.weights.size() < runs.size()) s_.weights.resize(runs.size());
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const ExpertWeights& w = *runs[i].weights;
      weights.push_back({widen(w.gate_proj, s_.weights[i].gate_proj),
                         widen(w.up_proj, s_.weights[i].up_proj),
                         widen(w.down_proj, s_.weights[i].down_proj)});
      const std::int64_t begin = runs[i].row0 - row0, end = begin + runs[i].n_rows;
      problems.push_back({.c = gates.row_range(begin, end),
                          .a = xs.row_range(begin, end),
                          .b = weights[i].gate_proj,
                          .transpose_b = Transposed::yes});
      problems.push_back({.c = ups.row_range(begin, end),
                          .a = xs.row_range(begin, end),
                          .b = weights[i].up_proj,
                          .transpose_b = Transposed::yes});
      problems.push_back({.c = mids.row_range(begin, end),
                          .a = dys.row_range(begin, end),
                          .b = weights[i].down_proj});
    }
    gemm_batch(pool_, problems);

    swiglu(kind, row0, n_rows, width);
    const float* h = rounded_rows(s_.mid, n_rows, width, down_proj, s_.rounded_mid);
    const MatrixView hs = matrix(h, n_rows, width);

    problems.clear();
    std::vector<GemmProblem> second;  // adds to what the first batch wrote
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const ExpertGradients& d = *runs[i].gradients;
      const std::int64_t begin = runs[i].row0 - row0, end = begin + runs[i].n_rows;
      const auto add_gradient = [&](const TensorView& to, const MatrixView& dout,
                                    const MatrixView& in) {
        if (!to) return;
        problems.push_back({.c = matrix(to.data<float>(), to.dim(0), to.dim(1)),
                            .a = dout.row_range(begin, end),
                            .b = in.row_range(begin, end),
                            .transpose_a = Transposed::yes,
                            .beta = 1.0f});
      };
      add_gradient(d.gate_proj, gates, xs);
      add_gradient(d.up_proj, ups, xs);
      add_gradient(d.down_proj, dys, hs);
      if (!a_.dx) continue;
      problems.push_back({.c = dxs.row_range(begin, end),
                          .a = gates.row_range(begin, end),
                          .b = weights[i].gate_proj});
      second.push_back({.c = dxs.row_range(begin, end),
                        .a = ups.row_range(begin, end),
                        .b = weights[i].up_proj,
                        .beta = 1.0f});
    }
    gemm_batch(pool_, problems);
    gemm_batch(pool_, second);
    if (a_.dx) scatter(kind, row0, n_rows);
  }

  void resize(std::int64_t n_rows, std::int64_t width) {
    for (auto* rows : {&s_.x, &s_.dy, &s_.dx}) {
      rows->resize(static_cast<std::size_t>(n_rows * hidden_));
    }
    for (auto* rows : {&s_.gate, &s_.up, &s_.mid}) {
      rows->resize(static_cast<std::size_t>(n_rows * width));
    }
  }

  [[nodiscard]] std::int64_t token_of(Kind kind, std::int64_t row) const {
    return kind == Kind::shared ? row : s_.routing.token[static_cast<std::size_t>(row)];
  }

  void gather(Kind kind, std::int64_t row0, std::int64_t n_rows) {
    dispatch_activation(a_.x.dtype(), [&]<class T>() {
      pool_.parallel_for(n_rows, 32, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t t = token_of(kind, row0 + i);
          copy_row(s_.x.data() + i * hidden_, a_.x.data<const T>() + t * hidden_, hidden_);
          copy_row(s_.dy.data() + i * hidden_, a_.dy.data<const float>() + t * hidden_, hidden_);
        }
      });
    });
  }

  void swiglu(Kind kind, std::int64_t row0, std::int64_t n_rows, std::int64_t width) {
    const bool routed = kind == Kind::routed;
    const float limit = routed ? a_.swiglu_limit : a_.shared_swiglu_limit;
    dispatch_activation(a_.x.dtype(), [&]<class T>() {
      pool_.parallel_for(n_rows, 16, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const auto row = static_cast<std::size_t>(row0 + i);
          const float dweight = swiglu_backward(
              T(), s_.gate.data() + i * width, s_.up.data() + i * width, s_.mid.data() + i * width,
              routed ? s_.routing.weight[row] : 1.0f, limit, width);
          if (routed && a_.dweights) a_.dweights.data<float>()[s_.assignment[row]] = dweight;
        }
      });
    });
  }

  // Every token takes its rows in their order: experts ascending, group after group.
  void scatter(Kind kind, std::int64_t row0, std::int64_t n_rows) {
    auto* dx = a_.dx.data<float>();
    if (kind == Kind::shared) {
      pool_.parallel_for(n_rows, 32, [&](std::int64_t begin, std::int64_t end) {
        add_row(dx + (row0 + begin) * hidden_, s_.dx.data() + begin * hidden_,
                (end - begin) * hidden_);
      });
      return;
    }
    const std::int64_t topk = a_.experts.dim(1);
    pool_.parallel_for(a_.x.dim(0), 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin * topk; i < end * topk; ++i) {
        const std::int64_t row = s_.ascending[static_cast<std::size_t>(i)] - row0;
        if (row < 0 || row >= n_rows) continue;
        add_row(dx + i / topk * hidden_, s_.dx.data() + row * hidden_, hidden_);
      }
    });
  }

  // The rows as the linear `w` multiplied them.
  const float* rounded_rows(std::vector<float>& rows, std::int64_t n_rows, std::int64_t cols,
                            const QuantTensor& w, std::vector<float>& buffer) {
    const TensorView view(reinterpret_cast<std::byte*>(rows.data()), {n_rows, cols}, DType::f32);
    return f32_rows(pool_, view, expert_input_quant(a_.x.dtype(), w), buffer);
  }

  MatrixView widen(const QuantTensor& w, std::vector<float>& buffer) {
    return matrix(f32_rows(pool_, w, buffer), w.rows(), w.cols());
  }
  // Views carry no const: gemm reads a and b only.
  static MatrixView matrix(const float* data, std::int64_t rows, std::int64_t cols) {
    return {const_cast<float*>(data), rows, cols, cols};
  }

  ThreadPool& pool_;
  const MoeExpertsBackwardArgs& a_;
  Scratch& s_;
  std::int64_t hidden_;
};

}  // namespace

void moe_experts_backward(Stream& stream, const MoeExpertsBackwardArgs& a) {
  if (a.x.dim(0) == 0) return;
  thread_local Scratch scratch;
  ExpertsBackward(stream, a, scratch).run();
}

}  // namespace hadal::kernels::cpu
