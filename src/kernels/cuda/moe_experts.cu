// The mixture: sort by expert, gate and up with the activation of both, down, and the sum a token.
//
// Products run over tiles of tokens of one expert, all experts in one launch. Inputs are gathered
// as they are packed for the tensor cores, or as they are read. The shared experts' rows follow the
// routed ones in the buffers of hidden values and of outputs.
#include "kernels/moe.h"

#include <vector>

#include "kernels/cuda/device/expert_rows.cuh"

namespace hadal::kernels::cuda {

namespace {

struct ExpertTables {
  WeightShape gate_shape, down_shape;
  MatrixTable gate, up, down;
};

bool same_storage(const QuantTensor& a, const QuantTensor& b) {
  const auto scale = [](const QuantTensor& w) { return w.scale ? w.scale.dtype() : DType::u8; };
  return a.rows() == b.rows() && a.cols() == b.cols() && a.data.dtype() == b.data.dtype() &&
         scale(a) == scale(b) && a.block == b.block;
}

// One projection of all experts: at a stride when they lie so, else through a staged table.
MatrixTable table_of(Stream& stream, std::span<const ExpertWeights> experts,
                     QuantTensor ExpertWeights::* projection, WeightShape& shape) {
  const QuantTensor& first = experts.front().*projection;
  MatrixTable table;
  table.first = matrix_of(first);
  if (experts.size() > 1) {
    const Matrix second = matrix_of(experts[1].*projection);
    table.data_stride = second.data - table.first.data;
    table.scale_stride = first.scale ? second.scale - table.first.scale : 0;
  }
  bool strided = true;
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const QuantTensor& w = experts[e].*projection;
    HADAL_CHECK(same_storage(w, first));
    const auto i = static_cast<std::int64_t>(e);
    const Matrix m = matrix_of(w);
    strided = strided && m.data == table.first.data + i * table.data_stride &&
              (m.scale == nullptr || m.scale == table.first.scale + i * table.scale_stride);
    shape.aligned = shape.aligned && reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0;
  }
  if (!strided) {
    std::vector<Matrix> all;
    all.reserve(experts.size());
    for (const ExpertWeights& expert : experts) all.push_back(matrix_of(expert.*projection));
    table.all = stream.cuda().stage(std::span<const Matrix>(all));
  }
  return table;
}

ExpertTables tables_of(Stream& stream, std::span<const ExpertWeights> experts) {
  const ExpertWeights& first = experts.front();
  HADAL_CHECK(same_storage(first.gate_proj, first.up_proj));
  ExpertTables t;
  t.gate_shape = weight_shape(first.gate_proj);
  t.down_shape = weight_shape(first.down_proj);
  t.gate = table_of(stream, experts, &ExpertWeights::gate_proj, t.gate_shape);
  t.up = table_of(stream, experts, &ExpertWeights::up_proj, t.gate_shape);
  t.down = table_of(stream, experts, &ExpertWeights::down_proj, t.down_shape);
  return t;
}

// How a linear of an expert rounds its input of type `activation`.
ActivationQuant input_quant(DType activation, const QuantTensor& w) {
  const bool quantised = w.data.dtype() == DType::f8_e4m3 || w.data.dtype() == DType::f4_e2m1;
  return activation == DType::bf16 && quantised ? ActivationQuant::fp8_block128
                                                : ActivationQuant::none;
}

template <class T>
struct Combine {
  T* y;
  const T* outputs;  // [n_routed_rows + n_shared * n_tokens][hidden]
  const std::int32_t* row_of;
  std::int64_t n_routed_rows, n_tokens;
  int hidden, topk, n_shared;
};

template <class T, int kColumns>
struct alignas(kColumns * sizeof(T)) Columns {
  T value[kColumns];
};

constexpr int kCombineThreads = 256;

// Ascending expert, shared last, in f32: the order does not depend on the batch.
template <class T, int kColumns>
__global__ __launch_bounds__(kCombineThreads) void combine_kernel(const Combine<T> a) {
  extern __shared__ std::int32_t rows[];  // [topk] ascending: rows are in expert order
  const std::int64_t token = blockIdx.x;
  const std::int32_t* row_of = a.row_of + token * a.topk;
  for (int k = static_cast<int>(threadIdx.x); k < a.topk; k += kCombineThreads) {
    const std::int32_t row = row_of[k];
    int rank = 0;
    for (int i = 0; i < a.topk; ++i) rank += row_of[i] < row ? 1 : 0;
    rows[rank] = row;
  }
  __syncthreads();
  const int c = (static_cast<int>(blockIdx.y * kCombineThreads + threadIdx.x)) * kColumns;
  if (c >= a.hidden) return;
  using Piece = Columns<T, kColumns>;
  float sum[kColumns] = {};
#pragma unroll 4
  for (int k = 0; k < a.topk + a.n_shared; ++k) {
    const std::int64_t row =
        k < a.topk ? rows[k] : a.n_routed_rows + (k - a.topk) * a.n_tokens + token;
    const Piece piece = *reinterpret_cast<const Piece*>(a.outputs + row * a.hidden + c);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) sum[i] += load(piece.value[i]);
  }
  Piece piece;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) put(piece.value[i], sum[i]);
  *reinterpret_cast<Piece*>(a.y + token * a.hidden + c) = piece;
}

