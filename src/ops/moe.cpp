#include "ops/moe.h"

#include <algorithm>

#include <fmt/format.h>

#include "ops/expert_exchange.h"

namespace hadal::ops {

namespace {

// Where the choice comes from: `args` without what every choice shares.
Routing route(ExecContext& ctx, const Tensor& logits, std::int64_t topk, MoeRouteArgs args) {
  const std::int64_t n_tokens = logits.dim(0);
  const float factor = args.routed_scaling_factor;
  Routing r{ctx.empty({n_tokens, topk}, DType::i32), ctx.empty({n_tokens, topk}, DType::f32)};
  args.experts = r.experts;
  args.weights = r.weights;
  args.logits = logits;
  ctx.launch(kMoeRoute, ctx.activation_dtype(), args);
  if (Tape* tape = ctx.tape_for(logits)) {
    r.weights = tape->variable(r.weights);
    tape->record({.name = "moe_route",
                  .inputs = {logits},
                  .outputs = {r.weights},
                  .backward =
                      [logits = tape->save(logits), experts = r.experts, factor](Backward& b) {
                        const Tensor in = b.get(logits), dweights = b.gradient(0);
                        const Tensor dlogits = b.ctx().empty(in.shape(), DType::f32);
                        b.ctx().launch(kMoeRouteBackward, DType::f32,
                                       MoeRouteBackwardArgs{.dlogits = dlogits,
                                                            .dweights = dweights,
                                                            .logits = in,
                                                            .experts = experts,
                                                            .routed_scaling_factor = factor});
                        b.accumulate(0, dlogits);
                      },
                  .replay = [experts = r.experts, factor](ExecContext& c, const TensorList& in)
                      -> TensorList { return {route_forced(c, in[0], experts, factor).weights}; }});
  }
  return r;
}

}  // namespace

Routing route_learned(ExecContext& ctx, const Tensor& logits, const Tensor& bias, std::int64_t topk,
                      float routed_scaling_factor) {
  expect_shape(bias, {logits.dim(1)}, "route_learned: bias");
  return route(ctx, logits, topk,
               {.experts = {},
                .weights = {},
                .logits = {},
                .bias = bias,
                .token_ids = {},
                .expert_table = {},
                .routed_scaling_factor = routed_scaling_factor});
}

Routing route_hashed(ExecContext& ctx, const Tensor& logits, const Tensor& token_ids,
                     const Tensor& expert_table, float routed_scaling_factor) {
  expect_shape(token_ids, {logits.dim(0)}, "route_hashed: token_ids");
  return route(ctx, logits, expert_table.dim(1),
               {.experts = {},
                .weights = {},
                .logits = {},
                .bias = {},
                .token_ids = token_ids,
                .expert_table = expert_table,
                .routed_scaling_factor = routed_scaling_factor});
}

Routing route_forced(ExecContext& ctx, const Tensor& logits, const Tensor& experts,
                     float routed_scaling_factor) {
  expect_shape(experts, {logits.dim(0), experts.dim(1)}, "route_forced: experts");
  // A GPU's would have to be waited for; there, whoever made them vouches for them.
  const bool readable = ctx.stream().device() == DeviceKind::cpu;
  const auto* id = experts.data<const std::int32_t>();
  for (std::int64_t i = 0; readable && i < experts.numel(); ++i) {
    if (id[i] < 0 || id[i] >= logits.dim(1)) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("route_forced: expert {} for token {} is outside [0, {})", id[i],
                              i / experts.dim(1), logits.dim(1)));
    }
  }
  return route(ctx, logits, experts.dim(1),
               {.experts = {},
                .weights = {},
                .logits = {},
                .bias = {},
                .token_ids = {},
                .expert_table = {},
                .forced = experts,
                .routed_scaling_factor = routed_scaling_factor});
}

void add_expert_load(ExecContext& ctx, const Routing& routing, const Tensor& load) {
  ctx.launch(kExpertLoad, DType::f32, ExpertLoadArgs{.load = load, .experts = routing.experts});
}

Tensor balance_loss(ExecContext& ctx, const Tensor& logits, const Routing& routing,
                    std::span<const std::int64_t> bounds, float coefficient) {
  expect_shape(routing.experts, {logits.dim(0), routing.experts.dim(1)}, "balance_loss: experts");
  if (bounds.empty() || bounds.front() != 0 || bounds.back() != logits.dim(0) ||
      !std::is_sorted(bounds.begin(), bounds.end())) {
    throw Error(
        ErrorCode::invalid_argument,
        fmt::format("balance_loss: bounds of sequences must ascend from 0 to {}, the number "
                    "of tokens",
                    logits.dim(0)));
  }
  const Tensor loss = ctx.empty({static_cast<std::int64_t>(bounds.size()) - 1}, DType::f32);
  const BalanceLossArgs args{.loss = loss,
                             .dlogits = {},
                             .logits = logits,
                             .experts = routing.experts,
                             .bounds = bounds,
                             .coefficient = coefficient};
  ctx.launch(kBalanceLoss, DType::f32, args);
  if (Tape* tape = ctx.tape_for(logits)) {
    tape->record(
        {.name = "balance_loss",
         .inputs = {logits},
         .outputs = {},
         .backward = [logits = tape->save(logits), experts = routing.experts, loss, coefficient,
                      bounds = std::vector(bounds.begin(), bounds.end())](Backward& b) {
           const Tensor in = b.get(logits);
           const Tensor dlogits = b.ctx().empty(in.shape(), DType::f32);
           const Tensor again = b.ctx().empty(loss.shape(), DType::f32);
           b.ctx().launch(kBalanceLoss, DType::f32,
                          BalanceLossArgs{.loss = again,
                                          .dlogits = dlogits,
                                          .logits = in,
                                          .experts = experts,
                                          .bounds = bounds,
                                          .coefficient = coefficient});
           b.accumulate(0, dlogits);
         }});
  }
  return loss;
}

