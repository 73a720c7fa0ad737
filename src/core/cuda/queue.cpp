#include "core/cuda/queue.h"

#include <cuda_runtime_api.h>

#include <cstring>

#include <fmt/format.h>

namespace hadal::cuda {

namespace {

// Arguments of launches are a few hundred bytes; a step of a large batch stages a few MiB.
constexpr std::size_t kStagingBytes = std::size_t{64} << 20;
constexpr std::size_t kStagingAlign = 256;

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  throw Error(
      result == cudaErrorMemoryAllocation ? ErrorCode::out_of_memory : ErrorCode::device,
      fmt::format("{}: {} ({})", what, cudaGetErrorString(result), cudaGetErrorName(result)));
}

class DeviceMemory final : public MemorySource {
 public:
  explicit DeviceMemory(const DeviceInfo& device)
      : index_(device.index),
        name_(fmt::format("memory of GPU {}, {}", device.index, device.name)) {}
  std::byte* allocate(std::size_t bytes) override {
    check(cudaSetDevice(index_), "choosing the GPU");
    void* memory = nullptr;
    const cudaError_t result = cudaMalloc(&memory, bytes);
    if (result == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();  // it is handled: the pool tries again, or says what is missing
      return nullptr;
    }
    check(result, "allocating GPU memory");
    return static_cast<std::byte*>(memory);
  }
  void release(std::byte* memory) noexcept override { (void)cudaFree(memory); }
  [[nodiscard]] std::string name() const override { return name_; }

 private:
  int index_;
  std::string name_;
};

class PinnedMemory final : public MemorySource {
 public:
  std::byte* allocate(std::size_t bytes) override {
    void* memory = nullptr;
    if (cudaMallocHost(&memory, bytes) != cudaSuccess) {
      (void)cudaGetLastError();
      return nullptr;
    }
    return static_cast<std::byte*>(memory);
  }
  void release(std::byte* memory) noexcept override { (void)cudaFreeHost(memory); }
  [[nodiscard]] std::string name() const override { return "pinned host memory"; }
};

}  // namespace

class Queue::Mark {
 public:
  explicit Mark(cudaStream_t stream) {
    check(cudaEventCreate(&event_), "making an event");
    check(cudaEventRecord(event_, stream), "recording an event");
  }
  ~Mark() { (void)cudaEventDestroy(event_); }
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;
  [[nodiscard]] cudaEvent_t event() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

struct Queue::State {
  DeviceInfo device;
  cudaStream_t stream = nullptr;
  std::unique_ptr<PoolAllocator> memory;
  // The same place in both: written on the host, copied, read by kernels.
  std::byte* staging_host = nullptr;
  std::byte* staging_device = nullptr;
  std::size_t staged = 0;

  void use() const { check(cudaSetDevice(device.index), "choosing the GPU"); }
  ~State() {
    memory.reset();
    (void)cudaFree(staging_device);
    (void)cudaFreeHost(staging_host);
    if (stream != nullptr) (void)cudaStreamDestroy(stream);
  }
};

bool built_with_cuda() {
  return true;
}

DeviceList list_devices() {
  DeviceList list;
  int n = 0;
  const cudaError_t result = cudaGetDeviceCount(&n);
  if (result != cudaSuccess || n == 0) {
    (void)cudaGetLastError();
    list.why_none =
        result == cudaSuccess || result == cudaErrorNoDevice
            ? "this machine has no GPU that CUDA can see"
            : fmt::format(
                  "CUDA finds no GPU: {} ({}); is NVIDIA's driver, 580 or newer, installed "
                  "and loaded?",
                  cudaGetErrorString(result), cudaGetErrorName(result));
    return list;
  }
  int driver = 0;
  (void)cudaDriverGetVersion(&driver);
  for (int i = 0; i < n; ++i) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, i), "asking for the GPU's properties");
    list.devices.push_back({.index = i,
                            .name = properties.name,
                            .major = properties.major,
                            .minor = properties.minor,
                            .n_multiprocessors = properties.multiProcessorCount,
                            .total_bytes = properties.totalGlobalMem,
                            .free_bytes = 0,
                            .driver = fmt::format("{}.{}", driver / 1000, driver % 1000 / 10)});
  }
  return list;
}

