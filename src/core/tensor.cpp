#include "core/tensor.h"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace hadal {

const char* to_string(DeviceKind kind) {
  return kind == DeviceKind::cpu ? "cpu" : "cuda";
}

std::size_t nbytes(const Shape& shape, DType dtype) {
  return (static_cast<std::size_t>(shape.numel()) * static_cast<std::size_t>(bits(dtype)) + 7) / 8;
}

namespace {

Shape with_rows(const Shape& shape, std::int64_t rows) {
  HADAL_CHECK(shape.rank() >= 1);
  std::array<std::int64_t, Shape::kMaxRank> dims{};
  std::copy(shape.dims().begin(), shape.dims().end(), dims.begin());
  dims[0] = rows;
  return Shape(std::span<const std::int64_t>(dims.data(), shape.rank()));
}

}  // namespace

TensorView TensorView::slice(std::int64_t begin, std::int64_t end) const {
  HADAL_CHECK(shape_.rank() >= 1 && 0 <= begin && begin <= end && end <= shape_[0]);
  const std::size_t row = shape_[0] == 0 ? 0 : nbytes() / static_cast<std::size_t>(shape_[0]);
  return {bytes_ + row * static_cast<std::size_t>(begin), with_rows(shape_, end - begin), dtype_};
}

TensorView TensorView::reshape(Shape shape) const {
  HADAL_CHECK(shape.numel() == shape_.numel());
  return {bytes_, shape, dtype_};
}

Tensor Tensor::empty(Shape shape, DType dtype) {
  const std::size_t size = (hadal::nbytes(shape, dtype) + 63) / 64 * 64;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(64, size == 0 ? 64 : size));
  if (memory == nullptr) {
    throw Error(ErrorCode::out_of_memory,
                fmt::format("cannot allocate {} bytes for a tensor {} {}", size,
                            hadal::to_string(shape), hadal::to_string(dtype)));
  }
  return {std::shared_ptr<std::byte>(memory, [](std::byte* p) { std::free(p); }), shape, dtype};
}

Tensor Tensor::zeros(Shape shape, DType dtype) {
  Tensor t = empty(shape, dtype);
  std::memset(t.bytes(), 0, t.nbytes());
  return t;
}

Tensor Tensor::slice(std::int64_t begin, std::int64_t end) const {
  const TensorView v = view_.slice(begin, end);
  return {std::shared_ptr<std::byte>(storage_, v.bytes()), v.shape(), v.dtype()};
}

Tensor Tensor::reshape(Shape shape) const {
  HADAL_CHECK(shape.numel() == view_.numel());
  return Tensor(storage_, shape, dtype()).as_variable(variable_);
}

Tensor Tensor::as_variable(VariableId id) const {
  Tensor t = *this;
  t.variable_ = id;
  return t;
}

Tensor Tensor::reinterpret(Shape shape, DType dtype) const {
  HADAL_CHECK(hadal::nbytes(shape, dtype) == nbytes());
  return {storage_, shape, dtype};
}

void expect_shape(const TensorView& x, const Shape& wanted, std::string_view what) {
  if (x.shape() == wanted) return;
  throw Error(ErrorCode::invalid_argument, fmt::format("{}: the shape is {}, wanted {}", what,
                                                       to_string(x.shape()), to_string(wanted)));
}

}  // namespace hadal
