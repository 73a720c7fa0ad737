#include "server/server_metrics.h"

#include <fmt/format.h>

namespace hadal::server {

namespace {

// vLLM's buckets.
const std::vector<double> kFirstToken = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                         0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10,
                                         20,    40,    80,   160,  640,  2560};
const std::vector<double> kPerToken = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                       0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
const std::vector<double> kRequest = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                      30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
const std::vector<double> kIteration = {1,   8,    16,   32,   64,   128,  256,
                                        512, 1024, 2048, 4096, 8192, 16384};
const std::vector<double> kDisk = {0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005,
                                   0.01,    0.02,   0.05,   0.1,    0.2,   0.5,   1};
constexpr double kLongest = 1'048'576;
constexpr std::size_t kMaxFields = 100;

}  // namespace

ServerMetrics::ServerMetrics(const std::string& model_name)
    : registry_({{"model_name", model_name}, {"engine", "0"}}),
      running(registry_.gauge("vllm:num_requests_running", "Sequences in a step.")),
      waiting(registry_.gauge("vllm:num_requests_waiting", "Requests that are not admitted yet.")),
      kv_usage(registry_.gauge("vllm:kv_cache_usage_perc", "Used part of the KV pages, 0 to 1.")),
      prefix_queries(registry_.counter("vllm:prefix_cache_queries_total",
                                       "Prompt tokens looked up in the prefix cache.")),
      prefix_hits(registry_.counter("vllm:prefix_cache_hits_total",
                                    "Prompt tokens whose forward pass was skipped.")),
      preemptions(registry_.counter("vllm:num_preemptions_total", "Sequences put aside.")),
      prompt_tokens(registry_.counter("vllm:prompt_tokens_total", "Prompt tokens processed.")),
      generation_tokens(registry_.counter("vllm:generation_tokens_total", "Tokens drawn.")),
      iteration_tokens(
          registry_.histogram("vllm:iteration_tokens_total", "Rows of a step.", kIteration)),
      time_to_first_token(registry_.histogram("vllm:time_to_first_token_seconds",
                                              "From arrival to the first token.", kFirstToken)),
      inter_token_latency(registry_.histogram("vllm:inter_token_latency_seconds",
                                              "Between two tokens of a request.", kPerToken)),
      time_per_output_token(
          registry_.histogram("vllm:request_time_per_output_token_seconds",
                              "Decode time over tokens behind the first, by request.", kPerToken)),
      e2e_latency(registry_.histogram("vllm:e2e_request_latency_seconds",
                                      "From arrival to the end.", kRequest)),
      queue_time(registry_.histogram("vllm:request_queue_time_seconds", "Waiting.", kRequest)),
      prefill_time(registry_.histogram("vllm:request_prefill_time_seconds",
                                       "From admission to the first token.", kRequest)),
      decode_time(registry_.histogram("vllm:request_decode_time_seconds",
                                      "From the first token to the last.", kRequest)),
      inference_time(registry_.histogram("vllm:request_inference_time_seconds",
                                         "From admission to the end.", kRequest)),
      request_prompt_tokens(registry_.histogram(
          "vllm:request_prompt_tokens", "Prompt tokens of a request.", decade_bounds(kLongest))),
      request_generation_tokens(registry_.histogram("vllm:request_generation_tokens",
                                                    "Tokens drawn for a request.",
                                                    decade_bounds(kLongest))),
      params_max_tokens(registry_.histogram("vllm:request_params_max_tokens",
                                            "max_tokens of a request.", decade_bounds(kLongest))),
      params_n(registry_.histogram("vllm:request_params_n", "n of a request.", {1, 2, 5, 10, 20})),
      max_generation_tokens(registry_.histogram("vllm:request_max_num_generation_tokens",
                                                "Tokens of a request's longest choice.",
                                                decade_bounds(kLongest))),
      drafts(registry_.counter("vllm:spec_decode_num_drafts_total", "Steps that drafted.")),
      draft_tokens(registry_.counter("vllm:spec_decode_num_draft_tokens_total", "Drafted tokens.")),
      accepted_tokens(registry_.counter("vllm:spec_decode_num_accepted_tokens_total",
                                        "Drafted tokens that were right.")),
      kv_pages_bytes(registry_.gauge("dsv4:kv_bytes", "Memory of histories, by pool.",
                                     {{"pool", "compressed"}})),
      kv_state_bytes(registry_.gauge("dsv4:kv_bytes", "", {{"pool", "state"}})),
      kv_snapshot_bytes(registry_.gauge("dsv4:kv_bytes", "", {{"pool", "snapshot"}})),
      kv_pinned_bytes(registry_.gauge("dsv4:prefix_pinned_bytes",
                                      "Memory of shared system prompts that are not evicted; part "
                                      "of the pools compressed and snapshot.")),
      kv_pinned_pages(registry_.gauge("dsv4:prefix_pinned_pages", "KV pages of those prompts.")),
      pinned_prefixes(registry_.gauge("dsv4:prefix_pinned", "How many those prompts are.")),
      kv_disk_bytes(registry_.gauge("dsv4:kv_disk_bytes", "Histories on disk.")),
      kv_disk_hits(registry_.counter("dsv4:kv_disk_hits_total", "Prefixes read from disk.")),
      prefix_replay_tokens(registry_.counter("dsv4:prefix_replay_tokens_total",
                                             "Tokens run again to rebuild a window after a hit.")),
      turn_memory_hits(registry_.counter("dsv4:turn_memory_hits_total",
                                         "Answers rendered as they were sampled.")),
      disconnects(registry_.counter("dsv4:client_disconnects_total",
                                    "Clients that left before their response was whole.")),
      refused(registry_.counter("dsv4:admission_rejections_total", "Requests answered 429.")),
      wal_append(registry_.histogram("dsv4:wal_append_seconds", "write() of the journal.", kDisk)),
      wal_fsync(registry_.histogram("dsv4:wal_fsync_seconds", "Sync of the journal.", kDisk)),
      wal_lag(registry_.gauge("dsv4:wal_lag_tokens", "Tokens drawn and not yet released.")),
      connections(registry_.gauge("dsv4:http_connections", "Open connections.")),
      http_requests(registry_.counter("dsv4:http_requests_total", "HTTP requests.")) {
  for (const char* reason : {"stop", "length", "abort", "error"}) {
    (void)registry_.counter("vllm:request_success_total", "Finished requests, by reason.",
                            {{"finished_reason", reason}});
  }
  (void)registry_.counter("vllm:spec_decode_num_accepted_tokens_per_pos_total",
                          "Drafts that were right, by place in the draft.", {{"position", "0"}});
  (void)registry_.counter("dsv4:resumed_requests_total",
                          "Generations that went on after an interruption.",
                          {{"cause", "restart"}});
}