Queue::Queue(int device_index) : state_(std::make_unique<State>()) {
  const DeviceList list = list_devices();
  if (list.devices.empty()) {
    throw Error(ErrorCode::device, list.why_none + "; --device cpu runs without one");
  }
  if (device_index < 0 || device_index >= static_cast<int>(list.devices.size())) {
    throw Error(ErrorCode::device, fmt::format("there is no GPU {}; this machine has 0 to {}",
                                               device_index, list.devices.size() - 1));
  }
  State& s = *state_;
  s.device = list.devices[static_cast<std::size_t>(device_index)];
  if (s.device.major != kWantedMajor || s.device.minor != kWantedMinor) {
    throw Error(ErrorCode::device,
                fmt::format("GPU {}, {}, has compute capability {}.{}; hadal's kernels are for "
                            "{}.{} (H100, H200, GH200); --device cpu runs without a GPU",
                            device_index, s.device.name, s.device.major, s.device.minor,
                            kWantedMajor, kWantedMinor));
  }
  s.use();
  check(cudaMemGetInfo(&s.device.free_bytes, &s.device.total_bytes), "asking for free memory");
  check(cudaStreamCreateWithFlags(&s.stream, cudaStreamNonBlocking), "making a stream");
  s.memory = std::make_unique<PoolAllocator>(std::make_shared<DeviceMemory>(s.device));
  void* memory = nullptr;
  check(cudaMallocHost(&memory, kStagingBytes), "allocating pinned host memory");
  s.staging_host = static_cast<std::byte*>(memory);
  check(cudaMalloc(&memory, kStagingBytes), "allocating GPU memory");
  s.staging_device = static_cast<std::byte*>(memory);
}

Queue::~Queue() {
  if (state_) (void)cudaStreamSynchronize(state_->stream);
}

const DeviceInfo& Queue::device() const {
  return state_->device;
}
void* Queue::stream() const {
  return state_->stream;
}
PoolAllocator& Queue::memory() {
  return *state_->memory;
}

Tensor Queue::allocate(std::size_t n_bytes) {
  state_->use();
  void* memory = nullptr;
  const cudaError_t result = cudaMalloc(&memory, n_bytes);
  if (result == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    std::size_t free_bytes = 0, total = 0;
    (void)cudaMemGetInfo(&free_bytes, &total);
    throw Error(ErrorCode::out_of_memory,
                fmt::format("GPU {}, {}, has {} of {} bytes free, and {} are needed in one piece",
                            state_->device.index, state_->device.name, free_bytes, total, n_bytes));
  }
  check(result, "allocating GPU memory");
  return {std::shared_ptr<std::byte>(static_cast<std::byte*>(memory),
                                     [](std::byte* p) { (void)cudaFree(p); }),
          {static_cast<std::int64_t>(n_bytes)},
          DType::u8};
}

std::size_t Queue::write_staging(const void* data, std::size_t n_bytes) {
  State& s = *state_;
  const std::size_t size = (n_bytes + kStagingAlign - 1) / kStagingAlign * kStagingAlign;
  if (size > kStagingBytes) {
    throw Error(ErrorCode::out_of_memory,
                fmt::format("a launch has {} bytes of arguments, and {} can be staged at once; use "
                            "smaller batches",
                            n_bytes, kStagingBytes));
  }
  if (s.staged + size > kStagingBytes) {
    wait();  // whoever read the old ones is done
    s.staged = 0;
  }
  const std::size_t at = s.staged;
  if (n_bytes > 0) std::memcpy(s.staging_host + at, data, n_bytes);
  s.staged += size;
  return at;
}

const std::byte* Queue::stage(const void* data, std::size_t n_bytes) {
  const State& s = *state_;
  const std::size_t at = write_staging(data, n_bytes);
  if (n_bytes > 0) {
    check(cudaMemcpyAsync(s.staging_device + at, s.staging_host + at, n_bytes,
                          cudaMemcpyHostToDevice, s.stream),
          "copying arguments to the GPU");
  }
  return s.staging_device + at;
}

void Queue::upload(const void* from, void* to, std::size_t n_bytes) {
  if (n_bytes == 0) return;
  const bool small = n_bytes <= kStagingBytes / 16;
  if (small) from = state_->staging_host + write_staging(from, n_bytes);
  // What is large goes from pageable memory, which CUDA copies through buffers of its own.
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyHostToDevice, state_->stream),
        "copying to the GPU");
  if (!small) wait();
}

void Queue::download(const void* from, void* to, std::size_t n_bytes) {
  if (n_bytes > 0) {
    check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToHost, state_->stream),
          "copying from the GPU");
  }
  wait();
}

void Queue::copy(const void* from, void* to, std::size_t n_bytes) {
  if (n_bytes == 0) return;
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToDevice, state_->stream),
        "copying on the GPU");
}

void Queue::zero(void* memory, std::size_t n_bytes) {
  if (n_bytes == 0) return;
  check(cudaMemsetAsync(memory, 0, n_bytes, state_->stream), "clearing GPU memory");
}

void Queue::wait() {
  check(cudaStreamSynchronize(state_->stream), "waiting for the GPU");
}

std::shared_ptr<Queue::Mark> Queue::mark() {
  return std::make_shared<Mark>(state_->stream);
}

double Queue::seconds_between(const Mark& begin, const Mark& end) {
  check(cudaEventSynchronize(end.event()), "waiting for the GPU");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin.event(), end.event()), "reading GPU times");
  return static_cast<double>(milliseconds) * 1e-3;
}

std::shared_ptr<MemorySource> pinned_memory() {
  return std::make_shared<PinnedMemory>();
}

}  // namespace hadal::cuda
