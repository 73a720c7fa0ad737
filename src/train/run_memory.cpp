#include "train/run_memory.h"

#include <algorithm>
#include <cstring>

namespace hadal::train {

namespace {

constexpr std::size_t kAlign = 256;
// A small model does not pay for the pieces of a large one.
constexpr std::size_t kFirstPiece = std::size_t{1} << 20, kLargestPiece = std::size_t{64} << 20;

Tensor allocate(cuda::Queue& gpu, std::size_t bytes) {
  try {
    return gpu.allocate(bytes);
  } catch (const Error& e) {
    if (e.code != ErrorCode::out_of_memory) throw;
  }
  gpu.memory().trim();  // what the pool keeps for later steps may be what is in the way
  return gpu.allocate(bytes);
}

}  // namespace

Tensor RunMemory::zeros(const Shape& shape, DType dtype) {
  if (gpu_ == nullptr) return Tensor::zeros(shape, dtype);
  const std::size_t bytes = (nbytes(shape, dtype) + kAlign - 1) / kAlign * kAlign;
  if (pieces_.empty() || used_ + bytes > pieces_.back().nbytes()) {
    const std::size_t piece = std::max(bytes, std::clamp(held_, kFirstPiece, kLargestPiece));
    pieces_.push_back(allocate(*gpu_, piece));
    gpu_->zero(pieces_.back().bytes(), piece);
    used_ = 0;
    held_ += piece;
  }
  const Tensor& piece = pieces_.back();
  std::byte* const at = piece.bytes() + used_;
  used_ += bytes;
  return {std::shared_ptr<std::byte>(piece.storage(), at), shape, dtype};
}

void RunMemory::clear() const {
  for (const Tensor& piece : pieces_) gpu_->zero(piece.bytes(), piece.nbytes());
}

Tensor NamedTensor::on_host() const {
  if (gpu == nullptr) return tensor;
  const Tensor host = Tensor::empty(tensor.shape(), tensor.dtype());
  gpu->download(tensor.bytes(), host.bytes(), host.nbytes());
  return host;
}

void NamedTensor::assign(const TensorView& host) const {
  HADAL_CHECK(host.nbytes() == tensor.nbytes());
  if (host.nbytes() == 0) return;
  if (gpu == nullptr)
    std::memcpy(tensor.bytes(), host.bytes(), host.nbytes());
  else
    gpu->upload(host.bytes(), tensor.bytes(), host.nbytes());
}

void NamedTensor::copy_from(const Tensor& other) const {
  HADAL_CHECK(other.nbytes() == tensor.nbytes());
  if (other.nbytes() == 0) return;
  if (gpu == nullptr)
    std::memcpy(tensor.bytes(), other.bytes(), other.nbytes());
  else
    gpu->copy(other.bytes(), tensor.bytes(), other.nbytes());
}

}  // namespace hadal::train
