#include "kernels/index_loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/kv_rows.h"
#include "kernels/cpu/query_blocks.h"
#include "kernels/cpu/select_topk.h"
#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

constexpr float kMinMass = 1e-20f;
constexpr float kMinLog = -87.33654f;  // of the smallest normal float

// out[j] += factor * exp(scale * z[j] - lse)
HADAL_SIMD_CLONES void add_attention(float* out, const float* z, std::int64_t n, float scale,
                                     float lse, float factor) {
  for (std::int64_t j = 0; j < n; ++j) out[j] += factor * exp_f32(z[j] * scale - lse);
}
// sum over j outside the list of exp(scale * z[j] - lse)
HADAL_SIMD_CLONES float unlisted_attention(const float* z, const std::uint8_t* listed,
                                           std::int64_t n, float scale, float lse) {
  return lane_sum(n, [&](std::int64_t j) {
    const float p = exp_f32(z[j] * scale - lse);
    return listed[j] != 0 ? 0.0f : p;
  });
}
// out[j] += weight * relu(a[j])
HADAL_SIMD_CLONES void add_scores(float* out, const float* a, std::int64_t n, float weight) {
  for (std::int64_t j = 0; j < n; ++j) out[j] += weight * (a[j] > 0.0f ? a[j] : 0.0f);
}
// Turns a into da = dI * weight where a > 0, and returns sum dI relu(a).
HADAL_SIMD_CLONES float scores_backward(float* a, const float* di, std::int64_t n, float weight) {
  const float dweight =
      lane_sum(n, [&](std::int64_t j) { return di[j] * (a[j] > 0.0f ? a[j] : 0.0f); });
  for (std::int64_t j = 0; j < n; ++j) a[j] = a[j] > 0.0f ? di[j] * weight : 0.0f;
  return dweight;
}

// Sums of one row in a fixed order.
HADAL_SIMD_CLONES float sum_of(const float* x, std::int64_t n) {
  return lane_sum(n, [&](std::int64_t j) { return x[j]; });
}
HADAL_SIMD_CLONES float sum_of_exp(const float* x, std::int64_t n, float peak) {
  return lane_sum(n, [&](std::int64_t j) { return exp_f32(x[j] - peak); });
}

// Queries that look at the same keys.
struct Block {
  std::int64_t begin = 0, end = 0;
  float* entries = nullptr;  // [n, head_dim]
  float* keys = nullptr;     // [n, index_head_dim]
  float* dkeys = nullptr;    // likewise; null: not wanted
  float dkeys_beta = 0.0f;   // what becomes of the gradient that is there
  std::int64_t n = 0;
  const std::uint8_t* listed = nullptr;  // [end - begin, n]; null: all that are visible
  bool by_position = true;               // key j is entry j, so that a query sees a prefix
};

template <class T>
std::vector<float> widened(const TensorView& x, std::int64_t begin, std::int64_t end) {
  const std::int64_t n = x.numel() / std::max<std::int64_t>(1, x.dim(0));
  std::vector<float> out(static_cast<std::size_t>((end - begin) * n));
  const T* from = x.data<const T>() + begin * n;
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = load(from[i]);
  return out;
}

template <class T>
class SequenceLoss {
 public:
  SequenceLoss(ThreadPool& pool, const IndexLossArgs& a, const AttentionSequence& s)
      : pool_(pool), a_(a), s_(s), topk_(a.selected ? a.selected.dim(1) : 0) {}

  void run() {
    const std::int64_t all = visible(s_.end), n_tokens = s_.end - s_.begin;
    std::vector<float> entries(static_cast<std::size_t>(all * a_.queries.dim(2)));
    pool_.parallel_for(all, 64, [&](std::int64_t begin, std::int64_t end) {
      decode_rows(s_.entries, begin, end - begin, entries.data() + begin * a_.queries.dim(2));
    });
    std::vector<float> keys = widened<T>(a_.index_keys, s_.added.row, s_.added.row + all);
    float* dkeys = a_.dindex_keys
                       ? a_.dindex_keys.data<float>() + s_.added.row * a_.index_keys.dim(1)
                       : nullptr;
    const bool all_listed = !a_.selected || all <= topk_;
    // Recall compares with entries that are on no list.
    if (all_listed || a_.recall) {
      for (std::int64_t i0 = 0; i0 < n_tokens; i0 += kListedQueries) {
        const std::int64_t i1 = std::min(n_tokens, i0 + kListedQueries);
        Block block{.begin = s_.begin + i0,
                    .end = s_.begin + i1,
                    .entries = entries.data(),
                    .keys = keys.data(),
                    .dkeys = dkeys,
                    .dkeys_beta = 1.0f,
                    .n = visible(s_.begin + i1)};
        std::vector<std::uint8_t> listed;
        if (!all_listed) {
          listed = marks(block);
          block.listed = listed.data();
        }
        run_block(block);
      }
      return;
    }
    for (std::int64_t t0 = s_.begin; t0 < s_.end; t0 += kListedQueries) {
      const std::vector<QueryBlock> blocks =
          blocks_of_lists(a_.selected, t0, std::min(s_.end, t0 + kListedQueries),
                          a_.queries.dim(1) + a_.index_queries.dim(1));
      add_block_gradients(pool_, blocks, a_.index_keys.dim(1), 0, dkeys,
                          [&](const QueryBlock& block, float* gradient) {
                            run_listed(block, entries.data(), keys.data(),
                                       dkeys != nullptr ? gradient : nullptr);
                          });
    }
  }

