// Stored keys become dense matrices first, in bf16 where tensor cores take over (exactly: bf16
// holds what fp8_mixed rows say), else in f32. Then every query's gradient is a loop over the keys
// that it sees, and every key's one over the queries that see it: no gradient is shared by two
// blocks. An entry that many queries see has them in up to kMaxParts ranges, each with a buffer of
// its own, which are added in order.
//
// The kernels of this file do it in f32, one block a query or key: for f32 activations and for head
// widths that sparse_attention_backward_mma.cu does not have.
#include "kernels/sparse_attention.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/device/attention_gradient.cuh"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/cuda/operands.h"
#include "kernels/cuda/widened_rows.h"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kChunk = 32;  // keys or queries that a block weighs at a time
constexpr std::int64_t kRowsPerPart = 2048, kMaxParts = 8;

// delta = d_o . o of every (token, head), one warp each; d_o with the values that products take.
template <class T, class C>
__global__ void __launch_bounds__(kThreads)
    delta_kernel(float* delta, const float* d_o, const T* o, std::int64_t n_rows, int width) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= n_rows) return;
  float sum = 0.0f;
  for (int c = static_cast<int>(threadIdx.x % 32); c < width; c += 32) {
    sum += rounded<C>(d_o[row * width + c]) * load(o[row * width + c]);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[row] = sum;
}

// One block a head, the order of additions by the number of tokens alone.
__global__ void __launch_bounds__(kThreads)
    sink_gradient_kernel(float* dsinks, const float* sinks, const float* log_sum_exp,
                         const float* delta, std::int64_t n_tokens, int n_heads) {
  __shared__ double parts[kWarps];
  const int head = static_cast<int>(blockIdx.x);
  double sum = 0.0;
  for (std::int64_t t = threadIdx.x; t < n_tokens; t += kThreads) {
    const std::int64_t i = t * n_heads + head;
    sum -= double{expf(sinks[head] - log_sum_exp[i])} * double{delta[i]};
  }
  sum = block_sum<kThreads>(sum, parts);
  if (threadIdx.x == 0) dsinks[head] += static_cast<float>(sum);
}

// The lists of tokens as bits. Integer additions of bits: any order gives the same.
__global__ void __launch_bounds__(kThreads)
    mark_lists_kernel(std::uint32_t* lists, const std::int32_t* selected, std::int64_t n, int topk,
                      int list_words) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  const std::int32_t entry = selected[i];
  if (entry < 0 || entry >= list_words * 32) return;
  atomicOr(lists + i / topk * list_words + entry / 32, 1u << (entry % 32));
}

// p and scale * dz of one query and key, the same for all lanes.
struct Weights {
  float p, dz;
};
template <class T>
__device__ Weights weigh(const GradientProblem& p, std::int64_t row, const float* key) {
  const T* q = static_cast<const T*>(p.q) + row * p.width;
  const float* d_o = static_cast<const float*>(p.d_o) + row * p.width;
  float s = 0.0f, d = 0.0f;
  for (int c = static_cast<int>(threadIdx.x % 32); c < p.width; c += 32) {
    s += load(q[c]) * key[c];
    d += d_o[c] * key[c];
  }
  s = warp_sum(s);
  d = warp_sum(d);
  const float weight = expf(s * p.scale - p.log_sum_exp[row]);
  return {weight, p.scale * weight * (d - p.delta[row])};
}

