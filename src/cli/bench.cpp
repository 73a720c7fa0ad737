#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/bench_common.h"
#include "cli/bench_model.h"
#include "cli/bench_serve.h"
#include "cli/common.h"
#include "cli/progress.h"
#include "cli/subcommands.h"
#include "core/error.h"
#include "engine/session.h"
#include "kernels/cpu/dot_bench.h"
#include "kernels/cpu/isa.h"
#include "model/accounting.h"
#include "model/traffic.h"

namespace hadal::cli {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string what;
  ModelOptions model;
  std::int64_t context = 256, tokens = 64, chunk = 512, draft_tokens = 0;
  bool json = false, quick = false;
};

// What a benchmark found, for people and for programs.
class Report {
 public:
  explicit Report(bool json) : json_(json) {}

  void figure(const char* key, const std::string& label, double value, const char* unit,
              const std::string& remark = {}) {
    j_[key] = value;
    text_ += fmt::format("  {:<34}{:>14} {:<10}{}\n", label, digits(value), unit, remark);
  }
  void note(const char* key, const std::string& label, const std::string& value) {
    j_[key] = value;
    text_ += fmt::format("  {:<34}{}\n", label, value);
  }
  void heading(const std::string& text) { text_ += text + "\n"; }
  void line(const std::string& text) { text_ += text + "\n"; }
  Json& json() { return j_; }

  void show() const { print(json_ ? j_.dump(2) + "\n" : text_); }

 private:
  static std::string digits(double value) {
    return value >= 100 ? fmt::format("{:.0f}", value) : fmt::format("{:.4g}", value);
  }
  bool json_;
  Json j_ = Json::object();
  std::string text_;
};

void machine(Report& report, const kernels::cpu::MachinePeak& peak, int n_threads) {
  report.heading("machine, measured");
  report.note("isa", "instruction set", to_string(kernels::cpu::active_isa()));
  report.figure("threads", "threads", n_threads, "");
  report.figure("peak_read_gb_per_s", "memory read", peak.read_gb_per_s, "GB/s");
  report.figure("peak_f32_gflop_per_s", "f32 multiply-adds", peak.f32_gflop_per_s, "GFLOP/s");
  if (peak.bf16_gflop_per_s > 0) {
    report.figure("peak_bf16_gflop_per_s", "bf16 dot products", peak.bf16_gflop_per_s, "GFLOP/s");
  }
}

std::string percent(double part) {
  return fmt::format("{:.0f} %", 100 * part);
}

int bench_kernels(const Options& options) {
  options.model.run.apply();
  ThreadPool pool(options.model.run.threads);
  Report report(options.json);
  report.heading(fmt::format("dot products, {} threads, {}", pool.size(),
                             to_string(kernels::cpu::active_isa())));
  report.line(fmt::format("  {:<14}{:<20}{:>10}{:>10}{:>11}  {}", "kernel", "shape", "ms", "GB/s",
                          "GFLOP/s", "of its bound"));
  Json rows = Json::array();
  for (const auto& s : kernels::cpu::measure_dot_kernels(pool, options.quick)) {
    report.line(fmt::format("  {:<14}{:<20}{:>10.3f}{:>10.1f}{:>11.1f}  {} of {}", s.kernel,
                            s.shape, s.ms, s.gb_per_s, s.gflop_per_s, percent(s.share_of_bound),
                            s.bound));
    rows.push_back({{"kernel", s.kernel},
                    {"shape", s.shape},
                    {"ms", s.ms},
                    {"gb_per_s", s.gb_per_s},
                    {"gflop_per_s", s.gflop_per_s},
                    {"share_of_bound", s.share_of_bound},
                    {"bound", s.bound}});
  }
  report.json()["isa"] = to_string(kernels::cpu::active_isa());
  report.json()["threads"] = pool.size();
  report.json()["kernels"] = std::move(rows);
  report.show();
  return 0;
}

