#include "kernels/kv_rows.h"

#include <fmt/format.h>

#include "cuda/paged_store.h"

namespace hadal::test {
namespace {

class CudaKvRows : public PagedTest {
 protected:
  // Values of all magnitudes, and what rounding is delicate about: zeros of both signs, blocks of
  // nothing, ties, values that saturate.
  Tensor delicate(std::int64_t n_rows, std::int64_t width, DType dtype) {
    Tensor x = random({n_rows, width}, dtype);
    std::uniform_int_distribution<int> exponent(-24, 16), kind(0, 9), steps(-16, 16);
    for (std::int64_t i = 0; i < x.numel(); ++i) {
      const int k = kind(rng());
      if (k == 0) set(x, i, 0.0f);
      if (k == 1) set(x, i, -0.0f);
      if (k == 2) set(x, i, static_cast<float>(steps(rng())) * 0.25f);  // ties of E2M1 and E4M3
      if (k == 3) set(x, i, std::ldexp(value_at(x, i), exponent(rng())));
    }
    for (std::int64_t r = 0; r < n_rows; r += 3) {  // a block of nothing, one of very little
      for (std::int64_t c = 0; c < std::min<std::int64_t>(64, width); ++c) set(x, r * width + c, 0);
      for (std::int64_t c = 64; c < std::min<std::int64_t>(128, width); ++c) {
        set(x, r * width + c, 1e-7f * static_cast<float>(c % 5));
      }
    }
    return x;
  }
};

const KvRowFormat kFormats[] = {
    {KvRowKind::f32, 512, 0},        {KvRowKind::f32, 33, 0},
    {KvRowKind::fp8_mixed, 512, 64}, {KvRowKind::fp8_mixed, 128, 64},
    {KvRowKind::fp8_mixed, 192, 64}, {KvRowKind::fp8_mixed, 48, 8},
    {KvRowKind::fp8_mixed, 71, 6},   {KvRowKind::fp4, 128, 0},
    {KvRowKind::fp4, 64, 0},         {KvRowKind::fp4, 32, 0},
};

TEST_F(CudaKvRows, StoresTheBytesOfTheCpu) {
  for (const KvRowFormat& format : kFormats) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const std::int64_t modulus : {0, 9}) {
        for (const std::int64_t n : {0, 1, 7, 64, 131}) {
          const std::int64_t first = 3;
          PagedStore want = paged_store(format, modulus > 0 ? modulus : n + first, 5);
          PagedStore got = want;
          send(got);
          const Tensor x = delicate(n, format.width, dtype), dx = to_device(x);
          run_cpu(kStoreRows, dtype,
                  {.x = x, .rows = want.on_host(), .first = first, .modulus = modulus});
          run_gpu(kStoreRows, dtype,
                  {.x = dx, .rows = got.on_device(), .first = first, .modulus = modulus});
          expect_same_bytes(
              to_host(got.device), want.host,
              fmt::format("{} rows of {} {}/{} from {}, modulus {}", n, name_of(format.kind),
                          format.width, format.rope, to_string(dtype), modulus));
        }
      }
    }
  }
}

TEST_F(CudaKvRows, CopiesRowsIntoARing) {
  for (const KvRowFormat& format : kFormats) {
    for (const std::int64_t n : {0, 1, 6, 40}) {
      PagedStore from = stored(random({50, format.width}, DType::f32), format, 7);
      PagedStore want = paged_store(format, 11, 4), got = want;
      send(got);
      const auto args = [&](const PagedRows& source, const PagedRows& to) {
        return CopyRowsArgs{.from = source,
                            .to = to,
                            .n_rows = n,
                            .from_first = 5,
                            .first = 1'000'003,
                            .modulus = 11};
      };
      run_cpu(kCopyRows, DType::bf16, args(from.on_host(), want.on_host()));
      run_gpu(kCopyRows, DType::bf16, args(from.on_device(), got.on_device()));
      expect_same_bytes(to_host(got.device), want.host,
                        fmt::format("{} rows of {}/{}", n, name_of(format.kind), format.width));
    }
  }
}

}  // namespace
}  // namespace hadal::test