void ServerMetrics::update(const engine::EngineStatus& status) {
  running.set(static_cast<double>(status.n_running));
  waiting.set(static_cast<double>(status.n_waiting));
  kv_usage.set(status.pages_total > 0 ? static_cast<double>(status.pages_used) /
                                            static_cast<double>(status.pages_total)
                                      : 0);
  prefix_queries.set(status.prefix_queries);
  prefix_hits.set(status.prefix_hits);
  preemptions.set(status.preemptions);
  prompt_tokens.set(status.prompt_tokens);
  generation_tokens.set(status.generated_tokens);
  draft_tokens.set(status.drafted_tokens);
  accepted_tokens.set(status.accepted_drafts);
  // One block drafts one token a step: every draft has one place.
  drafts.set(status.drafted_tokens);
  registry_.counter("vllm:spec_decode_num_accepted_tokens_per_pos_total", "", {{"position", "0"}})
      .set(status.accepted_drafts);
  kv_pages_bytes.set(static_cast<double>(status.page_bytes));
  kv_state_bytes.set(static_cast<double>(status.state_bytes));
  kv_snapshot_bytes.set(static_cast<double>(status.snapshot_bytes));
  kv_pinned_bytes.set(static_cast<double>(status.pinned_bytes));
  kv_pinned_pages.set(static_cast<double>(status.pages_pinned));
  pinned_prefixes.set(static_cast<double>(status.pinned_prefixes));
  prefix_replay_tokens.set(status.replayed_tokens);
}

void ServerMetrics::set_cache_info(const MetricLabels& labels) {
  registry_.gauge("vllm:cache_config_info", "How the KV cache is set up.", labels).set(1);
}

void ServerMetrics::count_step(const engine::StepReport& report) {
  iteration_tokens.observe(static_cast<double>(report.decode_rows + report.prefill_rows));
}

void ServerMetrics::count_finish(std::string_view reason) {
  registry_.counter("vllm:request_success_total", "", {{"finished_reason", std::string(reason)}})
      .add();
}

void ServerMetrics::count_recoveries(const protocol::DsmlRecoveries& recoveries) {
  for (std::size_t rule = 1; rule < recoveries.size(); ++rule) {
    if (recoveries[rule] == 0) continue;
    registry_
        .counter("dsv4:dsml_recoveries_total", "Tool call text that a rule had to mend.",
                 {{"rule", fmt::format("R{}", rule)}})
        .add(recoveries[rule]);
  }
}

void ServerMetrics::count_unknown_field(const std::string& field) {
  const std::lock_guard lock(mutex_);
  const std::string name = unknown_fields_.size() < kMaxFields || unknown_fields_.contains(field)
                               ? field.substr(0, 64)
                               : "other";
  Counter*& counter = unknown_fields_[name];
  if (counter == nullptr) {
    counter = &registry_.counter("dsv4:unknown_fields_total", "Request members that were ignored.",
                                 {{"field", name}});
  }
  counter->add();
}

void ServerMetrics::count_resumed(std::string_view cause) {
  registry_.counter("dsv4:resumed_requests_total", "", {{"cause", std::string(cause)}}).add();
}

void ServerMetrics::count_http_error(int status) {
  const std::lock_guard lock(mutex_);
  ++http_errors_[status];
}

std::map<int, std::uint64_t> ServerMetrics::http_errors() const {
  const std::lock_guard lock(mutex_);
  return http_errors_;
}

}  // namespace hadal::server