// A model with a prompt behind it, ready to be timed.
class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        runtime_(options.model.runtime()),
        loaded_(options.model.load(runtime_.get())) {
    const std::int64_t limit = loaded_->config.max_position_embeddings;
    if (options.context + options.tokens > limit) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("--context {} and --tokens {} are more than the model's context, {}",
                              options.context, options.tokens, limit));
    }
    peak_ = kernels::cpu::measure_machine_peak(runtime_->pool());
  }

  [[nodiscard]] engine::Session session() {
    return {*runtime_,
            *loaded_,
            {.numerics = numerics(),
             .prefill_chunk = options_.chunk,
             .draft_tokens = options_.draft_tokens}};
  }
  void prefill(engine::Session& session) const {
    ProgressBar bar("prompt", ProgressBar::Unit::tokens);
    session.set_prompt(some_tokens(options_.context, loaded_->config.vocab_size),
                       [&](std::int64_t done, std::int64_t total) {
                         bar.update(static_cast<std::size_t>(done),
                                    static_cast<std::size_t>(total));
                         return true;
                       });
  }
  [[nodiscard]] Numerics numerics() const { return options_.model.resolved_numerics(); }
  [[nodiscard]] const engine::LoadedModel& loaded() const { return *loaded_; }
  [[nodiscard]] engine::Runtime& runtime() { return *runtime_; }
  [[nodiscard]] const kernels::cpu::MachinePeak& peak() const { return peak_; }

  void head(Report& report, const char* what) {
    machine(report, peak_, runtime_->pool().size());
    report.heading(fmt::format("{}, {} numerics: {}", loaded_->directory.string(),
                               to_string(numerics()), what));
  }

 private:
  const Options& options_;
  std::unique_ptr<engine::Runtime> runtime_;
  std::unique_ptr<engine::LoadedModel> loaded_;
  kernels::cpu::MachinePeak peak_;
};

void kernel_times(Report& report, const KernelProfile& profile, double wall_seconds) {
  const auto kernels = by_time(profile);
  report.heading("where the time went");
  Json rows = Json::object();
  for (const auto& [name, entry] : kernels) {
    report.line(fmt::format("  {:<34}{:>14.2f} {:<10}{} calls", name,
                            100 * entry.seconds / wall_seconds, "%", entry.calls));
    rows[name] = {{"calls", entry.calls}, {"seconds", entry.seconds}};
  }
  report.line(fmt::format("  {:<34}{:>14.2f} %", "outside kernels",
                          100 * (1 - profile.total_seconds() / wall_seconds)));
  report.json()["kernels"] = std::move(rows);
}

