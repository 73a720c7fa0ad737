#pragma once

#include <map>
#include <utility>
#include <vector>

#include "core/allocator.h"
#include "model/kv_format.h"
#include "model/kv_state.h"

namespace hadal::model {

// The training answer to KvState: every sequence starts at position 0 and runs in one piece, and
// its history lives for one step. Entries and index keys are rounded as a serving cache stores
// them; windows and compressor tails have no rows, since nothing comes before or after.
// Backward reads the rows again: clear() only after it. Used by one thread.
class InBatchKv final : public KvState {
 public:
  // Rows come from `allocator`, which must outlive this.
  // Throws Error unsupported when official numerics cannot store rows of the config's sizes.
  InBatchKv(const Config& config, Numerics numerics, PoolAllocator& allocator);

  [[nodiscard]] const KvRowFormat& entry_format() const override { return format_.entry; }
  [[nodiscard]] const KvRowFormat& index_format() const override { return format_.index; }
  // Slots are any numbers. Throws Error invalid_argument when this layer and slot had theirs.
  [[nodiscard]] LayerHistory history(std::int64_t layer, std::int64_t slot,
                                     std::int64_t end_position) override;
  // Forgets all sequences: the next step.
  void clear() { histories_.clear(); }

  [[nodiscard]] std::size_t bytes() const;  // of the rows that are held
  // Of the rows that a step over sequences of these lengths takes, in all layers and MTP blocks:
  // what bytes() comes to, for plans.
  [[nodiscard]] static std::size_t bytes_for(const Config& config, Numerics numerics,
                                             std::span<const std::int64_t> sequence_lengths);

 private:
  struct Rows {
    Tensor storage;
    std::vector<std::byte*> pages;
  };
  struct History {
    Rows entries, index_keys;
  };
  [[nodiscard]] PagedRows allocate(Rows& rows, const KvRowFormat& format, std::int64_t n) const;

  std::vector<LayerSpec> layers_;
  KvFormat format_;
  PoolAllocator* allocator_;
  std::map<std::pair<std::int64_t, std::int64_t>, History> histories_;  // by layer and slot
};

}  // namespace hadal::model
