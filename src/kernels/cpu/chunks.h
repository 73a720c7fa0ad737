// Work on many tensors at once, cut into chunks of a fixed size, with one f64 sum a chunk. The
// chunks of a tensor and the tree that adds their sums follow from its size alone, so the sums do
// not depend on threads or on the other tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

// Adds neighbours until one is left; destroys its input. 0 for none.
[[nodiscard]] inline double tree_sum(std::span<double> x) {
  std::size_t n = x.size();
  if (n == 0) return 0.0;
  for (; n > 1; n = (n + 1) / 2) {
    for (std::size_t i = 0; i < n / 2; ++i) x[i] = x[2 * i] + x[2 * i + 1];
    if (n % 2 == 1) x[n / 2] = x[n - 1];
  }
  return x[0];
}

// sum_i f(i) over [0, n) in 8 f64 lanes that are folded in a fixed order.
template <class F>
[[nodiscard]] HADAL_SIMD_INLINE double lane_sum_f64(std::int64_t n, F&& f) {
  constexpr int kWidth = 8;
  double lanes[kWidth] = {};
  std::int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    for (int l = 0; l < kWidth; ++l) lanes[l] += f(i + l);
  }
  for (int l = 0; i + l < n; ++l) lanes[l] += f(i + l);
  for (int width = kWidth / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

// Calls fn(item, begin, end) -> double over the chunks [begin, end) of [0, sizes[item]), each
// chunks[item] long, on any thread; sums[item] becomes the tree sum of what it returned.
template <class Fn>
void sum_over_chunks(ThreadPool& pool, std::span<const std::int64_t> sizes,
                     std::span<const std::int64_t> chunks, std::span<double> sums, Fn&& fn) {
  std::vector<std::size_t> first{0};
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    first.push_back(first.back() +
                    static_cast<std::size_t>((sizes[i] + chunks[i] - 1) / chunks[i]));
  }
  std::vector<double> parts(first.back());
  pool.parallel_for(
      static_cast<std::int64_t>(parts.size()), 1, [&](std::int64_t part, std::int64_t part_end) {
        for (; part < part_end; ++part) {
          const auto p = static_cast<std::size_t>(part);
          const auto item = static_cast<std::size_t>(
              std::upper_bound(first.begin(), first.end(), p) - first.begin() - 1);
          const std::int64_t begin = static_cast<std::int64_t>(p - first[item]) * chunks[item];
          parts[p] = fn(item, begin, std::min(begin + chunks[item], sizes[item]));
        }
      });
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    sums[i] = tree_sum(std::span(parts).subspan(first[i], first[i + 1] - first[i]));
  }
}

}  // namespace hadal::kernels::cpu
