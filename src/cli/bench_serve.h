// `hadal bench serve`: load on a server, from outside, as its clients see it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cli/common.h"

namespace hadal::cli {

// What is asked of the server, and how much of it.
struct ServeLoad {
  std::string url = "http://127.0.0.1:8080", api_key, model;
  // random: every session is one text completion of prompt_tokens random tokens, so that nothing is
  // shared. agent: a session is a tool loop on chat completions; all sessions share the system
  // prompt and the tools.
  enum class Trace : std::uint8_t { random, agent } trace = Trace::random;
  std::int64_t prompt_tokens = 64, max_tokens = 32;
  std::int64_t prefix_tokens = 1024, rounds = 10, result_tokens = 64;  // of an agent
  bool thinking = false;
  double temperature = 1;

  std::optional<double> rate;     // sessions a second, arriving as a Poisson process
  std::int64_t concurrency = 16;  // else: so many sessions at a time, each followed by the next
  std::int64_t sessions = 64;
  double duration_s = 0;  // no session begins after that; 0: only `sessions` counts
  double warm_up_s = 0;   // what begins before that is not counted
  double timeout_s = 600;
  std::uint64_t seed = 1;

  std::int64_t idle = 0;            // streaming requests of low priority that wait beside the load
  std::int64_t health_ms = 100;     // between two probes of /health; 0: none
  std::optional<std::int64_t> pid;  // of the server, whose memory is to be watched
};

// Adds `serve` to the subcommand `bench`.
[[nodiscard]] Action add_bench_serve(CLI::App& app);

}  // namespace hadal::cli
