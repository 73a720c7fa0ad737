#include "model/weight_names.h"

#include <array>
#include <optional>
#include <utility>

namespace hadal::model {

namespace {

struct Rename {
  std::string_view from;
  std::string_view to;
};

// Whole names outside the blocks, "model." already stripped.
constexpr std::array<Rename, 5> kGlobal = {{{"embed_tokens.weight", "embed.weight"},
                                            {"lm_head.weight", "head.weight"},
                                            {"hc_head.hc_fn", "hc_head_fn"},
                                            {"hc_head.hc_base", "hc_head_base"},
                                            {"hc_head.hc_scale", "hc_head_scale"}}};

// Whole names inside a block.
constexpr std::array<Rename, 11> kBlockLeaf = {
    {{"attn_hc.fn", "hc_attn_fn"},
     {"attn_hc.base", "hc_attn_base"},
     {"attn_hc.scale", "hc_attn_scale"},
     {"ffn_hc.fn", "hc_ffn_fn"},
     {"ffn_hc.base", "hc_ffn_base"},
     {"ffn_hc.scale", "hc_ffn_scale"},
     {"self_attn.sinks", "attn.attn_sink"},
     {"self_attn.compressor.position_bias", "attn.compressor.ape"},
     {"self_attn.compressor.indexer.position_bias", "attn.indexer.compressor.ape"},
     {"mlp.gate.e_score_correction_bias", "ffn.gate.bias"},
     {"mlp.gate.tid2eid", "ffn.gate.tid2eid"}}};

// Names inside a block without their ".weight" or ".scale".
constexpr std::array<Rename, 23> kBlockStem = {
    {{"input_layernorm", "attn_norm"},
     {"post_attention_layernorm", "ffn_norm"},
     {"attn.norm", "attn.kv_norm"},  // save_pretrained's reversed map drops the "kv_"
     {"self_attn.q_a_proj", "attn.wq_a"},
     {"self_attn.q_a_norm", "attn.q_norm"},
     {"self_attn.q_b_proj", "attn.wq_b"},
     {"self_attn.kv_proj", "attn.wkv"},
     {"self_attn.kv_norm", "attn.kv_norm"},
     {"self_attn.o_a_proj", "attn.wo_a"},
     {"self_attn.o_b_proj", "attn.wo_b"},
     {"self_attn.compressor.kv_proj", "attn.compressor.wkv"},
     {"self_attn.compressor.gate_proj", "attn.compressor.wgate"},
     {"self_attn.compressor.kv_norm", "attn.compressor.norm"},
     {"self_attn.compressor.indexer.q_b_proj", "attn.indexer.wq_b"},
     {"self_attn.compressor.indexer.weights_proj", "attn.indexer.weights_proj"},
     {"self_attn.compressor.indexer.scorer.weights_proj", "attn.indexer.weights_proj"},
     {"self_attn.compressor.indexer.kv_proj", "attn.indexer.compressor.wkv"},
     {"self_attn.compressor.indexer.gate_proj", "attn.indexer.compressor.wgate"},
     {"self_attn.compressor.indexer.kv_norm", "attn.indexer.compressor.norm"},
     {"mlp.gate", "ffn.gate"},
     {"mlp.shared_experts.gate_proj", "ffn.shared_experts.w1"},
     {"mlp.shared_experts.up_proj", "ffn.shared_experts.w3"},
     {"mlp.shared_experts.down_proj", "ffn.shared_experts.w2"}}};

// Parts of one expert, behind "mlp.experts.{e}.".
constexpr std::array<Rename, 3> kExpertPart = {
    {{"gate_proj", "w1"}, {"up_proj", "w3"}, {"down_proj", "w2"}}};

template <std::size_t N>
std::optional<std::string_view> look_up(const std::array<Rename, N>& table, std::string_view name) {
  for (const Rename& row : table) {
    if (row.from == name) return row.to;
  }
  return std::nullopt;
}

// Length of the decimal number at the beginning, 0 for none.
std::size_t digits(std::string_view text) {
  std::size_t n = 0;
  while (n < text.size() && text[n] >= '0' && text[n] <= '9') ++n;
  return n;
}

// "layers.12.attn..." -> length of "layers.12.", 0 when the name lies in no block.
std::size_t block_prefix(std::string_view name) {
  for (const std::string_view head : {std::string_view("layers."), std::string_view("mtp.")}) {
    if (!name.starts_with(head)) continue;
    const std::size_t n = digits(name.substr(head.size()));
    const std::size_t end = head.size() + n;
    if (n > 0 && end < name.size() && name[end] == '.') return end + 1;
  }
  return 0;
}

// Stem and official suffix of a leaf; V3 calls its scales weight_scale_inv.
std::pair<std::string_view, std::string_view> split_suffix(std::string_view leaf) {
  for (const auto& [from, to] : {Rename{".weight_scale_inv", ".scale"},
                                 Rename{".weight", ".weight"}, Rename{".scale", ".scale"}}) {
    if (leaf.ends_with(from)) return {leaf.substr(0, leaf.size() - from.size()), to};
  }
  return {leaf, {}};
}

std::string join(std::string_view a, std::string_view b, std::string_view c) {
  std::string out;
  out.reserve(a.size() + b.size() + c.size());
  return out.append(a).append(b).append(c);
}

CanonicalName canonical_in_block(std::string_view block, std::string_view leaf) {
  if (leaf == "mlp.experts.gate_up_proj" || leaf == "mlp.experts.gate_up_proj.weight") {
    return {join(block, "ffn.experts", ""), FusedExperts::gate_up};
  }
  if (leaf == "mlp.experts.down_proj" || leaf == "mlp.experts.down_proj.weight") {
    return {join(block, "ffn.experts", ""), FusedExperts::down};
  }
  if (const auto whole = look_up(kBlockLeaf, leaf)) return {join(block, *whole, "")};
  const auto [stem, suffix] = split_suffix(leaf);
  constexpr std::string_view kExperts = "mlp.experts.";
  if (stem.starts_with(kExperts)) {
    const std::string_view rest = stem.substr(kExperts.size());
    const std::size_t n = digits(rest);
    if (n > 0 && n < rest.size() && rest[n] == '.') {
      if (const auto part = look_up(kExpertPart, rest.substr(n + 1))) {
        return {join(join(block, "ffn.experts.", rest.substr(0, n + 1)), *part, suffix)};
      }
    }
  }
  const auto renamed = look_up(kBlockStem, stem);
  return {join(block, renamed ? *renamed : stem, suffix)};
}

}  // namespace

CanonicalName canonical_name(std::string_view file_name) {
  std::string_view name = file_name;
  if (name.starts_with("model.")) name.remove_prefix(6);
  if (const std::size_t n = block_prefix(name); n > 0) {
    return canonical_in_block(name.substr(0, n), name.substr(n));
  }
  if (const auto whole = look_up(kGlobal, name)) return {std::string(*whole)};
  return {std::string(name)};
}

}  // namespace hadal::model
