// A ready-made place to run ops.
#pragma once

#include "ops/exec_context.h"

namespace hadal::test {

struct TestContext {
  explicit TestContext(Numerics numerics, int n_threads = 2,
                       const KernelRegistry& kernels = registry())
      : pool(n_threads), stream(pool), ctx(stream, allocator, kernels, numerics) {}

  static const KernelRegistry& registry() {
    static const KernelRegistry instance = [] {
      KernelRegistry r;
      kernels::cpu::register_kernels(r);
      return r;
    }();
    return instance;
  }

  ThreadPool pool;
  Stream stream;
  PoolAllocator allocator;
  ExecContext ctx;
};

// A private copy in another dtype; ops may consume their input.
inline Tensor to_dtype(const TensorView& t, DType dtype) {
  Tensor out = Tensor::empty(t.shape(), dtype);
  for (std::int64_t i = 0; i < t.numel(); ++i) {
    const float v =
        t.dtype() == DType::bf16 ? to_float(t.data<const bf16>()[i]) : t.data<const float>()[i];
    if (dtype == DType::bf16)
      out.data<bf16>()[i] = to_bf16(v);
    else
      out.data<float>()[i] = v;
  }
  return out;
}

}  // namespace hadal::test
