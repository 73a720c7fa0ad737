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
          const StoreRange here{0, n, want.on_host(), first, modulus};
          const StoreRange there{0, n, got.on_device(), first, modulus};
          run_cpu(kStoreRows, dtype, {.x = x, .ranges = {&here, 1}});
          run_gpu(kStoreRows, dtype, {.x = dx, .ranges = {&there, 1}});
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
      const CopyRange here{5, 5 + n, want.on_host(), 1'000'003, 11};
      const CopyRange there{5, 5 + n, got.on_device(), 1'000'003, 11};
      run_cpu(kCopyRows, DType::bf16, {.from = from.on_host(), .ranges = {&here, 1}});
      run_gpu(kCopyRows, DType::bf16, {.from = from.on_device(), .ranges = {&there, 1}});
      expect_same_bytes(to_host(got.device), want.host,
                        fmt::format("{} rows of {}/{}", n, name_of(format.kind), format.width));
    }
  }
}

// Ranges of all sequences in one launch: empty ones, ones with and without a ring, far down a
// store.
TEST_F(CudaKvRows, StoresAndCopiesManyRangesAtOnce) {
  const KvRowFormat format{KvRowKind::fp8_mixed, 128, 64};
  const Tensor x = delicate(61, 128, DType::bf16), dx = to_device(x);
  PagedStore want = paged_store(format, 400, 16), got = want;
  send(got);
  const auto ranges = [](const PagedRows& rows) {
    return std::vector<StoreRange>{
        {0, 1, rows, 377, 0}, {1, 1, rows, 3, 0}, {1, 40, rows, 95, 0}, {40, 61, rows, 1000, 10}};
  };
  const auto here = ranges(want.on_host()), there = ranges(got.on_device());
  run_cpu(kStoreRows, DType::bf16, {.x = x, .ranges = here});
  run_gpu(kStoreRows, DType::bf16, {.x = dx, .ranges = there});
  expect_same_bytes(to_host(got.device), want.host, "stored ranges");

  PagedStore ring = paged_store(format, 24, 24), ring_got = ring;
  send(ring_got);
  const std::vector<CopyRange> to{{95, 100, ring.on_host(), 7, 24},
                                  {100, 100, ring.on_host(), 0, 24},
                                  {377, 378, ring.on_host(), 23, 24}};
  std::vector<CopyRange> to_got = to;
  for (CopyRange& r : to_got) r.to = ring_got.on_device();
  run_cpu(kCopyRows, DType::bf16, {.from = want.on_host(), .ranges = to});
  run_gpu(kCopyRows, DType::bf16, {.from = got.on_device(), .ranges = to_got});
  expect_same_bytes(to_host(ring_got.device), ring.host, "copied ranges");
}

}  // namespace
}  // namespace hadal::test
