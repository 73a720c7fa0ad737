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
#include "kernels/cuda/device/gradient_rows.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/moe_backward_rows.h"
#include "kernels/cuda/operands.h"
#include "kernels/moe.h"

namespace hadal::kernels::cuda {

namespace {

// What the gathered rows of a group of experts, and its widened weights, may take.
constexpr std::int64_t kRowBytes = std::int64_t{2} << 30;
constexpr std::int64_t kWidenedElements = std::int64_t{1} << 28;

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
    if (a_.experts.dim(1) > kMaxGradientTopk) {
      throw Error(ErrorCode::unsupported,
                  "moe_experts_backward: " + std::to_string(a_.experts.dim(1)) +
                      " experts a token; the GPU's kernel takes at most " +
                      std::to_string(kMaxGradientTopk));
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

  // Groups of neighbouring runs, as far as memory reaches; an expert whose rows take several runs
  // has one in a group, since all but its last fill one. Whether dx was written.
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
    const std::int64_t topk = a_.experts.dim(1);
    const Tensor xs = queue_.memory().empty({n_rows, hidden_}, type_);
    const Tensor dys = queue_.memory().empty({n_rows, hidden_}, type_);
    gather_expert_rows(stream_, xs, dys, a_.x, a_.dy, assignment, topk);
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
    scatter_expert_rows(stream_, a_.dx, reinterpret_cast<const float*>(dxs.bytes()), row_of_, row0,
                        n_rows, topk, first);
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

    // A shared expert has one product of each kind; so does everybody in f32, one after another.
    const bool grouped = type_ == DType::bf16 && swiglu.assignment != nullptr;
    if (grouped) {
      first_products(runs, rows, weights);
    } else {
      for (std::size_t i = 0; i < runs.size(); ++i) {
        const std::int64_t at = runs[i].row0 - row0, n = runs[i].n_rows;
        const Gemm::Matrix x = part(rows.x.data, at, hidden_), dy = part(rows.dy.data, at, hidden_);
        forward(part(rows.gate, at, width_), x, stored(weights[0][i].data, hidden_, true), n);
        forward(part(rows.up, at, width_), x, stored(weights[1][i].data, hidden_, true), n);
        forward(part(rows.mid, at, width_), dy, stored(weights[2][i].data, width_, false), n);
      }
    }
    swiglu_backward(stream_, gate, up, mid, a_.x.dtype(), swiglu);
    const Operand h = rows_operand(stream_, mid, quant_of(runs.front().weights->down_proj), type_);
    if (grouped) return second_products(runs, rows, h.data, weights, dx);
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

  // gate, up and mid of all runs, on tensor cores.
  void first_products(std::span<const Run> runs, const Rows& rows,
                      const std::vector<Operand> (&weights)[3]) {
    std::vector<GroupedProblem> forwards, backwards;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const std::int64_t at = runs[i].row0 - runs.front().row0;
      const void* const x = part(rows.x.data, at, hidden_).data;
      const auto problem = [&](void* out, const void* in, int w, std::int64_t ldb) {
        return GroupedProblem{.pairs = {{{in, weights[w][i].data}}},
                              .out = part(out, at, width_).data,
                              .m = size(runs[i].n_rows),
                              .n = size(width_),
                              .k = size(hidden_),
                              .lda = size(hidden_),
                              .ldb = size(ldb),
                              .ldc = size(width_)};
      };
      forwards.push_back(problem(rows.gate, x, 0, hidden_));
      forwards.push_back(problem(rows.up, x, 1, hidden_));
      backwards.push_back(problem(rows.mid, part(rows.dy.data, at, hidden_).data, 2, width_));
    }
    grouped_gemm(stream_, forwards, {.b = Transposed::yes, .result = DType::bf16});
    grouped_gemm(stream_, backwards, {.result = DType::bf16});
  }

  // The gradients of the weights, and those of the rows where dx is.
  void second_products(std::span<const Run> runs, const Rows& rows, void* h,
                       const std::vector<Operand> (&weights)[3], float* dx) {
    std::vector<GroupedProblem> of_weights, of_rows;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const std::int64_t at = runs[i].row0 - runs.front().row0;
      const std::int32_t n = size(runs[i].n_rows);
      const auto row = [&](void* data, std::int64_t cols) { return part(data, at, cols).data; };
      const auto add = [&](const TensorView& to, const void* dout, const void* in) {
        if (!to) return;
        const std::int32_t m = size(to.dim(0)), cols = size(to.dim(1));
        of_weights.push_back({.pairs = {{{dout, in}}},
                              .out = to.bytes(),
                              .m = m,
                              .n = cols,
                              .k = n,
                              .lda = m,
                              .ldb = cols,
                              .ldc = cols});
      };
      const ExpertGradients& d = *runs[i].gradients;
      add(d.gate_proj, row(rows.gate, width_), row(rows.x.data, hidden_));
      add(d.up_proj, row(rows.up, width_), row(rows.x.data, hidden_));
      add(d.down_proj, row(rows.dy.data, hidden_), row(h, width_));
      if (dx == nullptr) continue;
      of_rows.push_back({.pairs = {{{row(rows.gate, width_), weights[0][i].data},
                                    {row(rows.up, width_), weights[1][i].data}}},
                         .n_pairs = 2,
                         .out = dx + at * hidden_,
                         .m = n,
                         .n = size(hidden_),
                         .k = size(width_),
                         .lda = size(width_),
                         .ldb = size(hidden_),
                         .ldc = size(hidden_)});
    }
    grouped_gemm(stream_, of_weights, {.a = Transposed::yes, .add = true});
    grouped_gemm(stream_, of_rows, {});
  }
  static std::int32_t size(std::int64_t n) {
    HADAL_CHECK(n < INT32_MAX);
    return static_cast<std::int32_t>(n);
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
               std::int64_t n) {
    gemm(stream_, {.out = out,
                   .a = in,
                   .b = weight,
                   .m = n,
                   .n = width_,
                   .k = hidden_,
                   .operands = type_,
                   .result = type_});
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
