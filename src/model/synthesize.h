// Checkpoints of random weights at real dimensions, for timing where no weights can be had.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "model/convert.h"

namespace hadal::model {

struct SliceOptions {
  std::optional<std::int64_t> n_layers{};  // absent: all of them, or as many as `kinds`
  std::vector<LayerKind> kinds{};          // of the layers; empty: the first n_layers of the config
  std::optional<std::int64_t> n_hash_layers{};  // absent: as many as the config has, up to n_layers
  std::int64_t n_mtp = 0;                       // MTP blocks to keep
};

// `config` with fewer layers, everything else as it is. A csa layer has ratio 4, an hca layer the
// config's other ratio (128 when it has none).
// Throws Error invalid_argument when the config has not so many layers or MTP blocks.
[[nodiscard]] Config slice_config(Config config, const SliceOptions& options);

// Writes a checkpoint directory in the published format: weights like normal(0,
// initializer_range) as FP4, FP8 and bf16 codes, norms of 1, hyper-connections that mix evenly,
// balanced tid2eid. Nothing overflows in a forward pass; the output means nothing. The same seed
// gives the same bytes. About as fast as the disk: the weights are pieces of a few buffers.
// Throws Error as io::CheckpointWriter does; nothing is left behind then.
void synthesize_checkpoint(FileSystem& fs, Config config, const Path& to, std::uint64_t seed,
                           const io::CheckpointWriterOptions& output,
                           const ConvertProgress& progress = nullptr);

// Where weights are made: memory for a tensor, and a piece of bytes ([n] u8) copied into it.
struct WeightPlace {
  std::function<Tensor(const Shape&, DType)> make;
  std::function<void(const TensorView& from, const TensorView& to)> write;
};

// Such weights in memory, in the published format, norms in f32.
[[nodiscard]] BoundWeights synthesize_weights(const Config& config, std::uint64_t seed,
                                              const WeightPlace& place);

}  // namespace hadal::model
