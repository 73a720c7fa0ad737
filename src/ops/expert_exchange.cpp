#include "ops/expert_exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/thread_pool.h"

namespace hadal::ops {

namespace {

std::vector<std::int64_t> times(std::span<const std::int64_t> n, std::int64_t factor) {
  std::vector<std::int64_t> out;
  for (const std::int64_t x : n) out.push_back(x * factor);
  return out;
}

std::span<std::byte> bytes_of(const Tensor& t) {
  return {t.bytes(), t.nbytes()};
}

template <class T>
void add_row(float* sum, const T* row, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, bf16>)
      sum[i] += to_float(row[i]);
    else
      sum[i] += row[i];
  }
}

}  // namespace

ExpertRange experts_of_rank(std::int64_t n_experts, int rank, int n_ranks) {
  return {n_experts * rank / n_ranks, n_experts * (rank + 1) / n_ranks};
}

int rank_of_expert(std::int64_t expert, std::int64_t n_experts, int n_ranks) {
  // The last rank whose first expert is not behind it.
  return static_cast<int>(((expert + 1) * n_ranks - 1) / n_experts);
}

ExpertExchange::ExpertExchange(parallel::Communicator& ranks, const Tensor& experts,
                               std::int64_t n_experts)
    : ranks_(&ranks),
      here_(experts_of_rank(n_experts, ranks.rank(), ranks.size())),
      topk_(experts.dim(1)) {
  const int n_ranks = ranks.size();
  const auto* id = experts.data<const std::int32_t>();
  const auto n = static_cast<std::size_t>(experts.numel());
  std::vector<int> to(n);
  n_sent_.resize(static_cast<std::size_t>(n_ranks));
  n_received_.resize(n_sent_.size());
  for (std::size_t i = 0; i < n; ++i) {
    if (id[i] < 0 || id[i] >= n_experts) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("moe_experts: expert {} for token {} is outside [0, {})", id[i],
                              static_cast<std::int64_t>(i) / topk_, n_experts));
    }
    to[i] = rank_of_expert(id[i], n_experts, n_ranks);
    ++n_sent_[static_cast<std::size_t>(to[i])];
  }
  order_.resize(n);
  std::iota(order_.begin(), order_.end(), 0);
  ascending_ = order_;
  std::stable_sort(order_.begin(), order_.end(), [&](std::int32_t a, std::int32_t b) {
    return to[static_cast<std::size_t>(a)] < to[static_cast<std::size_t>(b)];
  });
  for (auto token = ascending_.begin(); token != ascending_.end(); token += topk_) {
    std::stable_sort(token, token + topk_,
                     [&](std::int32_t a, std::int32_t b) { return id[a] < id[b]; });
  }
  ranks_->all_to_all<std::int64_t>(n_sent_, n_received_);
  n_rows_ = std::accumulate(n_received_.begin(), n_received_.end(), std::int64_t{0});

  std::vector<std::int32_t> sent(n);
  for (std::size_t i = 0; i < n; ++i) sent[i] = id[order_[i]];
  experts_ = Tensor::empty({n_rows_, 1}, DType::i32);
  ranks_->all_to_all(std::as_bytes(std::span(sent)), times(n_sent_, sizeof(std::int32_t)),
                     bytes_of(experts_), times(n_received_, sizeof(std::int32_t)));
  for (std::int64_t i = 0; i < n_rows_; ++i) {
    std::int32_t& e = experts_.data<std::int32_t>()[i];
    HADAL_CHECK(e >= here_.begin && e < here_.end);
    e -= static_cast<std::int32_t>(here_.begin);
  }
}

std::span<const ExpertWeights> ExpertExchange::local(std::span<const ExpertWeights> routed) const {
  return routed.subspan(static_cast<std::size_t>(here_.begin),
                        static_cast<std::size_t>(here_.end - here_.begin));
}

Tensor ExpertExchange::to_experts(const ExecContext& ctx, const TensorView& rows) const {
  const std::int64_t width = rows.dim(1);
  const auto row_bytes = static_cast<std::int64_t>(nbytes({1, width}, rows.dtype()));
  const Tensor sent = ctx.empty({std::ssize(order_), width}, rows.dtype());
  ctx.stream().pool().parallel_for(
      std::ssize(order_), 64, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t token = order_[static_cast<std::size_t>(i)] / topk_;
          std::memcpy(sent.bytes() + i * row_bytes, rows.bytes() + token * row_bytes,
                      static_cast<std::size_t>(row_bytes));
        }
      });
  const Tensor received = ctx.empty({n_rows_, width}, rows.dtype());
  ranks_->all_to_all(bytes_of(sent), times(n_sent_, row_bytes), bytes_of(received),
                     times(n_received_, row_bytes));
  return received;
}

Tensor ExpertExchange::weights_to_experts(const ExecContext& ctx, const TensorView& weights) const {
  const Tensor sent = ctx.empty({std::ssize(order_), 1}, DType::f32);
  for (std::size_t i = 0; i < order_.size(); ++i) {
    sent.data<float>()[i] = weights.data<const float>()[order_[i]];
  }
  const Tensor received = ctx.empty({n_rows_, 1}, DType::f32);
  ranks_->all_to_all(bytes_of(sent), times(n_sent_, sizeof(float)), bytes_of(received),
                     times(n_received_, sizeof(float)));
  return received;
}

