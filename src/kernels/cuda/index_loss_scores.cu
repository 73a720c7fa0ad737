// The indexer's loss, first half: what the attention gave to every entry, and what the indexer did.
// One block a query, one warp four of its keys at a time, sums over the lanes.
#include "kernels/cuda/device/index_loss.cuh"

namespace hadal::kernels::cuda::index_loss_detail {

namespace {

constexpr int kKeys = 4;  // of a warp at a time

// One block a query: teacher and student of its keys.
template <class T, class C>
__global__ void __launch_bounds__(kThreads) score_kernel(Problem p) {
  const Piece& piece = piece_of<&Piece::token_block>(p);
  const Query q = query_of(p, piece);
  const Rows<T, C> rows = rows_of<T, C>(p, piece, q.token);
  const float* lse = p.log_sum_exp + q.token * p.n_heads;
  for (std::int32_t k0 = static_cast<std::int32_t>(threadIdx.x / 32) * kKeys; k0 < q.n;
       k0 += kWarps * kKeys) {
    const C* entries[kKeys];
    const T* keys[kKeys];
    float teacher[kKeys] = {}, student[kKeys] = {}, z[kKeys];
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      const std::int64_t key = q.key(min(k0 + k, q.n - 1));
      entries[k] = rows.entries + key * p.width;
      keys[k] = rows.keys + key * p.index_width;
    }
    for (int h = 0; h < p.n_heads; ++h) {
      dots(z, rows.queries + h * p.width, entries, p.width);
#pragma unroll
      for (int k = 0; k < kKeys; ++k) teacher[k] += expf(z[k] * p.softmax_scale - lse[h]);
    }
    for (int h = 0; h < p.index_n_heads; ++h) {
      dots(z, rows.index_queries + h * p.index_width, keys, p.index_width);
      const float weight = load(rows.index_weights[h]);
#pragma unroll
      for (int k = 0; k < kKeys; ++k) student[k] += weight * (z[k] > 0.0f ? z[k] : 0.0f);
    }
    if (threadIdx.x % 32 != 0) continue;
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      if (k0 + k >= q.n) continue;
      const std::int32_t key = q.key(k0 + k);
      q.teacher[key] = teacher[k];
      q.student[key] = student[k];
    }
  }
}

// Order of floats as that of integers; both zeros are one.
__device__ std::uint32_t ordered(float x) {
  const std::uint32_t u = __float_as_uint(x + 0.0f);
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}

// What the topk best of `score` (ties to the lower index) have of `value`. The block's threads all
// get it.
__device__ float sum_of_best(const float* score, const float* value, std::int32_t n,
                             std::int32_t topk, float* shared) {
  __shared__ int counts[kWarps];
  const auto count = [&](std::uint32_t at_least) {
    int own = 0;
    for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < n; i += kThreads) {
      own += ordered(score[i]) >= at_least ? 1 : 0;
    }
    own = __reduce_add_sync(0xffffffffu, own);
    if (threadIdx.x % 32 == 0) counts[threadIdx.x / 32] = own;
    __syncthreads();
    int all = 0;
    for (int w = 0; w < kWarps; ++w) all += counts[w];
    __syncthreads();
    return all;
  };
  // The largest threshold that topk scores reach.
  std::uint32_t threshold = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const std::uint32_t higher = threshold | 1u << bit;
    if (count(higher) >= topk) threshold = higher;
  }
  const int n_above = threshold == 0xffffffffu ? 0 : count(threshold + 1);
  // Equal ones in order, as far as they are wanted: a thread's are a range.
  const std::int32_t per_thread = (n + kThreads - 1) / kThreads;
  const std::int32_t begin = min(n, static_cast<std::int32_t>(threadIdx.x) * per_thread);
  const std::int32_t end = min(n, begin + per_thread);
  int equal = 0;
  for (std::int32_t i = begin; i < end; ++i) equal += ordered(score[i]) == threshold ? 1 : 0;
  __shared__ int equals[kThreads];
  equals[threadIdx.x] = equal;
  __syncthreads();
  int before = 0;
  for (int i = 0; i < static_cast<int>(threadIdx.x); ++i) before += equals[i];
  float sum = 0.0f;
  for (std::int32_t i = begin; i < end; ++i) {
    const std::uint32_t at = ordered(score[i]);
    if (at > threshold || (at == threshold && before++ < topk - n_above)) sum += value[i];
  }
  return block_sum<kThreads>(sum, shared);
}

