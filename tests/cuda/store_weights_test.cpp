#include "kernels/store_weights.h"

#include "cuda/support.h"

namespace hadal::test {
namespace {

// Masters, and room for what is stored of them, on both devices.
class CudaStoreWeights : public CudaTest {
 protected:
  struct Weights {
    std::vector<Tensor> tensors;  // keeps the memory
    std::vector<StoredWeight> stored;
    std::vector<StoreResult> results;
  };

  void add(const Tensor& master, DType stored) {
    Tensor data, scale;
    if (stored == DType::f8_e4m3 || stored == DType::f4_e2m1) {
      const QuantBlock block = stored == DType::f8_e4m3 ? kFp8Block : kFp4Block;
      scale = Tensor::zeros({(master.dim(0) + block.rows - 1) / block.rows,
                             (master.dim(1) + block.cols - 1) / block.cols},
                            DType::ue8m0);
    }
    data = Tensor::zeros(master.shape(), stored);
    put(host_, master, data, scale);
    put(device_, to_device(master), device_empty(master.shape(), stored),
        scale ? device_empty(scale.shape(), DType::ue8m0) : Tensor());
  }
  // Elements [1, 1 + n) of memory that begins at a multiple of 256 bytes.
  void add_shifted(const Tensor& master, std::int64_t n, DType stored) {
    const auto shifted = [&](const Tensor& t) { return t.slice(1, 1 + n); };
    put(host_, shifted(master), shifted(Tensor::zeros(master.shape(), stored)), {});
    put(device_, shifted(to_device(master)), shifted(device_empty(master.shape(), stored)), {});
  }

  void run() {
    for (Weights* w : {&host_, &device_}) w->results.assign(w->stored.size(), {99, 99});
    run_cpu(kStoreWeights, DType::f32, {.weights = host_.stored, .results = host_.results});
    run_gpu(kStoreWeights, DType::f32, {.weights = device_.stored, .results = device_.results});
  }

  void expect_same() {
    run();
    for (std::size_t i = 0; i < host_.stored.size(); ++i) {
      const std::string what = "weight " + std::to_string(i) + " " +
                               to_string(host_.stored[i].master.shape()) + " as " +
                               std::string(to_string(host_.stored[i].data.dtype()));
      EXPECT_EQ(device_.results[i].n_lifted, host_.results[i].n_lifted) << what;
      EXPECT_EQ(device_.results[i].non_finite, host_.results[i].non_finite) << what;
      if (host_.results[i].non_finite >= 0) continue;
      expect_same_bytes(to_host(device_.tensors[3 * i + 1]), host_.tensors[3 * i + 1], what);
      if (!host_.tensors[3 * i + 2]) continue;
      expect_same_bytes(to_host(device_.tensors[3 * i + 2]), host_.tensors[3 * i + 2],
                        what + ", scales");
    }
  }

  Weights host_, device_;

 private:
  static void put(Weights& to, const Tensor& master, const Tensor& data, const Tensor& scale) {
    StoredWeight w{.master = master, .data = data, .scale = {}};
    if (scale) w.scale = scale;
    to.stored.push_back(w);
    to.tensors.insert(to.tensors.end(), {master, data, scale});
  }
};

// None, one, one past a group, a chunk, one past a chunk; aligned and not.
TEST_F(CudaStoreWeights, RoundsToBf16) {
  for (const std::int64_t n : {0, 1, 5, 1000, 16384, 16385, 100'003}) {
    const Tensor master = random({n + 1}, DType::f32);
    auto* x = master.data<float>();
    if (n > 4) x[1] = NAN, x[2] = -INFINITY, x[3] = 3.4e38f, x[4] = 1e-40f;
    for (const DType stored : {DType::bf16, DType::f32}) {
      add(master, stored);
      add_shifted(master, n, stored);
    }
  }
  expect_same();
}

// One element, ragged both ways, exactly a block, one past it, several; sizes that are no multiple
// of four.
TEST_F(CudaStoreWeights, StoresFp8) {
  for (const auto& [rows, cols] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {3, 7}, {128, 128}, {129, 127}, {127, 129}, {300, 513}, {512, 256}}) {
    const Tensor master = random({rows, cols}, DType::f32, 0.02f);
    auto* x = master.data<float>();
    // Magnitudes far apart: codes that are subnormal, and zero.
    for (std::int64_t i = 0; i < master.numel(); i += 3) x[i] *= 0x1p-7f;
    for (std::int64_t i = 0; i < master.numel(); i += 7) x[i] *= 0x1p-12f;
    add(master, DType::f8_e4m3);
  }
  const Tensor zeros = Tensor::zeros({130, 64}, DType::f32);
  add(zeros, DType::f8_e4m3);
  const Tensor huge = random({130, 64}, DType::f32, 1e37f);
  add(huge, DType::f8_e4m3);
  expect_same();
}

// The same, and tiles that are lifted or zero.
TEST_F(CudaStoreWeights, StoresFp4ThatFp8Holds) {
  for (const auto& [rows, cols] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 32}, {5, 96}, {128, 128}, {129, 160}, {127, 64}, {300, 512}, {512, 256}}) {
    add(random({rows, cols}, DType::f32, 0.02f), DType::f4_e2m1);
    const Tensor uneven = random({rows, cols}, DType::f32, 0.02f);
    auto* x = uneven.data<float>();
    for (std::int64_t tile = 0; tile < uneven.numel() / 32; ++tile) {
      const float factor = std::ldexp(1.0f, -static_cast<int>(rng()() % 20));
      const bool zero = rng()() % 8 == 0;
      for (std::int64_t i = 0; i < 32; ++i) x[32 * tile + i] *= zero ? 0.0f : factor;
    }
    add(uneven, DType::f4_e2m1);
  }
  add(Tensor::zeros({130, 64}, DType::f32), DType::f4_e2m1);
  add(random({130, 64}, DType::f32, 1e-39f), DType::f4_e2m1);
  expect_same();
  std::int64_t n_lifted = 0;
  for (const StoreResult& r : host_.results) n_lifted += r.n_lifted;
  EXPECT_GT(n_lifted, 0);
}

// All kinds in one call, as a model has them.
TEST_F(CudaStoreWeights, StoresAllKindsAtOnce) {
  for (int i = 0; i < 20; ++i) {
    add(random({256, 128}, DType::f32), DType::f4_e2m1);
    add(random({96, 256}, DType::f32), DType::f8_e4m3);
    add(random({300}, DType::f32), DType::f32);
    add(random({64, 96}, DType::f32), DType::bf16);
  }
  expect_same();
}

TEST_F(CudaStoreWeights, NamesTheFirstThatIsNotFinite) {
  for (const DType stored : {DType::f8_e4m3, DType::f4_e2m1}) {
    for (const float bad : {static_cast<float>(NAN), static_cast<float>(-INFINITY)}) {
      const Tensor master = random({300, 256}, DType::f32);
      for (const std::int64_t at : {70'000, 50'001, 12'345}) master.data<float>()[at] = bad;
      add(master, stored);
      add(random({300, 256}, DType::f32), stored);
    }
  }
  expect_same();
  EXPECT_EQ(device_.results[0].non_finite, 12'345);
  EXPECT_EQ(device_.results[1].non_finite, -1);
}

}  // namespace
}  // namespace hadal::test
