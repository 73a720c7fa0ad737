// The names that files use for the same tensor, brought to the official one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace hadal::model {

// Experts that a file fuses along dim 0 of one tensor.
enum class FusedExperts : std::uint8_t {
  none,
  gate_up,  // [E, 2*I, d]: rows of w1, then rows of w3
  down,     // [E, d, I]: w2
};

struct CanonicalName {
  std::string name;  // official; of a fused tensor the prefix before ".{e}", "layers.3.ffn.experts"
  FusedExperts fused = FusedExperts::none;
  friend bool operator==(const CanonicalName&, const CanonicalName&) = default;
};

// Official names map to themselves; Hugging Face module names, the names its save_pretrained
// writes, and V3's "weight_scale_inv" to the official ones. What is none of these comes back
// unchanged, for the caller to call unexpected.  Source: architecture.md §2.7.
[[nodiscard]] CanonicalName canonical_name(std::string_view file_name);

}  // namespace hadal::model
