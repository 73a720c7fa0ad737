#include "kernels/cpu/dot.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace hadal::kernels::cpu {
namespace {

constexpr Isa kIsas[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16};

std::vector<Isa> isas_here() {
  std::vector<Isa> found;
  for (const Isa isa : kIsas) {
    if (has_isa(isa)) found.push_back(isa);
  }
  return found;
}

// Puts the process-wide choice back, so that no test depends on the one before it.
struct IsaScope {
  explicit IsaScope(Isa isa) { set_isa(isa); }
  ~IsaScope() { set_isa(before); }
  Isa before = active_isa();
};

struct Format {
  const char* name;
  DType dtype;
  DType scale_dtype;
  QuantBlock block;
  [[nodiscard]] bool scaled() const { return dtype == DType::f8_e4m3 || dtype == DType::f4_e2m1; }
};

const Format kFormats[] = {
    {"f32", DType::f32, DType::ue8m0, {}},
    {"bf16", DType::bf16, DType::ue8m0, {}},
    {"f8 128x128", DType::f8_e4m3, DType::ue8m0, {128, 128}},
    {"f8 5x32", DType::f8_e4m3, DType::ue8m0, {5, 32}},
    {"f8 1x64", DType::f8_e4m3, DType::ue8m0, {1, 64}},
    {"f8 128x128, f32 scales", DType::f8_e4m3, DType::f32, {128, 128}},
    {"f4", DType::f4_e2m1, DType::ue8m0, {1, 32}},
    {"f4, f32 scales", DType::f4_e2m1, DType::f32, {1, 32}},
};

// Every code that is a number, so zeros of both signs, subnormals and the largest values too.
QuantTensor random_weights(const Format& f, std::int64_t rows, std::int64_t cols,
                           std::mt19937& rng) {
  QuantTensor w{Tensor::empty({rows, cols}, f.dtype), {}, f.block};
  std::normal_distribution<float> normal;
  const std::int64_t n = rows * cols;
  switch (f.dtype) {
    case DType::f32:
      for (std::int64_t i = 0; i < n; ++i) w.data.data<float>()[i] = normal(rng);
      break;
    case DType::bf16:
      for (std::int64_t i = 0; i < n; ++i) w.data.data<bf16>()[i] = to_bf16(normal(rng));
      break;
    default:
      for (std::size_t i = 0; i < w.data.nbytes(); ++i) {
        auto code = static_cast<std::uint8_t>(rng());
        if (f.dtype == DType::f8_e4m3 && (code & 0x7f) == 0x7f) code ^= 1;
        w.data.bytes()[i] = std::byte{code};
      }
  }
  if (f.scaled()) {
    const std::int64_t scale_rows = (rows + f.block.rows - 1) / f.block.rows;
    const std::int64_t scale_cols = (cols + f.block.cols - 1) / f.block.cols;
    w.scale = Tensor::empty({scale_rows, scale_cols}, f.scale_dtype);
    for (std::int64_t i = 0; i < scale_rows * scale_cols; ++i) {
      if (f.scale_dtype == DType::f32) {
        w.scale.data<float>()[i] = std::exp2(normal(rng) * 3.0f);
      } else {
        w.scale.data<ue8m0>()[i] = {static_cast<std::uint8_t>(117 + rng() % 16)};
      }
    }
  }
  return w;
}

Tensor random_activations(DType dtype, std::int64_t rows, std::int64_t cols, std::mt19937& rng) {
  Tensor x = Tensor::empty({rows, cols}, dtype);
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const float v = rng() % 16 == 0 ? -0.0f : normal(rng);
    if (dtype == DType::f32)
      x.data<float>()[i] = v;
    else
      x.data<bf16>()[i] = to_bf16(v);
  }
  return x;
}

// architecture.md §5.1, from the conversions in core.
void quantize_row(float* x, std::int64_t cols) {
  for (std::int64_t c0 = 0; c0 < cols; c0 += kActQuantBlock) {
    const std::int64_t c1 = std::min(cols, c0 + kActQuantBlock);
    float amax = 0.0f;
    for (std::int64_t c = c0; c < c1; ++c) amax = std::max(amax, std::fabs(x[c]));
    const float scale = exp2_int(e4m3_scale_exponent(amax));
    for (std::int64_t c = c0; c < c1; ++c) x[c] = to_float(to_e4m3(x[c] / scale)) * scale;
  }
}

