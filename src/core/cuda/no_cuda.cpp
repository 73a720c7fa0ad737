// What a build without CUDA says.
#include "core/cuda/queue.h"

namespace hadal::cuda {

namespace {
constexpr const char* kWhy =
    "this hadal was built without CUDA: install the CUDA toolkit (13.0 or newer, for nvcc), build "
    "again, and look for 'cuda' in `hadal --version`; or leave --device at cpu";
[[noreturn]] void refuse() {
  throw Error(ErrorCode::device, kWhy);
}
}  // namespace

struct Queue::State {};
class Queue::Mark {};

bool built_with_cuda() {
  return false;
}
DeviceList list_devices() {
  return {{}, kWhy};
}

Queue::Queue(int) {
  refuse();
}
Queue::~Queue() = default;
const DeviceInfo& Queue::device() const {
  refuse();
}
void* Queue::stream() const {
  refuse();
}
PoolAllocator& Queue::memory() {
  refuse();
}
Tensor Queue::allocate(std::size_t) {
  refuse();
}
const std::byte* Queue::stage(const void*, std::size_t) {
  refuse();
}
void Queue::upload(const void*, void*, std::size_t) {
  refuse();
}
void Queue::download(const void*, void*, std::size_t) {
  refuse();
}
void Queue::copy(const void*, void*, std::size_t) {
  refuse();
}
void Queue::zero(void*, std::size_t) {
  refuse();
}
void Queue::wait() {
  refuse();
}
std::shared_ptr<Queue::Mark> Queue::mark() {
  refuse();
}
double Queue::seconds_between(const Mark&, const Mark&) {
  refuse();
}
std::shared_ptr<MemorySource> pinned_memory() {
  refuse();
}

}  // namespace hadal::cuda
