// Tensors are contiguous and row-major, and shapes are always logical: an f4_e2m1 tensor
// [out, in] has in/2 bytes a row and says [out, in].
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>

#include "core/dtype.h"
#include "core/error.h"
#include "core/shape.h"

namespace hadal {

enum class DeviceKind : std::uint8_t { cpu, cuda };
[[nodiscard]] const char* to_string(DeviceKind kind);

[[nodiscard]] std::size_t nbytes(const Shape& shape, DType dtype);

// Borrows memory for the length of a call.
class TensorView {
 public:
  TensorView() = default;
  TensorView(std::byte* bytes, Shape shape, DType dtype)
      : bytes_(bytes), shape_(shape), dtype_(dtype) {}

  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] std::int64_t dim(std::size_t i) const { return shape_[i]; }
  [[nodiscard]] std::int64_t numel() const { return shape_.numel(); }
  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] std::size_t nbytes() const { return hadal::nbytes(shape_, dtype_); }
  [[nodiscard]] std::byte* bytes() const { return bytes_; }
  [[nodiscard]] explicit operator bool() const { return bytes_ != nullptr; }

  template <class T>
  [[nodiscard]] T* data() const {
    if constexpr (requires { DTypeOf<std::remove_const_t<T>>::value; }) {
      HADAL_CHECK(dtype_ == DTypeOf<std::remove_const_t<T>>::value);
    }
    return reinterpret_cast<T*>(bytes_);
  }

  [[nodiscard]] TensorView slice(std::int64_t begin, std::int64_t end) const;  // rows of dim 0
  [[nodiscard]] TensorView reshape(Shape shape) const;

 private:
  std::byte* bytes_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::f32;
};

// Names what a tensor is to a gradient tape (ops/tape.h); 0: nothing that wants a gradient.
using VariableId = std::uint32_t;

// Shares its storage. Copying a Tensor copies a reference, never data.
class Tensor {
 public:
  Tensor() = default;
  Tensor(std::shared_ptr<std::byte> storage, Shape shape, DType dtype)
      : storage_(std::move(storage)), view_(storage_.get(), shape, dtype) {}

  // Fresh host memory, aligned to 64 bytes, uninitialised / zero.
  [[nodiscard]] static Tensor empty(Shape shape, DType dtype);
  [[nodiscard]] static Tensor zeros(Shape shape, DType dtype);

  [[nodiscard]] const Shape& shape() const { return view_.shape(); }
  [[nodiscard]] std::int64_t dim(std::size_t i) const { return view_.dim(i); }
  [[nodiscard]] std::int64_t numel() const { return view_.numel(); }
  [[nodiscard]] DType dtype() const { return view_.dtype(); }
  [[nodiscard]] std::size_t nbytes() const { return view_.nbytes(); }
  [[nodiscard]] std::byte* bytes() const { return view_.bytes(); }
  [[nodiscard]] explicit operator bool() const { return static_cast<bool>(view_); }
  template <class T>
  [[nodiscard]] T* data() const {
    return view_.data<T>();
  }
  [[nodiscard]] const TensorView& view() const { return view_; }
  operator TensorView() const { return view_; }  // NOLINT: a call borrows without ceremony
  [[nodiscard]] const std::shared_ptr<std::byte>& storage() const { return storage_; }

  // Copies and reshapes are the same variable; a slice or another reading is none.
  [[nodiscard]] VariableId variable() const { return variable_; }
  [[nodiscard]] Tensor as_variable(VariableId id) const;
  [[nodiscard]] Tensor detached() const { return as_variable(0); }

  [[nodiscard]] Tensor slice(std::int64_t begin, std::int64_t end) const;
  [[nodiscard]] Tensor reshape(Shape shape) const;
  [[nodiscard]] Tensor reinterpret(Shape shape, DType dtype) const;  // same bytes, other reading

 private:
  std::shared_ptr<std::byte> storage_;
  TensorView view_;
  VariableId variable_ = 0;
};

// Throws invalid_argument naming `what` when the shapes differ.
void expect_shape(const TensorView& x, const Shape& wanted, std::string_view what);

}  // namespace hadal
