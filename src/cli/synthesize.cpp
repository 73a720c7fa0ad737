#include <fmt/format.h>

#include <chrono>

#include "cli/common.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/subcommands.h"
#include "model/synthesize.h"

namespace hadal::cli {

namespace {

struct Options {
  Path config, out;
  std::int64_t layers = -1, hash_layers = -1, mtp = 0;  // -1: not given
  std::vector<std::string> kinds;
  std::uint64_t seed = 0;
  std::string shard_size = "4GiB";
  bool force = false;
};

model::SliceOptions slice_of(const Options& options) {
  using model::LayerKind;
  model::SliceOptions slice{.n_mtp = options.mtp};
  if (options.layers >= 0) slice.n_layers = options.layers;
  if (options.hash_layers >= 0) slice.n_hash_layers = options.hash_layers;
  for (const std::string& name : options.kinds) {
    for (const LayerKind kind : {LayerKind::window, LayerKind::csa, LayerKind::hca}) {
      if (name == to_string(kind)) slice.kinds.push_back(kind);
    }
  }
  return slice;
}

int run(const Options& options) {
  const std::size_t shard_bytes = parse_size(options.shard_size);
  const model::Config config =
      model::slice_config(model::load_config(options.config), slice_of(options));
  std::size_t total = 0;
  const auto begin = std::chrono::steady_clock::now();
  const InterruptGuard guard;
  {
    ProgressBar bar("synthesize", ProgressBar::Unit::bytes);
    model::synthesize_checkpoint(
        FileSystem::real(), config, options.out, options.seed,
        {.shard_bytes = shard_bytes,
         .existing = options.force ? io::Existing::replace : io::Existing::refuse},
        [&](std::size_t done, std::size_t of) {
          InterruptGuard::throw_if_interrupted();
          total = of;
          bar.update(done, of);
        });
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const auto nbytes = static_cast<double>(total);
  std::string kinds;
  for (std::int64_t l = 0; l < config.num_hidden_layers; ++l) {
    kinds += fmt::format("{}{}{}", l > 0 ? " " : "", to_string(config.layer(l).kind),
                         config.layer(l).hash_routed ? "(hash)" : "");
  }
  print(fmt::format("{}: {} in {} ({}/s)\nlayers: {}; {} MTP\n", options.out.string(),
                    format_bytes(nbytes), format_seconds(seconds), format_bytes(nbytes / seconds),
                    kinds, config.num_nextn_predict_layers));
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("-c,--config", options->config, "config.json to take the dimensions from")
      ->required();
  app.add_option("-o,--out", options->out, "directory to write; must not exist")->required();
  app.add_option("--layers", options->layers, "keep the first LAYERS layers; without it, all")
      ->check(CLI::PositiveNumber);
  app.add_option("--layer-kinds", options->kinds, "kinds of the layers instead, such as csa,hca")
      ->delimiter(',')
      ->check(CLI::IsMember({"window", "csa", "hca"}));
  app.add_option("--hash-layers", options->hash_layers,
                 "first layers that route by token id; without it, as many as the config has")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--mtp", options->mtp, "MTP blocks to keep")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--seed", options->seed, "the same seed writes the same bytes")
      ->capture_default_str();
  app.add_option("--shard-size", options->shard_size, "largest file to write")
      ->capture_default_str();
  app.add_flag("--force", options->force, "replace the output directory when it exists");
  return [options] { return run(*options); };
}

}  // namespace

const Subcommand kSynthesize{
    "synthesize", "Write a random checkpoint in the published format, to time a model without it",
    "  hadal synthesize --config configs/deepseek-v4-flash.json --layers 4 --out flash-4\n"
    "  hadal synthesize --config configs/deepseek-v4-pro.json --layer-kinds csa,hca \\\n"
    "      --hash-layers 0 --out pro-csa-hca\n"
    "\n"
    "The weights are random: timings and memory are those of the real model's layers, the text is\n"
    "not.",
    add};

}  // namespace hadal::cli
