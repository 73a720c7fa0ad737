// The entry point of attention: tables of the sequences, then one launch for all tokens.
#include "kernels/sparse_attention.h"

#include "core/error.h"
#include "kernels/cuda/device/attention_list.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda {

namespace {

using attention::Params;
using attention::Sequence;

constexpr std::int64_t kMaxWidth = 512;

void check_width(std::int64_t width, DType dtype) {
  const bool whole = dtype == DType::f32 || width % 16 == 0;
  if (width >= 1 && width <= kMaxWidth && whole) return;
  throw Error(ErrorCode::unsupported,
              "attention on a GPU takes heads of " + std::to_string(width) +
                  " values only in f32 and up to 512; in bf16 they must be a multiple of 16 and at "
                  "most 512: run this model on the cpu device");
}

struct Tables {
  const Sequence* sequences = nullptr;
  int n_sequences = 0;
  DeviceRows new_rows;
  bool aligned = false;
  std::int64_t longest = 0;  // list
};

Tables send_tables(Stream& stream, const SparseAttentionArgs& a) {
  PageTables pages;
  std::vector<std::size_t> windows, entries;
  const auto end_position = [](const AttentionSequence& s) { return s.start + s.end - s.begin; };
  const auto n_visible = [&](const AttentionSequence& s) {
    return a.ratio == 0 ? 0 : end_position(s) / a.ratio;
  };
  const std::size_t own = pages.add(a.new_rows, a.q.dim(0));
  for (const AttentionSequence& s : a.sequences) {
    windows.push_back(pages.add(s.window, std::min(s.start, s.ring_rows)));
    entries.push_back(pages.add(s.entries, n_visible(s)));
  }
  pages.send(stream);
  Tables tables;
  std::vector<Sequence> sequences;
  for (std::size_t i = 0; i < a.sequences.size(); ++i) {
    const AttentionSequence& s = a.sequences[i];
    if (s.begin >= s.end) continue;
    const std::int64_t listed =
        a.selected ? std::min(n_visible(s), a.selected.dim(1)) : n_visible(s);
    tables.longest = std::max(tables.longest, std::min(a.window, end_position(s)) + listed);
    sequences.push_back(
        {.begin = s.begin,
         .end = s.end,
         .start = static_cast<std::int32_t>(s.start),
         .ring_rows = static_cast<std::int32_t>(std::max<std::int64_t>(1, s.ring_rows)),
         .lists_all = !a.selected || n_visible(s) <= a.selected.dim(1) ? 1 : 0,
         .window = pages.rows(s.window, windows[i]),
         .entries = pages.rows(s.entries, entries[i])});
  }
  tables.n_sequences = static_cast<int>(sequences.size());
  if (sequences.empty()) return tables;
  tables.sequences = stream.cuda().stage(std::span<const Sequence>(sequences));
  tables.new_rows = pages.rows(a.new_rows, own);
  const KvRowFormat& f = a.new_rows.format;
  // Every row and row part begins at 16 bytes, every row's scales at 8; 16 codes share a scale.
  tables.aligned = f.kind == KvRowKind::fp8_mixed && f.width > f.rope &&
                   (f.width - f.rope) % 16 == 0 && f.rope % 8 == 0 && pages.aligned(16);
  return tables;
}

}  // namespace

void sparse_attention(Stream& stream, const SparseAttentionArgs& a) {
  const std::int64_t n_tokens = a.q.dim(0);
  if (a.q.numel() == 0 || a.sequences.empty()) return;
  check_width(a.q.dim(2), a.q.dtype());
  const Tables tables = send_tables(stream, a);
  if (tables.n_sequences == 0) return;
  dispatch_activation(a.q.dtype(), [&]<class T>() {
    const Params<T> params{.o = data<T>(a.o),
                           .q = data<const T>(a.q),
                           .new_rows = tables.new_rows,
                           .sinks = data<const float>(a.sinks),
                           .selected = a.selected ? data<const std::int32_t>(a.selected) : nullptr,
                           .log_sum_exp = a.log_sum_exp ? data<float>(a.log_sum_exp) : nullptr,
                           .sequences = tables.sequences,
                           .n_sequences = tables.n_sequences,
                           .n_heads = static_cast<int>(a.q.dim(1)),
                           .width = static_cast<int>(a.q.dim(2)),
                           .window = static_cast<int>(a.window),
                           .ratio = static_cast<int>(a.ratio),
                           .topk = a.selected ? static_cast<int>(a.selected.dim(1)) : 0,
                           .scale = a.softmax_scale,
                           .aligned = tables.aligned};
    if constexpr (sizeof(T) == 4) {
      attention::attend_f32(stream, params, n_tokens);
    } else {
      attention::attend_bf16(stream, params, n_tokens, tables.longest);
    }
  });
}

}  // namespace hadal::kernels::cuda
