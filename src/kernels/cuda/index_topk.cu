// The entry point of index_topk. Queries that see no more than topk entries list them all; those of
// the others are scored and selected in passes, so that scores take bounded memory however long the
// prompt is. What a query gets depends on its keys alone, not on the pass it is in.
#include "kernels/indexer.h"

#include <algorithm>
#include <vector>

#include "core/error.h"
#include "kernels/cuda/device/index_topk.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/sequence_table.cuh"

namespace hadal::kernels::cuda {

namespace {

using indexer::ScoreItem;
using indexer::ScoreKey;
using indexer::ScoreParams;
using indexer::ScoreRow;

constexpr std::int64_t kScoreBytes = std::int64_t{64} << 20;
constexpr std::int64_t kStrideUnit = 256;  // scores of a row begin at 16 bytes
constexpr int kThreads = 128;
constexpr int kPlainQueries = 8;  // of an item, for the plain kernel

// Of a sequence: the rows that see at most topk entries.
struct Short {
  std::int64_t begin, end;
  std::int64_t start;
};

__global__ void __launch_bounds__(kThreads)
    list_all_kernel(std::int32_t* selected, const Short* sequences, int n_sequences, int topk,
                    int ratio) {
  __shared__ int found;
  const std::int64_t t = blockIdx.x;
  const Short* s = find_sequence(sequences, n_sequences, t, &found);
  if (s == nullptr) return;
  const auto n = static_cast<int>((s->start + t - s->begin + 1) / ratio);
  for (int k = static_cast<int>(threadIdx.x); k < topk; k += kThreads) {
    selected[t * topk + k] = k < n ? k : -1;
  }
}

std::int64_t visible(const IndexSequence& s, std::int64_t t, std::int64_t ratio) {
  return (s.start + t - s.begin + 1) / ratio;
}
// The first row of a sequence that has something to leave out; s.end when there is none.
std::int64_t first_scored(const IndexSequence& s, std::int64_t ratio, std::int64_t topk) {
  // (start + t - begin + 1) / ratio > topk
  const std::int64_t t = s.begin + (topk + 1) * ratio - 1 - s.start;
  return std::clamp(t, s.begin, std::max(s.begin, s.end));
}

template <class T>
class Passes {
 public:
  using Key = typename ScoreKey<T>::Type;

  Passes(Stream& stream, const IndexTopkArgs& a) : stream_(stream), a_(a) {
    const KvRowFormat& format = a.sequences.front().keys.format;
    PageTables pages;
    std::vector<std::size_t> at;
    for (const IndexSequence& s : a.sequences) {
      at.push_back(pages.add(s.keys, s.begin < s.end ? visible(s, s.end - 1, a.ratio) : 0));
    }
    pages.send(stream);
    std::vector<DeviceRows> keys;
    for (std::size_t i = 0; i < at.size(); ++i) {
      keys.push_back(pages.rows(a.sequences[i].keys, at[i]));
    }
    params_.q = data<const T>(a.q);
    params_.weights = data<const T>(a.weights);
    params_.keys = stream.cuda().stage(std::span<const DeviceRows>(keys));
    params_.n_heads = static_cast<int>(a.q.dim(1));
    params_.width = static_cast<int>(a.q.dim(2));
    params_.ratio = static_cast<int>(a.ratio);
    choose_kernel(format, pages.aligned(16));
  }

  void run() {
    for (std::size_t i = 0; i < a_.sequences.size(); ++i) {
      const IndexSequence& s = a_.sequences[i];
      for (std::int64_t t = first_scored(s, a_.ratio, a_.selected.dim(1)); t < s.end;) {
        t += add(i, t);
      }
    }
    flush();
  }

 private:
  void choose_kernel(const KvRowFormat& format, bool aligned) {
    const std::int64_t n_heads = a_.q.dim(1), width = a_.q.dim(2);
    if (sizeof(T) == 2 && format.kind == KvRowKind::fp4 && (width == 64 || width == 128) &&
        aligned) {
      per_item_ = indexer::queries_on_tensor_cores(n_heads, width);
      on_tensor_cores_ = per_item_ > 0;
    }
    if (on_tensor_cores_) return;
    per_item_ = kPlainQueries;
    if (width > indexer::kMaxPlainWidth) {
      throw Error(ErrorCode::unsupported,
                  "index_topk on a GPU takes index heads of at most 512 values, and these have " +
                      std::to_string(width) + "; run this model on the cpu device");
    }
  }

