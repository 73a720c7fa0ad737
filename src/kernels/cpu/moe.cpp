#include "kernels/moe.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/dot.h"
#include "kernels/cpu/expert_rows.h"
#include "kernels/cpu/router_score.h"
#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

// One expert's share of the call: rows [row0, row0 + n_rows) of the permuted activations.
struct ExpertRun {
  const ExpertWeights* weights;
  const ActivationPanel* panel;
  std::int64_t panel_row;  // where its rows start in the panel
  std::int64_t row0;       // and in the permuted buffers
  std::int64_t n_rows;
  const float* row_weights;  // [n_rows], or null for weight 1
  float limit;
};

// Cuts the output rows of every run into pieces of similar work.
struct Piece {
  std::int64_t run, n0, n1;
};
std::vector<Piece> cut(const std::vector<ExpertRun>& runs, std::int64_t rows, std::int64_t cols,
                       const ThreadPool& pool) {
  constexpr std::int64_t kMinMultiplications = 1 << 18;
  std::int64_t work = 0;
  for (const ExpertRun& run : runs) work += run.n_rows * rows * cols;
  const std::int64_t target = std::max(kMinMultiplications, work / (8 * pool.size()));
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    std::int64_t step = std::max<std::int64_t>(1, target / (runs[i].n_rows * cols));
    step = (step + 15) / 16 * 16;
    if (runs[i].n_rows > 1) step = std::min<std::int64_t>(step, 128);
    for (std::int64_t n0 = 0; n0 < rows; n0 += step) {
      pieces.push_back({static_cast<std::int64_t>(i), n0, std::min(rows, n0 + step)});
    }
  }
  return pieces;
}

// h = w * silu(min(gate, limit)) * clamp(up, -limit, limit) in f32 from rounded gate and up.
template <class T>
HADAL_SIMD_INLINE void swiglu_as(T* h, const float* gate, const float* up, float weight,
                                 float limit, std::int64_t n) {
  const float cap = limit > 0.0f ? limit : INFINITY;
  for (std::int64_t i = 0; i < n; ++i) {
    const float g0 = rounded<T>(gate[i]), u0 = rounded<T>(up[i]);
    const float g = g0 > cap ? cap : g0;
    const float u1 = u0 > cap ? cap : u0;
    const float u = u1 < -cap ? -cap : u1;
    put(h[i], weight * (g * (1.0f / (1.0f + exp_f32(-g))) * u));
  }
}
HADAL_SIMD_CLONES void swiglu(float* h, const float* gate, const float* up, float weight,
                              float limit, std::int64_t n) {
  swiglu_as(h, gate, up, weight, limit, n);
}
HADAL_SIMD_CLONES void swiglu(bf16* h, const float* gate, const float* up, float weight,
                              float limit, std::int64_t n) {
  swiglu_as(h, gate, up, weight, limit, n);
}

template <class T>
ClampCounts count_clamps(const float* gate, const float* up, float limit, std::int64_t n) {
  ClampCounts c{.n_values = n};
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = rounded<T>(gate[i]), u = rounded<T>(up[i]);
    c.gate_above += g > limit ? 1 : 0;
    c.up_above += u > limit ? 1 : 0;
    c.up_below += u < -limit ? 1 : 0;
  }
  return c;
}

// Kept from call to call: a decode step must not allocate.
template <class T>
struct MoeScratch {
  ExpertRows routing;
  ActivationPanel routed_in, shared_in, routed_mid, shared_mid;
  std::vector<T> hidden, out;  // [n_rows, width], [n_rows, hidden]
};

template <class T>
class MoeCall {
 public:
  MoeCall(Stream& stream, const MoeExpertsArgs& a, MoeScratch<T>& scratch)
      : stream_(stream), a_(a), scratch_(scratch) {}

  void run() {
    sort_by_expert(a_.experts, a_.weights, static_cast<std::int64_t>(a_.routed.size()), routing_);
    gather();
    hidden_.resize(static_cast<std::size_t>(n_rows_ * width_));
    out_.resize(static_cast<std::size_t>(n_rows_ * a_.x.dim(1)));
    gate_and_up();
    down();
    combine();
  }

