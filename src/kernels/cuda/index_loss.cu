// Scores of queries against entries exist as matrices of f32, for as many queries at a time as
// memory is for (index_loss_scores.cu). One block makes a query's loss of its two rows; then one
// warp a (query, head) and one a key make gradients, each a loop in order, so nothing is added
// atomically.
#include "kernels/index_loss.h"

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cuda/device/index_loss.cuh"
#include "kernels/cuda/widened_rows.h"

namespace hadal::kernels::cuda {

namespace {

using namespace index_loss_detail;  // NOLINT(google-build-using-namespace): the other half's

constexpr std::int64_t kMaxScores = std::int64_t{1} << 26;       // elements of a matrix
constexpr int kMaxKeyWidth = 256, kPerLane = kMaxKeyWidth / 32;  // of the indexer
constexpr float kMinLog = -87.33654f;                            // of the smallest normal float
constexpr float kMinNormal = 1.17549435e-38f;

// One block a query: its loss and mass; dI takes the place of its scores.
__global__ void __launch_bounds__(kThreads) finish_kernel(Problem p) {
  __shared__ float shared[kWarps];
  __shared__ double parts[kWarps];
  const Piece& piece = piece_of<&Piece::token_block>(p);
  const Query q = query_of(p, piece);
  const auto first = static_cast<std::int32_t>(threadIdx.x);
  float mass = 0.0f, peak = -INFINITY;
  for (std::int32_t k = first; k < q.n; k += kThreads) {
    mass += q.teacher[q.key(k)];
    peak = fmaxf(peak, q.student[q.key(k)]);
  }
  mass = block_sum<kThreads>(mass, shared);
  peak = block_max<kThreads>(peak, shared);
  if (threadIdx.x == 0) p.mass[q.token] = mass;
  // Not a number: it goes on into the loss, where somebody looks.
  if (q.n == 0 || mass < kMinMass) {
    if (threadIdx.x == 0) p.loss[q.token] = 0.0f;
    for (std::int32_t k = first; k < q.n; k += kThreads) q.student[q.key(k)] = 0.0f;
    return;
  }
  float sum = 0.0f;
  for (std::int32_t k = first; k < q.n; k += kThreads) sum += expf(q.student[q.key(k)] - peak);
  const float log_sum = logf(block_sum<kThreads>(sum, shared));
  double loss = 0.0;
  for (std::int32_t k = first; k < q.n; k += kThreads) {
    float& student = q.student[q.key(k)];
    const float share = q.teacher[q.key(k)] / mass, log_pi = student - peak - log_sum;
    const float log_p = logf(share < kMinNormal ? kMinNormal : share);
    loss += double{share} * double{log_p - (log_pi < kMinLog ? kMinLog : log_pi)};
    student = p.scale * (expf(log_pi) - share);
  }
  loss = block_sum<kThreads>(loss, parts);
  if (threadIdx.x == 0) p.loss[q.token] = static_cast<float>(loss);
}

// One warp a (query, head), keys in order.
template <class T>
__global__ void __launch_bounds__(kThreads) query_gradient_kernel(Problem p) {
  const Piece& piece = piece_of<&Piece::token_block>(p);
  const Query q = query_of(p, piece);
  const Rows<T, T> rows = rows_of<T, T>(p, piece, q.token);
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int h = static_cast<int>(threadIdx.x / 32); h < p.index_n_heads; h += kWarps) {
    const std::int64_t head = q.token * p.index_n_heads + h;
    const T* x = rows.index_queries + h * p.index_width;
    const float weight = load(rows.index_weights[h]);
    float dq[kPerLane] = {}, dweight = 0.0f;
    for (std::int32_t k = 0; k < q.n; ++k) {
      const std::int32_t key = q.key(k);
      const float di = q.student[key];
      if (di == 0.0f) continue;
      const T* const at = rows.keys + std::int64_t{key} * p.index_width;
      float values[kPerLane], a = 0.0f;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int c = lane + 32 * j;
        values[j] = c < p.index_width ? load(at[c]) : 0.0f;
        if (c < p.index_width) a += load(x[c]) * values[j];
      }
      a = warp_sum(a);
      dweight += di * (a > 0.0f ? a : 0.0f);
      const float da = a > 0.0f ? di * weight : 0.0f;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) dq[j] += da * values[j];
    }
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int c = lane + 32 * j;
      if (c < p.index_width) p.dindex_queries[head * p.index_width + c] = dq[j];
    }
    if (lane == 0) p.dindex_weights[head] = dweight;
  }
}

