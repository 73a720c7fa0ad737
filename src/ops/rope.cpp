#include "ops/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "ops/elementwise.h"

namespace hadal::ops {

RopeFrequencies rope_frequencies(const RopeParameters& p) {
  const std::int64_t n_pairs = p.rope_dim / 2;
  const auto dim = static_cast<double>(p.rope_dim);
  RopeFrequencies frequencies;
  frequencies.inverse_wavelength.reserve(static_cast<std::size_t>(n_pairs));
  const bool yarn = p.yarn_factor > 1.0 && p.original_max_position_embeddings > 0;
  double low = 0, high = 0;
  if (yarn) {
    const auto correction = [&](double rotations) {
      return dim *
             std::log(static_cast<double>(p.original_max_position_embeddings) /
                      (rotations * 2 * std::numbers::pi)) /
             (2 * std::log(p.theta));
    };
    low = std::max(std::floor(correction(p.beta_fast)), 0.0);
    high = std::min(std::ceil(correction(p.beta_slow)), dim - 1);
    if (low == high) high += 0.001;
  }
  for (std::int64_t i = 0; i < n_pairs; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(p.rope_dim);
    // The power in double, rounded once: a float pow one ulp off already moves distant angles.
    float f = 1.0f / static_cast<float>(std::pow(p.theta, static_cast<double>(exponent)));
    if (yarn) {
      const float ramp = std::clamp(
          (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
          1.0f);
      const float smooth = 1.0f - ramp;
      f = f / static_cast<float>(p.yarn_factor) * (1.0f - smooth) + f * smooth;
    }
    frequencies.inverse_wavelength.push_back(f);
  }
  return frequencies;
}

Tensor rope_table(ExecContext& ctx, const RopeFrequencies& frequencies,
                  std::span<const std::int64_t> positions) {
  const std::vector<float>& f = frequencies.inverse_wavelength;
  const Tensor host_positions = ctx.host_empty({std::ssize(positions)}, DType::i64);
  const Tensor host_frequencies = ctx.host_empty({std::ssize(f)}, DType::f32);
  std::copy(positions.begin(), positions.end(), host_positions.data<std::int64_t>());
  std::copy(f.begin(), f.end(), host_frequencies.data<float>());
  const Tensor device_positions = ctx.to_device(host_positions);
  const Tensor device_frequencies = ctx.to_device(host_frequencies);
  Tensor table = ctx.empty({std::ssize(positions), std::ssize(f), 2}, DType::f32);
  ctx.launch(kRopeTable, DType::f32,
             RopeTableArgs{
                 .table = table, .positions = device_positions, .frequencies = device_frequencies});
  return table;
}

Tensor rope(ExecContext& ctx, Tensor x, const Tensor& table, RopeDirection direction) {
  HADAL_CHECK(x.dim(0) == table.dim(0) && 2 * table.dim(1) <= x.dim(2));
  Tape* tape = ctx.tape_for(x);
  Tensor y = tape != nullptr ? copy(ctx, x) : x;
  ctx.launch(kRope, y.dtype(), RopeArgs{.x = y, .table = table, .direction = direction});
  if (tape != nullptr) {
    y = tape->variable(y);
    // A rotation's adjoint is the rotation back.
    const RopeDirection back =
        direction == RopeDirection::forward ? RopeDirection::inverse : RopeDirection::forward;
    tape->record({.name = "rope",
                  .inputs = {x, table},
                  .outputs = {y},
                  .backward =
                      [table, back](Backward& b) {
                        const Tensor dy = b.gradient(0);
                        b.ctx().launch(kRope, DType::f32,
                                       RopeArgs{.x = dy, .table = table, .direction = back});
                        b.accumulate(0, dy);
                      },
                  .replay = [direction](ExecContext& c, const TensorList& in) -> TensorList {
                    return {rope(c, copy(c, in[0]), in[1], direction)};
                  }});
  }
  return y;
}

}  // namespace hadal::ops
