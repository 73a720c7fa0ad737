#include "cli/bench_serve.h"

#include <fmt/format.h>

#include "cli/bench_serve_load.h"
#include "cli/bench_serve_report.h"
#include "core/error.h"

namespace hadal::cli {

namespace {

struct ServeOptions {
  ServeLoad load;
  std::string trace = "random";
  double rate = 0;
  std::int64_t pid = 0;
  bool json = false;
};

int run(ServeOptions& options) {
  ServeLoad& load = options.load;
  load.trace = options.trace == "agent" ? ServeLoad::Trace::agent : ServeLoad::Trace::random;
  if (options.rate > 0) load.rate = options.rate;
  if (options.pid > 0) load.pid = options.pid;
  LoadGenerator generator(load);
  const ServeRecords records = generator.run();
  print(options.json ? serve_json(load, records).dump(2) + "\n" : serve_text(load, records));
  if (records.interrupted) return 130;
  for (const RequestRecord& r : records.requests) {
    if (!r.failure.empty()) return 1;
  }
  return 0;
}

}  // namespace

Action add_bench_serve(CLI::App& bench) {
  CLI::App* app = bench.add_subcommand(
      "serve", "Put load on a running server and measure it as its clients see it");
  auto options = std::make_shared<ServeOptions>();
  ServeLoad& load = options->load;
  const auto positive = [&](const char* name, auto& value, const char* text) {
    app->add_option(name, value, text)->check(CLI::PositiveNumber)->capture_default_str();
  };
  const auto not_negative = [&](const char* name, auto& value, const char* text) {
    app->add_option(name, value, text)->check(CLI::NonNegativeNumber)->capture_default_str();
  };
  app->add_option("--url", load.url, "of the server")->capture_default_str();
  app->add_option("--api-key", load.api_key, "sent as a bearer token");
  app->add_option("--model", load.model, "what to ask for; else the server's first model");
  app->add_option(
         "--trace", options->trace,
         "random: completions of random tokens, nothing shared; agent: tool loops with one "
         "system prompt")
      ->check(CLI::IsMember({"random", "agent"}))
      ->capture_default_str();
  positive("--prompt-tokens", load.prompt_tokens, "of a random prompt, or of an agent's question");
  positive("--max-tokens", load.max_tokens, "of an answer; random ones have exactly so many");
  not_negative("--prefix-tokens", load.prefix_tokens, "agent: of the shared system prompt, about");
  positive("--rounds", load.rounds, "agent: requests of a session");
  positive("--result-tokens", load.result_tokens, "agent: of what a tool returns, about");
  app->add_flag("--thinking", load.thinking, "agent: answers begin with reasoning");
  app->add_option("--temperature", load.temperature)
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str();
  CLI::Option* concurrency = app->add_option("--concurrency", load.concurrency,
                                             "sessions at a time, each followed by the next")
                                 ->check(CLI::Range(1, 100'000))
                                 ->capture_default_str();
  app->add_option("--rate", options->rate, "sessions a second, at random times (Poisson)")
      ->check(CLI::PositiveNumber)
      ->excludes(concurrency);
  positive("--sessions", load.sessions, "in all");
  not_negative("--duration", load.duration_s, "seconds after which none begins; 0: no limit");
  not_negative("--warm-up", load.warm_up_s, "seconds at the beginning that do not count");
  positive("--timeout", load.timeout_s, "seconds without a byte after which a request has failed");
  app->add_option("--seed", load.seed, "of prompts, arrivals and sampling")->capture_default_str();
  not_negative("--idle", load.idle,
               "streams of lowest priority that wait beside the load; for the server to let them "
               "wait, its --max-running must not exceed the concurrency");
  not_negative("--health-ms", load.health_ms, "between two probes of /health; 0: none");
  positive("--pid", options->pid, "of a server on this machine: watch its memory");
  app->add_flag("--json", options->json, "print JSON");
  app->footer(
      "Examples:\n"
      "  hadal bench serve --concurrency 64 --sessions 512 --prompt-tokens 128 --max-tokens 64\n"
      "  hadal bench serve --rate 4 --duration 60 --sessions 100000 --json\n"
      "  hadal bench serve --trace agent --prefix-tokens 16384 --rounds 20 --concurrency 4\n"
      "\n"
      "Exits with 1 when a request failed.");
  return [options] { return run(*options); };
}

}  // namespace hadal::cli