// One warp a key, queries in order, heads in order. Adds to what earlier pieces of the sequence
// left.
template <class T>
__global__ void __launch_bounds__(kThreads) key_gradient_kernel(Problem p) {
  const Piece& piece = piece_of<&Piece::key_block>(p);
  const std::int32_t key = (static_cast<std::int32_t>(blockIdx.x) - piece.key_block) * kWarps +
                           static_cast<std::int32_t>(threadIdx.x / 32);
  if (key >= piece.n_keys) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t row = (piece.key_row + key) * p.index_width;
  float values[kPerLane], dkey[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int c = lane + 32 * j;
    values[j] = c < p.index_width ? load(static_cast<const T*>(p.index_keys)[row + c]) : 0.0f;
    dkey[j] = c < p.index_width ? p.dindex_keys[row + c] : 0.0f;
  }
  const float* di_of = p.student + piece.scores + key;
  for (std::int32_t i0 = 0; i0 < piece.n_tokens; i0 += 32) {
    const std::int32_t i = i0 + lane;
    const float own = i < piece.n_tokens ? di_of[std::int64_t{i} * piece.n_keys] : 0.0f;
    for (unsigned left = __ballot_sync(0xffffffffu, own != 0.0f); left != 0; left &= left - 1) {
      const int at = __ffs(static_cast<int>(left)) - 1;
      const float di = __shfl_sync(0xffffffffu, own, at);
      const std::int64_t head0 = (piece.begin + i0 + at) * p.index_n_heads;
      for (int h = 0; h < p.index_n_heads; ++h) {
        const T* x = static_cast<const T*>(p.index_queries) + (head0 + h) * p.index_width;
        float q[kPerLane], a = 0.0f;
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          const int c = lane + 32 * j;
          q[j] = c < p.index_width ? load(x[c]) : 0.0f;
          a += q[j] * values[j];
        }
        a = warp_sum(a);
        if (!(a > 0.0f)) continue;
        const float da = di * load(static_cast<const T*>(p.index_weights)[head0 + h]);
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) dkey[j] += da * q[j];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int c = lane + 32 * j;
    if (c < p.index_width) p.dindex_keys[row + c] = dkey[j];
  }
}

class IndexLoss {
 public:
  IndexLoss(Stream& stream, const IndexLossArgs& a) : stream_(stream), a_(a) {}

  void run() {
    const std::int64_t topk = a_.selected ? a_.selected.dim(1) : 0;
    std::vector<RowRun> entries;
    std::int64_t entry_row = 0;
    std::vector<Piece> pieces;
    for (const AttentionSequence& s : a_.sequences) {
      if (s.begin == s.end) continue;
      if (s.start != 0) {
        throw Error(ErrorCode::unsupported,
                    "index_loss: a sequence at position " + std::to_string(s.start) +
                        "; training sequences run in one piece from position 0");
      }
      const std::int64_t n = s.end - s.begin, all = n / a_.ratio;
      HADAL_CHECK(n < INT32_MAX / 2);
      if (all > 0) entries.push_back({s.entries, 0, all, 0});
      const std::int64_t step =
          std::clamp<std::int64_t>(kMaxScores / std::max<std::int64_t>(all, 1), 1, n);
      for (std::int64_t i = 0; i < n; i += step) {
        const std::int64_t end = std::min(n, i + step);
        pieces.push_back({.begin = s.begin + i,
                          .key_row = s.added.row,
                          .entry_row = entry_row,
                          .scores = 0,
                          .n_tokens = static_cast<std::int32_t>(end - i),
                          .n_keys = static_cast<std::int32_t>(end / a_.ratio),
                          .position = static_cast<std::int32_t>(i),
                          .listed = a_.selected && all > topk ? 1 : 0,
                          .token_block = 0,
                          .key_block = 0});
      }
      entry_row += all;
    }
    // bf16 holds what stored rows say unless they are f32.
    const bool narrow = a_.queries.dtype() == DType::bf16 &&
                        (entries.empty() || entries.front().rows.format.kind != KvRowKind::f32);
    type_ = narrow ? DType::bf16 : DType::f32;
    entries_ = widened_rows(stream_, entries, a_.queries.dim(2), type_);
    in_batches(pieces);
  }

 private:
  // Pieces of one sequence add to the same keys: they never run together.
  void in_batches(std::vector<Piece>& pieces) {
    std::size_t begin = 0;
    std::int64_t n_scores = 0;
    for (std::size_t i = 0; i <= pieces.size(); ++i) {
      const std::int64_t more =
          i < pieces.size() ? std::int64_t{pieces[i].n_tokens} * pieces[i].n_keys : 0;
      const bool apart = i < pieces.size() && pieces[i].position > 0;
      if (i > begin && (i == pieces.size() || apart || n_scores + more > kMaxScores)) {
        batch(std::span(pieces).subspan(begin, i - begin), n_scores);
        begin = i, n_scores = 0;
      }
      n_scores += more;
    }
  }