  // Adds an item of sequence i that begins at row t; returns its number of queries.
  std::int64_t add(std::size_t i, std::int64_t t) {
    const IndexSequence& s = a_.sequences[i];
    const std::int64_t n = std::min<std::int64_t>(per_item_, s.end - t);
    const std::int64_t n_keys = visible(s, t + n - 1, a_.ratio);
    const std::int64_t stride = ceil_div(std::max(n_keys_, n_keys), kStrideUnit) * kStrideUnit;
    const auto n_rows = static_cast<std::int64_t>(rows_.size()) + n;
    if (n_rows * stride * std::int64_t{sizeof(Key)} > kScoreBytes && !rows_.empty()) {
      flush();
      return 0;
    }
    items_.push_back({.sequence = static_cast<std::int32_t>(i),
                      .token = static_cast<std::int32_t>(t),
                      .n_queries = static_cast<std::int32_t>(n),
                      .position = static_cast<std::int32_t>(s.start + t - s.begin),
                      .row = static_cast<std::int32_t>(rows_.size())});
    for (std::int64_t k = t; k < t + n; ++k) {
      rows_.push_back(
          {static_cast<std::int32_t>(k), static_cast<std::int32_t>(visible(s, k, a_.ratio))});
    }
    n_keys_ = std::max(n_keys_, n_keys);
    return n;
  }

  void flush() {
    if (rows_.empty()) return;
    const auto n_rows = static_cast<std::int64_t>(rows_.size());
    const auto n_items = static_cast<std::int64_t>(items_.size());
    params_.stride = ceil_div(n_keys_, kStrideUnit) * kStrideUnit;
    const Tensor scores =
        stream_.cuda().scratch(n_rows * params_.stride * std::int64_t{sizeof(Key)});
    params_.scores = reinterpret_cast<Key*>(scores.bytes());
    params_.items = stream_.cuda().stage(std::span<const ScoreItem>(items_));
    const auto* rows = stream_.cuda().stage(std::span<const ScoreRow>(rows_));
    score(n_items);
    indexer::select_entries(stream_, params_.scores, params_.stride, rows, n_rows, n_keys_,
                            data<std::int32_t>(a_.selected), a_.selected.dim(1));
    items_.clear();
    rows_.clear();
    n_keys_ = 0;
  }

  void score(std::int64_t n_items) {
    if constexpr (sizeof(T) == 2) {
      if (on_tensor_cores_) {
        return indexer::score_on_tensor_cores(stream_, params_, n_items, n_keys_, per_item_);
      }
    }
    indexer::score_plain(stream_, params_, n_items, n_keys_);
  }

  Stream& stream_;
  const IndexTopkArgs& a_;
  ScoreParams<T> params_{};
  bool on_tensor_cores_ = false;
  int per_item_ = 1;
  std::vector<ScoreItem> items_;
  std::vector<ScoreRow> rows_;
  std::int64_t n_keys_ = 0;  // the most that a query of this pass sees
};

}  // namespace

void index_topk(Stream& stream, const IndexTopkArgs& a) {
  const std::int64_t topk = a.selected.dim(1);
  if (a.q.dim(0) == 0 || topk == 0 || a.sequences.empty()) return;
  std::vector<Short> shorts;
  bool any_scored = false;
  for (const IndexSequence& s : a.sequences) {
    const std::int64_t scored = first_scored(s, a.ratio, topk);
    if (s.begin < scored) shorts.push_back({s.begin, scored, s.start});
    any_scored |= scored < s.end;
  }
  if (!shorts.empty()) {
    launch(stream, "index_topk: short lists", list_all_kernel,
           {dim3(static_cast<unsigned>(a.q.dim(0))), dim3(kThreads)},
           data<std::int32_t>(a.selected), stream.cuda().stage(std::span<const Short>(shorts)),
           static_cast<int>(shorts.size()), static_cast<int>(topk), static_cast<int>(a.ratio));
  }
  if (!any_scored) return;
  dispatch_activation(a.q.dtype(), [&]<class T>() { Passes<T>(stream, a).run(); });
}

}  // namespace hadal::kernels::cuda