 private:
  [[nodiscard]] std::int64_t visible(std::int64_t end) const {
    return (s_.start + end - s_.begin) / a_.ratio;
  }

  [[nodiscard]] std::vector<std::uint8_t> marks(const Block& b) const {
    std::vector<std::uint8_t> listed(static_cast<std::size_t>((b.end - b.begin) * b.n), 0);
    for (std::int64_t t = b.begin; t < b.end; ++t) {
      const auto* list = a_.selected.data<const std::int32_t>() + t * topk_;
      for (std::int64_t k = 0; k < topk_ && list[k] >= 0; ++k) {
        listed[static_cast<std::size_t>((t - b.begin) * b.n + list[k])] = 1;
      }
    }
    return listed;
  }

  void run_listed(const QueryBlock& block, const float* entries, const float* keys,
                  float* dkeys) const {
    const std::int64_t n = block.n_entries();
    const std::int64_t width = a_.queries.dim(2), key_width = a_.index_keys.dim(1);
    std::vector<float> own_entries(static_cast<std::size_t>(n * width));
    std::vector<float> own_keys(static_cast<std::size_t>(n * key_width));
    gather_entries(block, entries, width, own_entries.data());
    gather_entries(block, keys, key_width, own_keys.data());
    run_block({.begin = block.begin,
               .end = block.end,
               .entries = own_entries.data(),
               .keys = own_keys.data(),
               .dkeys = dkeys,
               .n = n,
               .listed = block.listed.data(),
               .by_position = false});
  }

  // Keys of the block that query t can see at all.
  [[nodiscard]] std::int64_t n_seen(const Block& b, std::int64_t t) const {
    return b.by_position ? visible(t + 1) : b.n;
  }

