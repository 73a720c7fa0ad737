#include "cli/bench_serve_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "cli/progress.h"

namespace hadal::cli {

namespace {

using Json = nlohmann::ordered_json;

// Of the requests that began after the warm-up.
struct Summary {
  std::int64_t n_requests = 0, n_ok = 0, n_calls = 0;
  std::map<std::string, std::int64_t> failures;
  std::int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  std::vector<double> prompt_done, ttft, tpot, e2e;  // seconds
  struct Round {
    std::int64_t n = 0;
    double prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
    std::vector<double> ttft;
  };
  std::map<std::int64_t, Round> rounds;
};

Summary summarize(const ServeLoad& load, const ServeRecords& records) {
  Summary sum;
  for (const RequestRecord& r : records.requests) {
    if (r.begin < load.warm_up_s) continue;
    ++sum.n_requests;
    if (!r.failure.empty()) {
      ++sum.failures[r.failure];
      continue;
    }
    ++sum.n_ok;
    sum.n_calls += r.called ? 1 : 0;
    sum.prompt_tokens += r.prompt_tokens;
    sum.cached_tokens += r.cached_tokens;
    sum.completion_tokens += r.completion_tokens;
    if (r.first_event >= 0) sum.prompt_done.push_back(r.first_event - r.begin);
    if (r.first_token >= 0) sum.ttft.push_back(r.first_token - r.begin);
    if (r.last_token > r.first_token && r.completion_tokens > 1) {
      sum.tpot.push_back((r.last_token - r.first_token) /
                         static_cast<double>(r.completion_tokens - 1));
    }
    sum.e2e.push_back(r.end - r.begin);
    Summary::Round& round = sum.rounds[r.round];
    ++round.n;
    round.prompt_tokens += static_cast<double>(r.prompt_tokens);
    round.cached_tokens += static_cast<double>(r.cached_tokens);
    round.completion_tokens += static_cast<double>(r.completion_tokens);
    if (r.first_token >= 0) round.ttft.push_back(r.first_token - r.begin);
  }
  return sum;
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v;
  return values.empty() ? std::numeric_limits<double>::quiet_NaN()
                        : sum / static_cast<double>(values.size());
}

Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

constexpr std::pair<const char*, double> kParts[] = {
    {"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"max", 1.0}};

Json distribution_ms(const std::vector<double>& seconds) {
  Json out = {{"n", seconds.size()}, {"mean", number(1e3 * mean(seconds))}};
  for (const auto& [name, part] : kParts) out[name] = number(1e3 * percentile(seconds, part));
  return out;
}

std::string distribution_row(const char* label, const std::vector<double>& seconds) {
  if (seconds.empty()) return {};
  std::string row = fmt::format("  {:<24}{:>11.2f}", label, 1e3 * mean(seconds));
  for (const auto& [name, part] : kParts) {
    row += fmt::format("{:>11.2f}", 1e3 * percentile(seconds, part));
  }
  return row + "\n";
}

// The means over the second quarter and over the last one: what still grows then, leaks.
struct MemoryTrend {
  double first = 0, second_quarter = 0, last_quarter = 0, most = 0;
};
MemoryTrend memory_trend(const std::vector<MemorySample>& samples) {
  MemoryTrend trend;
  trend.first = samples.front().resident_bytes;
  const auto average = [&](std::size_t begin, std::size_t end) {
    std::vector<double> values;
    for (std::size_t i = begin; i < end; ++i) values.push_back(samples[i].resident_bytes);
    return values.empty() ? samples.back().resident_bytes : mean(values);
  };
  const std::size_t n = samples.size();
  trend.second_quarter = average(n / 4, n / 2);
  trend.last_quarter = average(3 * n / 4, n);
  for (const MemorySample& s : samples) trend.most = std::max(trend.most, s.resident_bytes);
  return trend;
}

const char* trace_name(ServeLoad::Trace trace) {
  return trace == ServeLoad::Trace::random ? "random" : "agent";
}

}  // namespace

double percentile(std::vector<double> values, double part) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const auto n = static_cast<double>(values.size());
  const auto rank = static_cast<std::size_t>(std::clamp(std::ceil(part * n) - 1, 0.0, n - 1));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(rank),
                   values.end());
  return values[rank];
}

Json serve_json(const ServeLoad& load, const ServeRecords& records) {
  const Summary sum = summarize(load, records);
  const double seconds = records.seconds;
  const auto rate = [&](std::int64_t n) {
    return number(seconds > 0 ? static_cast<double>(n) / seconds
                              : std::numeric_limits<double>::quiet_NaN());
  };
  Json failures = Json::object();
  for (const auto& [kind, n] : sum.failures) failures[kind] = n;
  Json out = {{"trace", trace_name(load.trace)},
              {"rate", load.rate ? Json(*load.rate) : Json(nullptr)},
              {"concurrency", load.rate ? Json(nullptr) : Json(load.concurrency)},
              {"seconds", seconds},
              {"interrupted", records.interrupted},
              {"requests", sum.n_requests},
              {"ok", sum.n_ok},
              {"failures", failures},
              {"tool_calls", sum.n_calls},
              {"prompt_tokens", sum.prompt_tokens},
              {"cached_tokens", sum.cached_tokens},
              {"completion_tokens", sum.completion_tokens},
              {"requests_per_s", rate(sum.n_ok)},
              {"prompt_tokens_per_s", rate(sum.prompt_tokens)},
              {"completion_tokens_per_s", rate(sum.completion_tokens)},
              {"prompt_done_ms", distribution_ms(sum.prompt_done)},
              {"ttft_ms", distribution_ms(sum.ttft)},
              {"tpot_ms", distribution_ms(sum.tpot)},
              {"e2e_ms", distribution_ms(sum.e2e)},
              {"health_ms", distribution_ms(records.health_seconds)},
              {"health_failures", records.health_failures}};
  if (load.trace == ServeLoad::Trace::agent) {
    Json rounds = Json::array();
    for (const auto& [index, r] : sum.rounds) {
      const auto n = static_cast<double>(r.n);
      rounds.push_back({{"round", index},
                        {"n", r.n},
                        {"prompt_tokens", r.prompt_tokens / n},
                        {"cached_tokens", r.cached_tokens / n},
                        {"completion_tokens", r.completion_tokens / n},
                        {"ttft_ms", distribution_ms(r.ttft)}});
    }
    out["rounds"] = std::move(rounds);
  }
  if (load.idle > 0) {
    Json idle_failures = Json::object();
    for (const auto& [kind, n] : records.idle_failures) idle_failures[kind] = n;
    out["idle"] = {{"wanted", load.idle},
                   {"most_open", records.idle.most_open},
                   {"opened", records.idle.opened},
                   {"keep_alives", records.idle.keep_alives},
                   {"failures", std::move(idle_failures)}};
  }
  if (!records.memory.empty()) {
    const MemoryTrend trend = memory_trend(records.memory);
    Json samples = Json::array();
    // At most some hundred points: enough to draw.
    const std::size_t stride = std::max<std::size_t>(1, records.memory.size() / 200);
    for (std::size_t i = 0; i < records.memory.size(); i += stride) {
      samples.push_back({records.memory[i].at, records.memory[i].resident_bytes});
    }
    out["memory"] = {{"first_bytes", trend.first},
                     {"second_quarter_bytes", trend.second_quarter},
                     {"last_quarter_bytes", trend.last_quarter},
                     {"most_bytes", trend.most},
                     {"samples", std::move(samples)}};
  }
  return out;
}

std::string serve_text(const ServeLoad& load, const ServeRecords& records) {
  const Summary sum = summarize(load, records);
  const double seconds = std::max(records.seconds, 1e-9);
  std::string out = fmt::format(
      "{}{} requests in {}, {}; {} failed\n", records.interrupted ? "interrupted: " : "",
      sum.n_requests, format_seconds(records.seconds),
      load.rate ? fmt::format("Poisson arrivals, {} sessions a second", *load.rate)
                : fmt::format("{} sessions at a time", load.concurrency),
      sum.n_requests - sum.n_ok);
  for (const auto& [kind, n] : sum.failures) out += fmt::format("  {:>8} x {}\n", n, kind);
  const auto per_s = [&](std::int64_t n) { return static_cast<double>(n) / seconds; };
  out += fmt::format("  {:<24}{:>11.2f} requests/s\n", "throughput", per_s(sum.n_ok));
  out += fmt::format("  {:<24}{:>11.1f} tokens/s of {}\n", "  answers",
                     per_s(sum.completion_tokens), sum.completion_tokens);
  out += fmt::format("  {:<24}{:>11.1f} tokens/s of {}, {:.1f} % cached\n", "  prompts",
                     per_s(sum.prompt_tokens), sum.prompt_tokens,
                     sum.prompt_tokens > 0 ? 100.0 * static_cast<double>(sum.cached_tokens) /
                                                 static_cast<double>(sum.prompt_tokens)
                                           : 0.0);
  out += fmt::format("  {:<24}{:>11}{:>11}{:>11}{:>11}{:>11}\n", "milliseconds", "mean", "p50",
                     "p90", "p99", "max");
  out += distribution_row("first event", sum.prompt_done);
  out += distribution_row("first token (TTFT)", sum.ttft);
  out += distribution_row("each further (TPOT)", sum.tpot);
  out += distribution_row("whole answer", sum.e2e);
  out += distribution_row("/health", records.health_seconds);
  if (records.health_failures > 0) {
    out += fmt::format("  {} probes of /health failed\n", records.health_failures);
  }
  if (load.trace == ServeLoad::Trace::agent) {
    out += fmt::format("  {} of {} answers called the tool\n", sum.n_calls, sum.n_ok);
    out += fmt::format("  {:<8}{:>8}{:>12}{:>12}{:>14}{:>12}{:>12}\n", "round", "n", "prompt",
                       "cached", "not cached", "TTFT p50", "TTFT p99");
    for (const auto& [index, r] : sum.rounds) {
      const auto n = static_cast<double>(r.n);
      out += fmt::format("  {:<8}{:>8}{:>12.1f}{:>12.1f}{:>14.1f}{:>12.2f}{:>12.2f}\n", index, r.n,
                         r.prompt_tokens / n, r.cached_tokens / n,
                         (r.prompt_tokens - r.cached_tokens) / n, 1e3 * percentile(r.ttft, 0.5),
                         1e3 * percentile(r.ttft, 0.99));
    }
  }
  if (load.idle > 0) {
    out += fmt::format(
        "  idle streams: {} wanted, {} open at most, {} opened, {} keep-alives, {} failed\n",
        load.idle, records.idle.most_open, records.idle.opened, records.idle.keep_alives,
        records.idle.failed);
    for (const auto& [kind, n] : records.idle_failures) {
      out += fmt::format("  {:>8} x {}\n", n, kind);
    }
  }
  if (!records.memory.empty()) {
    const MemoryTrend trend = memory_trend(records.memory);
    out += fmt::format(
        "  server's memory: {} at first, {} in the second quarter, {} in the last, {} at most\n",
        format_bytes(trend.first), format_bytes(trend.second_quarter),
        format_bytes(trend.last_quarter), format_bytes(trend.most));
  }
  return out;
}

}  // namespace hadal::cli
