#include "cli/bench_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/bench_common.h"
#include "core/rng.h"
#include "model/accounting.h"
#include "model/traffic.h"
#include "ops/kv_rows.h"

namespace hadal::cli {

namespace {

struct Options {
  ModelOptions model;
  Path config;  // empty: the model's own weights
  std::vector<std::int64_t> batches{1}, contexts{4096}, prefills{};
  std::int64_t steps = 50;
  bool kernels = false, json = false;
};

class ModelBench {
 public:
  explicit ModelBench(const Options& options)
      : options_(options),
        runtime_(options.model.runtime()),
        loaded_(load()),
        ctx_(runtime_->context(numerics())) {}

  void decode(std::int64_t batch_size, std::int64_t context) {
    cache::PagedKv kv(config(), kv_options());
    std::vector<std::int64_t> slots;
    for (std::int64_t i = 0; i < batch_size; ++i) {
      slots.push_back(kv.open());
      fill(kv, slots.back(), context);
    }
    std::int64_t position = context;
    constexpr std::int64_t kTokens = 4096;  // enough that experts are chosen evenly
    const std::vector<TokenId> ids = some_tokens(kTokens, config().vocab_size);
    std::size_t next = 0;
    const auto step = [&] {
      model::TokenBatch batch;
      std::vector<std::int64_t> rows;
      for (std::int64_t i = 0; i < batch_size; ++i) {
        const TokenId& id = ids[next++ % ids.size()];
        batch.add({&id, 1}, position, slots[static_cast<std::size_t>(i)]);
        rows.push_back(i);
      }
      ++position;
      const Tensor streams = loaded_->model.forward(ctx_, batch, kv);
      const Tensor logits = loaded_->model.logits(ctx_, streams, rows);
      ctx_.stream().wait();
    };
    const double seconds = timed(step, options_.steps);
    const model::DecodeTraffic traffic =
        model::decode_traffic(config(), loaded_->weights, numerics(), context, batch_size);
    const double bound = traffic.total() / bandwidth();
    print(fmt::format(
        "decode   batch {:<3} context {:<8} {:>9.3f} ms/step  {:>8.1f} tokens/s  {:>7.1f} MB, "
        "bound {:.3f} ms ({:.0f} % of it)\n",
        batch_size, context, 1e3 * seconds, static_cast<double>(batch_size) / seconds,
        traffic.total() / 1e6, 1e3 * bound, 100 * bound / seconds));
    note({{"work", "decode"},
          {"batch", batch_size},
          {"context", context},
          {"ms", 1e3 * seconds},
          {"bound_ms", 1e3 * bound}});
    if (options_.kernels) show_kernels(step);
  }

  void prefill(std::int64_t n) {
    cache::PagedKv kv(config(), kv_options());
    const std::vector<TokenId> ids = some_tokens(n, config().vocab_size);
    const auto pass = [&] {
      const std::int64_t slot = kv.open();
      model::TokenBatch batch;
      batch.add(ids, 0, slot);
      const Tensor streams = loaded_->model.forward(ctx_, batch, kv);
      const std::int64_t last[] = {n - 1};
      const Tensor logits = loaded_->model.logits(ctx_, streams, last);
      ctx_.stream().wait();
      kv.close(slot);
    };
    const double seconds = timed(pass, std::clamp<std::int64_t>(options_.steps / 8, 1, 8));
    const double head = 2.0 * model::active_parameters(config()).head;
    const double flops =
        (model::token_flops(config(), std::max<std::int64_t>(1, n / 2)).plain() - head) *
        static_cast<double>(n);
    print(fmt::format(
        "prefill  {:<9} tokens        {:>9.3f} ms       {:>8.0f} tokens/s  {:.1f} TFLOP, "
        "{:.1f} TFLOP/s\n",
        n, 1e3 * seconds, static_cast<double>(n) / seconds, flops / 1e12, flops / seconds / 1e12));
    note({{"work", "prefill"}, {"tokens", n}, {"ms", 1e3 * seconds}, {"flops", flops}});
    if (options_.kernels) show_kernels(pass);
  }

  void head() {
    bandwidth_ = measure_copy();
    const std::string where = runtime_->gpu() != nullptr
                                  ? runtime_->gpu()->device().name
                                  : fmt::format("CPU, {} threads", runtime_->pool().size());
    print(fmt::format("{}: {} layers, {} numerics, {:.2f} GB of weights; copy {:.0f} GB/s\n", where,
                      config().num_hidden_layers, to_string(numerics()),
                      static_cast<double>(loaded_->weights.nbytes()) / 1e9, bandwidth() / 1e9));
    report_["device"] = where;
    report_["copy_gb_per_s"] = bandwidth() / 1e9;
  }
  void finish() const {
    if (options_.json) print(report_.dump(2) + "\n");
  }

 private:
  [[nodiscard]] const model::Config& config() const { return loaded_->config; }
  [[nodiscard]] Numerics numerics() const { return options_.model.resolved_numerics(); }
  [[nodiscard]] double bandwidth() const { return bandwidth_; }
  [[nodiscard]] cache::PagedKvOptions kv_options() {
    return {.numerics = numerics(), .page_tokens = 1024, .memory = runtime_->cache_memory()};
  }

  std::unique_ptr<engine::LoadedModel> load() {
    if (options_.config.empty()) return options_.model.load(runtime_.get());
    options_.model.run.apply();
    return engine::synthetic_model(model::load_config(options_.config), 1,
                                   {.stream = &runtime_->stream()});
  }