std::vector<float> activation_values(const Tensor& x, ActivationQuant quant) {
  std::vector<float> v(static_cast<std::size_t>(x.numel()));
  for (std::size_t i = 0; i < v.size(); ++i) {
    v[i] = x.dtype() == DType::f32 ? x.data<float>()[i] : to_float(x.data<bf16>()[i]);
  }
  if (quant == ActivationQuant::fp8_block128) {
    for (std::int64_t m = 0; m < x.dim(0); ++m) quantize_row(v.data() + m * x.dim(1), x.dim(1));
  }
  return v;
}

std::vector<float> weight_values(const QuantTensor& w) {
  std::vector<float> v(static_cast<std::size_t>(w.rows() * w.cols()));
  dequantize_rows(w, 0, w.rows(), v.data());
  return v;
}

// The chain of dot.h, step by step.
float canonical_dot(const float* x, const float* w, std::int64_t cols, DType dtype) {
  const bool even_odd = dtype == DType::bf16 || dtype == DType::f4_e2m1;
  const std::int64_t unit = even_odd ? 32 : 16;
  float acc[16] = {};
  for (std::int64_t k = 0; k < (cols + unit - 1) / unit * unit; k += 16) {
    for (int l = 0; l < 16; ++l) {
      const std::int64_t col = even_odd ? k / 32 * 32 + 2 * l + k % 32 / 16 : k + l;
      acc[l] = col < cols ? std::fma(x[col], w[col], acc[l]) : std::fma(0.0f, 0.0f, acc[l]);
    }
  }
  for (const int width : {8, 4, 2, 1}) {
    for (int l = 0; l < width; ++l) acc[l] += acc[l + width];
  }
  return acc[0];
}

std::vector<float> run_dot(ThreadPool& pool, const Tensor& x, const WeightRows& w,
                           ActivationQuant quant) {
  ActivationPanel panel;
  panel.prepare(pool, x, w, quant);
  std::vector<float> y(static_cast<std::size_t>(x.dim(0) * w.rows), 12345.0f);
  dot_all(pool, panel, w, y.data(), w.rows);
  return y;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), 4 * a.size()) == 0;
}

std::vector<std::int64_t> cols_for(const Format& f) {
  if (f.dtype == DType::f4_e2m1) return {32, 64, 96, 160, 384, 1056, 2112};
  return {1, 32, 37, 64, 96, 100, 128, 160, 384, 1000, 1056, 2112};
}

bool multiplies_bf16(const Format& f, const Tensor& x, ActivationQuant quant) {
  const bool x_exact = x.dtype() == DType::bf16 || quant == ActivationQuant::fp8_block128;
  const bool w_exact =
      f.dtype == DType::bf16 || (f.scaled() && f.scale_dtype == DType::ue8m0 &&
                                 (f.dtype == DType::f4_e2m1 || f.block.cols % 64 == 0));
  return x_exact && w_exact;
}

// Against the written order to the bit; where bf16 pairs are multiplied, against f64. There a lane
// takes cols/32 steps of two roundings and the fold four more, each at most 2^-24 of a partial sum
// that the sum of magnitudes bounds; another 2 % covers the products of those factors.
TEST(Dot, MatchesTheCanonicalOrderOnEveryInstructionSet) {
  ThreadPool pool(2);
  std::mt19937 rng(20240607);
  for (const Format& f : kFormats) {
    for (const std::int64_t cols : cols_for(f)) {
      for (const std::int64_t rows : {1, 13, 133}) {
        if (rows == 133 && cols != 160) continue;  // past one scale block and a half tile
        for (const std::int64_t n_x : {1, 2, 3, 4, 5, 17, 64, 130}) {
          if (n_x >= 64 && cols > 160 && cols != 1056) continue;
          const QuantTensor w = random_weights(f, rows, cols, rng);
          const DType x_dtype = rng() % 2 == 0 ? DType::f32 : DType::bf16;
          const auto quant = rng() % 2 == 0 ? ActivationQuant::none : ActivationQuant::fp8_block128;
          const Tensor x = random_activations(x_dtype, n_x, cols, rng);
          const std::vector<float> xv = activation_values(x, quant), wv = weight_values(w);
          std::vector<float> expected;
          for (std::int64_t m = 0; m < n_x; ++m) {
            for (std::int64_t n = 0; n < rows; ++n) {
              expected.push_back(
                  canonical_dot(xv.data() + m * cols, wv.data() + n * cols, cols, f.dtype));
            }
          }
          for (const Isa isa : isas_here()) {
            SCOPED_TRACE(std::string(to_string(isa)) + ", " + f.name + ", x " + to_string(x_dtype) +
                         (quant == ActivationQuant::none ? "" : " in fp8") + ", " +
                         std::to_string(n_x) + " x " + std::to_string(rows) + " x " +
                         std::to_string(cols));
            const IsaScope scope(isa);
            const std::vector<float> y = run_dot(pool, x, rows_of(w), quant);
            if (isa != Isa::avx512_bf16 || !multiplies_bf16(f, x, quant)) {
              ASSERT_TRUE(same_bits(y, expected));
              continue;
            }
            for (std::size_t i = 0; i < y.size(); ++i) {
              const auto m = static_cast<std::int64_t>(i) / rows;
              const auto n = static_cast<std::int64_t>(i) % rows;
              double exact = 0.0, magnitude = 0.0;
              for (std::int64_t k = 0; k < cols; ++k) {
                const double p = double{xv[static_cast<std::size_t>(m * cols + k)]} *
                                 double{wv[static_cast<std::size_t>(n * cols + k)]};
                exact += p, magnitude += std::fabs(p);
              }
              const double roundings = 2.0 * static_cast<double>((cols + 31) / 32) + 4.0;
              ASSERT_NEAR(y[i], exact, 1.02 * roundings * 0x1p-24 * magnitude) << m << ", " << n;
            }
          }
        }
      }
    }
  }
}

