#include "kernels/indexer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/quant.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/kv_rows.h"
#include "kernels/cpu/select_topk.h"
#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

HADAL_SIMD_CLONES void hadamard_row(float* v, std::int64_t n) {
  for (std::int64_t half = 1; half < n; half *= 2) {
    for (std::int64_t i = 0; i < n; i += 2 * half) {
      for (std::int64_t j = i; j < i + half; ++j) {
        const float a = v[j], b = v[j + half];
        v[j] = a + b;
        v[j + half] = a - b;
      }
    }
  }
}

// m >= 0 to the nearest E2M1 magnitude, ties to the even code: steps of 1/2 below 2, of 1 below 4,
// of 2 above. Adding a number whose ulp is the step, and taking it off again, rounds ties to even.
HADAL_SIMD_INLINE float round_e2m1_magnitude(float m) {
  const float unit = m < 2.0f ? 0.5f : (m < 4.0f ? 1.0f : 2.0f);
  const float inverse = m < 2.0f ? 2.0f : (m < 4.0f ? 1.0f : 0.5f);
  const float rounded = ((m * inverse + 0x1.8p23f) - 0x1.8p23f) * unit;
  return rounded > 6.0f ? 6.0f : rounded;
}

template <class T>
HADAL_SIMD_INLINE void fake_quantize_blocks_as(T* x, std::int64_t n_blocks) {
  for (std::int64_t b = 0; b < n_blocks; ++b, x += kFp4Block.cols) {
    float v[kFp4Block.cols], lanes[kLanes];
    for (int i = 0; i < kFp4Block.cols; ++i) v[i] = load(x[i]);
    for (int l = 0; l < kLanes; ++l) {
      const float m0 = std::fabs(v[l]), m1 = std::fabs(v[l + kLanes]);
      lanes[l] = m0 > m1 ? m0 : m1;
    }
    float amax = 0.0f;
    for (const float m : lanes) amax = m > amax ? m : amax;
    const float scale = exp2_int(e2m1_scale_exponent(amax));
    const float inverse = 1.0f / scale;  // both are powers of two; 2^126 is the largest
    for (int i = 0; i < kFp4Block.cols; ++i) {
      const auto bits = std::bit_cast<std::uint32_t>(v[i]);
      const float magnitude = std::bit_cast<float>(bits & 0x7fffffffu) * inverse;
      const auto rounded_bits =
          std::bit_cast<std::uint32_t>(round_e2m1_magnitude(magnitude) * scale);
      v[i] = std::bit_cast<float>(rounded_bits | (bits & 0x80000000u));
    }
    for (int i = 0; i < kFp4Block.cols; ++i) put(x[i], v[i]);
  }
}
HADAL_SIMD_CLONES void fake_quantize_blocks(float* x, std::int64_t n_blocks) {
  fake_quantize_blocks_as(x, n_blocks);
}
HADAL_SIMD_CLONES void fake_quantize_blocks(bf16* x, std::int64_t n_blocks) {
  fake_quantize_blocks_as(x, n_blocks);
}

// acc[s] += w * relu(dot[s]), with the reference's roundings for bf16.
template <class T>
HADAL_SIMD_INLINE void add_head_as(float* acc, const float* dots, float weight, std::int64_t n) {
  for (std::int64_t s = 0; s < n; ++s) {
    const float dot = rounded<T>(dots[s]);
    acc[s] += rounded<T>((dot > 0.0f ? dot : 0.0f) * weight);
  }
}
HADAL_SIMD_CLONES void add_head(float, float* acc, const float* dots, float weight,
                                std::int64_t n) {
  add_head_as<float>(acc, dots, weight, n);
}
HADAL_SIMD_CLONES void add_head(bf16, float* acc, const float* dots, float weight, std::int64_t n) {
  add_head_as<bf16>(acc, dots, weight, n);
}