  // Random entries and index keys, as if a prompt had been read; windows and tails stay zero.
  void fill(cache::PagedKv& kv, std::int64_t slot, std::int64_t context) {
    constexpr std::int64_t kChunk = 8192;
    const auto random_rows = [&](std::int64_t width) {
      Rng rng(7);
      const Tensor host = ctx_.host_empty({kChunk, width}, ctx_.activation_dtype());
      for (std::int64_t i = 0; i < host.numel(); ++i) {
        const float x = rng.next_normal();
        if (host.dtype() == DType::bf16)
          host.data<bf16>()[i] = to_bf16(x);
        else
          host.data<float>()[i] = x;
      }
      return ctx_.to_device(host);
    };
    if (!rows_) {
      rows_ = random_rows(config().head_dim);
      index_rows_ = random_rows(config().index_head_dim);
    }
    for (std::int64_t l = 0; l < config().num_hidden_layers; ++l) {
      const model::LayerSpec& layer = config().layer(l);
      const model::LayerHistory h = kv.history(l, slot, context + options_.steps + 64);
      if (!layer.has_compressor()) continue;
      const std::int64_t n = context / layer.compress_ratio;
      for (std::int64_t at = 0; at < n; at += kChunk) {
        const std::int64_t m = std::min(kChunk, n - at);
        const StoreRange entries{0, m, h.entries, at}, keys{0, m, h.index_keys, at};
        ops::store_rows(ctx_, rows_, {&entries, 1});
        if (layer.has_indexer()) ops::store_rows(ctx_, index_rows_, {&keys, 1});
      }
    }
  }

  // Bytes a second of a copy inside the device's memory, read and written ones counted.
  double measure_copy() {
    const std::int64_t n = runtime_->gpu() != nullptr ? std::int64_t{1} << 30 : 1 << 28;
    const Tensor a = ctx_.empty({n}, DType::u8), b = ctx_.empty({n}, DType::u8);
    ctx_.stream().zero(a);
    const auto once = [&] {
      ctx_.stream().copy(a, b);
      ctx_.stream().wait();
    };
    return 2.0 * static_cast<double>(n) / timed(once, 10);
  }

  template <class Fn>
  double timed(Fn&& fn, std::int64_t n) {
    for (int i = 0; i < 3; ++i) fn();
    std::vector<double> seconds;
    for (std::int64_t i = 0; i < n; ++i) {
      const Stopwatch watch;
      fn();
      seconds.push_back(watch.seconds());
    }
    return median(std::move(seconds));
  }

  template <class Fn>
  void show_kernels(Fn&& fn) {
    constexpr int kPasses = 3;
    KernelProfile profile;
    ctx_.profile = &profile;
    for (int i = 0; i < kPasses; ++i) fn();
    ctx_.profile = nullptr;
    profile.settle();
    for (const auto& [name, entry] : by_time(profile)) {
      print(fmt::format("    {:<22}{:>10.1f} us in {:>4} calls\n", name,
                        1e6 * entry.seconds / kPasses, entry.calls / kPasses));
    }
    print(fmt::format("    {:<22}{:>10.1f} us\n", "all kernels",
                      1e6 * profile.total_seconds() / kPasses));
  }

  void note(nlohmann::ordered_json row) { report_["rows"].push_back(std::move(row)); }

  const Options& options_;
  std::unique_ptr<engine::Runtime> runtime_;
  std::unique_ptr<engine::LoadedModel> loaded_;
  ExecContext ctx_;
  Tensor rows_, index_rows_;
  double bandwidth_ = 0;
  nlohmann::ordered_json report_ = nlohmann::ordered_json::object();
};

int run(const Options& options) {
  ModelBench bench(options);
  bench.head();
  for (std::size_t i = 0; i < options.batches.size(); ++i) {
    bench.decode(options.batches[i], options.contexts[std::min(i, options.contexts.size() - 1)]);
  }
  for (const std::int64_t n : options.prefills) bench.prefill(n);
  bench.finish();
  return 0;
}

}  // namespace

Action add_bench_model(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* sub = app.add_subcommand(
      "model", "Time forward passes: decoding in batches over long histories, and prompts");
  sub->add_option("--config", options->config,
                  "a config.json: random weights of its shapes, made in memory, instead of --model")
      ->check(CLI::ExistingFile);
  sub->add_option("--batch", options->batches, "sequences that decode together; several to compare")
      ->delimiter(',');
  sub->add_option("--context", options->contexts,
                  "tokens behind each of them, filled with random entries; one for each --batch")
      ->delimiter(',');
  sub->add_option("--prefill", options->prefills, "prompts to read in one pass")->delimiter(',');
  sub->add_option("--steps", options->steps, "decoding steps to time; the median is reported")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  sub->add_flag("--kernels", options->kernels, "list the time of every kernel");
  sub->add_flag("--json", options->json, "print JSON behind the table");
  add_model_options(*sub, options->model);
  sub->footer(
      "Examples:\n"
      "  hadal bench model --config bench/configs/flash-slice.json --device cuda \\\n"
      "    --batch 1,16 --context 4096,1024 --prefill 8192 --kernels\n"
      "  hadal bench model --batch 4 --context 512\n"
      "\n"
      "The bound is the bytes that a step must read over the bandwidth of a copy, measured here.");
  return [options] { return run(*options); };
}

}  // namespace hadal::cli