TEST(Dot, IsTheSameAloneAndAmongOthers) {
  ThreadPool pool(2);
  std::mt19937 rng(7);
  constexpr std::int64_t kRows = 29, kCols = 2080, kX = 66;  // several slabs, ragged tiles
  for (const Format& f : kFormats) {
    const QuantTensor w = random_weights(f, kRows, kCols, rng);
    const WeightRows wr = rows_of(w);
    const Tensor x = random_activations(DType::bf16, kX, kCols, rng);
    for (const Isa isa : isas_here()) {
      SCOPED_TRACE(std::string(to_string(isa)) + ", " + f.name);
      const IsaScope scope(isa);
      for (const auto quant : {ActivationQuant::none, ActivationQuant::fp8_block128}) {
        const std::vector<float> all = run_dot(pool, x, wr, quant);
        ActivationPanel panel;

        // One row, two, three, four: other kernels.
        for (const std::int64_t n_x : {1, 2, 3, 4}) {
          for (std::int64_t m = 0; m + n_x <= kX; m += 13) {
            const Tensor part = x.slice(m, m + n_x);
            const std::vector<float> y = run_dot(pool, part, wr, quant);
            ASSERT_EQ(0, std::memcmp(y.data(), all.data() + m * kRows, 4 * y.size()))
                << n_x << " rows from " << m;
          }
        }

        // Gathered in reverse, into a panel that has held something else.
        panel.prepare(pool, x.slice(0, 3), wr, quant);
        std::vector<std::int32_t> reversed(kX);
        for (std::int32_t i = 0; i < kX; ++i) reversed[static_cast<std::size_t>(i)] = kX - 1 - i;
        panel.prepare_gather(pool, x, reversed, wr, quant);
        ASSERT_EQ(panel.n_rows(), kX);
        std::vector<float> y(static_cast<std::size_t>(kX * kRows));
        dot_rows(panel, wr, 0, kRows, y.data(), kRows);
        for (std::int64_t m = 0; m < kX; ++m) {
          ASSERT_EQ(
              0, std::memcmp(y.data() + m * kRows, all.data() + (kX - 1 - m) * kRows, 4 * kRows));
        }

        // Any split over weight rows and activation rows, into a wider output.
        panel.prepare(pool, x, wr, quant);
        constexpr std::int64_t kLdy = kRows + 3;
        std::vector<float> split(static_cast<std::size_t>(kX * kLdy), -1.0f);
        for (std::int64_t n0 = 0; n0 < kRows; n0 += 11) {
          for (std::int64_t m0 = 0; m0 < kX; m0 += 25) {
            dot_rows(panel, m0, std::min(kX, m0 + 25), wr, n0, std::min(kRows, n0 + 11),
                     split.data() + m0 * kLdy + n0, kLdy);
          }
        }
        for (std::int64_t m = 0; m < kX; ++m) {
          ASSERT_EQ(0, std::memcmp(split.data() + m * kLdy, all.data() + m * kRows, 4 * kRows));
          for (std::int64_t n = kRows; n < kLdy; ++n) {
            ASSERT_EQ(split[static_cast<std::size_t>(m * kLdy + n)], -1.0f) << "written past a row";
          }
        }
      }
    }
  }
}

