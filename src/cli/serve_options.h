#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/common.h"
#include "engine/engine.h"
#include "journal/writer.h"
#include "server/app.h"
#include "server/http_server.h"

namespace hadal::cli {

// Everything that `hadal serve` can be told, as it was told.
struct ServeOptions {
  ModelOptions model;
  std::string served_name, profile = "v4-preview";
  std::vector<std::string> aliases;

  std::string host = "127.0.0.1";
  int port = 8000, io_threads = 1, workers = 1;
  Path tls_certificate, tls_key;
  std::vector<std::string> api_keys, cors_origins;
  Path api_key_file;
  bool allow_anonymous = false;

  std::int64_t max_context = 0, max_output = 393216;
  std::string mid_system = "user", missing_reasoning = "recover", thinking_sampling = "honor",
              dsml_in_reasoning = "implicit_end", isolate_users = "on";
  bool no_schema_in_prompt = false, enable_tasks = false, trust_special_tokens = false,
       no_reasoning_alias = false, deepseek_status_codes = false, free_answers = false;

  std::size_t kv_bytes = std::size_t{1} << 30, snapshot_bytes = std::size_t{256} << 20;
  std::int64_t max_running = 64, max_step_tokens = 512, draft_tokens = 1, max_draft_batch = 8,
               snapshot_interval = 4096;
  bool no_prefix_cache = false;
  double pinned_share = 0.25;
  std::string preemption = "swap";

  Path data;
  std::string journal = "interval:50ms", kv_windows = "periodic";
  bool journal_repair = false;
  std::int64_t retention_s = 3600, detached_ttl_s = 600, drain_s = 30;
  std::size_t kv_disk_bytes = std::size_t{4} << 30;

  std::int64_t max_queue_requests = 256, max_queue_tokens = 4'000'000, queue_timeout_s = 600;
  std::size_t max_body_bytes = std::size_t{64} << 20;
  std::int64_t max_connections = 4096;
  bool quiet = false;

  [[nodiscard]] engine::EngineOptions engine() const;
  [[nodiscard]] server::AppOptions app() const;
  [[nodiscard]] server::HttpServerOptions http() const;
  // Nothing when there is no journal. Throws invalid_argument for a policy that is none.
  [[nodiscard]] std::optional<journal::SyncPolicy> sync_policy() const;
};

void add_serve_options(CLI::App& app, ServeOptions& options);

}  // namespace hadal::cli
