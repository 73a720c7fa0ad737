// kernels: plain functions on TensorViews, by device and dtype. A kernel knows no model, no layer
// and no tape, so it can be tested and timed alone.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "core/device.h"

namespace hadal {

// Ties a name to the one Args struct that every backend of that kernel takes.
template <class Args>
struct KernelName {
  const char* name;
};

struct KernelKey {
  DeviceKind device;
  DType dtype;  // of the activations
  friend auto operator<=>(const KernelKey&, const KernelKey&) = default;
};

class KernelRegistry {
 public:
  // A registry whose every kernel does nothing: ops allocate what they would, and compute nothing.
  // For planning memory.
  [[nodiscard]] static KernelRegistry idle() {
    KernelRegistry registry;
    registry.idle_ = true;
    return registry;
  }

  template <class Args>
  void add(KernelName<Args> name, KernelKey key, void (*fn)(Stream&, const Args&)) {
    table_[{name.name, key}] = reinterpret_cast<AnyFn>(fn);
  }

  // Throws unsupported, listing what there is, when no backend serves this key.
  template <class Args>
  [[nodiscard]] auto find(KernelName<Args> name, KernelKey key) const
      -> void (*)(Stream&, const Args&) {
    if (idle_) return [](Stream&, const Args&) {};
    return reinterpret_cast<void (*)(Stream&, const Args&)>(lookup(name.name, key));
  }

  [[nodiscard]] std::string describe() const;  // one line a kernel: "rms_norm  cpu bf16, cpu f32"

 private:
  using AnyFn = void (*)();
  [[nodiscard]] AnyFn lookup(const char* name, KernelKey key) const;
  std::map<std::pair<std::string_view, KernelKey>, AnyFn> table_;
  bool idle_ = false;
};

namespace kernels::cpu {
void register_kernels(KernelRegistry& registry);  // cpu/register.cpp: a list you can read
}
namespace kernels::cuda {
void register_kernels(KernelRegistry& registry);  // cuda/register.cpp; none in a build without CUDA
}

}  // namespace hadal
