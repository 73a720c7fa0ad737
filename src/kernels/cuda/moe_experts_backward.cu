// Assignments are sorted by expert on the device; the host reads how many each expert has (one wait
// a call) and gives every expert its products. Rows are gathered once, for as many experts at a
// time as memory is for; a token's rows are added to its dx in the order of the experts.
//
// bf16 operands: gate, up and hidden rows have the values of the forward; dy and the gradients that
// go from product to product are rounded to bf16, sums are f32.
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/gradient_rows.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/operands.h"
#include "kernels/moe.h"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kMaxTopk = 128;
// What the gathered rows of a group of experts, and its widened weights, may take.
constexpr std::int64_t kRowBytes = std::int64_t{2} << 30;
constexpr std::int64_t kWidenedElements = std::int64_t{1} << 28;

// A block a row: the token's x and dy, zeros in the padding.
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

struct SwigluRows {
  const std::int32_t* assignment;  // null: weight 1 and no gradient of it
  const float* weights;
  float* dweights;  // null: not wanted
  std::int64_t n_rows;
  int width;
  float limit;  // 0: none
};

// From gate, up and the gradient `mid` of the hidden row, in place: gate and up become their own
// gradients, mid the hidden row that forward multiplied with down_proj. One warp a row.
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

// Adds the rows [row0, row0 + n_rows) of dxs to the dx of their tokens, rows ascending.
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(float* dx, const float* dxs, const std::int32_t* row_of, std::int64_t row0,
                   std::int64_t n_rows, int topk, int hidden, bool first) {
  __shared__ std::int32_t own[kMaxTopk], ascending[kMaxTopk];
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

// Rows [row0, row0 + n_rows) of the sorted assignments, or all tokens for a shared expert.
struct Run {
  const ExpertWeights* weights;
  const ExpertGradients* gradients;
  std::int64_t row0, n_rows;
};

// Gathered rows, all of `type`.
struct Rows {
  Operand x, dy;
  std::byte *gate, *up, *mid;
};

class ExpertsBackward {
 public:
  ExpertsBackward(Stream& stream, const MoeExpertsBackwardArgs& a)
      : stream_(stream), queue_(stream.cuda()), a_(a), hidden_(a.x.dim(1)) {}

  void run() {
    bool dx_written = false;
    if (!a_.routed.empty() && a_.experts.numel() > 0) {
      width_of(a_.routed);
      const std::vector<std::int64_t> first_row = sort();
      dx_written = routed(first_row);
    }
    if (a_.dx && !dx_written) queue_.zero(a_.dx.bytes(), a_.dx.nbytes());
    // One after another, so that a token's sum has one order.
    for (std::size_t i = 0; i < a_.shared.size(); ++i) {
      width_of(a_.shared.subspan(i, 1));
      shared(a_.shared[i], a_.dshared[i]);
    }
  }

 private:
  void width_of(std::span<const ExpertWeights> experts) {
    const ExpertWeights& e = experts.front();
    width_ = e.gate_proj.rows();
    type_ = operand_type(a_.x.dtype(), e.gate_proj) == DType::bf16 &&
                    operand_type(a_.x.dtype(), e.down_proj) == DType::bf16
                ? DType::bf16
                : DType::f32;
    item_ = type_ == DType::f32 ? 4 : 2;
  }
  [[nodiscard]] ActivationQuant quant_of(const QuantTensor& w) const {
    const DType stored = w.data.dtype();
    return a_.x.dtype() == DType::bf16 && (stored == DType::f8_e4m3 || stored == DType::f4_e2m1)
               ? ActivationQuant::fp8_block128
               : ActivationQuant::none;
  }

  // Fills assignment_ and row_of_; returns the first row of each expert, and their number.
  std::vector<std::int64_t> sort() {
    const std::int64_t n = a_.experts.numel(), n_experts = std::ssize(a_.routed);
    HADAL_CHECK(n < INT32_MAX - n_experts * kRowPad);
    if (a_.experts.dim(1) > kMaxTopk) {
      throw Error(ErrorCode::unsupported,
                  "moe_experts_backward: " + std::to_string(a_.experts.dim(1)) +
                      " experts a token; the GPU's kernel takes at most " +
                      std::to_string(kMaxTopk));
    }
    const auto* experts = data<const std::int32_t>(a_.experts);
    const Tensor counted = queue_.memory().empty({n_experts}, DType::i32);
    launch(stream_, "count_assignments", gradient_rows::count_kernel,
           {dim3(static_cast<unsigned>(n_experts)), dim3(gradient_rows::kThreads)},
           data<std::int32_t>(counted), experts, static_cast<std::int32_t>(n));
    std::vector<std::int32_t> counts(static_cast<std::size_t>(n_experts));
    queue_.download(counted.bytes(), counts.data(), counted.nbytes());
    if (std::accumulate(counts.begin(), counts.end(), std::int64_t{0}) != n) {
      throw Error(ErrorCode::invalid_argument,
                  "moe_experts_backward: a token is routed to an expert outside [0, " +
                      std::to_string(n_experts) + ")");
    }
    std::vector<std::int32_t> first(static_cast<std::size_t>(n_experts + 1), 0);
    for (std::size_t e = 0; e < counts.size(); ++e) {
      first[e + 1] = first[e] + static_cast<std::int32_t>(ceil_div(counts[e], kRowPad) * kRowPad);
    }
    assignment_ = queue_.memory().empty({first.back()}, DType::i32);
    row_of_ = queue_.memory().empty({n}, DType::i32);
    launch(stream_, "place_assignments", gradient_rows::place_kernel,
           {dim3(static_cast<unsigned>(n_experts)), dim3(gradient_rows::kThreads)},
           gradient_rows::Sorted{data<std::int32_t>(assignment_), data<std::int32_t>(row_of_)},
           queue_.stage(std::span<const std::int32_t>(first)), experts,
           static_cast<std::int32_t>(n));
    return {first.begin(), first.end()};
  }

  // Groups of neighbouring runs, as far as memory reaches. Whether dx was written.
  bool routed(const std::vector<std::int64_t>& first_row) {
    const std::int64_t row_bytes = hidden_ * (3 * item_ + 4) + width_ * 4 * item_;
    const std::int64_t max_rows = std::max(kRowPad, kRowBytes / row_bytes / kRowPad * kRowPad);
    std::vector<Run> runs;
    for (std::size_t e = 0; e < a_.routed.size(); ++e) {
      for (std::int64_t row = first_row[e]; row < first_row[e + 1]; row += max_rows) {
        runs.push_back(
            {&a_.routed[e], &a_.drouted[e], row, std::min(max_rows, first_row[e + 1] - row)});
      }
    }
    bool first = true;
    std::size_t begin = 0;
    std::int64_t rows = 0, widened = 0;
    for (std::size_t i = 0; i <= runs.size(); ++i) {
      const bool end = i == runs.size();
      const std::int64_t more_widened =
          end || runs[i].weights->gate_proj.data.dtype() == type_ ? 0 : 3 * width_ * hidden_;
      if (i > begin &&
          (end || rows + runs[i].n_rows > max_rows || widened + more_widened > kWidenedElements)) {
        group(std::span(runs).subspan(begin, i - begin), rows, first);
        first = false, begin = i, rows = 0, widened = 0;
      }
      if (!end) rows += runs[i].n_rows, widened += more_widened;
    }
    return !first;
  }

  void group(std::span<const Run> runs, std::int64_t n_rows, bool first) {
    const std::int64_t row0 = runs.front().row0;
    const auto* assignment = data<const std::int32_t>(assignment_) + row0;
    const auto topk = static_cast<int>(a_.experts.dim(1)), hidden = static_cast<int>(hidden_);
    const Tensor xs = queue_.memory().empty({n_rows, hidden_}, type_);
    const Tensor dys = queue_.memory().empty({n_rows, hidden_}, type_);
    dispatch_activation(a_.x.dtype(), [&]<class T>() {
      dispatch_activation(type_, [&]<class C>() {
        launch(stream_, "gather_expert_rows", gather_kernel<T, C>,
               {dim3(static_cast<unsigned>(n_rows)), dim3(kThreads)}, data<C>(xs), data<C>(dys),
               data<const T>(a_.x), data<const float>(a_.dy), assignment, topk, hidden);
      });
    });
    Rows rows;
    rows.x = rows_operand(stream_, xs, quant_of(runs.front().weights->gate_proj), type_);
    rows.dy = {dys.bytes(), dys};
    const Tensor dxs = a_.dx ? queue_.scratch(n_rows * hidden_ * 4) : Tensor();
    const SwigluRows swiglu{.assignment = assignment,
                            .weights = data<const float>(a_.weights),
                            .dweights = a_.dweights ? data<float>(a_.dweights) : nullptr,
                            .n_rows = n_rows,
                            .width = static_cast<int>(width_),
                            .limit = a_.swiglu_limit};
    multiply(runs, rows, swiglu, a_.dx ? reinterpret_cast<float*>(dxs.bytes()) : nullptr, 0.0f);
    if (!a_.dx) return;
    launch(stream_, "scatter_expert_rows", scatter_kernel,
           {dim3(static_cast<unsigned>(a_.x.dim(0))), dim3(kThreads)}, data<float>(a_.dx),
           reinterpret_cast<const float*>(dxs.bytes()), data<const std::int32_t>(row_of_), row0,
           n_rows, topk, hidden, first);
  }

  // Tokens are its rows, and its dx goes to where the sum is.
  void shared(const ExpertWeights& weights, const ExpertGradients& gradients) {
    const std::int64_t n_tokens = a_.x.dim(0);
    const std::int64_t row_bytes = hidden_ * 2 * item_ + width_ * 4 * item_;
    const std::int64_t max_rows = std::max(kRowPad, kRowBytes / row_bytes / kRowPad * kRowPad);
    for (std::int64_t t0 = 0; t0 < n_tokens; t0 += max_rows) {
      const std::int64_t t1 = std::min(n_tokens, t0 + max_rows);
      Rows rows;
      rows.x = rows_operand(stream_, a_.x.slice(t0, t1), quant_of(weights.gate_proj), type_);
      rows.dy = rows_operand(stream_, a_.dy.slice(t0, t1), ActivationQuant::none, type_);
      const SwigluRows swiglu{.assignment = nullptr,
                              .weights = nullptr,
                              .dweights = nullptr,
                              .n_rows = t1 - t0,
                              .width = static_cast<int>(width_),
                              .limit = a_.shared_swiglu_limit};
      const Run run{&weights, &gradients, t0, t1 - t0};
      multiply(std::span(&run, 1), rows, swiglu,
               a_.dx ? data<float>(a_.dx) + t0 * hidden_ : nullptr, 1.0f);
    }
  }

  // All products of some runs. dx = dx_beta * dx + gradients of their rows.
  void multiply(std::span<const Run> runs, Rows& rows, const SwigluRows& swiglu, float* dx,
                float dx_beta) {
    const std::int64_t row0 = runs.front().row0, n_rows = swiglu.n_rows;
    const Tensor gate = queue_.memory().empty({n_rows, width_}, type_);
    const Tensor up = queue_.memory().empty({n_rows, width_}, type_);
    const Tensor mid = queue_.memory().empty({n_rows, width_}, type_);
    rows.gate = gate.bytes(), rows.up = up.bytes(), rows.mid = mid.bytes();
    std::vector<const QuantTensor*> list[3];
    for (const Run& run : runs) {
      list[0].push_back(&run.weights->gate_proj);
      list[1].push_back(&run.weights->up_proj);
      list[2].push_back(&run.weights->down_proj);
    }
    std::vector<Operand> weights[3];
    for (int i = 0; i < 3; ++i) weights[i] = weight_operands(stream_, list[i], type_);

    for (std::size_t i = 0; i < runs.size(); ++i) {
      const std::int64_t at = runs[i].row0 - row0, n = runs[i].n_rows;
      const Gemm::Matrix x = part(rows.x.data, at, hidden_), dy = part(rows.dy.data, at, hidden_);
      forward(part(rows.gate, at, width_), x, stored(weights[0][i].data, hidden_, true), n, type_);
      forward(part(rows.up, at, width_), x, stored(weights[1][i].data, hidden_, true), n, type_);
      forward(part(rows.mid, at, width_), dy, stored(weights[2][i].data, width_, false), n, type_);
    }
    dispatch_activation(a_.x.dtype(), [&]<class T>() {
      dispatch_activation(type_, [&]<class C>() {
        launch(stream_, "swiglu_backward", swiglu_backward_kernel<T, C>,
               {dim3(blocks_for(n_rows, kThreads / 32)), dim3(kThreads)}, data<C>(gate),
               data<C>(up), data<C>(mid), swiglu);
      });
    });
    const Operand h = rows_operand(stream_, mid, quant_of(runs.front().weights->down_proj), type_);
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const std::int64_t at = runs[i].row0 - row0, n = runs[i].n_rows;
      const ExpertGradients& d = *runs[i].gradients;
      const Gemm::Matrix x = part(rows.x.data, at, hidden_), dy = part(rows.dy.data, at, hidden_);
      const Gemm::Matrix dgate = part(rows.gate, at, width_), dup = part(rows.up, at, width_);
      add_gradient(d.gate_proj, dgate, x, n);
      add_gradient(d.up_proj, dup, x, n);
      add_gradient(d.down_proj, dy, part(h.data, at, width_), n);
      if (dx == nullptr) continue;
      const Gemm::Matrix to{.data = dx + at * hidden_, .ld = hidden_};
      backward(to, dgate, stored(weights[0][i].data, hidden_, false), n, dx_beta);
      backward(to, dup, stored(weights[1][i].data, hidden_, false), n, 1.0f);
    }
  }

  [[nodiscard]] Gemm::Matrix part(void* rows, std::int64_t at, std::int64_t cols) const {
    return {.data = static_cast<std::byte*>(rows) + at * cols * item_, .ld = cols};
  }
  static Gemm::Matrix stored(void* weight, std::int64_t cols, bool transposed) {
    return {
        .data = weight, .ld = cols, .transposed = transposed ? Transposed::yes : Transposed::no};
  }
  // [n, hidden] to [n, width].
  void forward(const Gemm::Matrix& out, const Gemm::Matrix& in, const Gemm::Matrix& weight,
               std::int64_t n, DType result) {
    gemm(stream_, {.out = out,
                   .a = in,
                   .b = weight,
                   .m = n,
                   .n = width_,
                   .k = hidden_,
                   .operands = type_,
                   .result = result});
  }
  // [n, width] to [n, hidden].
  void backward(const Gemm::Matrix& out, const Gemm::Matrix& in, const Gemm::Matrix& weight,
                std::int64_t n, float beta) {
    gemm(stream_, {.out = out,
                   .a = in,
                   .b = weight,
                   .m = n,
                   .n = hidden_,
                   .k = width_,
                   .operands = type_,
                   .beta = beta});
  }
  // to += dout' in, of n rows.
  void add_gradient(const TensorView& to, Gemm::Matrix dout, const Gemm::Matrix& in,
                    std::int64_t n) {
    if (!to) return;
    dout.transposed = Transposed::yes;
    gemm(stream_, {.out = {.data = to.bytes(), .ld = to.dim(1)},
                   .a = dout,
                   .b = in,
                   .m = to.dim(0),
                   .n = to.dim(1),
                   .k = n,
                   .operands = type_,
                   .beta = 1.0f});
  }

  Stream& stream_;
  hadal::cuda::Queue& queue_;
  const MoeExpertsBackwardArgs& a_;
  std::int64_t hidden_, width_ = 0, item_ = 4;
  DType type_ = DType::f32;
  Tensor assignment_, row_of_;
};

}  // namespace

void moe_experts_backward(Stream& stream, const MoeExpertsBackwardArgs& a) {
  if (a.x.dim(0) == 0) return;
  ExpertsBackward(stream, a).run();
}

}  // namespace hadal::kernels::cuda
