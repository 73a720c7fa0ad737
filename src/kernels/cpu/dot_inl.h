// The loops of dot_rows, for one instruction set: a file that holds one includes this inside its
// own target attributes, and again no standard template, whose out-of-line copy the linker might
// then pick for every other file.
//
// A Chain says how one accumulator works:
//   Element, Vec       what a panel holds; one step of it (kStep columns)
//   Acc                16 f32 lanes; zero, load_acc, store_acc, mac(acc, x, w), and
//                      fold(acc[NT], y, n_valid): the sums of the first n_valid to y
//   kMaxDirect         activation rows up to which weights are decoded in registers
//   direct_rows(m)     weight rows multiplied at once then
//   kTileRows, kTileX  weight rows x activation rows of a tile when they are decoded once
// A Format says how weights become Vecs:
//   Chain, kUnit       columns decoded at once, a multiple of kStep
//   kUnitBytes         their bytes
//   kSharedScale       one scale for a whole group of rows (the driver splits at scale blocks)
//   Scale, scale(w, i)  what scale i of the weights makes of decode
//   kUnitsPerScale     0: block.cols / kUnit; a format without scales returns {} from scale
//   decode(bytes, scale, out[kUnit / kStep])
//
// Both paths below run the same chain for every output: zero, then every unit upward, then fold.
// Where columns end inside a unit, both decode it from a copy that zeros complete.
#ifndef HADAL_KERNELS_CPU_DOT_INL_H_
#define HADAL_KERNELS_CPU_DOT_INL_H_

#include <cstdint>
#include <cstring>

#include "kernels/cpu/dot_tier.h"

