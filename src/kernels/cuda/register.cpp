// Every CUDA kernel, by name and activation dtype.
#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/registry.h"

namespace hadal::kernels::cuda {

void add_to_streams(Stream&, const AddToStreamsArgs&);
void scale(Stream&, const ScaleArgs&);
void copy(Stream&, const CopyArgs&);
void add_in_place(Stream&, const AddInPlaceArgs&);
void sum_streams(Stream&, const SumStreamsArgs&);

// Training.
void linear_backward(Stream&, const LinearBackwardArgs&);

namespace {

constexpr KernelKey kF32{DeviceKind::cuda, DType::f32};
constexpr KernelKey kBf16{DeviceKind::cuda, DType::bf16};

void register_elementwise(KernelRegistry& registry) {
  for (const KernelKey key : {kF32, kBf16}) {
    registry.add(kAddToStreams, key, add_to_streams);
    registry.add(kScale, key, scale);
    registry.add(kCopy, key, copy);
  }
  registry.add(kAddInPlace, kF32, add_in_place);
  registry.add(kSumStreams, kF32, sum_streams);
}

void register_training(KernelRegistry& registry) {
  for (const KernelKey key : {kF32, kBf16}) {
    registry.add(kLinearBackward, key, linear_backward);
  }
}

}  // namespace

void register_kernels(KernelRegistry& registry) {
  register_elementwise(registry);
  register_training(registry);
}

}  // namespace hadal::kernels::cuda
