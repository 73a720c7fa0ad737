#include "cache/kv_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "model/kv_format.h"

namespace hadal::cache {

namespace {

std::int64_t round_page(const model::Config& config, std::int64_t tokens) {
  std::int64_t unit = 1;
  for (const model::LayerSpec& layer : config.layers) {
    if (layer.has_compressor()) unit = std::lcm(unit, layer.compress_ratio);
  }
  return std::max<std::int64_t>(1, (tokens + unit - 1) / unit) * unit;
}

// Lays blocks one after the other and counts their content apart from the padding.
class Ruler {
 public:
  std::size_t place(std::int64_t rows, std::int64_t row_bytes, std::size_t& content) {
    const std::size_t at = end_;
    const auto size = static_cast<std::size_t>(rows * row_bytes);
    content += size;
    end_ += (size + 63) / 64 * 64;
    return at;
  }
  [[nodiscard]] std::size_t end() const { return end_; }

 private:
  std::size_t end_ = 0;
};

std::string name_of(const KvRowFormat& format) {
  const char* kind = format.kind == KvRowKind::f32   ? "f32"
                     : format.kind == KvRowKind::fp4 ? "fp4"
                                                     : "fp8_mixed";
  return fmt::format("{}/{}/{}", kind, format.width, format.rope);
}

struct ByteCount {
  std::size_t n = 0;
  void block(std::size_t /*offset*/, std::size_t nbytes) { n += nbytes; }
};
struct ToSaved {
  const std::byte* state;
  std::byte* out;
  void block(std::size_t offset, std::size_t nbytes) {
    std::memcpy(out, state + offset, nbytes);
    out += nbytes;
  }
};
struct FromSaved {
  std::byte* state;
  const std::byte* in;
  void block(std::size_t offset, std::size_t nbytes) {
    std::memcpy(state + offset, in, nbytes);
    in += nbytes;
  }
};

// Rows [first, end) of a tail: their first `floats` of every row.
template <class Visitor>
void visit_tail(const KvLayout::Layer& layer, std::size_t offset, std::int64_t width,
                std::int64_t first, std::int64_t end, std::int64_t floats, Visitor& visitor) {
  const std::int64_t row_bytes = layer.n_series * width * 4;
  for (std::int64_t p = first; p < end; ++p) {
    visitor.block(offset + static_cast<std::size_t>(p % layer.tail_rows * row_bytes),
                  static_cast<std::size_t>(floats * 4));
  }
}

// What continuing at `position` may read, in the order of the saved bytes.
template <class Visitor>
void visit_saved(const KvLayout& layout, std::int64_t position, Visitor& visitor) {
  const auto data_bytes = static_cast<std::size_t>(layout.entry_format.data_bytes());
  const auto scale_bytes = static_cast<std::size_t>(layout.entry_format.scale_bytes());
  for (const KvLayout::Layer& layer : layout.layers) {
    for (std::int64_t p = std::max<std::int64_t>(0, position - layout.window_rows); p < position;
         ++p) {
      const auto slot = static_cast<std::size_t>(p % layout.ring_rows);
      const std::size_t scales =
          layer.window + static_cast<std::size_t>(layout.ring_rows) * data_bytes;
      visitor.block(layer.window + slot * data_bytes, data_bytes);
      if (scale_bytes > 0) visitor.block(scales + slot * scale_bytes, scale_bytes);
    }
    if (layer.ratio == 0) continue;
    const std::int64_t pending = position / layer.ratio * layer.ratio;
    const std::int64_t previous =
        layer.n_series == 2 ? std::max<std::int64_t>(0, pending - layer.ratio) : pending;
    const auto tails = [&](std::size_t kv, std::size_t gate, std::int64_t width) {
      for (const std::size_t offset : {kv, gate}) {
        visit_tail(layer, offset, width, previous, pending, width, visitor);
        visit_tail(layer, offset, width, pending, position, layer.n_series * width, visitor);
      }
    };
    tails(layer.tail_kv, layer.tail_gate, layout.head_dim);
    if (layer.has_indexer) {
      tails(layer.index_tail_kv, layer.index_tail_gate, layout.index_head_dim);
    }
  }
}

CompressorTail tail_at(const KvLayout::Layer& layer, std::byte* state, std::size_t kv,
                       std::size_t gate, std::int64_t width) {
  const Shape shape{layer.tail_rows, layer.n_series * width};
  return {TensorView(state + kv, shape, DType::f32), TensorView(state + gate, shape, DType::f32)};
}

}  // namespace

KvLayout::KvLayout(const model::Config& config, Numerics numerics, std::int64_t tokens,
                   std::int64_t rollback_tokens)
    : entry_format(model::KvFormat::of(config, numerics).entry),
      index_format(model::KvFormat::of(config, numerics).index),
      head_dim(config.head_dim),
      index_head_dim(config.index_head_dim),
      page_tokens(round_page(config, tokens)),
      window_rows(config.sliding_window),
      ring_rows(config.sliding_window + rollback_tokens) {
  Ruler page, state;
  for (const model::LayerSpec& spec : config.layers) {
    Layer& layer = layers.emplace_back();
    layer.window = state.place(ring_rows, entry_format.row_bytes(), window_bytes);
    if (!spec.has_compressor()) continue;
    layer.ratio = spec.compress_ratio;
    layer.n_series = spec.n_series();
    layer.has_indexer = spec.has_indexer();
    layer.rows_per_page = page_tokens / layer.ratio;
    layer.entries = page.place(layer.rows_per_page, entry_format.row_bytes(), entry_bytes);
    layer.tail_rows = layer.n_series * layer.ratio + rollback_tokens;
    const auto place_tail = [&](std::int64_t width) {
      return state.place(layer.tail_rows, layer.n_series * width * 4, tail_bytes);
    };
    layer.tail_kv = place_tail(head_dim);
    layer.tail_gate = place_tail(head_dim);
    if (!layer.has_indexer) continue;
    layer.index_keys = page.place(layer.rows_per_page, index_format.row_bytes(), index_key_bytes);
    layer.index_tail_kv = place_tail(index_head_dim);
    layer.index_tail_gate = place_tail(index_head_dim);
  }
  page_bytes = page.end();
  state_bytes = state.end();
}

std::string KvLayout::text() const {
  std::string ratios;
  for (const Layer& layer : layers) {
    ratios +=
        fmt::format("{}{}{}", ratios.empty() ? "" : ",", layer.ratio, layer.has_indexer ? "i" : "");
  }
  return fmt::format("hadal-kv/1 page={} entry={} index={} window={} layers={}", page_tokens,
                     name_of(entry_format), name_of(index_format), window_rows, ratios);
}

std::size_t KvLayout::saved_bytes(std::int64_t position) const {
  ByteCount count;
  visit_saved(*this, position, count);
  return count.n;
}

void KvLayout::save(const std::byte* state, std::int64_t position, std::byte* out) const {
  ToSaved visitor{state, out};
  visit_saved(*this, position, visitor);
}

void KvLayout::restore(std::byte* state, std::int64_t position, const std::byte* saved) const {
  FromSaved visitor{state, saved};
  visit_saved(*this, position, visitor);
}

CompressorTail KvLayout::tail(const Layer& layer, std::byte* state) const {
  return tail_at(layer, state, layer.tail_kv, layer.tail_gate, head_dim);
}

CompressorTail KvLayout::index_tail(const Layer& layer, std::byte* state) const {
  return tail_at(layer, state, layer.index_tail_kv, layer.index_tail_gate, index_head_dim);
}

}  // namespace hadal::cache
