#include "model/accounting.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "model/kv_format.h"
#include "model/weight_layout.h"

namespace hadal::model {

namespace {

double product(std::int64_t a, std::int64_t b) {
  return static_cast<double>(a) * static_cast<double>(b);
}

// Three matrices of a SwiGLU.
double swiglu(std::int64_t hidden, std::int64_t width) {
  return 3.0 * product(hidden, width);
}

bool is_mtp(const std::string& name) {
  return name.starts_with("mtp.");
}

}  // namespace

ActiveParameters active_parameters(const Config& c) {
  ActiveParameters p;
  const std::int64_t d = c.hidden_size;
  for (std::int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const LayerSpec& layer = c.layer(l);
    p.attention += product(c.q_lora_rank, d) + product(c.q_dim(), c.q_lora_rank) +
                   product(c.head_dim, d) + product(c.o_rank(), c.o_group_in()) +
                   product(d, c.o_rank());
    if (layer.has_compressor()) p.compressor += 2.0 * product(layer.n_series() * c.head_dim, d);
    if (layer.has_indexer()) {
      p.compressor += 2.0 * product(layer.n_series() * c.index_head_dim, d);
      p.indexer += product(c.index_q_dim(), c.q_lora_rank) + product(c.index_n_heads, d);
    }
    p.routed += static_cast<double>(c.num_experts_per_tok) * swiglu(d, c.moe_intermediate_size);
    p.shared += static_cast<double>(c.n_shared_experts) * swiglu(d, c.moe_intermediate_size);
    p.gate += product(c.n_routed_experts, d);
    p.hyper_connection += 2.0 * product(c.hc_mix(), c.hc_dim());
  }
  p.hyper_connection += product(c.hc_mult, c.hc_dim());
  p.head = product(c.vocab_size, d);
  return p;
}

TokenFlops token_flops(const Config& c, std::int64_t context) {
  TokenFlops f;
  f.linear = 2.0 * active_parameters(c).total();
  const std::int64_t window = std::min(context, c.sliding_window);
  for (std::int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const LayerSpec& layer = c.layer(l);
    const std::int64_t compressed =
        layer.has_compressor() ? context / layer.compress_ratio : std::int64_t{0};
    const std::int64_t attended =
        layer.has_indexer() ? std::min(compressed, c.index_topk) : compressed;
    // Keys are values: q.k and p.v both over head_dim.
    f.core += 2.0 * product(2 * c.head_dim, c.num_attention_heads) *
              static_cast<double>(window + attended);
    if (layer.has_indexer()) {
      f.indexer += 2.0 * static_cast<double>(c.index_q_dim()) * static_cast<double>(compressed);
    }
  }
  return f;
}

KvBytes kv_bytes(const Config& c, Numerics numerics, std::int64_t context) {
  const KvFormat format = KvFormat::of(c, numerics);
  const std::int64_t entry = format.entry.row_bytes(), index = format.index.row_bytes();
  KvBytes kv;
  for (std::int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const LayerSpec& layer = c.layer(l);
    kv.fixed += c.sliding_window * entry;
    if (!layer.has_compressor()) continue;
    const std::int64_t bytes = entry + (layer.has_indexer() ? index : 0);
    kv.per_token += static_cast<double>(bytes) / static_cast<double>(layer.compress_ratio);
    kv.growing += context / layer.compress_ratio * bytes;
    // A row of kv and a row of scores for each position of the series, f32.
    const std::int64_t dims = c.head_dim + (layer.has_indexer() ? c.index_head_dim : 0);
    const std::int64_t series = layer.n_series();
    kv.compressor_state += 2 * 4 * (series * layer.compress_ratio) * (series * dims);
  }
  return kv;
}

ActiveParameters V32::active_parameters() const {
  ActiveParameters p;
  const std::int64_t d = hidden_size, heads = num_attention_heads;
  const auto layers = static_cast<double>(num_hidden_layers);
  const auto moe_layers = static_cast<double>(num_hidden_layers - first_k_dense_replace);
  p.attention = layers * (product(d, q_lora_rank) +
                          product(q_lora_rank, heads * (qk_nope_head_dim + qk_rope_head_dim)) +
                          product(d, kv_lora_rank + qk_rope_head_dim) +
                          product(kv_lora_rank, heads * (qk_nope_head_dim + v_head_dim)) +
                          product(heads * v_head_dim, d));
  p.indexer = layers * (product(index_n_heads * index_head_dim, q_lora_rank) +
                        product(index_head_dim, d) + product(index_n_heads, d));
  p.routed =
      moe_layers * static_cast<double>(num_experts_per_tok) * swiglu(d, moe_intermediate_size);
  p.shared = moe_layers * swiglu(d, moe_intermediate_size);
  p.dense = static_cast<double>(first_k_dense_replace) * swiglu(d, intermediate_size);
  p.gate = moe_layers * product(n_routed_experts, d);
  p.head = product(vocab_size, d);
  return p;
}

TokenFlops V32::token_flops(std::int64_t context) const {
  TokenFlops f;
  f.indexer_weight = 1.0;  // FP8 there
  f.linear = 2.0 * active_parameters().total();
  const auto layers = static_cast<double>(num_hidden_layers);
  const auto attended = static_cast<double>(std::min(context, index_topk));
  // Absorbed form: scores over latent and rope, values over the latent.
  f.core =
      layers * 2.0 * product(2 * kv_lora_rank + qk_rope_head_dim, num_attention_heads) * attended;
  f.indexer = layers * 2.0 * product(index_n_heads, index_head_dim) * static_cast<double>(context);
  return f;
}

std::int64_t V32::kv_bytes_per_token() const {
  const std::int64_t latent = kv_lora_rank + kv_lora_rank / 128 * 4 + qk_rope_head_dim * 2;
  return num_hidden_layers * (latent + index_head_dim + 4);
}

double Inspection::kv_ratio() const {
  const double v32 = static_cast<double>(v32_kv_bytes) / static_cast<double>(context);
  return kv_official.per_token / v32;
}

Inspection inspect(const Config& config, std::int64_t context) {
  constexpr std::int64_t kMaxContext = std::int64_t{1} << 32;
  if (context < 1 || context > kMaxContext) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("the context is {}, wanted 1 to {} tokens", context, kMaxContext));
  }
  Inspection r;
  r.source = config.source;
  r.context = context;
  r.layers_window = config.count(LayerKind::window);
  r.layers_csa = config.count(LayerKind::csa);
  r.layers_hca = config.count(LayerKind::hca);
  r.layers_mtp = config.num_nextn_predict_layers;
  for (const ExpectedWeight& w : expected_weights(config)) {
    if (w.role == WeightRole::token_table) continue;
    (is_mtp(w.name) ? r.parameters_mtp : r.parameters) += w.shape.numel();
  }
  r.active = active_parameters(config);

  const bool fp4 = config.hidden_size % kFp4Block.cols == 0 &&
                   config.moe_intermediate_size % kFp4Block.cols == 0;
  for (const auto& [name, format] :
       {std::pair{"published", WeightFormat::published}, std::pair{"fp8", WeightFormat::fp8},
        std::pair{"bf16", WeightFormat::bf16}, std::pair{"f32", WeightFormat::f32}}) {
    if (format == WeightFormat::published && !fp4) continue;
    StoredBytes stored{name, 0, 0};
    for (const io::TensorDecl& t : stored_tensors(config, format)) {
      ++stored.n_tensors;
      stored.bytes += static_cast<std::int64_t>(nbytes(t.shape, t.dtype));
    }
    r.stored.push_back(stored);
  }

  r.kv_official = kv_bytes(config, Numerics::official, context);
  r.kv_fp32 = kv_bytes(config, Numerics::fp32, context);
  r.flops = token_flops(config, context);
  r.v32_flops = V32{}.token_flops(context);
  r.v32_kv_bytes = V32{}.kv_bytes_per_token() * context;
  r.official_obstacle = config.official_numerics_obstacle();
  r.notes = config.notes;
  return r;
}

}  // namespace hadal::model
