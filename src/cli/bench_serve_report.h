// What the load generator saw, as figures.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/bench_serve.h"

namespace hadal::cli {

// One request. Times in seconds since the load began; negative: never.
struct RequestRecord {
  std::int64_t session = 0, round = 0;
  double begin = 0, first_event = -1, first_token = -1, last_token = -1, end = 0;
  std::string failure = {};  // its kind; empty: a whole answer
  std::int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  bool called = false;  // the answer had a tool call
};

struct IdleCounts {
  std::int64_t most_open = 0, opened = 0, failed = 0, keep_alives = 0;
};

struct MemorySample {
  double at = 0;
  double resident_bytes = 0;
};

struct ServeRecords {
  std::vector<RequestRecord> requests;
  std::vector<double> health_seconds;
  std::int64_t health_failures = 0;
  std::map<std::string, std::int64_t> idle_failures;
  IdleCounts idle;
  std::vector<MemorySample> memory;
  double seconds = 0;  // from the first request that counts to the last end
  bool interrupted = false;
};

// `values` may be in any order. NaN when there are none. `part` in 0..1: the smallest value that at
// least that part of the values do not exceed.
[[nodiscard]] double percentile(std::vector<double> values, double part);

[[nodiscard]] nlohmann::ordered_json serve_json(const ServeLoad& load, const ServeRecords& records);
[[nodiscard]] std::string serve_text(const ServeLoad& load, const ServeRecords& records);

}  // namespace hadal::cli
