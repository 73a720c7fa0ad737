// The server's numbers under the names that dashboards know.  Source: serving.md §4.11.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "core/metrics.h"
#include "engine/engine.h"
#include "protocol/dsml_event.h"

namespace hadal::server {

class ServerMetrics {
 public:
  explicit ServerMetrics(const std::string& model_name);

  void update(const engine::EngineStatus& status);
  void set_cache_info(const MetricLabels& labels);
  void count_step(const engine::StepReport& report);
  void count_finish(std::string_view reason);
  void count_recoveries(const protocol::DsmlRecoveries& recoveries);
  // At most 100 different names are told apart: clients choose them.
  void count_unknown_field(const std::string& field);
  void count_resumed(std::string_view cause);
  void count_http_error(int status);
  [[nodiscard]] std::map<int, std::uint64_t> http_errors() const;
  [[nodiscard]] std::string text() const { return registry_.text(); }

 private:
  MetricsRegistry registry_;
  mutable std::mutex mutex_;
  std::map<std::string, Counter*> unknown_fields_;
  std::map<int, std::uint64_t> http_errors_;

 public:
  // vLLM's.
  Gauge &running, &waiting, &kv_usage;
  Counter &prefix_queries, &prefix_hits, &preemptions, &prompt_tokens, &generation_tokens;
  Histogram &iteration_tokens, &time_to_first_token, &inter_token_latency, &time_per_output_token,
      &e2e_latency, &queue_time, &prefill_time, &decode_time, &inference_time;
  Histogram &request_prompt_tokens, &request_generation_tokens, &params_max_tokens, &params_n,
      &max_generation_tokens;
  Counter &drafts, &draft_tokens, &accepted_tokens;
  // Ours.
  Gauge &kv_pages_bytes, &kv_state_bytes, &kv_snapshot_bytes, &kv_pinned_bytes, &kv_pinned_pages,
      &pinned_prefixes, &kv_disk_bytes;
  Counter &kv_disk_hits, &prefix_replay_tokens, &turn_memory_hits, &disconnects, &refused;
  Histogram &wal_append, &wal_fsync;
  Gauge &wal_lag, &connections;
  Counter& http_requests;
};

}  // namespace hadal::server
