// What the kernels rely on: an output's bits depend on its row and column of the operands, not on
// the instruction's shape nor on where it reads its operands.
#include "cuda/mma_bits.h"

#include <fmt/format.h>

#include <cstring>
#include <numeric>

#include "cuda/support.h"

namespace hadal::test {
namespace {

enum class Spread { normal, wide };

class CudaMmaBits : public CudaTest {
 protected:
  struct Operand {
    std::vector<std::uint8_t> bytes;  // as the instruction wants them
    std::vector<double> values;
  };

  Operand random_operand(int rows, bool e4m3, Spread spread) {
    Operand o;
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::uniform_int_distribution<int> exponent(-9, 7);
    for (int i = 0; i < rows * kBitsCols; ++i) {
      const float factor = spread == Spread::wide ? std::ldexp(1.0f, exponent(rng())) : 1.0f;
      const float x = normal(rng()) * factor;
      if (e4m3) {
        const f8_e4m3 y = to_e4m3(x);
        o.bytes.push_back(y.bits);
        o.values.push_back(to_float(y));
      } else {
        const bf16 y = to_bf16(x);
        std::uint8_t b[2];
        std::memcpy(b, &y, 2);
        o.bytes.insert(o.bytes.end(), b, b + 2);
        o.values.push_back(to_float(y));
      }
    }
    return o;
  }
  static Operand permuted(const Operand& o, const std::vector<int>& order) {
    Operand p = o;
    const std::size_t item = o.bytes.size() / o.values.size();
    for (std::size_t i = 0; i < o.values.size(); ++i) {
      const std::size_t from =
          i / kBitsCols * kBitsCols + static_cast<std::size_t>(order[i % kBitsCols]);
      p.values[i] = o.values[from];
      std::copy_n(o.bytes.begin() + static_cast<std::ptrdiff_t>(from * item), item,
                  p.bytes.begin() + static_cast<std::ptrdiff_t>(i * item));
    }
    return p;
  }
  // An order that keeps columns inside their groups of `group`.
  std::vector<int> random_order(int group) {
    std::vector<int> order(kBitsCols);
    std::iota(order.begin(), order.end(), 0);
    for (int i = 0; i < kBitsCols; i += group) {
      std::shuffle(order.begin() + i, order.begin() + i + group, rng());
    }
    return order;
  }

  struct Difference {
    int n_differ = 0, n = 0;
  };
  static Difference compare(const BitsVariant& x, const BitsVariant& y) {
    Difference d;
    for (int r = 0; r < kBitsRows; ++r) {
      for (int c = 0; c < std::min(x.n, y.n); ++c, ++d.n) {
        const auto i = static_cast<std::size_t>(r * kBitsTokens + c);
        d.n_differ += std::memcmp(&x.sums[i], &y.sums[i], 4) != 0 ? 1 : 0;
      }
    }
    return d;
  }
  // The worst |got - exact| / sum |a b|, and the mean of (|got| - |exact|) / sum |a b|.
  static std::pair<double, double> error_of(const BitsVariant& v, const Operand& a,
                                            const Operand& b) {
    double worst = 0, bias = 0;
    int n = 0;
    for (int r = 0; r < kBitsRows; ++r) {
      for (int c = 0; c < v.n; ++c, ++n) {
        double exact = 0, size = 0;
        for (int k = 0; k < kBitsCols; ++k) {
          const double p = a.values[static_cast<std::size_t>(r * kBitsCols + k)] *
                           b.values[static_cast<std::size_t>(c * kBitsCols + k)];
          exact += p, size += std::fabs(p);
        }
        const double got = v.sums[static_cast<std::size_t>(r * kBitsTokens + c)];
        worst = std::max(worst, std::fabs(got - exact) / size);
        bias += (std::fabs(got) - std::fabs(exact)) / size;
      }
    }
    return {worst, bias / n};
  }

  std::vector<BitsVariant> multiply(const Operand& a, const Operand& b, bool e4m3) {
    return multiply_in_every_way(queue(), a.bytes.data(), b.bytes.data(), e4m3);
  }

  void report(bool e4m3, Spread spread) {
    const char* const type = e4m3 ? "e4m3" : "bf16";
    const char* const size = spread == Spread::wide ? "wide" : "normal";
    const Operand a = random_operand(kBitsRows, e4m3, spread);
    const Operand b = random_operand(kBitsTokens, e4m3, spread);
    const std::vector<BitsVariant> all = multiply(a, b, e4m3);
    const BitsVariant& wide = all[4];
    for (const BitsVariant& v : all) {
      const auto [worst, bias] = error_of(v, a, b);
      const Difference d = compare(v, wide);
      fmt::print(
          "{} {:6} {:28} differs from wgmma n256 in {:5} of {:5}; worst error {:.3g}, bias "
          "{:+.3g} of sum |ab|\n",
          type, size, v.name, d.n_differ, d.n, worst, bias);
      EXPECT_LT(worst, e4m3 ? 1e-2 : 1e-5) << type << ' ' << v.name;
      if (&v != &all[0]) {
        EXPECT_EQ(d.n_differ, 0) << type << ' ' << v.name;
      }
    }
    const int step = e4m3 ? 32 : 16;
    for (const int group : {4, 8, step / 2, step, 2 * step, kBitsCols}) {
      const std::vector<int> order = random_order(group);
      const std::vector<BitsVariant> shuffled =
          multiply(permuted(a, order), permuted(b, order), e4m3);
      fmt::print(
          "{} {:6} columns shuffled inside groups of {:3}: mma.sync differs from itself in "
          "{:5}, wgmma in {:5} of {}\n",
          type, size, group, compare(shuffled[0], all[0]).n_differ,
          compare(shuffled[4], wide).n_differ, compare(shuffled[4], wide).n);
    }
    // Halves of a step one after another.
    std::vector<int> order(kBitsCols);
    for (int i = 0; i < kBitsCols; ++i) order[static_cast<std::size_t>(i)] = i ^ (step / 2);
    const std::vector<BitsVariant> swapped = multiply(permuted(a, order), permuted(b, order), e4m3);
    fmt::print(
        "{} {:6} halves of every step swapped: mma.sync differs from itself in {:5}, wgmma "
        "in {:5}\n",
        type, size, compare(swapped[0], all[0]).n_differ, compare(swapped[4], wide).n_differ);
  }
};

TEST_F(CudaMmaBits, OfBf16) {
  report(false, Spread::normal);
  report(false, Spread::wide);
}
TEST_F(CudaMmaBits, OfE4m3) {
  report(true, Spread::normal);
  report(true, Spread::wide);
}

}  // namespace
}  // namespace hadal::test
