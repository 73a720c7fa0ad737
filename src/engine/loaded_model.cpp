#include "engine/loaded_model.h"

#include <fmt/format.h>

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

model::BoundWeights on_device(const model::BoundWeights& weights, const LoadOptions& options) {
  if (options.stream == nullptr || options.stream->device() == DeviceKind::cpu) return weights;
  std::size_t done = 0;
  return weights.moved([&](const Tensor& host) {
    const Tensor device = options.allocator->empty(host.shape(), host.dtype());
    options.stream->upload(host, device);
    done += host.nbytes();
    if (options.progress) options.progress(done, weights.nbytes());
    return device;
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
  model::Model model(config, on_device(weights, options));
  return std::make_unique<LoadedModel>(LoadedModel{directory, std::move(config), std::move(weights),
                                                   std::move(model), std::move(tokenizer)});
}

}  // namespace hadal::engine
