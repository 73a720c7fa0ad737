#include "cuda/support.h"
#include "kernels/adamw.h"
#include "kernels/muon.h"
#include "kernels/sum_squares.h"

namespace hadal::test {
namespace {

class CudaOptimizer : public CudaTest {
 protected:
  // f64 sums of the same values in another order.
  static void expect_sums(const std::vector<double>& got, const std::vector<double>& want) {
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(got[i], want[i], 1e-12 * want[i]) << "sum " << i;
    }
  }
  // A view that begins one element into memory: no 16 bytes at a time.
  static TensorView shifted(const Tensor& x, std::int64_t n) {
    return x.view().reshape({x.numel()}).slice(1, 1 + n);
  }
};

// None, one, one past a group, a chunk, one past a chunk, and several chunks.
const std::int64_t kSizes[] = {0, 1, 5, 1000, 16384, 16385, 32768, 32769, 200'001};

TEST_F(CudaOptimizer, SumsSquares) {
  std::vector<Tensor> host, device;
  std::vector<TensorView> on_host, on_device;
  for (const std::int64_t n : kSizes) {
    host.push_back(random({n + 1}, DType::f32));
    device.push_back(to_device(host.back()));
    on_host.push_back(host.back());
    on_device.push_back(device.back());
    on_host.push_back(shifted(host.back(), n));
    on_device.push_back(shifted(device.back(), n));
  }
  std::vector<double> want(on_host.size()), got(on_host.size(), -1);
  run_cpu(kSumSquares, DType::f32, {.tensors = on_host, .sums = want});
  run_gpu(kSumSquares, DType::f32, {.tensors = on_device, .sums = got});
  expect_sums(got, want);
  // A tensor has the same sum whatever is beside it.
  std::vector<double> alone(1);
  for (std::size_t i = 0; i < on_device.size(); ++i) {
    run_gpu(kSumSquares, DType::f32,
            {.tensors = std::span(on_device).subspan(i, 1), .sums = alone});
    EXPECT_EQ(alone[0], got[i]) << "tensor " << i;
  }
  run_gpu(kSumSquares, DType::f32, {.tensors = {}, .sums = {}});
}

TEST_F(CudaOptimizer, SumsSayWhetherAllIsFinite) {
  const Tensor x = random({70'000}, DType::f32);
  x.data<float>()[69'999] = 3e38f;  // its square is beyond f32
  std::vector<double> sum(1);
  Tensor on_device = to_device(x);
  TensorView view = on_device;
  run_gpu(kSumSquares, DType::f32, {.tensors = std::span(&view, 1), .sums = sum});
  EXPECT_NEAR(sum[0], 9e76, 1e71);
  for (const float bad : {INFINITY, NAN}) {
    x.data<float>()[12'345] = bad;
    on_device = to_device(x);
    view = on_device;
    run_gpu(kSumSquares, DType::f32, {.tensors = std::span(&view, 1), .sums = sum});
    EXPECT_FALSE(std::isfinite(sum[0]));
  }
}

// Every operation is rounded by itself on both sides: equal to the bit.
TEST_F(CudaOptimizer, AdamwIsTheCpus) {
  for (const std::int64_t step : {1, 2, 1000}) {
    std::vector<Tensor> host, device;  // weight, gradient, mean, variance of every size
    std::vector<AdamwParameter> on_host, on_device;
    for (const std::int64_t n : kSizes) {
      const std::size_t first = host.size();
      for (int i = 0; i < 4; ++i) {
        host.push_back(random({n}, DType::f32, i == 0 ? 1.0f : 1e-3f));
      }
      for (std::int64_t e = 0; e < n; ++e) {
        float& v = host[first + 3].data<float>()[e];
        v *= v;
        if (e % 3 == 0) {  // nothing yet, and a gradient that is 0 or whose square underflows
          v = 0.0f;
          host[first + 1].data<float>()[e] = e % 2 == 0 ? 0.0f : 1e-25f;
        }
      }
      for (int i = 0; i < 4; ++i) {
        device.push_back(to_device(host[first + static_cast<std::size_t>(i)]));
      }
      const double decay = 0.1 * static_cast<double>(first % 3);
      on_host.push_back({host[first], host[first + 1], host[first + 2], host[first + 3], decay});
      on_device.push_back(
          {device[first], device[first + 1], device[first + 2], device[first + 3], decay});
    }
    std::vector<double> want(on_host.size()), got(on_host.size(), -1);
    const auto args = [&](const std::vector<AdamwParameter>& p, std::vector<double>& sums) {
      return AdamwArgs{.parameters = p,
                       .step = step,
                       .lr = 2.7e-4,
                       .beta1 = 0.9,
                       .beta2 = 0.95,
                       .eps = 1e-20,
                       .gradient_scale = 0.7f,
                       .sums = sums};
    };
    run_cpu(kAdamw, DType::f32, args(on_host, want));
    run_gpu(kAdamw, DType::f32, args(on_device, got));
    expect_sums(got, want);
    const char* const names[] = {"weight", "gradient", "mean", "variance"};
    for (std::size_t i = 0; i < host.size(); ++i) {
      expect_same_bytes(to_host(device[i]), host[i],
                        names[i % 4] + (" " + std::to_string(host[i].numel())));
    }
  }
}

TEST_F(CudaOptimizer, MuonIsTheCpus) {
  struct Case {
    std::int64_t rows, cols;
  };
  // Below, at and beyond a tile of 64 x 64, a row, a column, and a real shape.
  for (const Case& c : {Case{1, 1}, Case{3, 200}, Case{64, 64}, Case{65, 130}, Case{1, 70},
                        Case{128, 513}, Case{96, 1024}}) {
    std::vector<Tensor> host, device;
    std::vector<MuonMatrix> on_host, on_device;
    for (int i = 0; i < 5; ++i) {  // as it is and turned, in one batch; the last one is nothing
      const Shape shape = i % 2 == 0 ? Shape{c.rows, c.cols} : Shape{c.cols, c.rows};
      for (int k = 0; k < 3; ++k) {
        host.push_back(i == 4 && k > 0 ? Tensor::zeros(shape, DType::f32)
                                       : random(shape, DType::f32));
        device.push_back(to_device(host.back()));
      }
      const std::size_t at = host.size() - 3;
      on_host.push_back({host[at], host[at + 1], host[at + 2]});
      on_device.push_back({device[at], device[at + 1], device[at + 2]});
    }
    const Tensor x = Tensor::empty({5, c.rows, c.cols}, DType::f32);
    const Tensor got_x = device_empty(x.shape(), DType::f32);
    run_cpu(kMuonMomentum, DType::f32,
            {.x = x, .matrices = on_host, .momentum = 0.95f, .gradient_scale = 0.3f});
    run_gpu(kMuonMomentum, DType::f32,
            {.x = got_x, .matrices = on_device, .momentum = 0.95f, .gradient_scale = 0.3f});
    const std::string of = " of " + std::to_string(c.rows) + " x " + std::to_string(c.cols);
    // The norm's last place may differ, and with it one rounding of x.
    expect_close(to_host(got_x), x, 1e-7, 0, "x" + of);
    for (std::size_t i = 2; i < host.size(); i += 3) {
      expect_same_bytes(to_host(device[i]), host[i], "momentum" + of);
    }
    gpu().upload(x, got_x);  // the update of the same x: equal to the bit
    std::vector<double> want(5), got(5, -1);
    run_cpu(kMuonUpdate, DType::f32,
            {.x = x,
             .matrices = on_host,
             .lr = 1e-2,
             .weight_decay = 0.1,
             .gamma = 0.18,
             .sums = want});
    run_gpu(kMuonUpdate, DType::f32,
            {.x = got_x,
             .matrices = on_device,
             .lr = 1e-2,
             .weight_decay = 0.1,
             .gamma = 0.18,
             .sums = got});
    expect_sums(got, want);
    for (std::size_t i = 0; i < host.size(); i += 3) {
      expect_same_bytes(to_host(device[i]), host[i], "weight" + of);
    }
  }
}

}  // namespace
}  // namespace hadal::test