namespace {

// The matrices behind x and the routing's weights in the list of an operation's inputs.
constexpr std::size_t kFirstMatrix = 2;

TensorList experts_inputs(const Tensor& x, const Tensor& weights,
                          std::span<const ExpertWeights> routed,
                          std::span<const ExpertWeights> shared) {
  TensorList inputs{x, weights};
  for (const auto& experts : {routed, shared}) {
    for (const ExpertWeights& e : experts) {
      for (const QuantTensor* w : {&e.gate_proj, &e.up_proj, &e.down_proj}) {
        inputs.push_back(w->data);
      }
    }
  }
  return inputs;
}

struct ExpertsCall {
  Saved x, weights;
  Tensor experts;
  std::vector<ExpertWeights> routed, shared;  // those of this rank
  SwigluLimits limits;
  std::shared_ptr<const ExpertExchange> exchange;  // null: one rank has them all
};

void experts_backward(Backward& b, const ExpertsCall& call) {
  const Tensor x = b.get(call.x), weights = b.get(call.weights);
  const Tensor dx = b.wants(0) ? b.ctx().empty(x.shape(), DType::f32) : Tensor();
  const Tensor dweights = b.wants(1) ? b.ctx().empty(weights.shape(), DType::f32) : Tensor();
  std::size_t input = kFirstMatrix;
  TensorList targets;  // keeps what the views below look at
  const auto gradients = [&](const std::vector<ExpertWeights>& experts) {
    std::vector<ExpertGradients> d(experts.size());
    for (ExpertGradients& e : d) {
      for (TensorView* to : {&e.gate_proj, &e.up_proj, &e.down_proj}) {
        *to = targets.emplace_back(b.target(input++));
      }
    }
    return d;
  };
  const std::vector<ExpertGradients> drouted = gradients(call.routed);
  const std::vector<ExpertGradients> dshared = gradients(call.shared);
  const Tensor dy = b.gradient(0);
  const MoeExpertsBackwardArgs args{.dx = dx,
                                    .dweights = dweights,
                                    .dy = dy,
                                    .x = x,
                                    .experts = call.experts,
                                    .weights = weights,
                                    .routed = call.routed,
                                    .shared = call.shared,
                                    .drouted = drouted,
                                    .dshared = dshared,
                                    .swiglu_limit = call.limits.routed,
                                    .shared_swiglu_limit = call.limits.shared};
  if (call.exchange) {
    call.exchange->backward(b.ctx(), args);
  } else {
    b.ctx().launch(kMoeExpertsBackward, x.dtype(), args);
  }
  if (dx) b.accumulate(0, dx);
  if (dweights) b.accumulate(1, dweights);
}

}  // namespace

Tensor moe_experts(ExecContext& ctx, const Tensor& x, const Routing& routing,
                   std::span<const ExpertWeights> routed, std::span<const ExpertWeights> shared,
                   SwigluLimits limits, ClampCounts* clamps) {
  Tensor y = ctx.empty(x.shape(), x.dtype());
  std::shared_ptr<const ExpertExchange> exchange;
  std::span<const ExpertWeights> here = routed;
  if (ctx.expert_ranks() != nullptr) {
    exchange = std::make_shared<const ExpertExchange>(*ctx.expert_ranks(), routing.experts,
                                                      std::ssize(routed));
    here = exchange->local(routed);
  }
  const MoeExpertsArgs args{.y = y,
                            .x = x,
                            .experts = routing.experts,
                            .weights = routing.weights,
                            .routed = here,
                            .shared = shared,
                            .swiglu_limit = limits.routed,
                            .shared_swiglu_limit = limits.shared,
                            .clamps = clamps};
  if (exchange) {
    exchange->forward(ctx, args);
  } else {
    ctx.launch(kMoeExperts, x.dtype(), args);
  }
  Tape* tape = ctx.tape();
  if (tape == nullptr) return y;
  TensorList inputs = experts_inputs(x, routing.weights, here, shared);
  if (std::none_of(inputs.begin(), inputs.end(),
                   [&](const Tensor& in) { return ctx.tape_for(in) != nullptr; })) {
    return y;
  }
  y = tape->variable(y);
  ExpertsCall call{.x = tape->save(x),
                   .weights = tape->save(routing.weights),
                   .experts = routing.experts,
                   .routed = {here.begin(), here.end()},
                   .shared = {shared.begin(), shared.end()},
                   .limits = limits,
                   .exchange = std::move(exchange)};
  auto replay = [experts = call.experts, all = std::vector(routed.begin(), routed.end()),
                 shared = call.shared, limits](ExecContext& c, const TensorList& in) -> TensorList {
    return {moe_experts(c, in[0], {experts, in[1]}, all, shared, limits)};
  };
  tape->record({.name = "moe_experts",
                .inputs = std::move(inputs),
                .outputs = {y},
                .backward = [call = std::move(call)](Backward& b) { experts_backward(b, call); },
                .replay = std::move(replay)});
  return y;
}

}  // namespace hadal::ops