// How keys are read as weights, without saying where they are.
WeightRows key_layout(const KvRowFormat& format, std::int64_t rows) {
  const bool fp4 = format.kind == KvRowKind::fp4;
  WeightRows keys{};
  keys.dtype = fp4 ? DType::f4_e2m1 : DType::f32;
  keys.scale_dtype = DType::ue8m0;
  keys.rows = rows;
  keys.cols = format.width;
  keys.block = kFp4Block;
  return keys;
}

WeightRows page_keys(const PagedRows& keys, std::int64_t page) {
  WeightRows rows = key_layout(keys.format, keys.rows_per_page);
  std::byte* base = keys.pages[static_cast<std::size_t>(page)];
  rows.data = base;
  if (keys.format.scale_bytes() > 0) {
    rows.scale = base + keys.rows_per_page * keys.format.data_bytes();
  }
  return rows;
}

// Queries go in blocks, so that many of them do not need the whole score matrix. A block's work is
// split over groups of queries, which share the decoding of a page's keys, and over pages, so that
// one query over a long history keeps every thread busy.
constexpr std::int64_t kQueryBlock = 32;
constexpr std::int64_t kQueryGroup = 8;

template <class T>
class SequenceIndex {
 public:
  SequenceIndex(Stream& stream, const IndexTopkArgs& a, const IndexSequence& s,
                const ActivationPanel& panel)
      : stream_(stream), a_(a), s_(s), panel_(panel), per_page_(s.keys.rows_per_page) {}

  // `scores` is scratch that is kept between calls.
  void run(std::vector<float>& scores) {
    const std::int64_t topk = a_.selected.dim(1);
    for (std::int64_t t0 = s_.begin; t0 < s_.end; t0 += kQueryBlock) {
      const std::int64_t t1 = std::min(s_.end, t0 + kQueryBlock);
      const std::int64_t n_pages = (visible(t1 - 1) + per_page_ - 1) / per_page_;
      const std::int64_t stride = n_pages * per_page_;
      scores.resize(static_cast<std::size_t>((t1 - t0) * stride));
      if (visible(t1 - 1) > topk) score_block(t0, t1, n_pages, scores.data());
      stream_.pool().parallel_for(t1 - t0, 1, [&](std::int64_t i0, std::int64_t i1) {
        thread_local std::vector<float> scratch;
        for (std::int64_t i = i0; i < i1; ++i) {
          select_topk(scores.data() + i * stride, visible(t0 + i), topk,
                      a_.selected.data<std::int32_t>() + (t0 + i) * topk, scratch);
        }
      });
    }
  }

 private:
  [[nodiscard]] std::int64_t visible(std::int64_t t) const {
    return (s_.start + t - s_.begin + 1) / a_.ratio;
  }

  void score_block(std::int64_t t0, std::int64_t t1, std::int64_t n_pages, float* scores) const {
    const std::int64_t n_groups = (t1 - t0 + kQueryGroup - 1) / kQueryGroup;
    const std::int64_t stride = n_pages * per_page_;
    stream_.pool().parallel_for(n_groups * n_pages, 1, [&](std::int64_t i0, std::int64_t i1) {
      for (std::int64_t i = i0; i < i1; ++i) {
        const std::int64_t g0 = t0 + i / n_pages * kQueryGroup, page = i % n_pages;
        const std::int64_t g1 = std::min(t1, g0 + kQueryGroup);
        score_page(g0, g1, page, scores + (g0 - t0) * stride + page * per_page_, stride);
      }
    });
  }

  // scores[q * stride + i] of queries [g0, g1) against the keys of one page, as far as the last of
  // them sees.
  void score_page(std::int64_t g0, std::int64_t g1, std::int64_t page, float* scores,
                  std::int64_t stride) const {
    thread_local std::vector<float> dots;
    const std::int64_t n_heads = a_.q.dim(1);
    const std::int64_t n = std::min(per_page_, visible(g1 - 1) - page * per_page_);
    if (n <= 0) return;
    dots.resize(static_cast<std::size_t>((g1 - g0) * n_heads * n));
    dot_rows(panel_, g0 * n_heads, g1 * n_heads, page_keys(s_.keys, page), 0, n, dots.data(), n);
    for (std::int64_t t = g0; t < g1; ++t) {
      const T* weights = a_.weights.data<const T>() + t * n_heads;
      float* out = scores + (t - g0) * stride;
      const float* query_dots = dots.data() + (t - g0) * n_heads * n;
      std::fill(out, out + n, 0.0f);
      for (std::int64_t h = 0; h < n_heads; ++h) {
        add_head(T{}, out, query_dots + h * n, load(weights[h]), n);
      }
      for (std::int64_t i = 0; i < n; ++i) out[i] = rounded<T>(out[i]);
    }
  }