  void batch(std::span<Piece> pieces, std::int64_t n_scores) {
    std::int64_t scores = 0, token_block = 0, key_block = 0;
    for (Piece& piece : pieces) {
      piece.scores = scores;
      piece.token_block = static_cast<std::int32_t>(token_block);
      piece.key_block = static_cast<std::int32_t>(key_block);
      scores += std::int64_t{piece.n_tokens} * piece.n_keys;
      token_block += piece.n_tokens;
      key_block += ceil_div(piece.n_keys, kWarps);
    }
    const Tensor teacher = stream_.cuda().scratch(std::max<std::int64_t>(4 * n_scores, 4));
    const Tensor student = stream_.cuda().scratch(std::max<std::int64_t>(4 * n_scores, 4));
    stream_.zero(student);  // what is on no list or not visible has no gradient
    Problem p = problem();
    p.pieces = stream_.cuda().stage(std::span<const Piece>(pieces));
    p.n_pieces = static_cast<std::int32_t>(pieces.size());
    p.teacher = reinterpret_cast<float*>(teacher.bytes());
    p.student = reinterpret_cast<float*>(student.bytes());
    const Grid queries{dim3(static_cast<unsigned>(token_block)), dim3(kThreads)};
    score(stream_, p, token_block, a_.queries.dtype(), type_);
    if (a_.recall) measure_recall(stream_, p, token_block, false, a_.queries.dtype(), type_);
    launch(stream_, "index_loss", finish_kernel, queries, p);
    if (a_.recall && a_.selected) {
      measure_recall(stream_, p, token_block, true, a_.queries.dtype(), type_);
    }
    if (!a_.dindex_queries) return;
    dispatch_activation(a_.queries.dtype(), [&]<class T>() {
      launch(stream_, "index_loss queries", query_gradient_kernel<T>, queries, p);
      launch(stream_, "index_loss keys", key_gradient_kernel<T>,
             {dim3(static_cast<unsigned>(key_block)), dim3(kThreads)}, p);
    });
  }

  [[nodiscard]] Problem problem() const {
    Problem p{};
    p.queries = a_.queries.bytes();
    p.index_queries = a_.index_queries.bytes();
    p.index_weights = a_.index_weights.bytes();
    p.index_keys = a_.index_keys.bytes();
    p.entries = entries_.bytes();
    p.log_sum_exp = data<const float>(a_.log_sum_exp);
    p.selected = a_.selected ? data<const std::int32_t>(a_.selected) : nullptr;
    p.topk = a_.selected ? static_cast<std::int32_t>(a_.selected.dim(1)) : 0;
    p.ratio = static_cast<std::int32_t>(a_.ratio);
    p.n_heads = static_cast<std::int32_t>(a_.queries.dim(1));
    p.width = static_cast<std::int32_t>(a_.queries.dim(2));
    p.index_n_heads = static_cast<std::int32_t>(a_.index_queries.dim(1));
    p.index_width = static_cast<std::int32_t>(a_.index_queries.dim(2));
    p.recall_topk = static_cast<std::int32_t>(a_.recall_topk);
    p.softmax_scale = a_.softmax_scale;
    p.scale = a_.scale;
    p.loss = data<float>(a_.loss);
    p.mass = data<float>(a_.mass);
    if (a_.recall) {
      p.recall = data<float>(a_.recall);
      p.best_recall = data<float>(a_.best_recall);
    }
    if (a_.dindex_queries) {
      p.dindex_queries = data<float>(a_.dindex_queries);
      p.dindex_weights = data<float>(a_.dindex_weights);
      p.dindex_keys = data<float>(a_.dindex_keys);
    }
    return p;
  }

  Stream& stream_;
  const IndexLossArgs& a_;
  DType type_ = DType::f32;  // of the widened entries
  Tensor entries_;
};

}  // namespace

void index_loss(Stream& stream, const IndexLossArgs& a) {
  if (a.dindex_keys) stream.zero(a.dindex_keys);
  if (a.index_queries.dim(2) > kMaxKeyWidth) {
    throw Error(ErrorCode::unsupported,
                "index_loss: indexer heads of " + std::to_string(a.index_queries.dim(2)) +
                    " values; the GPU's kernel takes at most " + std::to_string(kMaxKeyWidth));
  }
  HADAL_CHECK(a.ratio > 0);
  IndexLoss(stream, a).run();
}

}  // namespace hadal::kernels::cuda