__device__ const float* keys_at(const GradientProblem& p, const GradientSequence& s,
                                KeySource source) {
  return source == KeySource::window
             ? static_cast<const float*>(p.window_rows) + s.window_row * p.width
             : static_cast<const float*>(p.entry_rows) + s.entry_row * p.width;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    query_gradient_kernel(GradientProblem p, const QueryTile* tiles) {
  extern __shared__ float sums[];  // [width]
  __shared__ float dz[kChunk];
  const QueryTile tile = tiles[blockIdx.x];
  const GradientSequence s = p.sequences[tile.sequence];
  const int own = tile.row0 + static_cast<int>(blockIdx.y);
  if (own >= s.n_tokens * p.n_heads) return;
  const int token = own / p.n_heads, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t row = s.begin * p.n_heads + own;
  for (int c = static_cast<int>(threadIdx.x); c < p.width; c += kThreads) sums[c] = 0.0f;
  for (int i = 0; i < 2; ++i) {
    const KeySource source = i == 0 ? KeySource::window : KeySource::entries;
    if (source == KeySource::entries && s.n_entries == 0) break;
    const float* keys = keys_at(p, s, source);
    const KeyInterval interval = keys_of(p, s, source, token);
    for (int key0 = interval.begin; key0 < interval.end; key0 += kChunk) {
      const std::uint64_t visible = visible_keys(p, s, source, token, key0);
      for (int k = warp; k < kChunk; k += kWarps) {
        const bool sees = (visible >> k & 1u) != 0;
        const float x = sees ? weigh<T>(p, row, keys + std::int64_t{key0 + k} * p.width).dz : 0.0f;
        if (threadIdx.x % 32 == 0) dz[k] = x;
      }
      __syncthreads();
      for (int c = static_cast<int>(threadIdx.x); c < p.width; c += kThreads) {
        float sum = sums[c];
        for (int k = 0; k < kChunk; ++k) {
          if (dz[k] != 0.0f) sum += dz[k] * keys[std::int64_t{key0 + k} * p.width + c];
        }
        sums[c] = sum;
      }
      __syncthreads();
    }
  }
  for (int c = static_cast<int>(threadIdx.x); c < p.width; c += kThreads) {
    p.dq[row * p.width + c] = sums[c];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    key_gradient_kernel(GradientProblem p, const KeyTile* tiles) {
  extern __shared__ float sums[];  // [width]
  __shared__ Weights weights[kChunk];
  const KeyTile tile = tiles[blockIdx.x];
  if (static_cast<int>(blockIdx.y) >= tile.n_keys) return;
  const GradientSequence s = p.sequences[tile.sequence];
  const int own = tile.key0 + static_cast<int>(blockIdx.y),
            warp = static_cast<int>(threadIdx.x) / 32;
  const float* key = keys_at(p, s, tile.source) + std::int64_t{own} * p.width;
  const std::int64_t first_row = s.begin * p.n_heads;
  for (int c = static_cast<int>(threadIdx.x); c < p.width; c += kThreads) sums[c] = 0.0f;
  for (int row0 = tile.row_begin; row0 < tile.row_end; row0 += kChunk) {
    const int n_rows = min(kChunk, tile.row_end - row0);
    for (int r = warp; r < kChunk; r += kWarps) {
      Weights w{0.0f, 0.0f};
      if (r < n_rows && (visible_keys(p, s, tile.source, (row0 + r) / p.n_heads, own) & 1u) != 0) {
        w = weigh<T>(p, first_row + row0 + r, key);
      }
      if (threadIdx.x % 32 == 0) weights[r] = w;
    }
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.x); c < p.width; c += kThreads) {
      float sum = sums[c];
      for (int r = 0; r < n_rows; ++r) {
        const Weights w = weights[r];
        if (w.p == 0.0f) continue;
        const std::int64_t at = (first_row + row0 + r) * p.width + c;
        sum += w.dz * load(static_cast<const T*>(p.q)[at]) +
               w.p * static_cast<const float*>(p.d_o)[at];
      }
      sums[c] = sum;
    }
    __syncthreads();
  }
  for (int c = static_cast<int>(threadIdx.x); c < p.width; c += kThreads) {
    tile.out[std::int64_t{blockIdx.y} * p.width + c] = sums[c];
  }
}

// Parts of one tile of entries, [n_parts][kGradientTile][width], in the order of their queries.
struct PartSum {
  float* out;
  const float* parts;
  std::int32_t n_keys, n_parts;
};
__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(const PartSum* jobs, std::int64_t width) {
  const PartSum job = jobs[blockIdx.x];
  const std::int64_t n = job.n_keys * width, step = std::int64_t{gridDim.y} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.y} * kThreads + threadIdx.x; i < n; i += step) {
    float sum = job.parts[i];
    for (int k = 1; k < job.n_parts; ++k) sum += job.parts[k * kGradientTile * width + i];
    job.out[i] = sum;
  }
}

