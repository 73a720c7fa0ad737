// The same kernel on both devices, on the same random data.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/cuda/queue.h"
#include "core/device.h"
#include "core/quant.h"
#include "kernels/registry.h"

namespace hadal::test {

inline float value_at(const TensorView& t, std::int64_t i) {
  switch (t.dtype()) {
    case DType::bf16:
      return to_float(t.data<const bf16>()[i]);
    case DType::i32:
      return static_cast<float>(t.data<const std::int32_t>()[i]);
    default:
      return t.data<const float>()[i];
  }
}

class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const cuda::DeviceList list = cuda::list_devices();
    if (list.devices.empty()) GTEST_SKIP() << list.why_none;
    queue_ = std::make_unique<cuda::Queue>();
    gpu_ = std::make_unique<Stream>(pool_, *queue_);
  }

  static const KernelRegistry& kernels() {
    static const KernelRegistry instance = [] {
      KernelRegistry r;
      kernels::cpu::register_kernels(r);
      kernels::cuda::register_kernels(r);
      return r;
    }();
    return instance;
  }

  [[nodiscard]] Stream& cpu() { return cpu_; }
  [[nodiscard]] Stream& gpu() { return *gpu_; }
  [[nodiscard]] cuda::Queue& queue() { return *queue_; }
  std::mt19937& rng() { return rng_; }

  template <class Args>
  void run_cpu(KernelName<Args> name, DType dtype, const Args& args) {
    kernels().find(name, {DeviceKind::cpu, dtype})(cpu_, args);
  }
  template <class Args>
  void run_gpu(KernelName<Args> name, DType dtype, const Args& args) {
    kernels().find(name, {DeviceKind::cuda, dtype})(*gpu_, args);
  }

  // Host tensors.
  Tensor random(Shape shape, DType dtype, float scale = 1.0f) {
    Tensor t = Tensor::empty(shape, dtype);
    std::normal_distribution<float> normal(0.0f, scale);
    for (std::int64_t i = 0; i < t.numel(); ++i) set(t, i, normal(rng_));
    return t;
  }
  Tensor random_ids(Shape shape, std::int32_t end) {
    Tensor t = Tensor::empty(shape, DType::i32);
    std::uniform_int_distribution<std::int32_t> uniform(0, end - 1);
    for (std::int64_t i = 0; i < t.numel(); ++i) t.data<std::int32_t>()[i] = uniform(rng_);
    return t;
  }
  static void set(const Tensor& t, std::int64_t i, float x) {
    if (t.dtype() == DType::bf16)
      t.data<bf16>()[i] = to_bf16(x);
    else
      t.data<float>()[i] = x;
  }
  static Tensor copy_of(const Tensor& t) {  // on the host
    Tensor c = Tensor::empty(t.shape(), t.dtype());
    std::copy_n(t.bytes(), t.nbytes(), c.bytes());
    return c;
  }
  // A weight in a storage format: f32, bf16, f8_e4m3 (128x128 scales) or f4_e2m1 (1x32 scales).
  QuantTensor random_weight(std::int64_t rows, std::int64_t cols, DType format) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(cols));
    if (format == DType::f32 || format == DType::bf16) {
      return {random({rows, cols}, format, scale), {}, {}};
    }
    const Tensor w = random({rows, cols}, DType::f32, scale);
    return format == DType::f8_e4m3 ? quantize_fp8(w) : quantize_fp4(w);
  }

  // Device copies; empty stays empty.
  Tensor to_device(const Tensor& t) {
    if (!t) return {};
    Tensor d = queue_->memory().empty(t.shape(), t.dtype());
    gpu_->upload(t, d);
    return d;
  }
  QuantTensor to_device(const QuantTensor& w) {
    return {to_device(w.data), to_device(w.scale), w.block};
  }
  // Device memory full of NaN, so that what a kernel forgets to write is seen.
  Tensor device_empty(Shape shape, DType dtype) {
    Tensor host = Tensor::empty(shape, dtype);
    std::fill_n(host.bytes(), host.nbytes(), std::byte{0xff});
    return to_device(host);
  }
  Tensor to_host(const Tensor& d) {
    Tensor t = Tensor::empty(d.shape(), d.dtype());
    gpu_->download(d, t);
    return t;
  }

  // || got - want || <= rel * || want || over the tensor, and no element further off than
  // abs + rel * the largest magnitude wanted. NaN never passes.
  static void expect_close(const Tensor& got, const Tensor& want, double rel, double abs,
                           const std::string& what) {
    ASSERT_EQ(got.shape(), want.shape()) << what;
    double error = 0, norm = 0, top = 0, worst = 0;
    std::int64_t at = -1, bad = -1;
    for (std::int64_t i = 0; i < want.numel(); ++i) {
      const double g = value_at(got, i), w = value_at(want, i);
      if (!std::isfinite(g) && bad < 0) bad = i;
      error += (g - w) * (g - w), norm += w * w, top = std::max(top, std::fabs(w));
      if (std::fabs(g - w) > worst) worst = std::fabs(g - w), at = i;
    }
    EXPECT_LT(bad, 0) << what << ": element " << bad << " is "
                      << value_at(got, std::max<std::int64_t>(bad, 0));
    EXPECT_LE(std::sqrt(error), rel * std::sqrt(norm) + abs)
        << what << ": relative L2 " << std::sqrt(error / norm);
    EXPECT_LE(worst, abs + 8 * rel * top)
        << what << ": element " << at << " is " << (at < 0 ? 0 : value_at(got, at)) << ", wanted "
        << (at < 0 ? 0 : value_at(want, at));
  }
  static std::string hex(const Tensor& t, std::size_t begin) {
    std::string text;
    const char* digits = "0123456789abcdef";
    for (std::size_t i = begin; i < std::min(t.nbytes(), begin + 16); ++i) {
      const auto b = static_cast<unsigned>(t.bytes()[i]);
      text += {digits[b >> 4], digits[b & 15], ' '};
    }
    return text;
  }
  static void expect_same_bytes(const Tensor& got, const Tensor& want, const std::string& what) {
    ASSERT_EQ(got.shape(), want.shape()) << what;
    ASSERT_EQ(got.dtype(), want.dtype()) << what;
    for (std::size_t i = 0; i < want.nbytes(); ++i) {
      if (got.bytes()[i] == want.bytes()[i]) continue;
      const auto element =
          static_cast<std::int64_t>(i * 8 / static_cast<std::size_t>(bits(want.dtype())));
      FAIL() << what << ": element " << element << " of " << want.numel() << " differs; bytes from "
             << i << ": " << hex(got, i) << ", wanted " << hex(want, i);
    }
  }

 private:
  ThreadPool pool_;
  Stream cpu_{pool_};
  std::unique_ptr<cuda::Queue> queue_;
  std::unique_ptr<Stream> gpu_;
  std::mt19937 rng_{17};
};

}  // namespace hadal::test