template <class T>
void combine(Stream& stream, const MoeExpertsArgs& a, const Tensor& outputs,
             const std::int32_t* row_of, std::int64_t n_routed_rows) {
  constexpr int kColumns = 16 / sizeof(T);
  const int hidden = static_cast<int>(a.x.dim(1));
  const std::int64_t n_tokens = a.x.dim(0);
  const Combine<T> c{data<T>(a.y),
                     data<const T>(outputs),
                     row_of,
                     n_routed_rows,
                     n_tokens,
                     hidden,
                     a.routed.empty() ? 0 : static_cast<int>(a.experts.dim(1)),
                     static_cast<int>(a.shared.size())};
  const bool wide =
      hidden % kColumns == 0 && reinterpret_cast<std::uintptr_t>(a.y.bytes()) % 16 == 0;
  const Grid grid{dim3(static_cast<unsigned>(n_tokens),
                       blocks_for(hidden, std::int64_t{kCombineThreads} * (wide ? kColumns : 1))),
                  dim3(kCombineThreads), c.topk * 4};
  launch(stream, "moe_combine", wide ? combine_kernel<T, kColumns> : combine_kernel<T, 1>, grid, c);
}

__global__ void add_clamps_kernel(ClampCounts* to, const std::int64_t* counts,
                                  std::int64_t n_values) {
  to->gate_above += counts[0], to->up_above += counts[1], to->up_below += counts[2];
  to->n_values += n_values;
}

class MoeCall {
 public:
  MoeCall(Stream& stream, const MoeExpertsArgs& a) : stream_(stream), a_(a) {}

  void run() {
    const DType dtype = a_.x.dtype();
    const bool routed = !a_.routed.empty(), shared = !a_.shared.empty();
    HADAL_CHECK(routed || shared);
    if (routed) {
      routed_ = tables_of(stream_, a_.routed);
      sort();
    }
    if (shared) shared_ = tables_of(stream_, a_.shared);
    width_ = (routed ? routed_ : shared_).gate_shape.rows;
    if (routed && shared) HADAL_CHECK(shared_.gate_shape.rows == width_);
    const std::int64_t n_rows =
        n_routed_rows_ + static_cast<std::int64_t>(a_.shared.size()) * n_tokens_;
    if (a_.clamps != nullptr) {
      clamps_ = stream_.cuda().memory().empty({3}, DType::i64);
      stream_.zero(clamps_);
    }
    hidden_ = stream_.cuda().memory().empty({n_rows, width_}, dtype);
    outputs_ = stream_.cuda().memory().empty({n_rows, a_.x.dim(1)}, dtype);
    gate_and_up();
    down();
    dispatch_activation(
        dtype, [&]<class T>() { combine<T>(stream_, a_, outputs_, rows_.row_of, n_routed_rows_); });
    if (a_.clamps != nullptr) count_clamps();
  }

 private:
  void sort() {
    const auto n_experts = static_cast<std::int64_t>(a_.routed.size());
    const std::int64_t mean = a_.experts.numel() / n_experts;
    const ExpertWeights& first = a_.routed.front();
    const bool e4m3 = packing_of_linear(routed_.gate_shape, first.gate_proj) == Packing::e4m3 &&
                      packing_of_linear(routed_.down_shape, first.down_proj) == Packing::e4m3;
    rows_ = sort_by_expert(stream_, a_.experts, a_.weights, n_experts,
                           tile_rows_for(n_tokens_, mean, e4m3));
    n_routed_rows_ = rows_.max_rows;
  }
  // All tokens together are many or few: a shared expert meets them all, a routed one some.
  Packing packing_of_linear(const WeightShape& shape, const QuantTensor& weight) const {
    const DType dtype = a_.x.dtype();
    return packing_of(shape, dtype, input_quant(dtype, weight), n_tokens_ > kMostRowsUnpacked);
  }

  // What the inputs of linears with these weights are made into; one input serves all that want the
  // same.
  struct Input {
    MatmulInput plain;
    PackedInput packed;
    Packing packing = Packing::none;
    ActivationQuant quant = ActivationQuant::none;
  };
  // Rows of x, or with `gather` the routed ones' tokens.
  Input input(const TensorView& x, bool gather, bool routed, const WeightShape& shape,
              const QuantTensor& weight) {
    Input in;
    in.quant = input_quant(x.dtype(), weight);
    in.packing = packing_of_linear(shape, weight);
    if (routed && in.packing == Packing::bf16 && rows_.tile_rows != kTileRows) {
      in.packing = Packing::none;
    }
    if (in.packing == Packing::none) {
      in.plain = matmul_input(stream_, x, 1, in.quant);
    } else {
      PackSource from{.x = x, .n_rows = static_cast<int>(gather ? rows_.max_rows : x.dim(0))};
      if (gather) from.row = rows_.token;
      if (routed) from.n_filled = rows_.expert_row + a_.routed.size();
      in.packed = pack_input(stream_, from, shape.format, in.packing);
    }
    return in;
  }