class AttentionBackward {
 public:
  AttentionBackward(Stream& stream, const SparseAttentionBackwardArgs& a)
      : stream_(stream),
        queue_(stream.cuda()),
        a_(a),
        n_heads_(a.q.dim(1)),
        width_(a.q.dim(2)),
        n_rows_(a.q.dim(0) * a.q.dim(1)),
        on_tensor_cores_(a.q.dtype() == DType::bf16 && has_mma_gradient(a.q.dim(2))),
        type_(on_tensor_cores_ ? DType::bf16 : DType::f32) {}

  void run() {
    delta();
    if (a_.dsinks) {
      launch(stream_, "sparse_attention_backward sinks", sink_gradient_kernel,
             {dim3(static_cast<unsigned>(n_heads_)), dim3(kThreads)}, data<float>(a_.dsinks),
             data<const float>(a_.sinks), data<const float>(a_.log_sum_exp), problem_.delta,
             a_.q.dim(0), static_cast<int>(n_heads_));
    }
    if (!a_.dq && !a_.drows && !a_.dentries) return;
    describe();
    if (a_.dq) queries();
    keys();
  }

 private:
  void delta() {
    delta_ = queue_.memory().empty({n_rows_}, DType::f32);
    problem_.delta = data<const float>(delta_);
    dispatch_activation(a_.q.dtype(), [&]<class T>() {
      dispatch_activation(type_, [&]<class C>() {
        launch(stream_, "sparse_attention_backward delta", delta_kernel<T, C>,
               {dim3(blocks_for(n_rows_, kWarps)), dim3(kThreads)}, data<float>(delta_),
               data<const float>(a_.d_o), data<const T>(a_.o), n_rows_, static_cast<int>(width_));
      });
    });
  }

  // Entries that the last token of a sequence sees.
  [[nodiscard]] std::int64_t n_entries(const AttentionSequence& s) const {
    return a_.ratio == 0 ? 0 : (s.start + s.end - s.begin) / a_.ratio;
  }

  // Widens the keys and fills in the problem.
  void describe() {
    std::vector<RowRun> window, entries;
    std::int64_t window_row = 0, entry_row = 0, most_listed = 0;
    for (const AttentionSequence& s : a_.sequences) {
      if (s.begin == s.end) continue;
      const std::int64_t n = s.end - s.begin, all = n_entries(s);
      const std::int64_t first = std::max<std::int64_t>(0, s.start - (a_.window - 1));
      HADAL_CHECK(s.start + n < INT32_MAX / 2 && n * n_heads_ < INT32_MAX);
      if (s.start > first) window.push_back({s.window, first, s.start - first, s.ring_rows});
      window.push_back({a_.new_rows, s.begin, n, 0});
      if (all > 0) entries.push_back({s.entries, 0, all, 0});
      const bool listed = a_.selected && all > a_.selected.dim(1);
      if (listed) most_listed = std::max(most_listed, all);
      const std::int64_t constant = std::min(all, s.added.first);
      sequences_.push_back({.begin = s.begin,
                            .window_row = window_row,
                            .entry_row = entry_row,
                            .drow = s.begin,
                            .dentry = s.added.row + constant - s.added.first,
                            .n_tokens = static_cast<std::int32_t>(n),
                            .n_entries = static_cast<std::int32_t>(all),
                            .start = static_cast<std::int32_t>(s.start),
                            .first = static_cast<std::int32_t>(first),
                            .constant_rows = static_cast<std::int32_t>(s.start - first),
                            .constant_entries = static_cast<std::int32_t>(constant),
                            .listed = listed ? 1 : 0});
      window_row += s.start - first + n;
      entry_row += all;
    }
    window_rows_ = widened_rows(stream_, window, width_, type_);
    entry_rows_ = widened_rows(stream_, entries, width_, type_);
    d_o_ = rows_operand(stream_, a_.d_o.reshape({n_rows_, width_}), ActivationQuant::none, type_);
    const std::int64_t list_words = ceil_div(most_listed, 32);
    if (list_words > 0) mark_lists(list_words);
    problem_.sequences = queue_.stage(std::span<const GradientSequence>(sequences_));
    problem_.q = a_.q.bytes();
    problem_.d_o = d_o_.data;
    problem_.log_sum_exp = data<const float>(a_.log_sum_exp);
    problem_.window_rows = window_rows_.bytes();
    problem_.entry_rows = entry_rows_.bytes();
    problem_.lists = reinterpret_cast<const std::uint32_t*>(lists_.bytes());
    problem_.list_words = static_cast<std::int32_t>(list_words);
    problem_.n_heads = static_cast<std::int32_t>(n_heads_);
    problem_.width = static_cast<std::int32_t>(width_);
    problem_.window = static_cast<std::int32_t>(std::min<std::int64_t>(a_.window, INT32_MAX / 2));
    problem_.ratio = static_cast<std::int32_t>(a_.ratio);
    problem_.scale = a_.softmax_scale;
    problem_.dq = a_.dq ? data<float>(a_.dq) : nullptr;
  }

