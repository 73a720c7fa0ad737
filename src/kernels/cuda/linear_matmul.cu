// Which kernel multiplies, and the weights and activations as it wants them. The choice never shows
// in the results: both kernels compute the same chain (device/matmul.cuh).
#include <string>

#include "kernels/cuda/device/matmul_fragment.cuh"
#include "kernels/cuda/device/matmul_launch.cuh"
#include "kernels/cuda/device/reduce.cuh"

namespace hadal::kernels::cuda {

namespace {

// Products wait in shared memory for their sum; with more, too few blocks share a multiprocessor.
constexpr std::int64_t kMostStreamBytes = 112 * 1024;

bool can_stream(const Matmul& m, bool pair) {
  const std::int64_t bytes = stream_shared_bytes(m.shape.cols, kStreamRows / 8);
  return (pair ? 2 : 1) * bytes <= kMostStreamBytes;
}

// More tokens than this go to the kernels for many: up to here, a few passes over the weights from
// the L2 cache are as fast as wide tiles, and leave no multiprocessor idle.
constexpr int kMostStreamRows = 4 * kStreamRows;

// Activations rounded to FP8 are multiplied as FP8, and many activations on wgmma.
constexpr bool kE4m3Products = true;
constexpr bool kBf16Wgmma = true;

void multiply_packed(Stream& stream, Matmul m, bool pair) {
  if (m.packed_scale == nullptr) {
    m.tile_rows = kTileRows;
    return launch_wgmma_bf16(stream, m, pair);
  }
  const int stream_rows = stream_e4m3_rows(m, pair);
  if (m.tiles == nullptr) {
    m.tile_rows = m.n_rows > kMostStreamRows || stream_rows == 0 ? kTileRows
                  : m.n_rows <= kNarrowRows                      ? kNarrowRows
                                                                 : stream_rows;
  }
  if (m.tile_rows <= stream_rows)
    launch_stream_e4m3(stream, m, pair);
  else
    launch_wgmma_e4m3(stream, m, pair);
}

void multiply(Stream& stream, Matmul m, bool pair) {
  if (m.packed != nullptr) return multiply_packed(stream, m, pair);
  if (m.x_f32 || m.shape.format == WeightFormat::f32) {
    if (m.tiles == nullptr) m.tile_rows = m.n_rows <= kStreamRows ? kStreamRows : kSmallTileRows;
    return matmul_f32(stream, m, pair);
  }
  if (m.tiles == nullptr) {
    m.tile_rows = m.n_rows <= kMostStreamRows ? kStreamRows : kTileRows;
    if (m.tile_rows == kStreamRows && !can_stream(m, pair)) m.tile_rows = kSmallTileRows;
  }
  if (m.tile_rows == kStreamRows && can_stream(m, pair))
    launch_stream(stream, m, pair);
  else
    launch_tile(stream, m, pair);
}

// A warp has a block of 128 columns of one row: four neighbouring columns a lane.
template <class T>
__global__ void input_kernel(T* to, const T* x, std::int64_t n_row_groups, int cols, int blocks,
                             bool quantise) {
  const std::int64_t i = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  if (i >= n_row_groups * blocks) return;
  const std::int64_t row_group = i / blocks;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int c = static_cast<int>(i % blocks) * kBlockCols + 4 * lane;
  const T* from = x + row_group * cols;  // groups lie side by side in a row
  float v[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) v[k] = c + k < cols ? load(from[c + k]) : 0.0f;
  if (quantise) {
    const float amax =
        warp_max(fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3]))));
    const int e = isfinite(amax) ? e4m3_scale_exponent(amax) : 0;
    const float scale = exp2_int(e), inverse = exp2_int(-e);
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = e4m3_to_float(to_e4m3(v[k] * inverse)) * scale;
  }
  T* y = to + (row_group * blocks) * kBlockCols + c;
#pragma unroll
  for (int k = 0; k < 4; ++k) put(y[k], v[k]);
}

}  // namespace

int tile_rows_for(std::int64_t n_tokens, std::int64_t mean_rows, bool e4m3) {
  if (n_tokens <= kStreamRows || mean_rows <= 8) return e4m3 ? kNarrowRows : kStreamRows;
  return mean_rows <= 48 && !e4m3 ? kSmallTileRows : kTileRows;
}

