#include "core/shape.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.h"

namespace hadal {

Shape::Shape(std::span<const std::int64_t> dims) : rank_(dims.size()) {
  if (rank_ > kMaxRank) {
    throw Error(ErrorCode::unsupported,
                fmt::format("a tensor of rank {}; hadal handles up to {}", rank_, kMaxRank));
  }
  for (std::size_t i = 0; i < rank_; ++i) dims_[i] = dims[i];
}

std::int64_t Shape::numel() const {
  std::int64_t n = 1;
  for (const std::int64_t d : dims()) n *= d;
  return n;
}

std::string to_string(const Shape& shape) {
  return fmt::format("[{}]", fmt::join(shape.dims(), ", "));
}

}  // namespace hadal