namespace hadal::kernels::cpu {
namespace {

using Index = std::int64_t;

inline Index smaller(Index a, Index b) {
  return a < b ? a : b;
}

// Scale blocks along a row.
inline Index scale_cols(const WeightRows& w) {
  return (w.cols + w.block.cols - 1) / w.block.cols;
}

// Units that share a scale.
template <class F>
inline Index units_per_scale(const WeightRows& w) {
  if constexpr (F::kUnitsPerScale > 0) return F::kUnitsPerScale;
  return w.scale == nullptr ? w.cols + 1 : w.block.cols / F::kUnit;
}

template <class F>
constexpr int kSteps = F::kUnit / F::Chain::kStep;  // of one unit

// A row's bytes, and where its scales begin.
template <class F>
struct Row {
  const std::byte* data;
  Index scale;  // index into w.scale
};

template <class F>
inline Row<F> row_at(const WeightRows& w, Index n) {
  return {w.data + n * (w.cols / F::kUnit * F::kUnitBytes +
                        w.cols % F::kUnit * F::kUnitBytes / F::kUnit),
          w.scale == nullptr ? 0 : n / w.block.rows * scale_cols(w)};
}

// MT activation rows by NT weight rows, weights decoded in registers: reads every weight once from
// memory, best while it is memory that limits.
template <class F, int MT, int NT>
inline void direct_tile(const DotTask& t, Index m, Index n, const std::byte* ahead) {
  using C = typename F::Chain;
  constexpr int kScales = F::kSharedScale ? 1 : NT;
  const WeightRows& w = t.w;
  const auto* x = reinterpret_cast<const typename C::Element*>(t.x) + m * t.x_stride;
  const Row<F> first = row_at<F>(w, n);
  const Index row_bytes = row_at<F>(w, n + 1).data - first.data;
  const Index row_scales = w.scale == nullptr ? 0 : scale_cols(w);

  typename C::Acc acc[MT][NT];
#pragma GCC unroll 8
  for (int i = 0; i < MT; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NT; ++j) acc[i][j] = C::zero();
  }
  const Index full_units = w.cols / F::kUnit;
  const Index per_scale = units_per_scale<F>(w);
  const std::byte* p = first.data;
  Index unit = 0;
  for (Index block = 0; unit < full_units; ++block) {
    typename F::Scale scale[kScales];
#pragma GCC unroll 8
    for (int j = 0; j < kScales; ++j) scale[j] = F::scale(w, first.scale + j * row_scales + block);
    const Index end = F::kUnitsPerScale == 1 ? unit + 1 : smaller(full_units, unit + per_scale);
    do {
      typename C::Vec xv[MT][kSteps<F>];
#pragma GCC unroll 8
      for (int i = 0; i < MT; ++i) {
#pragma GCC unroll 8
        for (int s = 0; s < kSteps<F>; ++s) {
          xv[i][s] = C::load(x + i * t.x_stride + unit * F::kUnit + s * C::kStep);
        }
      }
      // The next rows follow these in memory: asking for them now, line by line, hides the start
      // of every stream, which hardware prefetchers find only after a miss or two.
      constexpr int kAheadBytes = NT * F::kUnitBytes;
#pragma GCC unroll 8
      for (int b = 0; b < kAheadBytes; b += 64) __builtin_prefetch(ahead + b, 0, 2);
      ahead += kAheadBytes;
#pragma GCC unroll 8
      for (int j = 0; j < NT; ++j) {
        typename C::Vec wv[kSteps<F>];
        F::decode(p + j * row_bytes, scale[F::kSharedScale ? 0 : j], wv);
#pragma GCC unroll 8
        for (int i = 0; i < MT; ++i) {
#pragma GCC unroll 8
          for (int s = 0; s < kSteps<F>; ++s) acc[i][j] = C::mac(acc[i][j], xv[i][s], wv[s]);
        }
      }
      p += F::kUnitBytes;
    } while (++unit < end);
  }
  if (const Index left = w.cols % F::kUnit; left != 0) {
    const Index block = full_units / per_scale;
    for (int j = 0; j < NT; ++j) {
      alignas(64) std::byte padded[F::kUnitBytes] = {};
      std::memcpy(padded, p + j * row_bytes,
                  static_cast<std::size_t>(left * F::kUnitBytes / F::kUnit));
      typename C::Vec wv[kSteps<F>];
      F::decode(padded, F::scale(w, first.scale + (F::kSharedScale ? 0 : j * row_scales) + block),
                wv);
      for (int i = 0; i < MT; ++i) {
        for (int s = 0; s < kSteps<F>; ++s) {
          const auto xv = C::load(x + i * t.x_stride + full_units * F::kUnit + s * C::kStep);
          acc[i][j] = C::mac(acc[i][j], xv, wv[s]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MT; ++i) {
    float* y = t.y + (m - t.m0 + i) * t.ldy + (n - t.n0);
    C::fold(acc[i], y, NT);
  }
}

// Weight rows from n that one direct tile may take.
template <class F>
inline Index group_end(const WeightRows& w, Index n, Index n1) {
  if constexpr (F::kSharedScale) return smaller(n1, (n / w.block.rows + 1) * w.block.rows);
  return n1;
}

template <class F, int MT>
void direct(const DotTask& t, Index m) {
  constexpr int NT = F::Chain::direct_rows(MT);
  for (Index n = t.n0; n < t.n1;) {
    const Index end = group_end<F>(t.w, n, t.n1);
    for (; n + NT <= end; n += NT) {
      const Index next = n + 2 * NT <= t.n1 ? n + NT : n;
      direct_tile<F, MT, NT>(t, m, n, row_at<F>(t.w, next).data);
    }
    for (; n < end; ++n) direct_tile<F, MT, 1>(t, m, n, row_at<F>(t.w, n).data);
  }
}

// Columns [unit0, unit1) * kUnit of weight row n into out, in chain order.
template <class F>
inline void decode_row(const WeightRows& w, Index n, Index unit0, Index unit1,
                       typename F::Chain::Element* out) {
  using C = typename F::Chain;
  const Row<F> row = row_at<F>(w, n);
  const Index full_units = w.cols / F::kUnit;
  const Index per_scale = units_per_scale<F>(w);
  const Index end = smaller(unit1, full_units);
  Index unit = unit0;
  while (unit < end) {
    const Index block = unit / per_scale;
    const auto scale = F::scale(w, row.scale + block);
    const Index scale_end =
        F::kUnitsPerScale == 1 ? unit + 1 : smaller(end, (block + 1) * per_scale);
    do {
      typename C::Vec v[kSteps<F>];
      F::decode(row.data + unit * F::kUnitBytes, scale, v);
#pragma GCC unroll 8
      for (int s = 0; s < kSteps<F>; ++s) C::store(out + s * C::kStep, v[s]);
      out += F::kUnit;
    } while (++unit < scale_end);
  }
  if (unit < unit1) {
    alignas(64) std::byte padded[F::kUnitBytes] = {};
    std::memcpy(padded, row.data + unit * F::kUnitBytes,
                static_cast<std::size_t>(w.cols % F::kUnit * F::kUnitBytes / F::kUnit));
    typename C::Vec v[kSteps<F>];
    F::decode(padded, F::scale(w, row.scale + unit / per_scale), v);
    for (int s = 0; s < kSteps<F>; ++s) C::store(out + s * C::kStep, v[s]);
  }
}

// Weight rows n.. decoded from column `col` on, for a block of activation rows that begins at m0.
template <class C>
struct Slab {
  const typename C::Element* w;  // kTileRows rows
  Index w_stride, n_steps, col;
  float* lanes;  // [m - m0][kTileRows][16]: chains between two slabs
  bool first, last;
  Index m0, n;
  int n_valid;  // rows that exist
};

// MT activation rows by kTileRows weight rows: the slab's steps of their chains.
template <class C, int MT>
inline void tile(const DotTask& t, const Slab<C>& slab, Index m) {
  constexpr int NT = C::kTileRows;
  const auto* x = reinterpret_cast<const typename C::Element*>(t.x) + m * t.x_stride + slab.col;
  const auto* w = slab.w;
  float* lanes = slab.lanes + (m - slab.m0) * NT * 16;
  typename C::Acc acc[MT][NT];
#pragma GCC unroll 8
  for (int i = 0; i < MT; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NT; ++j) {
      acc[i][j] = slab.first ? C::zero() : C::load_acc(lanes + (i * NT + j) * 16);
    }
  }
  for (Index step = 0; step < slab.n_steps; ++step) {
    typename C::Vec xv[MT];
#pragma GCC unroll 8
    for (int i = 0; i < MT; ++i) xv[i] = C::load(x + i * t.x_stride + step * C::kStep);
#pragma GCC unroll 8
    for (int j = 0; j < NT; ++j) {
      const auto wv = C::load(w + j * slab.w_stride + step * C::kStep);
#pragma GCC unroll 8
      for (int i = 0; i < MT; ++i) acc[i][j] = C::mac(acc[i][j], xv[i], wv);
    }
  }
  if (!slab.last) {
#pragma GCC unroll 8
    for (int i = 0; i < MT; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < NT; ++j) C::store_acc(lanes + (i * NT + j) * 16, acc[i][j]);
    }
    return;
  }
  float* y = t.y + (m - t.m0) * t.ldy + (slab.n - t.n0);
#pragma GCC unroll 8
  for (int i = 0; i < MT; ++i) {
    C::fold(acc[i], y + i * t.ldy, slab.n_valid);
  }
}

constexpr Index kSlabBytes = 2048;       // of a decoded weight row: a tile of rows stays in L1
constexpr Index kXBlockBytes = 1 << 19;  // of the panel, which stays in L2
constexpr Index kMaxXBlock = 128;        // rows

// Weights decoded once per block of activation rows, a slab of columns at a time: best when there
// are enough activation rows for arithmetic to be what limits.
template <class F>
void blocked(const DotTask& t) {
  using C = typename F::Chain;
  using Element = typename C::Element;
  constexpr int MT = C::kTileX, NT = C::kTileRows;
  constexpr Index kElement = sizeof(Element);
  constexpr Index kSlabUnits = kSlabBytes / kElement / F::kUnit;
  constexpr Index kStride = (kSlabBytes + 64) / kElement;  // rows into different cache sets
  alignas(64) Element decoded[NT * kStride];
  alignas(64) float lanes[kMaxXBlock * NT * 16];
  const Index units = (t.w.cols + F::kUnit - 1) / F::kUnit;
  const Index fitting = smaller(kMaxXBlock, kXBlockBytes / (t.x_stride * kElement));
  const Index block = fitting < MT ? MT : fitting / MT * MT;

  for (Index m0 = t.m0; m0 < t.m1; m0 += block) {
    const Index m1 = smaller(t.m1, m0 + block);
    for (Index n = t.n0; n < t.n1; n += NT) {
      const int n_valid = static_cast<int>(smaller(NT, t.n1 - n));
      if (n_valid < NT) std::memset(decoded, 0, sizeof decoded);
      Index unit = 0;
      do {
        const Index end = smaller(units, unit + kSlabUnits);
        for (int j = 0; j < n_valid; ++j) {
          decode_row<F>(t.w, n + j, unit, end, decoded + j * kStride);
        }
        const Slab<C> slab{decoded,         kStride, (end - unit) * kSteps<F>,
                           unit * F::kUnit, lanes,   unit == 0,
                           end == units,    m0,      n,
                           n_valid};
        Index m = m0;
        for (; m + MT <= m1; m += MT) tile<C, MT>(t, slab, m);
        if constexpr (MT > 2) {
          for (; m + 2 <= m1; m += 2) tile<C, 2>(t, slab, m);
        }
        for (; m < m1; ++m) tile<C, 1>(t, slab, m);
        unit = end;
      } while (unit < units);
    }
  }
}

template <class F>
void run(const DotTask& t) {
  constexpr int kMost = F::Chain::kMaxDirect;
  const Index n_x = t.m1 - t.m0;
  if constexpr (kMost >= 1) {
    if (n_x == 1) return direct<F, 1>(t, t.m0);
  }
  if constexpr (kMost >= 2) {
    if (n_x == 2) return direct<F, 2>(t, t.m0);
  }
  if constexpr (kMost >= 3) {
    if (n_x == 3) return direct<F, 3>(t, t.m0);
  }
  if constexpr (kMost >= 4) {
    if (n_x == 4) return direct<F, 4>(t, t.m0);
  }
  blocked<F>(t);
}

}  // namespace
}  // namespace hadal::kernels::cpu

#endif  // HADAL_KERNELS_CPU_DOT_INL_H_
