#include "train/initialise.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>
#include <string_view>

#include "core/error.h"
#include "core/rng.h"
#include "train/hash_table.h"

namespace hadal::train {

namespace {

constexpr float kInitialGate = 0.01f;  // hc_*_scale

void fill(const Tensor& t, float value) {
  std::fill_n(t.data<float>(), t.numel(), value);
}

// Element i from random block i / 4 of the stream, so that any thread can make any part.
void fill_normal(ThreadPool& pool, const Tensor& t, double deviation, std::uint64_t seed,
                 std::uint32_t stream) {
  const std::int64_t n = t.numel(), n_blocks = (n + 3) / 4;
  float* out = t.data<float>();
  const auto sigma = static_cast<float>(deviation);
  pool.parallel_for(n_blocks, 4096, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) {
      const auto bits = philox4x32(
          {static_cast<std::uint32_t>(b), static_cast<std::uint32_t>(b >> 32), stream, 0}, seed);
      for (std::size_t pair = 0; pair < 4; pair += 2) {
        const float radius = sigma * std::sqrt(-2.0f * std::log(uniform_open(bits[pair])));
        const float angle = 2.0f * std::numbers::pi_v<float> * uniform_open(bits[pair + 1]);
        const std::int64_t i = 4 * b + static_cast<std::int64_t>(pair);
        if (i < n) out[i] = radius * std::cos(angle);
        if (i + 1 < n) out[i + 1] = radius * std::sin(angle);
      }
    }
  });
}

// Layer of a name, MTP blocks counted after the main layers.
std::int64_t layer_of(std::string_view name, const model::Config& c) {
  const bool mtp = name.starts_with("mtp.");
  name.remove_prefix(mtp ? 4 : std::string_view("layers.").size());
  std::int64_t index = -1;
  const auto parsed = std::from_chars(name.data(), name.data() + name.size(), index);
  HADAL_CHECK(parsed.ec == std::errc() && index >= 0);
  return mtp ? c.num_hidden_layers + index : index;
}

// The value whose sigmoid is 1/n: a gate that averages n streams. One stream is read whole.
float mean_gate(std::int64_t n) {
  return n == 1 ? 6.0f : -std::log(static_cast<float>(n - 1));
}

// How much a stream keeps to itself: comb's second eigenvalue to the power of the sites stays near
// 0.2 to 0.4, so that streams stay distinct and still communicate.
float own_stream_gate(std::int64_t n_layers) {
  const double depth = std::clamp((static_cast<double>(n_layers) - 16.0) / 24.0, 0.0, 1.0);
  return static_cast<float>(4.0 + 2.0 * depth);
}

// pre [n], post [n], comb [n, n]. pre reads the mean of the streams, tilted by 0.5 to one of them,
// another at each site; post = 0 writes with weight 1; comb is diagonal.
void fill_gates(const Tensor& base, std::int64_t site, const model::Config& c) {
  const std::int64_t n = c.hc_mult;
  fill(base, 0.0f);
  float* gates = base.data<float>();
  for (std::int64_t i = 0; i < n; ++i) {
    gates[i] = mean_gate(n) + (i == site % n ? 0.5f : 0.0f);
    gates[2 * n + i * n + i] = own_stream_gate(c.num_hidden_layers);
  }
}

void fill_plain(const ParameterInfo& p, const Tensor& value, const model::Config& c) {
  const std::string_view name = p.name;
  if (p.role == model::WeightRole::norm) return fill(value, 1.0f);
  if (name.ends_with("_scale")) return fill(value, kInitialGate);
  if (name.ends_with("hc_head_base")) return fill(value, mean_gate(c.hc_mult));
  if (name.ends_with("_base")) {
    const std::int64_t site = 2 * layer_of(name, c) + (name.ends_with("hc_ffn_base") ? 1 : 0);
    return fill_gates(value, site, c);
  }
  fill(value, 0.0f);  // sinks, ape, gate.bias
}

bool is_random(const ParameterInfo& p) {
  switch (p.role) {
    case model::WeightRole::linear:
    case model::WeightRole::expert:
    case model::WeightRole::matrix:
      return true;
    case model::WeightRole::f32_only:
      return p.name.ends_with("_fn");
    case model::WeightRole::norm:
    case model::WeightRole::token_table:
      return false;
  }
  return false;
}

}  // namespace

double initial_deviation(const model::Config& config) {
  return std::min(0.02, 0.5 / std::sqrt(static_cast<double>(config.hidden_size)));
}

void initialise(ThreadPool& pool, const ParameterStore& store, std::uint64_t seed,
                std::span<const std::int64_t> token_counts) {
  const model::Config& c = store.config();
  for (const Parameter& p : store.parameters()) {
    if (p.info.role == model::WeightRole::token_table) {
      const Tensor table = build_hash_table({.vocab_size = c.vocab_size,
                                             .n_experts = c.n_routed_experts,
                                             .n_experts_per_token = c.num_experts_per_tok,
                                             .seed = seed,
                                             .layer = layer_of(p.info.name, c)},
                                            token_counts);
      store.named(p).assign(table);
      continue;
    }
    const Tensor value =
        store.gpu() == nullptr ? p.value : Tensor::empty(p.info.shape, p.value.dtype());
    if (is_random(p.info))
      fill_normal(pool, value, initial_deviation(c), seed, p.info.id);
    else
      fill_plain(p.info, value, c);
    if (store.gpu() != nullptr) store.named(p).assign(value);
  }
}

}  // namespace hadal::train
