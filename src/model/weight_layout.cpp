#include "model/weight_layout.h"

#include <fmt/format.h>

#include <utility>

#include "core/error.h"

namespace hadal::model {

namespace {

// Collects the expected tensors of one prefix.
class Layout {
 public:
  explicit Layout(std::vector<ExpectedWeight>& out) : out_(out) {}
  void prefix(std::string p) { prefix_ = std::move(p); }
  void add(const char* name, Shape shape, WeightRole role) {
    out_.push_back({prefix_ + name, shape, role});
  }

 private:
  std::vector<ExpectedWeight>& out_;
  std::string prefix_;
};

void add_compressor(Layout& layout, const std::string& name, const Config& c,
                    const LayerSpec& layer, std::int64_t dim) {
  const std::int64_t width = layer.n_series() * dim;
  layout.add((name + "wkv.weight").c_str(), {width, c.hidden_size}, WeightRole::matrix);
  layout.add((name + "wgate.weight").c_str(), {width, c.hidden_size}, WeightRole::matrix);
  layout.add((name + "norm.weight").c_str(), {dim}, WeightRole::norm);
  layout.add((name + "ape").c_str(), {layer.compress_ratio, width}, WeightRole::f32_only);
}

void add_attention(Layout& layout, const Config& c, const LayerSpec& layer) {
  const std::int64_t d = c.hidden_size;
  layout.add("attn.wq_a.weight", {c.q_lora_rank, d}, WeightRole::linear);
  layout.add("attn.q_norm.weight", {c.q_lora_rank}, WeightRole::norm);
  layout.add("attn.wq_b.weight", {c.q_dim(), c.q_lora_rank}, WeightRole::linear);
  layout.add("attn.wkv.weight", {c.head_dim, d}, WeightRole::linear);
  layout.add("attn.kv_norm.weight", {c.head_dim}, WeightRole::norm);
  layout.add("attn.attn_sink", {c.num_attention_heads}, WeightRole::f32_only);
  layout.add("attn.wo_a.weight", {c.o_rank(), c.o_group_in()}, WeightRole::linear);
  layout.add("attn.wo_b.weight", {d, c.o_rank()}, WeightRole::linear);
  if (layer.has_compressor()) add_compressor(layout, "attn.compressor.", c, layer, c.head_dim);
  if (!layer.has_indexer()) return;
  layout.add("attn.indexer.wq_b.weight", {c.index_q_dim(), c.q_lora_rank}, WeightRole::linear);
  layout.add("attn.indexer.weights_proj.weight", {c.index_n_heads, d}, WeightRole::matrix);
  add_compressor(layout, "attn.indexer.compressor.", c, layer, c.index_head_dim);
}

void add_swiglu(Layout& layout, const std::string& name, const Config& c, WeightRole role) {
  const std::int64_t d = c.hidden_size, width = c.moe_intermediate_size;
  layout.add((name + "w1.weight").c_str(), {width, d}, role);
  layout.add((name + "w2.weight").c_str(), {d, width}, role);
  layout.add((name + "w3.weight").c_str(), {width, d}, role);
}

void add_moe(Layout& layout, const Config& c, const LayerSpec& layer) {
  layout.add("ffn.gate.weight", {c.n_routed_experts, c.hidden_size}, WeightRole::matrix);
  if (layer.hash_routed) {
    layout.add("ffn.gate.tid2eid", {c.vocab_size, c.num_experts_per_tok}, WeightRole::token_table);
  } else {
    layout.add("ffn.gate.bias", {c.n_routed_experts}, WeightRole::f32_only);
  }
  add_swiglu(layout, "ffn.shared_experts.", c, WeightRole::linear);
  for (std::int64_t e = 0; e < c.n_routed_experts; ++e) {
    add_swiglu(layout, fmt::format("ffn.experts.{}.", e), c, WeightRole::expert);
  }
}

void add_hyper_connection(Layout& layout, const std::string& name, const Config& c) {
  layout.add((name + "_fn").c_str(), {c.hc_mix(), c.hc_dim()}, WeightRole::f32_only);
  layout.add((name + "_base").c_str(), {c.hc_mix()}, WeightRole::f32_only);
  layout.add((name + "_scale").c_str(), {3}, WeightRole::f32_only);  // pre, post, comb
}

void add_hc_head(Layout& layout, const Config& c) {
  layout.add("hc_head_fn", {c.hc_mult, c.hc_dim()}, WeightRole::f32_only);
  layout.add("hc_head_base", {c.hc_mult}, WeightRole::f32_only);
  layout.add("hc_head_scale", {1}, WeightRole::f32_only);
}

void add_block(Layout& layout, const Config& c, const LayerSpec& layer) {
  layout.add("attn_norm.weight", {c.hidden_size}, WeightRole::norm);
  add_attention(layout, c, layer);
  add_hyper_connection(layout, "hc_attn", c);
  layout.add("ffn_norm.weight", {c.hidden_size}, WeightRole::norm);
  add_moe(layout, c, layer);
  add_hyper_connection(layout, "hc_ffn", c);
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

DType stored_dtype(WeightRole role, WeightFormat format) {
  const DType plain = format == WeightFormat::f32 ? DType::f32 : DType::bf16;
  switch (role) {
    case WeightRole::linear:
      return format == WeightFormat::published || format == WeightFormat::fp8 ? DType::f8_e4m3
                                                                              : plain;
    case WeightRole::expert:
      if (format == WeightFormat::published) return DType::f4_e2m1;
      return format == WeightFormat::fp8 ? DType::f8_e4m3 : plain;
    case WeightRole::matrix:
    case WeightRole::norm:
      return plain;
    case WeightRole::f32_only:
      return DType::f32;
    case WeightRole::token_table:
      return DType::i64;
  }
  return plain;
}

}  // namespace

std::string scale_name(std::string_view weight_name) {
  constexpr std::string_view kSuffix = ".weight";
  HADAL_CHECK(weight_name.ends_with(kSuffix));
  return std::string(weight_name.substr(0, weight_name.size() - kSuffix.size())) + ".scale";
}

Shape scale_shape(const Shape& weight, const QuantBlock& block) {
  return {ceil_div(weight[0], block.rows), ceil_div(weight[1], block.cols)};
}

std::vector<ExpectedWeight> expected_weights(const Config& c) {
  std::vector<ExpectedWeight> out;
  Layout layout(out);
  layout.add("embed.weight", {c.vocab_size, c.hidden_size}, WeightRole::matrix);
  for (std::int64_t l = 0; l < c.num_hidden_layers; ++l) {
    layout.prefix(fmt::format("layers.{}.", l));
    add_block(layout, c, c.layer(l));
  }
  for (std::int64_t i = 0; i < c.num_nextn_predict_layers; ++i) {
    layout.prefix(fmt::format("mtp.{}.", i));
    layout.add("enorm.weight", {c.hidden_size}, WeightRole::norm);
    layout.add("hnorm.weight", {c.hidden_size}, WeightRole::norm);
    layout.add("e_proj.weight", {c.hidden_size, c.hidden_size}, WeightRole::linear);
    layout.add("h_proj.weight", {c.hidden_size, c.hidden_size}, WeightRole::linear);
    add_block(layout, c, c.mtp_layer(i));
    layout.add("norm.weight", {c.hidden_size}, WeightRole::norm);
    add_hc_head(layout, c);
  }
  layout.prefix("");
  add_hc_head(layout, c);
  layout.add("norm.weight", {c.hidden_size}, WeightRole::norm);
  layout.add("head.weight", {c.vocab_size, c.hidden_size}, WeightRole::matrix);
  return out;
}

std::vector<io::TensorDecl> stored_tensors(const Config& config, WeightFormat format) {
  std::vector<io::TensorDecl> out;
  for (const ExpectedWeight& w : expected_weights(config)) {
    const DType dtype = stored_dtype(w.role, format);
    if (dtype == DType::f4_e2m1 && w.shape[1] % kFp4Block.cols != 0) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{}: {} has {} columns, and FP4 is stored in blocks of {}; choose "
                              "another format",
                              w.name, to_string(w.shape), w.shape[1], kFp4Block.cols));
    }
    out.push_back({w.name, dtype, w.shape, {}});
    if (dtype == DType::f4_e2m1 || dtype == DType::f8_e4m3) {
      const QuantBlock block = dtype == DType::f4_e2m1 ? kFp4Block : kFp8Block;
      out.push_back({scale_name(w.name), DType::ue8m0, scale_shape(w.shape, block), {}});
    }
  }
  return out;
}

}  // namespace hadal::model
