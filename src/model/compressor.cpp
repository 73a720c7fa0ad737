#include "model/compressor.h"

#include "model/weights.h"
#include "ops/compress_kv.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"

namespace hadal::model {

Compressor::Compressor(const Config& config, const LayerSpec& layer, const BoundWeights& weights,
                       const std::string& prefix, const ops::RopeFrequencies& rope)
    : kv_proj_(weights.linear(prefix + ".wkv.weight")),
      gate_proj_(weights.linear(prefix + ".wgate.weight")),
      norm_(as_f32(weights.plain(prefix + ".norm.weight"))),
      position_bias_(weights.plain(prefix + ".ape")),
      ratio_(layer.compress_ratio),
      overlap_(layer.n_series() == 2),
      norm_eps_(config.rms_norm_eps),
      rope_(rope) {}

Compressor::Output Compressor::forward(ExecContext& ctx, const Step& step, const Tensor& x,
                                       std::span<const CompressorTail> tails) const {
  Output out;
  std::vector<CompressSequence> sequences;
  std::vector<std::int64_t> entry_positions;
  for (std::size_t i = 0; i < step.batch.sequences.size(); ++i) {
    const TokenBatch::Sequence& s = step.batch.sequences[i];
    const std::int64_t first = s.start / ratio_, last = (s.start + s.end - s.begin) / ratio_;
    const auto row = static_cast<std::int64_t>(entry_positions.size());
    sequences.push_back({s.begin, s.end, s.start, row, tails[i]});
    out.by_sequence.push_back({row, last - first, first});
    for (std::int64_t e = first; e < last; ++e) entry_positions.push_back(e * ratio_);
  }
  const Tensor kv = ops::linear_f32(ctx, x, kv_proj_);
  Tensor gate = ops::linear_f32(ctx, x, gate_proj_);
  const Tensor pooled =
      ops::compress_kv(ctx, kv, std::move(gate), position_bias_, overlap_, sequences);
  const std::int64_t n = pooled.dim(0), width = pooled.dim(1);
  const Tensor normed = ops::rms_norm(ctx, pooled, norm_, norm_eps_);
  const Tensor table = ops::rope_table(ctx, rope_, entry_positions);
  out.entries = ops::rope(ctx, normed.reshape({n, 1, width}), table).reshape({n, width});
  return out;
}

}  // namespace hadal::model