Packing packing_of(const WeightShape& w, DType x, ActivationQuant quant, bool many) {
  const bool fp8 = w.format == WeightFormat::fp8, fp4 = w.format == WeightFormat::fp4;
  if (x != DType::bf16) return Packing::none;
  if (quant == ActivationQuant::fp8_block128) {
    return kE4m3Products && (fp8 || fp4) ? Packing::e4m3 : Packing::none;
  }
  return kBf16Wgmma && many && (fp8 || w.format == WeightFormat::bf16) ? Packing::bf16
                                                                       : Packing::none;
}

WeightShape weight_shape(const QuantTensor& w) {
  WeightShape s;
  HADAL_CHECK(w.rows() <= INT32_MAX && w.cols() <= INT32_MAX);
  s.rows = static_cast<int>(w.rows());
  s.cols = static_cast<int>(w.cols());
  const DType dtype = w.data.dtype();
  s.row_bytes = w.cols() * bits(dtype) / 8;
  s.aligned = s.row_bytes % 16 == 0 && reinterpret_cast<std::uintptr_t>(w.data.bytes()) % 16 == 0;
  if (!w.scale && (dtype == DType::f32 || dtype == DType::bf16)) {
    s.format = dtype == DType::f32 ? WeightFormat::f32 : WeightFormat::bf16;
    return s;
  }
  const DType scale = w.scale ? w.scale.dtype() : DType::u8;
  const bool fp8 = dtype == DType::f8_e4m3 && w.block.cols > 0 && w.block.cols % kBlockCols == 0 &&
                   w.block.rows > 0 && (scale == DType::ue8m0 || scale == DType::f32);
  const bool fp4 = dtype == DType::f4_e2m1 && w.block == kFp4Block &&
                   w.cols() % kFp4Block.cols == 0 && scale == DType::ue8m0;
  if (!fp8 && !fp4) {
    throw Error(ErrorCode::unsupported,
                std::string("the GPU has no code for ") + to_string(dtype) + " weights of " +
                    std::to_string(w.cols()) + " columns with " +
                    (w.scale ? to_string(scale) : "no") + " scales in blocks " +
                    std::to_string(w.block.rows) + "x" + std::to_string(w.block.cols) +
                    "; there is f32 and bf16, f8_e4m3 with block columns a multiple of 128 and "
                    "scales ue8m0 or f32, and f4_e2m1 in blocks 1x32 with scales ue8m0");
  }
  s.format = fp8 ? WeightFormat::fp8 : WeightFormat::fp4;
  s.f32_scale = scale == DType::f32;
  s.scale_cols = static_cast<int>(w.scale.dim(1));
  s.block_rows = static_cast<int>(w.block.rows);
  s.block_cols = static_cast<int>(w.block.cols);
  return s;
}

MatmulInput matmul_input(Stream& stream, const TensorView& x, std::int64_t n_groups,
                         ActivationQuant quant) {
  HADAL_CHECK(x.dim(1) % n_groups == 0);
  const std::int64_t cols = x.dim(1) / n_groups;
  const bool quantise = quant == ActivationQuant::fp8_block128;
  const bool as_it_is =
      x.dtype() == DType::f32 ||
      (cols % kBlockCols == 0 && reinterpret_cast<std::uintptr_t>(x.bytes()) % 16 == 0);
  if (!quantise && as_it_is) return {{}, x.bytes(), x.dim(1), cols};
  const std::int64_t blocks = ceil_div(cols, kBlockCols), row_groups = x.dim(0) * n_groups;
  Tensor copy = stream.cuda().memory().empty({row_groups, blocks * kBlockCols}, x.dtype());
  dispatch_activation(x.dtype(), [&]<class T>() {
    constexpr int kThreads = 256;
    launch(stream, "matmul_input", input_kernel<T>,
           {dim3(blocks_for(row_groups * blocks * 32, kThreads)), dim3(kThreads)}, data<T>(copy),
           data<const T>(x), row_groups, static_cast<int>(cols), static_cast<int>(blocks),
           quantise);
  });
  const void* memory = copy.bytes();
  return {std::move(copy), memory, n_groups * blocks * kBlockCols, blocks * kBlockCols};
}

void matmul(Stream& stream, const Matmul& m) {
  multiply(stream, m, false);
}
void matmul_swiglu(Stream& stream, const Matmul& m) {
  multiply(stream, m, true);
}

}  // namespace hadal::kernels::cuda
