#include "ops/embed.h"

#include <fmt/format.h>

#include "kernels/embed.h"

namespace hadal::ops {

namespace {
template <class T>
Tensor checked(ExecContext& ctx, std::span<const T> ids, std::int64_t end) {
  const Tensor host = ctx.host_empty({std::ssize(ids)}, DType::i32);
  auto* to = host.data<std::int32_t>();
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= end) {
      throw Error(
          ErrorCode::invalid_argument,
          fmt::format("token id {} at row {} is outside the vocabulary [0, {})", ids[i], i, end));
    }
    to[i] = static_cast<std::int32_t>(ids[i]);
  }
  return ctx.to_device(host);
}
}  // namespace

Tensor row_ids(ExecContext& ctx, std::span<const std::int32_t> ids, std::int64_t end) {
  return checked(ctx, ids, end);
}
Tensor row_ids(ExecContext& ctx, std::span<const std::int64_t> ids, std::int64_t end) {
  return checked(ctx, ids, end);
}

Tensor embed(ExecContext& ctx, const Tensor& ids, const Tensor& table, std::int64_t n_streams) {
  Tensor y = ctx.activation({ids.dim(0), n_streams, table.dim(1)});
  ctx.launch(kEmbed, y.dtype(), EmbedArgs{.y = y, .ids = ids, .table = table});
  if (Tape* tape = ctx.tape_for(table)) {
    y = tape->variable(y);
    tape->record({.name = "embed",
                  .inputs = {table, ids},
                  .outputs = {y},
                  .backward =
                      [ids](Backward& b) {
                        b.ctx().launch(kEmbedBackward, DType::f32,
                                       EmbedBackwardArgs{
                                           .dtable = b.target(0), .dy = b.gradient(0), .ids = ids});
                      },
                  .replay = [n_streams](ExecContext& c, const TensorList& in) -> TensorList {
                    return {embed(c, in[1], in[0], n_streams)};
                  }});
  }
  return y;
}

}  // namespace hadal::ops
