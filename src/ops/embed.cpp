#include "ops/embed.h"

#include <fmt/format.h>

#include "kernels/embed.h"

namespace hadal::ops {

Tensor embed(ExecContext& ctx, const Tensor& ids, const Tensor& table, std::int64_t n_streams) {
  const auto* id = ids.data<const std::int32_t>();
  for (std::int64_t t = 0; t < ids.dim(0); ++t) {
    if (id[t] < 0 || id[t] >= table.dim(0)) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("token id {} at row {} is outside the vocabulary [0, {})", id[t], t,
                              table.dim(0)));
    }
  }
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
