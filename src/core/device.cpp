#include "core/device.h"

#include <cstring>

#include "core/cuda/queue.h"

namespace hadal {

namespace {
void copy_on_host(const TensorView& from, const TensorView& to) {
  HADAL_CHECK(from.nbytes() == to.nbytes());
  if (from.nbytes() > 0) std::memmove(to.bytes(), from.bytes(), from.nbytes());
}
}  // namespace

void Stream::upload(const TensorView& from, const TensorView& to) const {
  if (queue_ == nullptr) return copy_on_host(from, to);
  HADAL_CHECK(from.nbytes() == to.nbytes());
  queue_->upload(from.bytes(), to.bytes(), from.nbytes());
}

void Stream::download(const TensorView& from, const TensorView& to) const {
  if (queue_ == nullptr) return copy_on_host(from, to);
  HADAL_CHECK(from.nbytes() == to.nbytes());
  queue_->download(from.bytes(), to.bytes(), from.nbytes());
}

void Stream::copy(const TensorView& from, const TensorView& to) const {
  if (queue_ == nullptr) return copy_on_host(from, to);
  HADAL_CHECK(from.nbytes() == to.nbytes());
  queue_->copy(from.bytes(), to.bytes(), from.nbytes());
}

void Stream::zero(const TensorView& x) const {
  if (x.nbytes() == 0) return;
  if (queue_ == nullptr) {
    std::memset(x.bytes(), 0, x.nbytes());
  } else {
    queue_->zero(x.bytes(), x.nbytes());
  }
}

void Stream::wait() const {
  if (queue_ != nullptr) queue_->wait();
}

}  // namespace hadal
