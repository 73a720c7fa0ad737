#include "kernels/embed.h"

#include "cuda/support.h"

namespace hadal::test {
namespace {

class CudaEmbed : public CudaTest {};

// Copies, with one rounding where the table is wider than the activations: equal to the bit. A
// width of 129 has no aligned rows, 4,104 is one group past a block's step.
TEST_F(CudaEmbed, CopiesRowsToEveryStream) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const DType table_dtype : {DType::f32, DType::bf16}) {
      for (const std::int64_t hidden : {8, 129, 4104}) {
        for (const std::int64_t n_tokens : {0, 1, 37}) {
          const Tensor table = random({53, hidden}, table_dtype);
          const Tensor ids = random_ids({n_tokens}, 53);
          const Tensor want = Tensor::empty({n_tokens, 4, hidden}, dtype);
          run_cpu(kEmbed, dtype, {.y = want, .ids = ids, .table = table});
          const Tensor got = device_empty(want.shape(), dtype);
          const Tensor from = to_device(table), rows = to_device(ids);
          run_gpu(kEmbed, dtype, {.y = got, .ids = rows, .table = from});
          expect_same_bytes(to_host(got), want, "embed, width " + std::to_string(hidden));
        }
      }
    }
  }
}

// A row of the table adds its tokens one by one, in their order, on both sides: equal to the bit.
// Ids repeat: 300 tokens of 53, of a table of one row, and of one with many rows that nobody chose.
TEST_F(CudaEmbed, BackwardAddsTokensInOrder) {
  for (const std::int64_t hidden : {8, 129, 1040}) {
    for (const auto& [n_tokens, vocab] : std::vector<std::pair<std::int64_t, std::int32_t>>{
             {0, 53}, {1, 53}, {300, 53}, {37, 1}, {65, 5000}}) {
      const Tensor ids = random_ids({n_tokens}, vocab);
      const Tensor dy = random({n_tokens, 4, hidden}, DType::f32);
      const Tensor dtable = random({vocab, hidden}, DType::f32), got = to_device(dtable);
      const Tensor from = to_device(dy), rows = to_device(ids);
      run_cpu(kEmbedBackward, DType::f32, {.dtable = dtable, .dy = dy, .ids = ids});
      run_gpu(kEmbedBackward, DType::f32, {.dtable = got, .dy = from, .ids = rows});
      expect_same_bytes(to_host(got), dtable, "embed_backward, width " + std::to_string(hidden));
    }
  }
}

}  // namespace
}  // namespace hadal::test