// Weights lie anywhere in a mapped file.
TEST(Dot, TakesWeightsAtAnyAddress) {
  ThreadPool pool(1);
  std::mt19937 rng(8);
  for (const Format& f : kFormats) {
    const QuantTensor w = random_weights(f, 9, 160, rng);
    const Tensor x = random_activations(DType::f32, 6, 160, rng);
    std::vector<std::byte> data(w.data.nbytes() + 1), scale(w.scale ? w.scale.nbytes() + 1 : 1);
    std::memcpy(data.data() + 1, w.data.bytes(), w.data.nbytes());
    WeightRows shifted = rows_of(w);
    shifted.data = data.data() + 1;
    if (w.scale) {
      std::memcpy(scale.data() + 1, w.scale.bytes(), w.scale.nbytes());
      shifted.scale = scale.data() + 1;
    }
    for (const Isa isa : isas_here()) {
      SCOPED_TRACE(std::string(to_string(isa)) + ", " + f.name);
      const IsaScope scope(isa);
      for (const std::int64_t n_x : {1, 6}) {
        EXPECT_TRUE(same_bits(run_dot(pool, x.slice(0, n_x), shifted, ActivationQuant::none),
                              run_dot(pool, x.slice(0, n_x), rows_of(w), ActivationQuant::none)));
      }
    }
  }
}

// Identity weights hand the panel's values back.
TEST(Dot, RoundsActivationsToFp8AsCoreDoes) {
  ThreadPool pool(1);
  std::mt19937 rng(9);
  constexpr std::int64_t kCols = 256;
  Tensor identity = Tensor::zeros({kCols, kCols}, DType::f32);
  for (std::int64_t i = 0; i < kCols; ++i) identity.data<float>()[i * kCols + i] = 1.0f;

  constexpr std::int64_t kX = 64;
  Tensor x = Tensor::empty({kX, kCols}, DType::f32);
  for (std::int64_t m = 0; m < kX; ++m) {
    for (std::int64_t c = 0; c < kCols; ++c) {
      float v = 0.0f;
      if (m == 0) v = 0.0f;                            // nothing but the floor
      if (m == 1) v = 1e-30f * static_cast<float>(c);  // far below it
      if (m == 2) v = 448.0f - static_cast<float>(c);  // scale 1, all exact codes
      if (m == 3) v = 0x1p-10f * static_cast<float>(c) * (c == 0 ? 448.0f : 1.0f);  // ties
      if (m == 4) v = c == 0 ? 448.0f : 0x1p-11f * static_cast<float>(c);  // subnormal codes
      if (m == 5) v = c == 0 ? 0x1p100f : std::ldexp(1.0f + 0x1p-4f, 92 - static_cast<int>(c % 20));
      if (m >= 6)
        v = std::ldexp(std::normal_distribution<float>()(rng), static_cast<int>(rng() % 24) - 12);
      x.data<float>()[m * kCols + c] = rng() % 2 == 0 ? v : -v;
    }
  }
  const std::vector<float> expected = activation_values(x, ActivationQuant::fp8_block128);
  for (const Isa isa : isas_here()) {
    SCOPED_TRACE(to_string(isa));
    const IsaScope scope(isa);
    const std::vector<float> y = run_dot(pool, x, rows_of(identity), ActivationQuant::fp8_block128);
    for (std::size_t i = 0; i < y.size(); ++i) ASSERT_EQ(y[i], expected[i]) << i;
  }
}

TEST(Dot, ZeroScalesAndBlocksGiveZero) {
  ThreadPool pool(1);
  std::mt19937 rng(10);
  for (const Format& f : kFormats) {
    QuantTensor w = random_weights(f, 11, 256, rng);
    std::memset(w.data.bytes(), 0, w.data.nbytes());
    const Tensor x = random_activations(DType::bf16, 5, 256, rng);
    for (const Isa isa : isas_here()) {
      const IsaScope scope(isa);
      for (const float y : run_dot(pool, x, rows_of(w), ActivationQuant::none)) ASSERT_EQ(y, 0.0f);
    }
  }
}

