#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cpu/chunks.h"

namespace hadal::kernels::cpu {

namespace {

constexpr std::int64_t kChunk = 16384;  // elements

struct Factors {
  float beta1, new1, beta2, new2;  // new = 1 - beta
  float mean_scale, variance_scale;
  float eps, lr, keep;  // keep: what decay leaves of the weight
  float gradient_scale;
};

HADAL_SIMD_CLONES double update(float* w, const float* gradient, float* mean, float* variance,
                                std::int64_t n, const Factors& f) {
  return lane_sum_f64(n, [=](std::int64_t i) {
    const float g = gradient[i] * f.gradient_scale;
    const float m = f.beta1 * mean[i] + f.new1 * g;
    const float v = f.beta2 * variance[i] + f.new2 * (g * g);
    const float u = (m * f.mean_scale) / (std::sqrt(v * f.variance_scale) + f.eps);
    const float step = v == 0.0f ? 0.0f : u;
    mean[i] = m;
    variance[i] = v;
    w[i] = w[i] * f.keep - f.lr * step;
    return static_cast<double>(step) * step;
  });
}

}  // namespace

void adamw(Stream& stream, const AdamwArgs& a) {
  HADAL_CHECK(a.parameters.size() == a.sums.size() && a.step >= 1);
  const auto t = static_cast<double>(a.step);
  Factors f{};
  f.beta1 = static_cast<float>(a.beta1), f.new1 = static_cast<float>(1.0 - a.beta1);
  f.beta2 = static_cast<float>(a.beta2), f.new2 = static_cast<float>(1.0 - a.beta2);
  f.mean_scale = static_cast<float>(1.0 / (1.0 - std::pow(a.beta1, t)));
  f.variance_scale = static_cast<float>(1.0 / (1.0 - std::pow(a.beta2, t)));
  f.eps = static_cast<float>(a.eps), f.lr = static_cast<float>(a.lr);
  f.gradient_scale = a.gradient_scale;

  std::vector<std::int64_t> sizes;
  for (const AdamwParameter& p : a.parameters) {
    HADAL_CHECK(p.gradient.shape() == p.weight.shape() && p.mean.shape() == p.weight.shape() &&
                p.variance.shape() == p.weight.shape());
    sizes.push_back(p.weight.numel());
  }
  const std::vector<std::int64_t> chunks(sizes.size(), kChunk);
  sum_over_chunks(stream.pool(), sizes, chunks, a.sums,
                  [&](std::size_t i, std::int64_t begin, std::int64_t end) {
                    const AdamwParameter& p = a.parameters[i];
                    Factors own = f;
                    own.keep = static_cast<float>(1.0 - a.lr * p.weight_decay);
                    return update(p.weight.data<float>() + begin,
                                  p.gradient.data<const float>() + begin,
                                  p.mean.data<float>() + begin, p.variance.data<float>() + begin,
                                  end - begin, own);
                  });
}

}  // namespace hadal::kernels::cpu
