// ops: functions on Tensors, coarse as they will ever be fused. An op checks shapes, makes its
// output and launches a kernel; it has no idea which layer it serves.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/allocator.h"
#include "core/cuda/queue.h"
#include "core/device.h"
#include "core/numerics.h"
#include "kernels/registry.h"
#include "ops/tape.h"

namespace hadal {

namespace parallel {
class Communicator;
}

// Time spent inside each kernel, by name. Only filled when a context is given one. A GPU's times
// are there once settle() has waited for them.
struct KernelProfile {
  struct Entry {
    std::int64_t calls = 0;
    double seconds = 0;
  };
  std::map<std::string, Entry, std::less<>> kernels;
  struct Pending {
    Entry* entry;
    std::shared_ptr<cuda::Queue::Mark> begin, end;
  };
  std::vector<Pending> pending;
  void settle();
  [[nodiscard]] double total_seconds() const;
};

// What an op needs to run: where, from which memory, with which kernels and roundings, and the tape
// that remembers it, null when serving; layers do not notice.
// Everything handed in must outlive the context.
class ExecContext {
 public:
  ExecContext(Stream& stream, PoolAllocator& allocator, const KernelRegistry& registry,
              Numerics numerics)
      : stream_(&stream), allocator_(&allocator), registry_(&registry), numerics_(numerics) {}

  [[nodiscard]] Numerics numerics() const { return numerics_; }
  // bf16 in official numerics, f32 in fp32.
  [[nodiscard]] DType activation_dtype() const {
    return numerics_ == Numerics::official ? DType::bf16 : DType::f32;
  }
  [[nodiscard]] Stream& stream() const { return *stream_; }

  void set_tape(Tape* tape) { tape_ = tape; }
  [[nodiscard]] Tape* tape() const { return tape_; }
  // The tape when there is one and one of these leads to something that learns, else null.
  template <class... T>
  [[nodiscard]] Tape* tape_for(const T&... x) const {
    return tape_ != nullptr && (... || wants_gradient(x)) ? tape_ : nullptr;
  }
  [[nodiscard]] ExecContext without_tape() const {
    ExecContext plain = *this;
    plain.tape_ = nullptr;
    return plain;
  }

  // The ranks that routed experts are divided over (ops/expert_exchange.h); null: all are here.
  // With ranks, every one of them runs the same ops.
  void set_expert_ranks(parallel::Communicator* ranks) { expert_ranks_ = ranks; }
  [[nodiscard]] parallel::Communicator* expert_ranks() const { return expert_ranks_; }

  [[nodiscard]] Tensor empty(Shape shape, DType dtype) const {
    return allocator_->empty(shape, dtype);
  }
  [[nodiscard]] Tensor activation(Shape shape) const { return empty(shape, activation_dtype()); }

  // Memory that the host writes, for to_device().
  [[nodiscard]] Tensor host_empty(Shape shape, DType dtype) const {
    return stream_->device() == DeviceKind::cpu ? empty(shape, dtype) : Tensor::empty(shape, dtype);
  }
  // What the host wrote, where kernels can read it: the same tensor on the CPU.
  [[nodiscard]] Tensor to_device(const Tensor& host) const;
  // What kernels wrote, where the host can read it. Waits for them.
  [[nodiscard]] Tensor to_host(const Tensor& x) const;
  // Several at once, waiting once; empty ones stay empty.
  [[nodiscard]] std::vector<Tensor> to_host(std::span<const Tensor> tensors) const;

  template <class Args>
  void launch(KernelName<Args> name, DType dtype, const Args& args) const {
    const auto kernel = registry_->find(name, {stream_->device(), dtype});
    if (profile == nullptr) return kernel(*stream_, args);
    KernelProfile::Entry& entry = profile->kernels[name.name];
    entry.calls += 1;
    if (stream_->device() == DeviceKind::cuda) {
      auto begin_mark = stream_->cuda().mark();
      kernel(*stream_, args);
      profile->pending.push_back({&entry, std::move(begin_mark), stream_->cuda().mark()});
      return;
    }
    const auto begin = std::chrono::steady_clock::now();
    kernel(*stream_, args);
    entry.seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  KernelProfile* profile = nullptr;

 private:
  [[nodiscard]] bool wants_gradient(const Tensor& x) const {
    return x.variable() != 0 && !tape_->is_frozen(x.variable());
  }

  Stream* stream_;
  Tape* tape_ = nullptr;
  parallel::Communicator* expert_ranks_ = nullptr;
  PoolAllocator* allocator_;
  const KernelRegistry* registry_;
  Numerics numerics_;
};

}  // namespace hadal