// The smallest scale is 2^-127: the f32 chain works with subnormal weights, bf16 pairs with zero.
TEST(Dot, SurvivesTheSmallestScale) {
  ThreadPool pool(1);
  std::mt19937 rng(11);
  for (const Format& f : kFormats) {
    if (!f.scaled() || f.scale_dtype != DType::ue8m0) continue;
    const QuantTensor w = random_weights(f, 11, 256, rng);
    std::memset(w.scale.bytes(), 0, w.scale.nbytes());
    Tensor x = Tensor::empty({5, 256}, DType::bf16);
    for (std::int64_t i = 0; i < x.numel(); ++i) x.data<bf16>()[i] = to_bf16(1.0f);
    const std::vector<float> wv = weight_values(w), xv(256, 1.0f);
    for (const Isa isa : isas_here()) {
      SCOPED_TRACE(std::string(to_string(isa)) + ", " + f.name);
      const IsaScope scope(isa);
      const std::vector<float> y = run_dot(pool, x, rows_of(w), ActivationQuant::none);
      for (std::size_t n = 0; n < 11; ++n) {
        const float expected = canonical_dot(xv.data(), wv.data() + n * 256, 256, f.dtype);
        if (isa == Isa::avx512_bf16 && multiplies_bf16(f, x, ActivationQuant::none)) {
          // Every weight below 2^-126 is lost, and nothing else.
          ASSERT_NEAR(y[n], expected, 256 * 0x1p-126f);
        } else {
          ASSERT_EQ(y[n], expected);
        }
      }
    }
  }
}

TEST(Dot, NotANumberStaysInItsRow) {
  ThreadPool pool(1);
  std::mt19937 rng(12);
  constexpr std::int64_t kRows = 10, kCols = 256, kX = 6;
  for (const Format& f : kFormats) {
    QuantTensor w = random_weights(f, kRows, kCols, rng);
    if (f.dtype == DType::f8_e4m3) w.data.bytes()[3 * kCols + 77] = std::byte{0xff};
    const bool weight_nan = f.dtype == DType::f8_e4m3;
    Tensor x = random_activations(DType::bf16, kX, kCols, rng);
    x.data<bf16>()[2 * kCols + 5] = {0x7fc0};
    for (const Isa isa : isas_here()) {
      SCOPED_TRACE(std::string(to_string(isa)) + ", " + f.name);
      const IsaScope scope(isa);
      for (const auto quant : {ActivationQuant::none, ActivationQuant::fp8_block128}) {
        const std::vector<float> y = run_dot(pool, x, rows_of(w), quant);
        for (std::int64_t m = 0; m < kX; ++m) {
          for (std::int64_t n = 0; n < kRows; ++n) {
            ASSERT_EQ(std::isnan(y[static_cast<std::size_t>(m * kRows + n)]),
                      m == 2 || (weight_nan && n == 3))
                << m << ", " << n;
          }
        }
      }
    }
  }
}

TEST(Dot, EmptyIsOrdinary) {
  ThreadPool pool(1);
  std::mt19937 rng(13);
  const QuantTensor w = random_weights(kFormats[6], 4, 64, rng);
  const Tensor x = random_activations(DType::bf16, 3, 64, rng);
  ActivationPanel panel;
  panel.prepare_gather(pool, x, {}, rows_of(w), ActivationQuant::none);
  EXPECT_EQ(panel.n_rows(), 0);
  dot_rows(panel, rows_of(w), 0, 4, nullptr, 4);
  panel.prepare(pool, x, rows_of(w), ActivationQuant::none);
  dot_rows(panel, rows_of(w), 2, 2, nullptr, 4);
}

TEST(Dot, RefusesWhatItWasNotPreparedFor) {
  ThreadPool pool(1);
  std::mt19937 rng(14);
  const QuantTensor f8 = random_weights(kFormats[2], 4, 64, rng);
  const QuantTensor f4 = random_weights(kFormats[6], 4, 64, rng);
  const Tensor x = random_activations(DType::bf16, 3, 64, rng);
  ActivationPanel panel;
  panel.prepare(pool, x, rows_of(f8), ActivationQuant::none);
  float y[12];
  EXPECT_THROW(dot_rows(panel, rows_of(f4), 0, 4, y, 4), Error);
  const QuantTensor wide = random_weights(kFormats[2], 4, 128, rng);
  EXPECT_THROW(panel.prepare(pool, x, rows_of(wide), ActivationQuant::none), Error);
  EXPECT_THROW((void)rows_of(f4.data.view()), Error);
  QuantTensor odd = f8;
  odd.block = {128, 48};
  EXPECT_THROW((void)rows_of(odd), Error);
}

TEST(Isa, NamesGoBothWays) {
  for (const Isa isa : kIsas) EXPECT_EQ(parse_isa(to_string(isa)), isa);
  EXPECT_FALSE(parse_isa("sse9"));
  EXPECT_TRUE(has_isa(Isa::portable));
  EXPECT_TRUE(has_isa(best_isa()));
  for (const Isa isa : kIsas) {
    if (has_isa(isa)) continue;
    EXPECT_THROW(set_isa(isa), Error);
  }
}

}  // namespace
}  // namespace hadal::kernels::cpu
