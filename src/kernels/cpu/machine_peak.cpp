#include "kernels/cpu/machine_peak.h"

#if defined(__GNUC__) && !defined(__clang__)
// g++ 12 takes the undefined operand inside its own unmasked intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>

#include "core/tensor.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

// A loop of `rounds` times some independent chains; returns the flops done and a value that keeps
// the compiler from dropping them.
struct Work {
  double flops;
  float keep;
};

Work multiply_add_plain(std::int64_t rounds) {
  constexpr int kWidth = 64;
  float acc[kWidth];
  for (int i = 0; i < kWidth; ++i) acc[i] = static_cast<float>(i);
  for (std::int64_t r = 0; r < rounds; ++r) {
    for (float& a : acc) {
#if defined(__FP_FAST_FMAF)
      a = std::fma(a, 0.5f, 1.0f);
#else
      a = a * 0.5f + 1.0f;
#endif
    }
  }
  float keep = 0.0f;
  for (const float a : acc) keep += a;
  return {2.0 * kWidth * static_cast<double>(rounds), keep};
}

#if defined(__x86_64__)
constexpr int kChains =
    12;  // latency times throughput of every core so far, and registers to spare

__attribute__((target("avx2,fma"))) Work multiply_add_avx2(std::int64_t rounds) {
  __m256 acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 half = _mm256_set1_ps(0.5f), one = _mm256_set1_ps(1.0f);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) acc[i] = _mm256_fmadd_ps(acc[i], half, one);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm256_add_ps(acc[0], acc[i]);
  return {2.0 * 8 * kChains * static_cast<double>(rounds), _mm256_cvtss_f32(acc[0])};
}

__attribute__((target("avx512f"))) Work multiply_add_avx512(std::int64_t rounds) {
  __m512 acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 half = _mm512_set1_ps(0.5f), one = _mm512_set1_ps(1.0f);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_fmadd_ps(acc[i], half, one);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  return {2.0 * 16 * kChains * static_cast<double>(rounds), _mm512_cvtss_f32(acc[0])};
}

__attribute__((target("avx512f,avx512bf16"))) Work dot_bf16(std::int64_t rounds) {
  __m512 acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80));
  const auto w = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x38003800));
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], x, w);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  return {2.0 * 32 * kChains * static_cast<double>(rounds), _mm512_cvtss_f32(acc[0])};
}
#endif

HADAL_SIMD_CLONES std::uint64_t read_words(const std::uint64_t* p, std::int64_t n) {
  std::uint64_t lanes[64] = {};
  for (std::int64_t i = 0; i + 64 <= n; i += 64) {
    // The compiler is free to load these 512 bytes in any order, and an order that is not upward
    // loses the hardware's prefetchers and more than half of the bandwidth.
    for (int line = 0; line < 64; line += 8) __builtin_prefetch(p + i + line + 512);
    for (int l = 0; l < 64; ++l) lanes[l] ^= p[i + l];
  }
  std::uint64_t all = 0;
  for (const std::uint64_t lane : lanes) all ^= lane;
  return all;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The result of a loop that only its running time is wanted from.
std::atomic<std::uint64_t> sink{0};

// Windows of a few milliseconds, and the best of many: long against waking the threads, short
// enough that some see the machine to themselves.
double gflop_per_s(ThreadPool& pool, Work (*work)(std::int64_t)) {
  constexpr int kWindows = 40;
  std::int64_t rounds = 1 << 14;
  for (;; rounds *= 2) {
    const auto start = std::chrono::steady_clock::now();
    sink += static_cast<std::uint64_t>(std::fabs(work(rounds).keep));
    if (seconds_since(start) > 0.002) break;
  }
  double best = 0.0;
  for (int window = 0; window < kWindows; ++window) {
    std::atomic<double> flops{0.0};
    const auto start = std::chrono::steady_clock::now();
    pool.parallel_for(pool.size(), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const Work done = work(rounds);
        sink += static_cast<std::uint64_t>(std::fabs(done.keep));
        flops.fetch_add(done.flops);
      }
    });
    best = std::max(best, flops.load() / seconds_since(start) * 1e-9);
  }
  return best;
}

double read_gb_per_s(ThreadPool& pool) {
  constexpr std::int64_t kBytes = std::int64_t{256} << 20, kWords = kBytes / 8;
  constexpr std::int64_t kWindow = kWords / 8;            // 32 MiB: a millisecond
  constexpr std::int64_t kGrain = std::int64_t{1} << 17;  // words: 1 MiB
  constexpr int kPasses = 6;
  const Tensor memory = Tensor::empty({kBytes}, DType::u8);
  const auto* words = reinterpret_cast<const std::uint64_t*>(memory.bytes());
  pool.parallel_for(kBytes, kGrain * 8, [&](std::int64_t begin, std::int64_t end) {
    std::memset(memory.bytes() + begin, 1, static_cast<std::size_t>(end - begin));
  });
  double best = 0.0;
  for (int pass = 0; pass < kPasses; ++pass) {
    for (std::int64_t at = 0; at < kWords; at += kWindow) {
      const auto start = std::chrono::steady_clock::now();
      pool.parallel_for(kWindow, kGrain, [&](std::int64_t begin, std::int64_t end) {
        sink += read_words(words + at + begin, end - begin);
      });
      best = std::max(best, 8.0 * kWindow / seconds_since(start) * 1e-9);
    }
  }
  return best;
}

}  // namespace

MachinePeak measure_machine_peak(ThreadPool& pool) {
  MachinePeak peak;
  peak.read_gb_per_s = read_gb_per_s(pool);
  auto* multiply_add = multiply_add_plain;
#if defined(__x86_64__)
  if (active_isa() >= Isa::avx2) multiply_add = multiply_add_avx2;
  if (active_isa() >= Isa::avx512) multiply_add = multiply_add_avx512;
  if (active_isa() == Isa::avx512_bf16) peak.bf16_gflop_per_s = gflop_per_s(pool, dot_bf16);
#endif
  peak.f32_gflop_per_s = gflop_per_s(pool, multiply_add);
  return peak;
}

}  // namespace hadal::kernels::cpu
