#include "cache/paged_kv.h"

#include <algorithm>
#include <numeric>

#include "model/kv_format.h"

namespace hadal::cache {

namespace {

// A multiple of every layer's ratio, so that a page ends where entries of all kinds end.
std::int64_t round_page(const model::Config& config, std::int64_t tokens) {
  std::int64_t unit = 1;
  for (const model::LayerSpec& layer : config.layers) {
    if (layer.has_compressor()) unit = std::lcm(unit, layer.compress_ratio);
  }
  return std::max<std::int64_t>(1, (tokens + unit - 1) / unit) * unit;
}

Tensor page(const KvRowFormat& format, std::int64_t rows) {
  return Tensor::empty({rows, format.row_bytes()}, DType::u8);
}

}  // namespace

PagedKv::PagedKv(const model::Config& config, const PagedKvOptions& options)
    : config_(config),
      options_(options),
      entry_format_(model::KvFormat::of(config, options.numerics).entry),
      index_format_(model::KvFormat::of(config, options.numerics).index),
      ring_rows_(config.sliding_window + options.rollback_tokens) {
  options_.page_tokens = round_page(config, options.page_tokens);
}

std::unique_ptr<PagedKv::SequenceState> PagedKv::make_state() const {
  auto state = std::make_unique<SequenceState>(config_.layers.size());
  for (std::size_t i = 0; i < state->size(); ++i) {
    const model::LayerSpec& layer = config_.layers[i];
    LayerState& s = (*state)[i];
    grow(s.window, entry_format_, ring_rows_, ring_rows_);
    if (!layer.has_compressor()) continue;
    const std::int64_t rows = layer.n_series() * layer.compress_ratio + options_.rollback_tokens;
    const auto tail = [&](std::int64_t width) {
      return Tensor::zeros({rows, layer.n_series() * width}, DType::f32);
    };
    s.tail_kv = tail(config_.head_dim), s.tail_gate = tail(config_.head_dim);
    if (!layer.has_indexer()) continue;
    s.index_tail_kv = tail(config_.index_head_dim);
    s.index_tail_gate = tail(config_.index_head_dim);
  }
  return state;
}

std::int64_t PagedKv::open() {
  const auto free = std::find(slots_.begin(), slots_.end(), nullptr);
  const std::int64_t slot = free - slots_.begin();
  if (free == slots_.end())
    slots_.push_back(make_state());
  else
    *free = make_state();
  return slot;
}

void PagedKv::close(std::int64_t slot) {
  slots_.at(static_cast<std::size_t>(slot)).reset();
}

void PagedKv::grow(Pages& pages, const KvRowFormat& format, std::int64_t rows_per_page,
                   std::int64_t n_rows) const {
  while (static_cast<std::int64_t>(pages.pages.size()) * rows_per_page < n_rows) {
    pages.storage.push_back(page(format, rows_per_page));
    pages.pages.push_back(pages.storage.back().bytes());
  }
}

model::LayerHistory PagedKv::history(std::int64_t layer, std::int64_t slot,
                                     std::int64_t end_position) {
  const model::LayerSpec& spec = config_.layer(layer);
  HADAL_CHECK(slots_.at(static_cast<std::size_t>(slot)) != nullptr);
  LayerState& s = (*slots_[static_cast<std::size_t>(slot)])[static_cast<std::size_t>(layer)];
  model::LayerHistory h;
  h.ring_rows = ring_rows_;
  h.window = {entry_format_, s.window.pages, ring_rows_};
  if (!spec.has_compressor()) return h;
  const std::int64_t rows_per_page = options_.page_tokens / spec.compress_ratio;
  const std::int64_t n_entries = end_position / spec.compress_ratio;
  grow(s.entries, entry_format_, rows_per_page, n_entries);
  h.entries = {entry_format_, s.entries.pages, rows_per_page};
  h.tail = {s.tail_kv, s.tail_gate};
  if (!spec.has_indexer()) return h;
  grow(s.index_keys, index_format_, rows_per_page, n_entries);
  h.index_keys = {index_format_, s.index_keys.pages, rows_per_page};
  h.index_tail = {s.index_tail_kv, s.index_tail_gate};
  return h;
}

PagedKv::Bytes PagedKv::bytes(std::int64_t slot) const {
  Bytes total;
  const auto add = [](std::size_t& sum, const std::vector<Tensor>& tensors) {
    for (const Tensor& t : tensors) sum += t ? t.nbytes() : 0;
  };
  for (const LayerState& s : *slots_.at(static_cast<std::size_t>(slot))) {
    add(total.window, s.window.storage);
    add(total.entries, s.entries.storage);
    add(total.index_keys, s.index_keys.storage);
    add(total.tails, {s.tail_kv, s.tail_gate, s.index_tail_kv, s.index_tail_gate});
  }
  return total;
}

}  // namespace hadal::cache
