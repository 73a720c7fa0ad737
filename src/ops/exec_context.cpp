#include "ops/exec_context.h"

namespace hadal {

void KernelProfile::settle() {
  for (const Pending& p : pending) {
    p.entry->seconds += cuda::Queue::seconds_between(*p.begin, *p.end);
  }
  pending.clear();
}

double KernelProfile::total_seconds() const {
  double total = 0;
  for (const auto& [name, entry] : kernels) total += entry.seconds;
  return total;
}

Tensor ExecContext::to_device(const Tensor& host) const {
  if (stream_->device() == DeviceKind::cpu || !host) return host;
  const Tensor device = empty(host.shape(), host.dtype());
  stream_->upload(host, device);
  return device;
}

Tensor ExecContext::to_host(const Tensor& x) const {
  if (stream_->device() == DeviceKind::cpu || !x) return x;
  const Tensor host = Tensor::empty(x.shape(), x.dtype());
  stream_->download(x, host);
  return host;
}

}  // namespace hadal