  Stream& stream_;
  const IndexTopkArgs& a_;
  const IndexSequence& s_;
  const ActivationPanel& panel_;
  std::int64_t per_page_;
};

}  // namespace

void select_topk(const float* scores, std::int64_t n, std::int64_t topk, std::int32_t* out,
                 std::vector<float>& scratch) {
  std::int64_t kept = 0;
  if (n <= topk) {
    for (; kept < n; ++kept) out[kept] = static_cast<std::int32_t>(kept);
  } else {
    scratch.assign(scores, scores + n);
    const auto kth = scratch.begin() + (topk - 1);
    std::nth_element(scratch.begin(), kth, scratch.end(), std::greater<>());
    const float threshold = *kth;
    const auto above = std::count_if(scores, scores + n, [&](float s) { return s > threshold; });
    std::int64_t ties = topk - above;  // the lowest entries among the equal ones
    for (std::int64_t s = 0; s < n; ++s) {
      if (kept < topk && (scores[s] > threshold || (scores[s] == threshold && ties-- > 0))) {
        out[kept++] = static_cast<std::int32_t>(s);
      }
    }
  }
  std::fill(out + kept, out + topk, -1);
}

void hadamard(Stream& stream, const HadamardArgs& a) {
  const std::int64_t n = a.x.dim(1);
  const float factor = 1.0f / std::sqrt(static_cast<float>(n));
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.x.dim(0), 64, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> row(static_cast<std::size_t>(n));
      for (std::int64_t r = begin; r < end; ++r) {
        T* x = a.x.data<T>() + r * n;
        for (std::int64_t i = 0; i < n; ++i) row[static_cast<std::size_t>(i)] = load(x[i]);
        hadamard_row(row.data(), n);
        for (std::int64_t i = 0; i < n; ++i) {
          put(x[i], row[static_cast<std::size_t>(i)] * factor);
        }
      }
    });
  });
}

void fake_quantize_fp4(Stream& stream, const FakeQuantizeFp4Args& a) {
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    const std::int64_t n_blocks = a.x.numel() / kFp4Block.cols;
    stream.pool().parallel_for(n_blocks, 1024, [&](std::int64_t begin, std::int64_t end) {
      fake_quantize_blocks(a.x.data<T>() + begin * kFp4Block.cols, end - begin);
    });
  });
}

void index_topk(Stream& stream, const IndexTopkArgs& a) {
  if (a.q.dim(0) == 0 || a.sequences.empty()) return;
  const std::int64_t n_tokens = a.q.dim(0), n_heads = a.q.dim(1), width = a.q.dim(2);
  // Scores only matter where there is something to leave out.
  const bool any_scores = std::any_of(a.sequences.begin(), a.sequences.end(), [&](const auto& s) {
    return (s.start + s.end - s.begin) / a.ratio > a.selected.dim(1);
  });
  thread_local ActivationPanel panel;
  if (any_scores) {
    panel.prepare(stream.pool(), a.q.reshape({n_tokens * n_heads, width}),
                  key_layout(a.sequences.front().keys.format, 1), ActivationQuant::none);
  }
  const ActivationPanel& shared = panel;
  dispatch_activation(a.q.dtype(), [&]<class T>() {
    thread_local std::vector<float> scores;
    for (const IndexSequence& s : a.sequences) SequenceIndex<T>(stream, a, s, shared).run(scores);
  });
}

}  // namespace hadal::kernels::cpu