Tensor ExpertExchange::from_experts(const ExecContext& ctx, const Tensor& rows) const {
  const std::int64_t width = rows.dim(1);
  const auto row_bytes = static_cast<std::int64_t>(nbytes({1, width}, rows.dtype()));
  const Tensor received = ctx.empty({std::ssize(order_), width}, rows.dtype());
  ranks_->all_to_all(bytes_of(rows), times(n_received_, row_bytes), bytes_of(received),
                     times(n_sent_, row_bytes));
  const Tensor out = ctx.empty(received.shape(), rows.dtype());
  ctx.stream().pool().parallel_for(
      std::ssize(order_), 64, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          std::memcpy(out.bytes() + order_[static_cast<std::size_t>(i)] * row_bytes,
                      received.bytes() + i * row_bytes, static_cast<std::size_t>(row_bytes));
        }
      });
  return out;
}

void ExpertExchange::combine(const ExecContext& ctx, const TensorView& y, const Tensor& rows,
                             std::span<const Tensor> shared) const {
  const std::int64_t width = y.dim(1);
  const auto combine_as = [&]<class T>(T) {
    ctx.stream().pool().parallel_for(y.dim(0), 8, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> sum(static_cast<std::size_t>(width));
      for (std::int64_t t = begin; t < end; ++t) {
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (std::int64_t k = 0; k < topk_; ++k) {
          const std::int64_t row = ascending_[static_cast<std::size_t>(t * topk_ + k)];
          add_row(sum.data(), rows.data<const T>() + row * width, width);
        }
        for (const Tensor& s : shared) add_row(sum.data(), s.data<const T>() + t * width, width);
        T* out = y.data<T>() + t * width;
        for (std::int64_t i = 0; i < width; ++i) {
          if constexpr (std::is_same_v<T, bf16>)
            out[i] = to_bf16(sum[static_cast<std::size_t>(i)]);
          else
            out[i] = sum[static_cast<std::size_t>(i)];
        }
      }
    });
  };
  if (y.dtype() == DType::bf16)
    combine_as(bf16{});
  else
    combine_as(float{});
}

void ExpertExchange::forward(const ExecContext& ctx, const MoeExpertsArgs& args) const {
  const DType dtype = args.x.dtype();
  const Tensor x = to_experts(ctx, args.x), weights = weights_to_experts(ctx, args.weights);
  const Tensor y = ctx.empty(x.shape(), dtype);
  if (n_rows_ > 0) {
    MoeExpertsArgs here = args;
    here.y = y, here.x = x, here.experts = experts_, here.weights = weights;
    here.shared = {};
    ctx.launch(kMoeExperts, dtype, here);
  }
  const Tensor rows = from_experts(ctx, y);
  const Tensor no_experts = Tensor::empty({0, topk_}, DType::i32);
  const Tensor no_weights = Tensor::empty({0, topk_}, DType::f32);
  std::vector<Tensor> shared;
  for (std::size_t i = 0; i < args.shared.size(); ++i) {
    MoeExpertsArgs one = args;
    one.y = shared.emplace_back(ctx.empty(args.y.shape(), dtype));
    one.routed = {}, one.shared = args.shared.subspan(i, 1);
    one.experts = no_experts, one.weights = no_weights;
    ctx.launch(kMoeExperts, dtype, one);
  }
  combine(ctx, args.y, rows, shared);
}

void ExpertExchange::backward(const ExecContext& ctx, const MoeExpertsBackwardArgs& args) const {
  const DType dtype = args.x.dtype();
  const Tensor x = to_experts(ctx, args.x), weights = weights_to_experts(ctx, args.weights);
  const Tensor dy = to_experts(ctx, args.dy);
  const Tensor dx = args.dx ? ctx.empty(x.shape(), DType::f32) : Tensor();
  const Tensor dweights = args.dweights ? ctx.empty(weights.shape(), DType::f32) : Tensor();
  if (n_rows_ > 0) {
    MoeExpertsBackwardArgs here = args;
    here.dx = dx, here.dweights = dweights, here.dy = dy, here.x = x;
    here.experts = experts_, here.weights = weights;
    here.shared = {}, here.dshared = {};
    ctx.launch(kMoeExpertsBackward, dtype, here);
  }
  std::vector<Tensor> shared;
  for (std::size_t i = 0; i < args.shared.size(); ++i) {
    MoeExpertsBackwardArgs one = args;
    one.dx = args.dx ? shared.emplace_back(ctx.empty(args.dx.shape(), DType::f32)) : Tensor();
    one.dweights = {};
    one.routed = {}, one.drouted = {};
    one.shared = args.shared.subspan(i, 1), one.dshared = args.dshared.subspan(i, 1);
    ctx.launch(kMoeExpertsBackward, dtype, one);
  }
  if (args.dx) combine(ctx, args.dx, from_experts(ctx, dx), shared);
  if (args.dweights) {
    const Tensor rows = from_experts(ctx, dweights);
    std::memcpy(args.dweights.bytes(), rows.bytes(), rows.nbytes());
  }
}

}  // namespace hadal::ops