int bench_decode(const Options& options) {
  Bench bench(options);
  engine::Session session = bench.session();
  bench.prefill(session);
  engine::Sampler sampler({.temperature = 0}, bench.loaded().config.vocab_size);

  constexpr int kWarmUp = 3;  // steps: buffers are allocated, pages are in
  std::int64_t n_drawn = 0;
  const auto step = [&] {
    const auto n = static_cast<std::int64_t>(session.step(sampler, n_drawn).size());
    n_drawn += n;
    return n;
  };
  for (int i = 0; i < kWarmUp && n_drawn < options.tokens; ++i) (void)step();

  KernelProfile profile;
  session.context().profile = &profile;
  std::vector<double> step_seconds;
  std::int64_t timed_tokens = 0;
  const Stopwatch all;
  {
    ProgressBar bar("decode", ProgressBar::Unit::tokens);
    while (n_drawn < options.tokens) {
      const Stopwatch one;
      const std::int64_t n = step();
      if (n == 0) break;
      step_seconds.push_back(one.seconds());
      timed_tokens += n;
      bar.update(static_cast<std::size_t>(n_drawn), static_cast<std::size_t>(options.tokens));
    }
  }
  const double wall = all.seconds();
  profile.settle();
  if (step_seconds.empty()) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("--tokens {} leaves nothing to time behind {} warm-up steps",
                            options.tokens, kWarmUp));
  }
  const auto steps = static_cast<double>(step_seconds.size());
  const std::int64_t context = static_cast<std::int64_t>(session.tokens().size());
  const model::DecodeTraffic traffic = model::decode_traffic(
      bench.loaded().config, bench.loaded().weights, bench.numerics(), context);
  const double tokens_per_s = static_cast<double>(timed_tokens) / wall;

  Report report(options.json);
  bench.head(report, "decoding one sequence");
  report.figure("context", "context at the end", static_cast<double>(context), "tokens");
  report.figure("tokens", "tokens timed", static_cast<double>(timed_tokens), "");
  report.figure("tokens_per_s", "speed", tokens_per_s, "tokens/s");
  report.figure("median_step_ms", "step, median", 1e3 * median(step_seconds), "ms");
  report.figure("kernel_ms", "of it in kernels, mean", 1e3 * profile.total_seconds() / steps, "ms");
  report.figure("step_over_kernels", "step time / kernel time", wall / profile.total_seconds(), "");
  report.figure("weight_mb_per_token", "weights a token reads", traffic.weight_bytes / 1e6, "MB");
  report.figure("kv_mb_per_token", "cache a token reads", traffic.kv_bytes / 1e6, "MB");
  // A step reads the weights once however many tokens it draws.
  const double gb_per_s = traffic.total() * steps / wall / 1e9;
  report.figure("read_gb_per_s", "read", gb_per_s, "GB/s",
                fmt::format("{} of the memory's", percent(gb_per_s / bench.peak().read_gb_per_s)));
  report.json()["share_of_bandwidth"] = gb_per_s / bench.peak().read_gb_per_s;
  if (options.draft_tokens > 0 && session.stats().drafted_tokens > 0) {
    report.figure("accepted_drafts", "drafts right",
                  static_cast<double>(session.stats().accepted_drafts), "",
                  fmt::format("of {}", session.stats().drafted_tokens));
  }
  kernel_times(report, profile, wall);
  report.show();
  return 0;
}

int bench_prefill(const Options& options) {
  Bench bench(options);
  {
    // Pages of the weights, buffers of a step.
    engine::Session warm_up = bench.session();
    const auto ids =
        some_tokens(std::min(options.context, options.chunk), bench.loaded().config.vocab_size);
    warm_up.set_prompt(ids);
  }
  engine::Session session = bench.session();
  KernelProfile profile;
  session.context().profile = &profile;
  const Stopwatch watch;
  bench.prefill(session);
  const double wall = watch.seconds();
  profile.settle();

  // Of the average token; the head runs for the last one alone.
  const model::Config& config = bench.loaded().config;
  const double head = 2.0 * model::active_parameters(config).head;
  const double flops =
      model::token_flops(config, std::max<std::int64_t>(1, options.context / 2)).plain() - head;
  const double gflop_per_s = flops * static_cast<double>(options.context) / wall / 1e9;
  const double bound = std::max(bench.peak().bf16_gflop_per_s, bench.peak().f32_gflop_per_s);

  Report report(options.json);
  bench.head(report, "prefill of one sequence");
  report.figure("context", "prompt", static_cast<double>(options.context), "tokens");
  report.figure("chunk", "most tokens a pass", static_cast<double>(options.chunk), "");
  report.figure("tokens_per_s", "speed", static_cast<double>(options.context) / wall, "tokens/s");
  report.figure("seconds", "time", wall, "s");
  report.figure("step_over_kernels", "time / kernel time", wall / profile.total_seconds(), "");
  report.figure("gflop_per_token", "work a token", flops / 1e9, "GFLOP");
  report.figure("gflop_per_s", "work", gflop_per_s, "GFLOP/s",
                fmt::format("{} of the arithmetic's", percent(gflop_per_s / bound)));
  report.json()["share_of_arithmetic"] = gflop_per_s / bound;
  kernel_times(report, profile, wall);
  report.show();
  return 0;
}