  Matmul routed_matmul(const WeightShape& shape, const Input& x) const {
    Matmul m = shared_matmul(shape, x);
    m.tiles = rows_.tiles;
    m.n_tiles = rows_.n_tiles;
    m.max_tiles = rows_.max_tiles;
    m.tile_rows = rows_.tile_rows;
    return m;
  }
  Matmul shared_matmul(const WeightShape& shape, const Input& x) const {
    Matmul m;
    m.shape = shape;
    if (x.packing == Packing::none) {
      m.x = x.plain.x;
      m.x_pitch = x.plain.pitch;
    } else {
      x.packed.put_into(m);
    }
    m.x_f32 = m.y_f32 = a_.x.dtype() == DType::f32;
    m.n_rows = static_cast<int>(n_tokens_);
    return m;
  }
  // Those of shared expert s in a buffer.
  [[nodiscard]] Tensor shared_rows(const Tensor& buffer, std::size_t s) const {
    const std::int64_t first = n_routed_rows_ + static_cast<std::int64_t>(s) * n_tokens_;
    return buffer.slice(first, first + n_tokens_);
  }

  void gate_and_up() {
    auto* clamps = clamps_ ? reinterpret_cast<unsigned long long*>(clamps_.bytes()) : nullptr;
    if (!a_.routed.empty()) {
      const Input x = input(a_.x, true, true, routed_.gate_shape, a_.routed.front().gate_proj);
      Matmul m = routed_matmul(routed_.gate_shape, x);
      m.weight = routed_.gate;
      m.up = routed_.up;
      if (x.packing == Packing::none) m.x_row = rows_.token;
      m.y = hidden_.bytes();
      m.y_pitch = width_;
      m.row_weight = rows_.weight;
      m.limit = a_.swiglu_limit;
      m.clamps = m.limit > 0.0f ? clamps : nullptr;
      matmul_swiglu(stream_, m);
    }
    if (a_.shared.empty()) return;
    const Input x = input(a_.x, false, false, shared_.gate_shape, a_.shared.front().gate_proj);
    for (std::size_t s = 0; s < a_.shared.size(); ++s) {
      Matmul m = shared_matmul(shared_.gate_shape, x);
      m.weight.first = matrix_of(a_.shared[s].gate_proj);
      m.up.first = matrix_of(a_.shared[s].up_proj);
      m.y = shared_rows(hidden_, s).bytes();
      m.y_pitch = width_;
      m.limit = a_.shared_swiglu_limit;
      m.clamps = m.limit > 0.0f ? clamps : nullptr;
      matmul_swiglu(stream_, m);
    }
  }

  void down() {
    const std::int64_t hidden = a_.x.dim(1);
    if (!a_.routed.empty()) {
      const Input x = input(hidden_.slice(0, n_routed_rows_), false, true, routed_.down_shape,
                            a_.routed.front().down_proj);
      Matmul m = routed_matmul(routed_.down_shape, x);
      m.weight = routed_.down;
      m.y = outputs_.bytes();
      m.y_pitch = hidden;
      matmul(stream_, m);
    }
    for (std::size_t s = 0; s < a_.shared.size(); ++s) {
      const Input x = input(shared_rows(hidden_, s), false, false, shared_.down_shape,
                            a_.shared.front().down_proj);
      Matmul m = shared_matmul(shared_.down_shape, x);
      m.weight.first = matrix_of(a_.shared[s].down_proj);
      m.y = shared_rows(outputs_, s).bytes();
      m.y_pitch = hidden;
      matmul(stream_, m);
    }
  }

  void count_clamps() {
    const auto n_shared = static_cast<std::int64_t>(a_.shared.size());
    const std::int64_t n_values =
        (a_.swiglu_limit > 0.0f ? a_.experts.numel() * width_ : 0) +
        (a_.shared_swiglu_limit > 0.0f ? n_shared * n_tokens_ * width_ : 0);
    launch(stream_, "moe_experts", add_clamps_kernel, {dim3(1), dim3(1)}, a_.clamps,
           static_cast<const std::int64_t*>(data<std::int64_t>(clamps_)), n_values);
  }

  Stream& stream_;
  const MoeExpertsArgs& a_;
  std::int64_t n_tokens_ = a_.x.dim(0), width_ = 0, n_routed_rows_ = 0;
  ExpertTables routed_, shared_;
  ExpertRows rows_;
  Tensor hidden_, outputs_, clamps_;  // [n_rows, width], [n_rows, hidden], [3]
};

}  // namespace

void moe_experts(Stream& stream, const MoeExpertsArgs& a) {
  if (a.x.dim(0) == 0) return;
  HADAL_CHECK(a.x.dim(0) <= INT32_MAX);
  MoeCall(stream, a).run();
}

}  // namespace hadal::kernels::cuda