__device__ bool is_listed(const Query& q, std::int32_t key) {
  std::int32_t low = 0, high = q.n;
  while (low < high) {
    const std::int32_t middle = (low + high) / 2;
    if (q.list[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < q.n && q.list[low] == key;
}

// One block a query. Without lists it comes between the scores and the loss, which takes the
// student's place. With a list the attention's denominators lack the entries that are not on it;
// the shares that it would have had with them take the teacher's place, once the loss is done.
template <class T, class C>
__global__ void __launch_bounds__(kThreads) recall_kernel(Problem p, bool listed) {
  extern __shared__ float head_sums[];  // [kWarps, n_heads]
  __shared__ float shared[kWarps];
  const Piece& piece = piece_of<&Piece::token_block>(p);
  if ((piece.listed != 0) != listed) return;
  const Query q = query_of(p, piece);
  const std::int32_t kept = p.selected != nullptr ? p.topk : p.recall_topk;
  if (q.visible <= kept) {
    if (threadIdx.x == 0) p.recall[q.token] = p.best_recall[q.token] = -1.0f;
    return;
  }
  float total = 0.0f, caught = 0.0f;
  if (q.list == nullptr) {
    for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < q.n; i += kThreads) {
      total += q.teacher[i];
    }
    total = block_sum<kThreads>(total, shared);
    caught = sum_of_best(q.student, q.teacher, q.n, p.recall_topk, shared);
  } else {
    const Rows<T, C> rows = rows_of<T, C>(p, piece, q.token);
    const float* lse = p.log_sum_exp + q.token * p.n_heads;
    const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    for (int i = static_cast<int>(threadIdx.x); i < kWarps * p.n_heads; i += kThreads) {
      head_sums[i] = 0.0f;
    }
    __syncthreads();
    const auto attention = [&](std::int32_t key, int h) {
      const C* const entry[1] = {rows.entries + std::int64_t{key} * p.width};
      float z[1];
      dots(z, rows.queries + h * p.width, entry, p.width);
      return expf(z[0] * p.softmax_scale - lse[h]);
    };
    for (std::int32_t key = warp; key < q.visible; key += kWarps) {
      if (is_listed(q, key)) continue;
      for (int h = 0; h < p.n_heads; ++h) {
        const float a = attention(key, h);
        if (lane == 0) head_sums[warp * p.n_heads + h] += a;
      }
    }
    __syncthreads();
    for (int h = static_cast<int>(threadIdx.x); h < p.n_heads; h += kThreads) {
      float sum = 1.0f;
      for (int w = 0; w < kWarps; ++w) sum += head_sums[w * p.n_heads + h];
      head_sums[h] = 1.0f / sum;
    }
    __syncthreads();
    for (std::int32_t key = warp; key < q.visible; key += kWarps) {
      float a = 0.0f;
      for (int h = 0; h < p.n_heads; ++h) a += head_sums[h] * attention(key, h);
      if (lane != 0) continue;
      q.teacher[key] = a;
      total += a;
      if (is_listed(q, key)) caught += a;
    }
    total = block_sum<kThreads>(total, shared);
    caught = block_sum<kThreads>(caught, shared);  // its barriers are for the teacher, too
  }
  const float most = sum_of_best(q.teacher, q.teacher, q.visible, kept, shared);
  if (threadIdx.x != 0) return;
  p.recall[q.token] = total >= kMinMass ? caught / total : -1.0f;
  p.best_recall[q.token] = total >= kMinMass ? most / total : -1.0f;
}

}  // namespace

void score(Stream& stream, const Problem& problem, std::int64_t n_queries, DType activation,
           DType entries) {
  dispatch_activation(activation, [&]<class T>() {
    dispatch_activation(entries, [&]<class C>() {
      launch(stream, "index_loss scores", score_kernel<T, C>,
             {dim3(static_cast<unsigned>(n_queries)), dim3(kThreads)}, problem);
    });
  });
}

void measure_recall(Stream& stream, const Problem& problem, std::int64_t n_queries, bool listed,
                    DType activation, DType entries) {
  dispatch_activation(activation, [&]<class T>() {
    dispatch_activation(entries, [&]<class C>() {
      launch(stream, "index_loss recall", recall_kernel<T, C>,
             {dim3(static_cast<unsigned>(n_queries)), dim3(kThreads), kWarps * problem.n_heads * 4},
             problem, listed);
    });
  });
}

}  // namespace hadal::kernels::cuda::index_loss_detail