// Of this process; mapped weights are in it as far as they were read.
double resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  double total = 0, resident = 0;
  statm >> total >> resident;
  return resident * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

int bench_memory(const Options& options) {
  Bench bench(options);
  engine::Session session = bench.session();
  bench.prefill(session);
  const auto kv = session.kv_bytes();
  const model::KvBytes expected =
      model::kv_bytes(bench.loaded().config, bench.numerics(), options.context);
  constexpr double kMb = 1e6;
  const auto mb = [](auto bytes) { return static_cast<double>(bytes) / kMb; };

  Report report(options.json);
  bench.head(report, "memory after a prompt");
  report.figure("context", "prompt", static_cast<double>(options.context), "tokens");
  report.figure("weights_mb", "weights, mapped", mb(bench.loaded().weights.nbytes()), "MB");
  report.figure("kv_window_mb", "KV windows", mb(kv.window), "MB",
                fmt::format("{:.3f} by inspect", mb(expected.fixed)));
  report.figure("kv_tails_mb", "KV compressor tails", mb(kv.tails), "MB",
                fmt::format("{:.3f} by inspect", mb(expected.compressor_state)));
  report.figure("kv_growing_mb", "KV entries and index keys", mb(kv.entries + kv.index_keys), "MB",
                fmt::format("{:.3f} by inspect, before pages are filled up", mb(expected.growing)));
  report.figure("step_mb", "step buffers", mb(bench.runtime().allocator().bytes_held()), "MB");
  report.figure("resident_mb", "resident, all in all", resident_bytes() / kMb, "MB");
  report.show();
  return 0;
}

int run(const Options& options) {
  if (options.what.empty()) {
    throw CLI::RequiredError("WHAT: kernels, decode, prefill, memory or serve");
  }
  if (options.what == "kernels") return bench_kernels(options);
  if (options.what == "decode") return bench_decode(options);
  if (options.what == "prefill") return bench_prefill(options);
  return bench_memory(options);
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("WHAT", options->what,
                 "kernels: dot products in every weight format; decode, prefill: one sequence; "
                 "memory: where it goes")
      ->check(CLI::IsMember({"kernels", "decode", "prefill", "memory"}));
  app.add_option("--context", options->context, "tokens of the prompt")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--tokens", options->tokens, "tokens to decode")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--chunk", options->chunk, "most prompt tokens in one forward pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--draft-tokens", options->draft_tokens,
                 "tokens that the MTP block guesses a step")
      ->check(CLI::Range(0, 16))
      ->capture_default_str();
  app.add_flag("--quick", options->quick, "kernels: fewer repetitions");
  app.add_flag("--json", options->json, "print JSON");
  add_model_options(app, options->model);
  // A subcommand of its own, since it shares no option with the others.
  const Action serve = add_bench_serve(app);
  const Action model = add_bench_model(app);
  const CLI::App* serve_app = app.get_subcommand("serve");
  const CLI::App* model_app = app.get_subcommand("model");
  return [=] {
    if (serve_app->parsed()) return serve();
    return model_app->parsed() ? model() : run(*options);
  };
}

}  // namespace

const Subcommand kBench{
    "bench",
    "Time this machine: kernels, decoding, prefill, a server, and the share of what is possible",
    "  hadal bench kernels --quick\n"
    "  hadal bench decode --model flash-4 --context 4096 --tokens 64\n"
    "  hadal bench prefill --model flash-4 --context 2048 --json\n"
    "  hadal bench memory --context 8192\n"
    "  hadal bench serve --help\n"
    "  hadal bench model --help\n"
    "\n"
    "Bounds are measured on the spot. A model that fits into the caches reads faster than memory,\n"
    "so its share of the bandwidth may be above 100 %.",
    add};

}  // namespace hadal::cli