 private:
  // Panels of the inputs: routed rows in expert order, then every token for the shared experts.
  void gather() {
    width_ = (a_.routed.empty() ? a_.shared : a_.routed).front().gate_proj.rows();
    n_rows_ = 0;
    if (!a_.routed.empty()) {
      const QuantTensor& w = a_.routed.front().gate_proj;
      routed_in_.prepare_gather(stream_.pool(), a_.x, routing_.token, rows_of(w),
                                expert_input_quant(a_.x.dtype(), w));
      for (std::size_t e = 0; e < a_.routed.size(); ++e) {
        const std::int64_t row0 = routing_.expert_row[e], n = routing_.expert_row[e + 1] - row0;
        if (n == 0) continue;
        runs_.push_back({&a_.routed[e], &routed_in_, row0, row0, n, routing_.weight.data() + row0,
                         a_.swiglu_limit});
      }
      n_rows_ = static_cast<std::int64_t>(routing_.token.size());
    }
    n_routed_runs_ = runs_.size();
    for (const ExpertWeights& shared : a_.shared) {
      const QuantTensor& w = shared.gate_proj;
      HADAL_CHECK(w.rows() == width_);
      shared_in_.prepare(stream_.pool(), a_.x, rows_of(w), expert_input_quant(a_.x.dtype(), w));
      runs_.push_back(
          {&shared, &shared_in_, 0, n_rows_, a_.x.dim(0), nullptr, a_.shared_swiglu_limit});
      n_rows_ += a_.x.dim(0);
    }
  }

  void gate_and_up() {
    const std::int64_t hidden = a_.x.dim(1);
    const std::vector<Piece> pieces = cut(runs_, width_, 2 * hidden, stream_.pool());
    std::vector<ClampCounts> clamps(a_.clamps != nullptr ? pieces.size() : 0);
    stream_.pool().parallel_for(size(pieces), 1, [&](std::int64_t i0, std::int64_t i1) {
      thread_local std::vector<float> gate, up;
      for (std::int64_t i = i0; i < i1; ++i) {
        const Piece& piece = pieces[static_cast<std::size_t>(i)];
        const ExpertRun& run = runs_[static_cast<std::size_t>(piece.run)];
        const std::int64_t n = piece.n1 - piece.n0;
        gate.resize(static_cast<std::size_t>(run.n_rows * n));
        up.resize(gate.size());
        dot_rows(*run.panel, run.panel_row, run.panel_row + run.n_rows,
                 rows_of(run.weights->gate_proj), piece.n0, piece.n1, gate.data(), n);
        dot_rows(*run.panel, run.panel_row, run.panel_row + run.n_rows,
                 rows_of(run.weights->up_proj), piece.n0, piece.n1, up.data(), n);
        for (std::int64_t m = 0; m < run.n_rows; ++m) {
          swiglu(hidden_.data() + (run.row0 + m) * width_ + piece.n0, gate.data() + m * n,
                 up.data() + m * n, run.row_weights != nullptr ? run.row_weights[m] : 1.0f,
                 run.limit, n);
        }
        if (!clamps.empty() && run.limit > 0.0f) {
          clamps[static_cast<std::size_t>(i)] =
              count_clamps<T>(gate.data(), up.data(), run.limit, run.n_rows * n);
        }
      }
    });
    for (const ClampCounts& c : clamps) *a_.clamps += c;
  }

  void down() {
    const std::int64_t hidden = a_.x.dim(1);
    const auto prepare = [&](ActivationPanel& panel, std::size_t run_index, std::int64_t row0,
                             std::int64_t n) {
      if (n == 0) return;
      const QuantTensor& w = runs_[run_index].weights->down_proj;
      const TensorView rows(reinterpret_cast<std::byte*>(hidden_.data() + row0 * width_),
                            {n, width_}, DTypeOf<T>::value);
      panel.prepare(stream_.pool(), rows, rows_of(w), expert_input_quant(a_.x.dtype(), w));
    };
    const auto n_routed_rows = static_cast<std::int64_t>(routing_.token.size());
    if (n_routed_runs_ > 0) prepare(routed_mid_, 0, 0, n_routed_rows);
    if (runs_.size() > n_routed_runs_) {
      prepare(shared_mid_, n_routed_runs_, n_routed_rows, n_rows_ - n_routed_rows);
    }
    const std::vector<Piece> pieces = cut(runs_, hidden, width_, stream_.pool());
    stream_.pool().parallel_for(size(pieces), 1, [&](std::int64_t i0, std::int64_t i1) {
      thread_local std::vector<float> buffer;
      for (std::int64_t i = i0; i < i1; ++i) {
        const Piece& piece = pieces[static_cast<std::size_t>(i)];
        const bool routed = static_cast<std::size_t>(piece.run) < n_routed_runs_;
        const ExpertRun& run = runs_[static_cast<std::size_t>(piece.run)];
        const std::int64_t n = piece.n1 - piece.n0;
        const std::int64_t m0 = routed ? run.row0 : run.row0 - n_routed_rows;
        buffer.resize(static_cast<std::size_t>(run.n_rows * n));
        dot_rows(routed ? routed_mid_ : shared_mid_, m0, m0 + run.n_rows,
                 rows_of(run.weights->down_proj), piece.n0, piece.n1, buffer.data(), n);
        for (std::int64_t m = 0; m < run.n_rows; ++m) {
          T* y = out_.data() + (run.row0 + m) * hidden + piece.n0;
          for (std::int64_t k = 0; k < n; ++k)
            put(y[k], buffer[static_cast<std::size_t>(m * n + k)]);
        }
      }
    });
  }

