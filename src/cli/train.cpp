// `hadal train`: a run directory from a config and a directory of token shards.
#include <fmt/format.h>

#include "cli/common.h"
#include "cli/interrupt.h"
#include "cli/run_config_file.h"
#include "cli/subcommands.h"
#include "cli/train_run.h"
#include "parallel/communicator.h"
#include "train/data_manifest.h"
#include "train/memory_plan.h"

namespace hadal::cli {

namespace {

struct Options {
  Path config, run, data, init;
  std::vector<std::string> set;
  bool resume = false, plan = false, print_config = false;
  std::int64_t max_steps = 0;
  RunOptions compute;
  DeviceOption device;
};

train::RunConfig load_config(const Options& options) {
  const Path file =
      options.resume && options.config.empty() ? options.run / "config.toml" : options.config;
  if (file.empty()) {
    throw CLI::ValidationError("CONFIG", "a config is needed, such as configs/nano.toml");
  }
  std::vector<std::string> set = options.set;
  if (!options.data.empty()) {
    const Path data = std::filesystem::absolute(options.data).lexically_normal();
    set.push_back(fmt::format("data.directory='{}'", data.string()));
  }
  return load_run_config(file, set);
}

int run(const Options& options) {
  options.compute.apply();
  const train::RunConfig config = load_config(options);
  if (options.print_config) {
    print(to_toml(config));
    return 0;
  }
  ThreadPool pool(options.compute.threads);
  // Before anything is said or planned: data that is not there, or not for this model.
  if (!options.plan) {
    expect_vocabulary(train::load_manifest(config.data), config.data, config.model.vocab_size);
  }
  // Before the plan: a GPU that is not there.
  std::unique_ptr<cuda::Queue> gpu;
  if (const auto number = options.device.gpu()) gpu = std::make_unique<cuda::Queue>(*number);
  const std::string plan =
      train::to_string(train::plan_memory(config, pool), gpu == nullptr ? nullptr : &gpu->device());
  if (options.plan) {
    print(plan);
    return 0;
  }
  const std::unique_ptr<parallel::Communicator> ranks = parallel::communicator_from_environment();
  return parallel::abort_on_error(*ranks, [&] {
    TrainRun run(config, options.run, {.resume = options.resume, .weights = options.init}, pool,
                 *ranks, gpu.get());
    if (ranks->rank() == 0) remark(plan);
    return run.train(options.max_steps);
  });
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("CONFIG", options->config,
                 "TOML file: model, data, schedule; with --resume the run's own");
  app.add_option("-o,--out", options->run, "run directory: metrics, checkpoints, report")
      ->required();
  app.add_option("--data", options->data, "token shards, instead of the config's data.directory");
  app.add_option("--set", options->set, "another value, such as --set lr.peak=1e-3")
      ->allow_extra_args(false);
  app.add_option("--init", options->init,
                 "run or checkpoint whose weights a new run begins with, to fine-tune it");
  app.add_flag("--resume", options->resume, "go on from the newest checkpoint of the run");
  app.add_flag("--plan", options->plan, "only say how much memory it needs, and the device has");
  app.add_flag("--show-config", options->print_config, "only print every option with its value");
  app.add_option("--max-steps", options->max_steps, "stop after this many steps; 0: at the end")
      ->check(CLI::NonNegativeNumber);
  add_device_option(app, options->device, "where the model is trained");
  add_run_options(app, options->compute);
  return [options] { return run(*options); };
}

}  // namespace

const Subcommand kTrain{
    "train", "train a model from token shards",
    "  hadal data build TEXT -o data --tokenizer tokenizer.json\n"
    "  hadal train configs/nano.toml --data data -o runs/nano\n"
    "  hadal train --resume -o runs/nano            after Ctrl-C or a crash\n"
    "  hadal train configs/micro.toml --data data -o runs/micro --device cuda\n"
    "  hadal train configs/nano.toml --data data -o runs/adamw --set muon.matrices_on_adamw=true\n"
    "  hadal train chat.toml --data chats -o runs/chat --init runs/nano --set "
    "train.compute='\"qat\"'\n"
    "  mpirun -n 4 hadal train configs/micro.toml --data data -o runs/micro\n"
    "  hadal report runs/nano runs/adamw -o compare.html\n"
    "  hadal export runs/nano models/nano && hadal chat -m models/nano\n",
    add};

}  // namespace hadal::cli
