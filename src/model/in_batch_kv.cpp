#include "model/in_batch_kv.h"

#include <algorithm>

#include <fmt/format.h>

namespace hadal::model {

namespace {

// Pages only so that the indexer can share a long history out to threads.
constexpr std::int64_t kRowsPerPage = 64;

struct Paging {
  std::int64_t rows_per_page, n_pages;
  explicit Paging(std::int64_t n_rows)
      : rows_per_page(std::clamp<std::int64_t>(n_rows, 1, kRowsPerPage)),
        n_pages((n_rows + rows_per_page - 1) / rows_per_page) {}
  [[nodiscard]] std::int64_t bytes(const KvRowFormat& format) const {
    return n_pages * rows_per_page * format.row_bytes();
  }
};

}  // namespace

InBatchKv::InBatchKv(const Config& config, Numerics numerics, PoolAllocator& allocator)
    : layers_(config.layers), format_(KvFormat::of(config, numerics)), allocator_(&allocator) {
  const std::string obstacle = config.official_numerics_obstacle();
  if (numerics == Numerics::official && !obstacle.empty()) {
    throw Error(ErrorCode::unsupported, obstacle + "; train with fp32 numerics");
  }
}

PagedRows InBatchKv::allocate(Rows& rows, const KvRowFormat& format, std::int64_t n) const {
  const Paging paging(n);
  if (paging.n_pages > 0) {
    rows.storage = allocator_->empty({paging.bytes(format)}, DType::u8);
    for (std::int64_t i = 0; i < paging.n_pages; ++i) {
      rows.pages.push_back(rows.storage.bytes() + i * paging.rows_per_page * format.row_bytes());
    }
  }
  return {format, rows.pages, paging.rows_per_page};
}

LayerHistory InBatchKv::history(std::int64_t layer, std::int64_t slot, std::int64_t end_position) {
  const LayerSpec& spec = layers_.at(static_cast<std::size_t>(layer));
  const auto [at, fresh] = histories_.try_emplace({layer, slot});
  if (!fresh) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("layer {} has already run over sequence {} of this step; training runs "
                            "a sequence in one piece, and clear() begins the next step",
                            layer, slot));
  }
  LayerHistory h;
  h.window = {format_.entry, {}, 1};
  if (!spec.has_compressor()) return h;
  const std::int64_t n = end_position / spec.compress_ratio;
  h.entries = allocate(at->second.entries, format_.entry, n);
  if (spec.has_indexer()) h.index_keys = allocate(at->second.index_keys, format_.index, n);
  return h;
}

std::size_t InBatchKv::bytes() const {
  std::size_t sum = 0;
  for (const auto& [key, history] : histories_) {
    sum +=
        history.entries.storage.nbytes() * static_cast<std::size_t>(!history.entries.pages.empty());
    sum += history.index_keys.storage.nbytes() *
           static_cast<std::size_t>(!history.index_keys.pages.empty());
  }
  return sum;
}

std::size_t InBatchKv::bytes_for(const Config& config, Numerics numerics,
                                 std::span<const std::int64_t> sequence_lengths) {
  const KvFormat format = KvFormat::of(config, numerics);
  std::int64_t sum = 0;
  for (const LayerSpec& spec : config.layers) {
    if (!spec.has_compressor()) continue;
    for (const std::int64_t length : sequence_lengths) {
      const Paging paging(length / spec.compress_ratio);
      sum += paging.bytes(format.entry);
      if (spec.has_indexer()) sum += paging.bytes(format.index);
    }
  }
  return static_cast<std::size_t>(sum);
}

}  // namespace hadal::model
