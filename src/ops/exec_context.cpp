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

std::vector<Tensor> ExecContext::to_host(std::span<const Tensor> tensors) const {
  if (stream_->device() == DeviceKind::cpu) return {tensors.begin(), tensors.end()};
  constexpr std::size_t kAlign = 64;
  std::vector<std::size_t> at{0};
  for (const Tensor& t : tensors) {
    at.push_back(at.back() + (t ? (t.nbytes() + kAlign - 1) / kAlign * kAlign : 0));
  }
  const Tensor packed = empty({static_cast<std::int64_t>(at.back())}, DType::u8);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    if (t) stream_->copy(t, {packed.bytes() + at[i], t.shape(), t.dtype()});
  }
  const Tensor host = to_host(packed);
  std::vector<Tensor> out;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    if (!t) {
      out.emplace_back();
      continue;
    }
    out.emplace_back(std::shared_ptr<std::byte>(host.storage(), host.bytes() + at[i]), t.shape(),
                     t.dtype());
  }
  return out;
}

}  // namespace hadal
