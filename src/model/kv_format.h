// Bytes of one cached entry, by numerics: the one place where accounting and caches agree.
#pragma once

#include <cstdint>

#include "model/config.h"

namespace hadal::model {

// official: the roundings the checkpoint was trained for; fp32: plain maths.
enum class Numerics : std::uint8_t { official, fp32 };

// Source: architecture.md §4.2.
struct KvFormat {
  Numerics numerics = Numerics::official;

  // A window row or a compressed entry, head_dim values.
  //   official: e4m3[head_dim - rope] | bf16[rope] | ue8m0 scale of each 64, padded to 8 bytes
  //   fp32:     f32[head_dim]
  std::int64_t nope_bytes = 0;
  std::int64_t rope_bytes = 0;
  std::int64_t scale_bytes = 0;

  // An indexer key, index_head_dim values; 0 in a model without indexer.
  //   official: e2m1[index_head_dim], two a byte | ue8m0 scale of each 32
  //   fp32:     f32[index_head_dim]
  std::int64_t index_value_bytes = 0;
  std::int64_t index_scale_bytes = 0;

  [[nodiscard]] std::int64_t entry_bytes() const { return nope_bytes + rope_bytes + scale_bytes; }
  [[nodiscard]] std::int64_t index_entry_bytes() const {
    return index_value_bytes + index_scale_bytes;
  }

  [[nodiscard]] static KvFormat of(const Config& config, Numerics numerics) {
    KvFormat f;
    f.numerics = numerics;
    const std::int64_t nope = config.nope_head_dim(), rope = config.qk_rope_head_dim;
    const std::int64_t index = config.index_head_dim;
    if (numerics == Numerics::fp32) {
      f.nope_bytes = nope * 4;
      f.rope_bytes = rope * 4;
      f.index_value_bytes = index * 4;
      return f;
    }
    f.nope_bytes = nope;
    f.rope_bytes = rope * 2;
    f.scale_bytes = ((nope + 63) / 64 + 7) / 8 * 8;
    f.index_value_bytes = (index + 1) / 2;
    f.index_scale_bytes = (index + 31) / 32;
    return f;
  }
};

}  // namespace hadal::model
