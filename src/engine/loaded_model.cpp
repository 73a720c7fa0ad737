#include "engine/loaded_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/synthesize.h"

namespace hadal::engine {

const io::Tokenizer& LoadedModel::require_tokenizer() const {
  if (!tokenizer) {
    throw Error(ErrorCode::not_found,
                fmt::format("{} has no tokenizer.json; text needs one (tokens do not)",
                            directory.string()));
  }
  return *tokenizer;
}

namespace {

// Device memory for weights, one after the other in one piece: what belongs to neighbouring experts
// lies at equal distances, so that kernels need no table of them.
class WeightArena {
 public:
  WeightArena(const Stream& stream, std::size_t n_bytes)
      : stream_(stream), memory_(stream.cuda().allocate(n_bytes)) {}

  [[nodiscard]] static std::size_t padded(std::size_t n_bytes) {
    return (n_bytes + 255) / 256 * 256;
  }

  Tensor take(const Shape& shape, DType dtype) {
    const std::size_t n = nbytes(shape, dtype), begin = used_;
    used_ += padded(n);
    HADAL_CHECK(used_ <= memory_.nbytes());
    return {std::shared_ptr<std::byte>(memory_.storage(), memory_.bytes() + begin), shape, dtype};
  }
  Tensor copy(const Tensor& host) {
    const Tensor device = take(host.shape(), host.dtype());
    stream_.upload(host, device);
    return device;
  }

 private:
  const Stream& stream_;
  Tensor memory_;
  std::size_t used_ = 0;
};

bool on_gpu(const LoadOptions& options) {
  return options.stream != nullptr && options.stream->device() == DeviceKind::cuda;
}

model::BoundWeights on_device(const model::Config& config, const model::BoundWeights& weights,
                              const LoadOptions& options) {
  if (!on_gpu(options)) return weights;
  // Norms grow from bf16 to f32, and pieces to whole lines.
  std::size_t total = 0, done = 0;
  (void)weights.moved(config, [&](const Tensor& t) {
    total += WeightArena::padded(t.nbytes());
    return t;
  });
  WeightArena arena(*options.stream, total);
  return weights.moved(config, [&](const Tensor& host) {
    done += host.nbytes();
    if (options.progress) options.progress(done, total);
    return arena.copy(host);
  });
}

}  // namespace

std::unique_ptr<LoadedModel> load_model(const Path& directory, const LoadOptions& options) {
  model::Config config = model::load_config(directory);
  model::BoundWeights weights = model::BoundWeights::bind(io::Checkpoint::open(directory), config,
                                                          {.check_finite = options.check_finite});
  std::optional<io::Tokenizer> tokenizer;
  const Path tokenizer_path = directory / "tokenizer.json";
  if (std::filesystem::exists(tokenizer_path)) {
    tokenizer = io::Tokenizer::load(tokenizer_path);
    if (tokenizer->vocab_size() > config.vocab_size) {
      throw Error(
          ErrorCode::corrupt_data,
          fmt::format("{}: ids up to {}, but the model embeds {}; the tokenizer belongs to "
                      "another model",
                      tokenizer_path.string(), tokenizer->vocab_size() - 1, config.vocab_size));
    }
  }
  model::Model model(config, on_device(config, weights, options));
  return std::make_unique<LoadedModel>(LoadedModel{directory, std::move(config), std::move(weights),
                                                   std::move(model), std::move(tokenizer)});
}

std::unique_ptr<LoadedModel> synthetic_model(model::Config config, std::uint64_t seed,
                                             const LoadOptions& options) {
  std::optional<WeightArena> arena;
  if (on_gpu(options)) {
    std::size_t total = 0;
    for (const io::TensorDecl& t : model::stored_tensors(config, model::WeightFormat::published)) {
      total += WeightArena::padded(
          nbytes(t.shape, t.dtype == DType::bf16 && t.shape.rank() == 1 ? DType::f32 : t.dtype));
    }
    arena.emplace(*options.stream, total);
  }
  const model::WeightPlace place{.make =
                                     [&](const Shape& shape, DType dtype) {
                                       return arena ? arena->take(shape, dtype)
                                                    : Tensor::empty(shape, dtype);
                                     },
                                 .write =
                                     [&](const TensorView& from, const TensorView& to) {
                                       if (arena) {
                                         options.stream->upload(from, to);
                                       } else {
                                         std::copy_n(from.bytes(), from.nbytes(), to.bytes());
                                       }
                                     }};
  model::BoundWeights weights = model::synthesize_weights(config, seed, place);
  model::Model model(config, weights);
  return std::make_unique<LoadedModel>(
      LoadedModel{{}, std::move(config), std::move(weights), std::move(model), std::nullopt});
}

}  // namespace hadal::engine