  // Ascending expert, shared last, in f32: the order does not depend on the batch.
  void combine() {
    const std::int64_t hidden = a_.x.dim(1), n_tokens = a_.x.dim(0);
    const std::int64_t topk = a_.routed.empty() ? 0 : a_.experts.dim(1);
    const auto n_routed_rows = static_cast<std::int64_t>(routing_.token.size());
    stream_.pool().parallel_for(n_tokens, 8, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> sum(static_cast<std::size_t>(hidden));
      std::vector<std::int32_t> rows;
      for (std::int64_t t = begin; t < end; ++t) {
        rows.assign(routing_.row_of.begin() + t * topk, routing_.row_of.begin() + (t + 1) * topk);
        std::sort(rows.begin(), rows.end());  // rows are in expert order
        for (std::size_t s = 0; s < a_.shared.size(); ++s) {
          rows.push_back(static_cast<std::int32_t>(n_routed_rows +
                                                   static_cast<std::int64_t>(s) * n_tokens + t));
        }
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (const std::int32_t row : rows) {
          const T* from = out_.data() + row * hidden;
          for (std::int64_t i = 0; i < hidden; ++i)
            sum[static_cast<std::size_t>(i)] += load(from[i]);
        }
        T* y = a_.y.data<T>() + t * hidden;
        for (std::int64_t i = 0; i < hidden; ++i) put(y[i], sum[static_cast<std::size_t>(i)]);
      }
    });
  }

  static std::int64_t size(const std::vector<Piece>& v) {
    return static_cast<std::int64_t>(v.size());
  }

  Stream& stream_;
  const MoeExpertsArgs& a_;
  std::int64_t width_ = 0, n_rows_ = 0;
  std::size_t n_routed_runs_ = 0;
  std::vector<ExpertRun> runs_;
  // The caller's scratch by its own names; inside a loop another thread must see this one.
  MoeScratch<T>& scratch_;
  ExpertRows& routing_ = scratch_.routing;
  ActivationPanel& routed_in_ = scratch_.routed_in;
  ActivationPanel& shared_in_ = scratch_.shared_in;
  ActivationPanel& routed_mid_ = scratch_.routed_mid;
  ActivationPanel& shared_mid_ = scratch_.shared_mid;
  std::vector<T>& hidden_ = scratch_.hidden;
  std::vector<T>& out_ = scratch_.out;
};

}  // namespace

void moe_route(Stream& stream, const MoeRouteArgs& a) {
  const std::int64_t n_experts = a.logits.dim(1), topk = a.experts.dim(1);
  stream.pool().parallel_for(a.logits.dim(0), 32, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scores(static_cast<std::size_t>(n_experts)), biased(scores.size());
    for (std::int64_t t = begin; t < end; ++t) {
      const float* logits = a.logits.data<const float>() + t * n_experts;
      auto* experts = a.experts.data<std::int32_t>() + t * topk;
      auto* weights = a.weights.data<float>() + t * topk;
      for (std::int64_t e = 0; e < n_experts; ++e) {
        scores[static_cast<std::size_t>(e)] = sqrt_softplus(logits[e]);
      }
      if (a.forced) {
        std::copy_n(a.forced.data<const std::int32_t>() + t * topk, topk, experts);
      } else if (a.expert_table) {
        const std::int32_t id = a.token_ids.data<const std::int32_t>()[t];
        std::copy_n(a.expert_table.data<const std::int32_t>() + id * topk, topk, experts);
      } else {
        const auto* bias = a.bias.data<const float>();
        for (std::size_t e = 0; e < scores.size(); ++e) biased[e] = scores[e] + bias[e];
        for (std::int64_t k = 0; k < topk; ++k) {  // max_element returns the first: the lower id
          const auto best = std::max_element(biased.begin(), biased.end());
          experts[k] = static_cast<std::int32_t>(best - biased.begin());
          *best = -INFINITY;
        }
      }
      float sum = 0.0f;
      for (std::int64_t k = 0; k < topk; ++k) {
        weights[k] = scores[static_cast<std::size_t>(experts[k])];
        sum += weights[k];
      }
      for (std::int64_t k = 0; k < topk; ++k) {
        weights[k] = weights[k] / sum * a.routed_scaling_factor;
      }
    }
  });
}

void moe_experts(Stream& stream, const MoeExpertsArgs& a) {
  if (a.x.dim(0) == 0) return;
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    thread_local MoeScratch<T> scratch;
    MoeCall<T>(stream, a, scratch).run();
  });
}

}  // namespace hadal::kernels::cpu