  void mark_lists(std::int64_t list_words) {
    lists_ = queue_.scratch(a_.q.dim(0) * list_words * 4);
    queue_.zero(lists_.bytes(), lists_.nbytes());
    launch(stream_, "sparse_attention_backward lists", mark_lists_kernel,
           {dim3(blocks_for(a_.selected.numel(), kThreads)), dim3(kThreads)},
           reinterpret_cast<std::uint32_t*>(lists_.bytes()), data<const std::int32_t>(a_.selected),
           a_.selected.numel(), static_cast<int>(a_.selected.dim(1)), static_cast<int>(list_words));
  }

  // The last tokens see most: their tiles begin first.
  void queries() {
    std::vector<QueryTile> tiles;
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      const auto n = static_cast<std::int32_t>(sequences_[i].n_tokens * n_heads_);
      for (std::int32_t row = 0; row < n; row += kGradientTile) {
        tiles.push_back({static_cast<std::int32_t>(i), row});
      }
    }
    std::stable_sort(tiles.begin(), tiles.end(),
                     [](const QueryTile& x, const QueryTile& y) { return x.row0 > y.row0; });
    if (on_tensor_cores_) return attention_query_gradient_mma(stream_, problem_, tiles);
    dispatch_activation(a_.q.dtype(), [&]<class T>() {
      launch(stream_, "sparse_attention_backward queries", query_gradient_kernel<T>,
             simple_grid(tiles.size()), problem_, queue_.stage(std::span<const QueryTile>(tiles)));
    });
  }

  void keys() {
    std::vector<KeyTile> tiles;
    std::vector<PartSum> sums;
    if (a_.dentries) entry_tiles(tiles, sums);
    if (a_.drows) window_tiles(tiles);
    if (tiles.empty()) return;
    if (on_tensor_cores_) {
      attention_key_gradient_mma(stream_, problem_, tiles);
    } else {
      dispatch_activation(a_.q.dtype(), [&]<class T>() {
        launch(stream_, "sparse_attention_backward keys", key_gradient_kernel<T>,
               simple_grid(tiles.size()), problem_, queue_.stage(std::span<const KeyTile>(tiles)));
      });
    }
    if (sums.empty()) return;
    launch(stream_, "sparse_attention_backward parts", add_parts_kernel,
           {dim3(static_cast<unsigned>(sums.size()), 8), dim3(kThreads)},
           queue_.stage(std::span<const PartSum>(sums)), width_);
  }
  [[nodiscard]] Grid simple_grid(std::size_t n_tiles) const {
    return {dim3(static_cast<unsigned>(n_tiles), kGradientTile), dim3(kThreads),
            static_cast<int>(width_ * 4)};
  }

  // Key j of a step is seen by its own token and the window - 1 after it.
  void window_tiles(std::vector<KeyTile>& tiles) const {
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      const GradientSequence& s = sequences_[i];
      for (std::int64_t j = 0; j < s.n_tokens; j += kGradientTile) {
        const std::int64_t n_keys = std::min<std::int64_t>(kGradientTile, s.n_tokens - j);
        const std::int64_t end = std::min<std::int64_t>(s.n_tokens, j + n_keys - 1 + a_.window);
        tiles.push_back({.sequence = static_cast<std::int32_t>(i),
                         .source = KeySource::window,
                         .key0 = static_cast<std::int32_t>(s.constant_rows + j),
                         .n_keys = static_cast<std::int32_t>(n_keys),
                         .row_begin = static_cast<std::int32_t>(j * n_heads_),
                         .row_end = static_cast<std::int32_t>(end * n_heads_),
                         .out = data<float>(a_.drows) + (s.drow + j) * width_});
      }
    }
  }

  // Entries are seen by all later tokens: in parts where those are many. Parts are ranges of the
  // sequence's rows, by its length alone.
  void entry_tiles(std::vector<KeyTile>& tiles, std::vector<PartSum>& sums) {
    std::vector<std::int64_t> first_part;  // of the tile's parts; -1: one, which is the result
    std::int64_t n_parts = 0;
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      const GradientSequence& s = sequences_[i];
      const std::int64_t n_rows = s.n_tokens * n_heads_;
      const std::int64_t wanted = std::clamp<std::int64_t>(n_rows / kRowsPerPart, 1, kMaxParts);
      const std::int64_t part_rows =
          ceil_div(ceil_div(n_rows, wanted), kGradientTile) * kGradientTile;
      for (std::int64_t e = s.constant_entries; e < s.n_entries; e += kGradientTile) {
        const std::int64_t n_keys = std::min<std::int64_t>(kGradientTile, s.n_entries - e);
        const std::int64_t seen_from = std::max<std::int64_t>(0, (e + 1) * a_.ratio - 1 - s.start);
        const std::int64_t row_begin = seen_from * n_heads_;
        float* const out = data<float>(a_.dentries) + (s.dentry + e - s.constant_entries) * width_;
        const std::int64_t own_parts =
            (n_rows - 1) / part_rows - std::min(row_begin, n_rows - 1) / part_rows + 1;
        if (own_parts > 1) {
          sums.push_back({out, nullptr, static_cast<std::int32_t>(n_keys),
                          static_cast<std::int32_t>(own_parts)});
        }
        for (std::int64_t part = row_begin / part_rows; part * part_rows < n_rows; ++part) {
          tiles.push_back(
              {.sequence = static_cast<std::int32_t>(i),
               .source = KeySource::entries,
               .key0 = static_cast<std::int32_t>(e),
               .n_keys = static_cast<std::int32_t>(n_keys),
               .row_begin = static_cast<std::int32_t>(std::max(row_begin, part * part_rows)),
               .row_end = static_cast<std::int32_t>(std::min(n_rows, (part + 1) * part_rows)),
               .out = out});
          first_part.push_back(own_parts > 1 ? n_parts++ : -1);
        }
      }
    }
    if (n_parts == 0) return;
    const std::int64_t size = kGradientTile * width_;
    parts_ = queue_.memory().empty({n_parts * size}, DType::f32);
    std::int64_t next = 0;
    for (PartSum& sum : sums) {
      sum.parts = data<const float>(parts_) + next * size;
      next += sum.n_parts;
    }
    for (std::size_t i = 0; i < tiles.size(); ++i) {
      if (first_part[i] >= 0) tiles[i].out = data<float>(parts_) + first_part[i] * size;
    }
  }

  Stream& stream_;
  hadal::cuda::Queue& queue_;
  const SparseAttentionBackwardArgs& a_;
  std::int64_t n_heads_, width_, n_rows_;
  bool on_tensor_cores_;
  DType type_;  // of the matrices of keys and of d_o
  std::vector<GradientSequence> sequences_;
  Tensor delta_, window_rows_, entry_rows_, lists_, parts_;
  Operand d_o_;
  GradientProblem problem_{};
};

}  // namespace

void sparse_attention_backward(Stream& stream, const SparseAttentionBackwardArgs& a) {
  if (a.drows) stream.zero(a.drows);
  if (a.dentries) stream.zero(a.dentries);
  if (a.q.dim(0) * a.q.dim(1) == 0) return;
  AttentionBackward(stream, a).run();
}

}  // namespace hadal::kernels::cuda
