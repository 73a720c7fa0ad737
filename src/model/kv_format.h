// The rows that a cache of this model holds, by numerics: the one place where accounting and
// caches agree.
#pragma once

#include "core/numerics.h"
#include "kernels/kv_rows.h"
#include "model/config.h"

namespace hadal::model {

// official: the roundings the checkpoint was trained for. A released model's entry is 584 bytes,
// its index key 68. fp32: plain floats.  Source: architecture.md §4.2.
struct KvFormat {
  KvRowFormat entry;  // a window row or a compressed entry, head_dim values
  KvRowFormat index;  // an indexer key, index_head_dim values

  [[nodiscard]] static KvFormat of(const Config& config, Numerics numerics) {
    if (numerics == Numerics::fp32) {
      return {.entry = {KvRowKind::f32, config.head_dim, 0},
              .index = {KvRowKind::f32, config.index_head_dim, 0}};
    }
    return {.entry = {KvRowKind::fp8_mixed, config.head_dim, config.qk_rope_head_dim},
            .index = {KvRowKind::fp4, config.index_head_dim, 0}};
  }
};

}  // namespace hadal::model