  void run_block(const Block& b) const {
    const auto n_queries = static_cast<std::size_t>(b.end - b.begin);
    const auto n = static_cast<std::size_t>(b.n);
    Rows rows;
    rows.teacher.assign(n_queries * n, 0.0f);
    rows.student.assign(n_queries * n, 0.0f);
    score_teacher(b, rows.teacher, {});
    score_student(b, rows);
    if (a_.recall) measure_recall(b, rows);
    pool_.parallel_for(b.end - b.begin, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) finish_row(b, i, rows);
    });
    if (a_.dindex_queries) learn(b, rows);
  }

  struct Rows {
    std::vector<float> teacher, student;  // [n_queries, n]; at last dI in student
    std::vector<float> queries, dots;     // of the student; dots of the last tile
  };

  // Calls fn(query, head, dots) for every row of x (query, head) against a tile of keys.
  template <class Fn>
  void dot_tile(const MatrixView& x, const MatrixView& keys, std::int64_t n_heads,
                std::vector<float>& dots, Fn&& fn) const {
    dots.resize(static_cast<std::size_t>(x.rows * keys.rows));
    gemm(pool_, {.c = {dots.data(), x.rows, keys.rows, keys.rows},
                 .a = x,
                 .b = keys,
                 .transpose_b = Transposed::yes});
    each_row(x.rows, keys.rows, n_heads, dots, fn);
  }
  template <class Fn>
  void each_row(std::int64_t n_rows, std::int64_t n_keys, std::int64_t n_heads,
                std::vector<float>& dots, Fn&& fn) const {
    pool_.parallel_for(n_rows / n_heads, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        for (std::int64_t h = 0; h < n_heads; ++h) {
          fn(i, h, dots.data() + (i * n_heads + h) * n_keys);
        }
      }
    });
  }

  // A of every query and key, heads in order; factors [n_queries, n_heads] when the denominators
  // are to be others.
  void score_teacher(const Block& b, std::vector<float>& out,
                     const std::vector<float>& factors) const {
    const std::int64_t n_heads = a_.queries.dim(1), width = a_.queries.dim(2);
    std::vector<float> q = widened<T>(a_.queries, b.begin, b.end), dots;
    const MatrixView x{q.data(), (b.end - b.begin) * n_heads, width, width};
    const auto* lse = a_.log_sum_exp.data<const float>() + b.begin * n_heads;
    for (std::int64_t k0 = 0; k0 < b.n; k0 += kEntryTile) {
      const std::int64_t n = std::min(kEntryTile, b.n - k0);
      dot_tile(
          x, {b.entries + k0 * width, n, width, width}, n_heads, dots,
          [&](std::int64_t i, std::int64_t h, const float* z) {
            const std::int64_t seen = std::min(n, n_seen(b, b.begin + i) - k0);
            const std::int64_t row = i * n_heads + h;
            const float factor = factors.empty() ? 1.0f : factors[static_cast<std::size_t>(row)];
            add_attention(out.data() + i * b.n + k0, z, seen, a_.softmax_scale, lse[row], factor);
          });
    }
  }

  void score_student(const Block& b, Rows& rows) const {
    const std::int64_t n_heads = a_.index_queries.dim(1), width = a_.index_queries.dim(2);
    rows.queries = widened<T>(a_.index_queries, b.begin, b.end);
    const MatrixView x{rows.queries.data(), (b.end - b.begin) * n_heads, width, width};
    const T* weights = a_.index_weights.data<const T>() + b.begin * n_heads;
    for (std::int64_t k0 = 0; k0 < b.n; k0 += kEntryTile) {
      const std::int64_t n = std::min(kEntryTile, b.n - k0);
      dot_tile(x, {b.keys + k0 * width, n, width, width}, n_heads, rows.dots,
               [&](std::int64_t i, std::int64_t h, const float* dots) {
                 add_scores(rows.student.data() + i * b.n + k0, dots, n,
                            load(weights[i * n_heads + h]));
               });
    }
  }

  // With a list the attention's denominators lack the entries that are not on it; a dense teacher
  // has them.
  void measure_recall(const Block& b, const Rows& rows) const {
    std::vector<float> dense;
    if (b.listed != nullptr) {
      const std::int64_t n_heads = a_.queries.dim(1), width = a_.queries.dim(2);
      std::vector<float> q = widened<T>(a_.queries, b.begin, b.end), dots;
      std::vector<float> factors(static_cast<std::size_t>((b.end - b.begin) * n_heads), 1.0f);
      const MatrixView x{q.data(), (b.end - b.begin) * n_heads, width, width};
      const auto* lse = a_.log_sum_exp.data<const float>() + b.begin * n_heads;
      for (std::int64_t k0 = 0; k0 < b.n; k0 += kEntryTile) {
        const std::int64_t n = std::min(kEntryTile, b.n - k0);
        dot_tile(x, {b.entries + k0 * width, n, width, width}, n_heads, dots,
                 [&](std::int64_t i, std::int64_t h, const float* z) {
                   const std::int64_t seen = std::min(n, n_seen(b, b.begin + i) - k0);
                   const std::int64_t row = i * n_heads + h;
                   factors[static_cast<std::size_t>(row)] += unlisted_attention(
                       z, b.listed + i * b.n + k0, std::max<std::int64_t>(0, seen),
                       a_.softmax_scale, lse[row]);
                 });
      }
      for (float& f : factors) f = 1.0f / f;
      dense.assign(rows.teacher.size(), 0.0f);
      score_teacher(b, dense, factors);
    }
    const std::vector<float>& teacher = b.listed != nullptr ? dense : rows.teacher;
    std::vector<float> scratch;
    std::vector<std::int32_t> best(static_cast<std::size_t>(a_.recall_topk));
    std::vector<std::int32_t> most(static_cast<std::size_t>(a_.selected ? topk_ : a_.recall_topk));
    for (std::int64_t i = 0; i < b.end - b.begin; ++i) {
      const std::int64_t seen = n_seen(b, b.begin + i);
      float& recall = a_.recall.data<float>()[b.begin + i];
      float& best_recall = a_.best_recall.data<float>()[b.begin + i];
      recall = best_recall = -1.0f;
      const std::int64_t kept = a_.selected ? topk_ : a_.recall_topk;
      if (seen <= kept) continue;
      const float* attention = teacher.data() + i * b.n;
      const float total = sum_of(attention, seen);
      if (!(total >= kMinMass)) continue;
      float caught = 0.0f;
      if (b.listed != nullptr) {
        const std::uint8_t* listed = b.listed + i * b.n;
        for (std::int64_t j = 0; j < seen; ++j) caught += listed[j] != 0 ? attention[j] : 0.0f;
      } else {
        select_topk(rows.student.data() + i * b.n, seen, a_.recall_topk, best.data(), scratch);
        for (const std::int32_t j : best) caught += attention[j];
      }
      recall = caught / total;
      select_topk(attention, seen, kept, most.data(), scratch);
      float most_mass = 0.0f;
      for (const std::int32_t j : most) most_mass += attention[j];
      best_recall = most_mass / total;
    }
  }

  // Loss and mass of one query; its dI replaces its scores.
  void finish_row(const Block& b, std::int64_t i, Rows& rows) const {
    thread_local std::vector<std::int64_t> at;
    thread_local std::vector<float> p, score;
    float* teacher = rows.teacher.data() + i * b.n;
    float* student = rows.student.data() + i * b.n;
    at.clear(), p.clear(), score.clear();
    for (std::int64_t j = 0; j < n_seen(b, b.begin + i); ++j) {
      if (b.listed != nullptr && b.listed[i * b.n + j] == 0) continue;
      at.push_back(j), p.push_back(teacher[j]), score.push_back(student[j]);
    }
    const auto n = static_cast<std::int64_t>(at.size());
    const float mass = sum_of(p.data(), n);
    float& loss = a_.loss.data<float>()[b.begin + i];
    loss = 0.0f;
    a_.mass.data<float>()[b.begin + i] = mass;
    std::fill_n(student, b.n, 0.0f);
    // Not a number: it goes on into the loss, where somebody looks.
    if (n == 0 || mass < kMinMass) return;
    const float peak = *std::max_element(score.begin(), score.end());
    const float log_sum = std::log(sum_of_exp(score.data(), n, peak));
    double sum = 0.0;
    for (std::int64_t k = 0; k < n; ++k) {
      const auto s = static_cast<std::size_t>(k);
      const float share = p[s] / mass;
      const float log_pi = std::max(score[s] - peak - log_sum, kMinLog);
      const float log_p = std::log(std::max(share, std::numeric_limits<float>::min()));
      sum += static_cast<double>(share) * static_cast<double>(log_p - log_pi);
      student[at[s]] = a_.scale * (exp_f32(score[s] - peak - log_sum) - share);
    }
    loss = static_cast<float>(sum);
  }

  void learn(const Block& b, Rows& rows) const {
    const std::int64_t n_heads = a_.index_queries.dim(1), width = a_.index_queries.dim(2);
    const MatrixView x{rows.queries.data(), (b.end - b.begin) * n_heads, width, width};
    const T* weights = a_.index_weights.data<const T>() + b.begin * n_heads;
    float* dweights = a_.dindex_weights.data<float>() + b.begin * n_heads;
    float* dq = a_.dindex_queries.data<float>() + b.begin * n_heads * width;
    std::fill_n(dweights, x.rows, 0.0f);
    if (b.n == 0) std::fill_n(dq, x.rows * width, 0.0f);
    const auto backward_row = [&](std::int64_t k0, std::int64_t n, std::int64_t i, std::int64_t h,
                                  float* dots) {
      dweights[i * n_heads + h] += scores_backward(dots, rows.student.data() + i * b.n + k0, n,
                                                   load(weights[i * n_heads + h]));
    };
    for (std::int64_t k0 = 0; k0 < b.n; k0 += kEntryTile) {
      const std::int64_t n = std::min(kEntryTile, b.n - k0);
      const MatrixView keys{b.keys + k0 * width, n, width, width};
      const auto in_row = [&](std::int64_t i, std::int64_t h, float* dots) {
        backward_row(k0, n, i, h, dots);
      };
      if (n == b.n)
        each_row(x.rows, n, n_heads, rows.dots, in_row);  // still there from the forward
      else
        dot_tile(x, keys, n_heads, rows.dots, in_row);
      const MatrixView da{rows.dots.data(), x.rows, n, n};
      std::vector<GemmProblem> problems{
          {.c = {dq, x.rows, width, width}, .a = da, .b = keys, .beta = k0 == 0 ? 0.0f : 1.0f}};
      if (b.dkeys != nullptr) {
        problems.push_back({.c = {b.dkeys + k0 * width, n, width, width},
                            .a = da,
                            .b = x,
                            .transpose_a = Transposed::yes,
                            .beta = b.dkeys_beta});
      }
      gemm_batch(pool_, problems);
    }
  }

  ThreadPool& pool_;
  const IndexLossArgs& a_;
  const AttentionSequence& s_;
  std::int64_t topk_;
};

}  // namespace

void index_loss(Stream& stream, const IndexLossArgs& a) {
  ThreadPool& pool = stream.pool();
  if (a.dindex_keys) std::memset(a.dindex_keys.bytes(), 0, a.dindex_keys.nbytes());
  dispatch_activation(a.index_queries.dtype(), [&]<class T>() {
    auto run = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const AttentionSequence& s = a.sequences[static_cast<std::size_t>(i)];
        if (s.begin < s.end) SequenceLoss<T>(pool, a, s).run();
      }
    };
    // As in the attention's backward: whole sequences to the threads when there are many.
    const auto n = static_cast<std::int64_t>(a.sequences.size());
    if (n >= 2 * pool.size())
      pool.parallel_for(n, 1, run);
    else
      run(0, n);
  });
}

}  // namespace hadal::kernels::cpu
