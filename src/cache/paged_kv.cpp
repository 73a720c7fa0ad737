#include "cache/paged_kv.h"

#include <fmt/format.h>

#include <algorithm>

namespace hadal::cache {

PagedKv::PagedKv(const model::Config& config, const PagedKvOptions& options)
    : options_(options),
      layout_(config, options.numerics, options.page_tokens, options.rollback_tokens),
      pool_(layout_.page_bytes, options.page_budget_bytes, options.memory) {}

PagedKv::Sequence& PagedKv::sequence(std::int64_t slot) const {
  Sequence* s = slots_.at(static_cast<std::size_t>(slot)).get();
  HADAL_CHECK(s != nullptr);
  return *s;
}

std::int64_t PagedKv::open() {
  auto s = std::make_unique<Sequence>();
  if (free_states_.empty()) {
    s->state = options_.memory.zeros(layout_.state_bytes);
  } else {
    s->state = std::move(free_states_.back());
    free_states_.pop_back();
    // Rows of the sequence before must not be seen through a ring that is not full yet.
    options_.memory.zero(s->state);
  }
  const std::size_t n_layers = layout_.layers.size();
  s->layers.resize(n_layers);
  s->windows.reserve(n_layers);
  for (const KvLayout::Layer& layer : layout_.layers) {
    s->windows.push_back(s->state.bytes() + layer.window);
    model::LayerHistory& h = s->histories.emplace_back();
    h.ring_rows = layout_.ring_rows;
    h.window = {layout_.entry_format, {&s->windows.back(), 1}, layout_.ring_rows};
    if (layer.ratio == 0) continue;
    h.entries = {layout_.entry_format, {}, layer.rows_per_page};
    h.tail = layout_.tail(layer, s->state.bytes());
    if (!layer.has_indexer) continue;
    h.index_keys = {layout_.index_format, {}, layer.rows_per_page};
    h.index_tail = layout_.index_tail(layer, s->state.bytes());
  }
  const auto free = std::find(slots_.begin(), slots_.end(), nullptr);
  const std::int64_t slot = free - slots_.begin();
  if (free == slots_.end())
    slots_.push_back(std::move(s));
  else
    *free = std::move(s);
  return slot;
}

void PagedKv::close(std::int64_t slot) {
  free_states_.push_back(std::move(sequence(slot).state));
  slots_[static_cast<std::size_t>(slot)].reset();
}

void PagedKv::append_page(Sequence& s, PageRef page) const {
  for (std::size_t i = 0; i < s.layers.size(); ++i) {
    const KvLayout::Layer& layer = layout_.layers[i];
    if (layer.ratio == 0) continue;
    s.layers[i].entries.push_back(page->bytes() + layer.entries);
    if (layer.has_indexer) s.layers[i].index_keys.push_back(page->bytes() + layer.index_keys);
  }
  s.pages.push_back(std::move(page));
}

// Pushing may have moved the pointers that the views look at.
void PagedKv::refresh(Sequence& s) const {
  for (std::size_t i = 0; i < s.layers.size(); ++i) {
    s.histories[i].entries.pages = s.layers[i].entries;
    s.histories[i].index_keys.pages = s.layers[i].index_keys;
  }
}

bool PagedKv::reserve(std::int64_t slot, std::int64_t end_position) {
  Sequence& s = sequence(slot);
  const std::int64_t missing = pages_for(end_position) - static_cast<std::int64_t>(s.pages.size());
  if (missing <= 0) return true;
  if (missing > pool_.n_free()) return false;
  std::vector<PageRef> added;
  for (std::int64_t i = 0; i < missing; ++i) {
    added.push_back(pool_.acquire());
    if (!added.back()) return false;
  }
  for (PageRef& page : added) append_page(s, std::move(page));
  refresh(s);
  return true;
}

model::LayerHistory PagedKv::history(std::int64_t layer, std::int64_t slot,
                                     std::int64_t end_position) {
  const Sequence& s = sequence(slot);
  if (end_position > static_cast<std::int64_t>(s.pages.size()) * page_tokens() &&
      !reserve(slot, end_position)) {
    throw Error(ErrorCode::out_of_memory,
                fmt::format("a sequence grows to {} tokens and needs {} KV pages; it has {}, and "
                            "{} of {} are free; raise the KV budget or run fewer sequences",
                            end_position, pages_for(end_position), s.pages.size(), n_pages_free(),
                            n_pages_total()));
  }
  return s.histories.at(static_cast<std::size_t>(layer));
}

std::span<const PageRef> PagedKv::pages(std::int64_t slot) const {
  return sequence(slot).pages;
}

void PagedKv::adopt(std::int64_t slot, std::span<const PageRef> pages) {
  Sequence& s = sequence(slot);
  HADAL_CHECK(s.pages.empty());
  for (const PageRef& page : pages) {
    HADAL_CHECK(page != nullptr && page->nbytes() == page_bytes());
    append_page(s, page);
  }
  refresh(s);
  freeze(slot, static_cast<std::int64_t>(pages.size()) * page_tokens());
}

void PagedKv::replace_page(std::int64_t slot, std::int64_t index, PageRef page) {
  Sequence& s = sequence(slot);
  HADAL_CHECK(page != nullptr && page->nbytes() == page_bytes());
  const auto at = static_cast<std::size_t>(index);
  PageRef& present = s.pages.at(at);
  for (std::size_t i = 0; i < s.layers.size(); ++i) {
    const KvLayout::Layer& layer = layout_.layers[i];
    if (layer.ratio == 0) continue;
    s.layers[i].entries[at] = page->bytes() + layer.entries;
    if (layer.has_indexer) s.layers[i].index_keys[at] = page->bytes() + layer.index_keys;
  }
  present = std::move(page);
}

void PagedKv::freeze(std::int64_t slot, std::int64_t position) {
  Sequence& s = sequence(slot);
  HADAL_CHECK(position % page_tokens() == 0);
  HADAL_CHECK(position <= static_cast<std::int64_t>(s.pages.size()) * page_tokens());
  s.frozen = std::max(s.frozen, position);
  for (std::size_t i = 0; i < s.histories.size(); ++i) {
    const std::int64_t ratio = layout_.layers[i].ratio;
    if (ratio > 0) s.histories[i].frozen_entries = s.frozen / ratio;
  }
}

std::int64_t PagedKv::frozen(std::int64_t slot) const {
  return sequence(slot).frozen;
}

std::vector<std::byte> PagedKv::save_state(std::int64_t slot, std::int64_t position) const {
  HADAL_CHECK(position >= 0);
  std::vector<std::byte> saved(layout_.saved_bytes(position));
  std::vector<std::byte> buffer;
  layout_.save(options_.memory.read(sequence(slot).state, buffer).data(), position, saved.data());
  return saved;
}

void PagedKv::restore_state(std::int64_t slot, std::int64_t position,
                            std::span<const std::byte> state) {
  HADAL_CHECK(position >= 0);
  const std::size_t wanted = layout_.saved_bytes(position);
  if (state.size() != wanted) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("the saved state of a sequence at position {} has {} bytes, wanted {} "
                            "for {}; it is not of this model or was cut off",
                            position, state.size(), wanted, layout()));
  }
  const Tensor& to = sequence(slot).state;
  if (options_.memory.on_host()) return layout_.restore(to.bytes(), position, state.data());
  std::vector<std::byte> buffer;  // a restored state leaves some bytes as they are
  static_cast<void>(options_.memory.read(to, buffer));
  layout_.restore(buffer.data(), position, state.data());
  options_.memory.write(buffer, to);
}

std::size_t PagedKv::state_bytes_held() const {
  const auto open = static_cast<std::size_t>(
      std::count_if(slots_.begin(), slots_.end(), [](const auto& s) { return s != nullptr; }));
  return (open + free_states_.size()) * layout_.state_bytes;
}

PagedKv::Bytes PagedKv::bytes(std::int64_t slot) const {
  const std::size_t n = sequence(slot).pages.size();
  return {.window = layout_.window_bytes,
          .tails = layout_.tail_bytes,
          .entries = n * layout_.entry_bytes,
          .index_keys = n * layout_.index_key_bytes};
}

}  // namespace hadal::cache
