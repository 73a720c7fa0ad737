#include "model/finite_scan.h"

#include <algorithm>
#include <cstring>

namespace hadal::model {

namespace {

// Whole chunks are tested without a branch per element, so that the compiler vectorises the loop
// and the scan runs at the speed of memory.
template <class Word>
std::optional<std::int64_t> first_with(const TensorView& x, Word mask) {
  constexpr std::int64_t kChunk = 4096;
  const auto* words = reinterpret_cast<const Word*>(x.bytes());
  const std::int64_t n = x.numel();
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t end = std::min(n, begin + kChunk);
    unsigned any = 0;
    for (std::int64_t i = begin; i < end; ++i) any |= (words[i] & mask) == mask ? 1u : 0u;
    if (any == 0) continue;
    for (std::int64_t i = begin; i < end; ++i) {
      if ((words[i] & mask) == mask) return i;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::int64_t> first_non_finite(const TensorView& x) {
  switch (x.dtype()) {
    case DType::f64:
      return first_with<std::uint64_t>(x, 0x7ff0000000000000u);
    case DType::f32:
      return first_with<std::uint32_t>(x, 0x7f800000u);
    case DType::bf16:
      return first_with<std::uint16_t>(x, 0x7f80u);
    case DType::f16:
      return first_with<std::uint16_t>(x, 0x7c00u);
    case DType::f8_e4m3:
      return first_with<std::uint8_t>(x, 0x7fu);
    case DType::ue8m0:
      return first_with<std::uint8_t>(x, 0xffu);
    case DType::f4_e2m1:
    case DType::i64:
    case DType::i32:
    case DType::i8:
    case DType::u8:
      return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace hadal::model
