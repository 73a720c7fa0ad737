#include "cli/serve_options.h"

#include <fmt/format.h>

#include "core/error.h"

namespace hadal::cli {

namespace {

constexpr const char* kNetwork = "Network";
constexpr const char* kModel = "Model and answers";
constexpr const char* kEngine = "Engine";
constexpr const char* kDurable = "What survives a crash or a restart";
constexpr const char* kLimits = "Limits";

void add_network(CLI::App& app, ServeOptions& o) {
  app.add_option("--host", o.host,
                 "address to listen on; anything but loopback needs a key, or --allow-anonymous")
      ->capture_default_str()
      ->group(kNetwork);
  app.add_option("-p,--port", o.port, "port; 0 takes a free one and prints it")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str()
      ->group(kNetwork);
  app.add_option("--tls-cert", o.tls_certificate, "certificate chain (PEM); serves HTTPS")
      ->group(kNetwork);
  app.add_option("--tls-key", o.tls_key, "its private key (PEM)")->group(kNetwork);
  app.add_option("--api-key", o.api_keys, "a key that clients must send; may be repeated")
      ->allow_extra_args(false)
      ->group(kNetwork);
  app.add_option("--api-key-file", o.api_key_file,
                 "JSON file of keys with their limits: see docs/serving/README.md")
      ->group(kNetwork);
  app.add_flag("--allow-anonymous", o.allow_anonymous,
               "listen beyond this machine without any key: everybody may use the model")
      ->group(kNetwork);
  app.add_option("--cors-origin", o.cors_origins,
                 "a web page's origin that may call the API; * for any; may be repeated")
      ->allow_extra_args(false)
      ->group(kNetwork);
  app.add_option("--io-threads", o.io_threads, "threads for sockets")
      ->check(CLI::Range(1, 64))
      ->capture_default_str()
      ->group(kNetwork);
  app.add_option("--workers", o.workers, "threads for JSON, templates and tokenising")
      ->check(CLI::Range(1, 64))
      ->capture_default_str()
      ->group(kNetwork);
}

void add_model(CLI::App& app, ServeOptions& o) {
  app.add_option("--served-name", o.served_name,
                 "the model's name in the API; without it, its directory's")
      ->group(kModel);
  app.add_option("--alias", o.aliases,
                 "another name for it; deepseek-* and, for Anthropic clients, claude* are known "
                 "anyway; may be repeated")
      ->allow_extra_args(false)
      ->group(kModel);
  app.add_option("--chat-profile", o.profile,
                 "generation of the checkpoint: it decides the reasoning-effort texts")
      ->check(CLI::IsMember({"v4-preview", "v4-0731"}))
      ->capture_default_str()
      ->group(kModel);
  app.add_option("--max-context", o.max_context, "tokens of prompt and answer; 0: the model's")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(kModel);
  app.add_option("--max-output", o.max_output, "most tokens that a request may ask for")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(kModel);
  app.add_option("--thinking-sampling", o.thinking_sampling,
                 "honor: as requested; fixed: as DeepSeek's service, T=1 and no penalties while "
                 "thinking is on")
      ->check(CLI::IsMember({"honor", "fixed"}))
      ->capture_default_str()
      ->group(kModel);
  app.add_option("--mid-system", o.mid_system,
                 "a system message behind the first turn: give it to the user, or reject it")
      ->check(CLI::IsMember({"user", "reject"}))
      ->capture_default_str()
      ->group(kModel);
  app.add_option("--missing-reasoning", o.missing_reasoning,
                 "tool history without its reasoning: recover it where it is known, or strict: "
                 "answer 400 as DeepSeek does")
      ->check(CLI::IsMember({"recover", "strict"}))
      ->capture_default_str()
      ->group(kModel);
  app.add_option("--dsml-in-reasoning", o.dsml_in_reasoning,
                 "a call written inside reasoning: ends it and counts, or is text")
      ->check(CLI::IsMember({"implicit_end", "text"}))
      ->capture_default_str()
      ->group(kModel);
  app.add_option("--isolate-users", o.isolate_users,
                 "user_id and keys separate cached prompts from each other")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str()
      ->group(kModel);
  app.add_flag("--free-answers", o.free_answers,
               "no grammar holds tool calls and JSON answers to their form")
      ->group(kModel);
  app.add_flag("--no-schema-in-prompt", o.no_schema_in_prompt,
               "do not tell the model the schema of a json_schema answer")
      ->group(kModel);
  app.add_flag("--enable-tasks", o.enable_tasks, "Quick Instruction tasks on messages")
      ->group(kModel);
  app.add_flag("--trust-special-tokens", o.trust_special_tokens,
               "control tokens written in messages are control tokens: only for trusted clients")
      ->group(kModel);
  app.add_flag("--no-reasoning-alias", o.no_reasoning_alias,
               "do not repeat reasoning_content as reasoning")
      ->group(kModel);
  app.add_flag("--deepseek-status-codes", o.deepseek_status_codes,
               "422 instead of 400 for a parameter that is wrong")
      ->group(kModel);
}

void add_engine(CLI::App& app, ServeOptions& o) {
  app.add_option("--kv-bytes", o.kv_bytes, "memory for histories, e.g. 8GiB")
      ->transform([](const std::string& text) { return std::to_string(parse_size(text)); })
      ->capture_default_str()
      ->group(kEngine);
  app.add_option("--max-running", o.max_running, "sequences in one step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(kEngine);
  app.add_option("--max-step-tokens", o.max_step_tokens,
                 "rows of one forward pass: all decodes first, then prompts")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(kEngine);
  app.add_option("--draft-tokens", o.draft_tokens,
                 "tokens that the MTP block guesses a step; they change the speed, never the text")
      ->check(CLI::Range(0, 16))
      ->capture_default_str()
      ->group(kEngine);
  app.add_option("--max-draft-batch", o.max_draft_batch, "no guesses when more sequences decode")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(kEngine);
  app.add_flag("--no-prefix-cache", o.no_prefix_cache, "compute every prompt anew")->group(kEngine);
  app.add_option("--snapshot-bytes", o.snapshot_bytes, "memory for places to continue from")
      ->transform([](const std::string& text) { return std::to_string(parse_size(text)); })
      ->capture_default_str()
      ->group(kEngine);
  app.add_option("--snapshot-interval", o.snapshot_interval, "tokens between two of them")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(kEngine);
  app.add_option("--pinned-share", o.pinned_share,
                 "part of both memories, 0 to 1, where system prompts that two requests began with "
                 "stay against eviction; they go when a request could not run at all otherwise")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str()
      ->group(kEngine);
  app.add_option("--preemption", o.preemption,
                 "a sequence that must make room: swap its history out, or drop and recompute it")
      ->check(CLI::IsMember({"swap", "drop"}))
      ->capture_default_str()
      ->group(kEngine);
}

void add_durable(CLI::App& app, ServeOptions& o) {
  app.add_option("--data", o.data,
                 "directory for the journal, the KV cache and remembered answers; without it, "
                 "nothing outlives the process")
      ->group(kDurable);
  app.add_option("--journal", o.journal,
                 "when a token may be shown: step (after fsync: a client never holds a token that "
                 "a power cut takes back), interval:50ms, none (after write: a crash of the "
                 "process loses nothing), off")
      ->check([](const std::string& text) {
        return text == "off" || journal::SyncPolicy::parse(text)
                   ? std::string()
                   : "wanted off, none, interval:50ms (or another time) or step";
      })
      ->capture_default_str()
      ->group(kDurable);
  app.add_flag("--journal-repair", o.journal_repair,
               "start although the journal is damaged: streams that lost something end with an "
               "error")
      ->group(kDurable);
  app.add_option("--retention", o.retention_s, "seconds for which finished streams can be read")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(kDurable);
  app.add_option("--detached-ttl", o.detached_ttl_s,
                 "seconds for which a resumable stream goes on without a reader")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(kDurable);
  app.add_option("--drain", o.drain_s,
                 "seconds for running requests to finish after SIGTERM; resumable ones then stay "
                 "in the journal")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(kDurable);
  app.add_option("--kv-disk-bytes", o.kv_disk_bytes, "disk for histories, e.g. 20GiB")
      ->transform([](const std::string& text) { return std::to_string(parse_size(text)); })
      ->capture_default_str()
      ->group(kDurable);
  app.add_option("--kv-windows", o.kv_windows,
                 "what the disk keeps of window rows: full, periodic or zero (recomputed)")
      ->check(CLI::IsMember({"full", "periodic", "zero", "off"}))
      ->capture_default_str()
      ->group(kDurable);
}

void add_limits(CLI::App& app, ServeOptions& o) {
  app.add_option("--max-queue-requests", o.max_queue_requests, "waiting requests; more get 429")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(kLimits);
  app.add_option("--max-queue-tokens", o.max_queue_tokens, "prompt tokens that may wait")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(kLimits);
  app.add_option("--queue-timeout", o.queue_timeout_s, "seconds after which waiting ends with 408")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(kLimits);
  app.add_option("--max-body-bytes", o.max_body_bytes, "of a request, e.g. 64MiB")
      ->transform([](const std::string& text) { return std::to_string(parse_size(text)); })
      ->capture_default_str()
      ->group(kLimits);
  app.add_option("--max-connections", o.max_connections, "open at once")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(kLimits);
  app.add_flag("-q,--quiet", o.quiet, "no line for refused requests")->group(kLimits);
}

}  // namespace

void add_serve_options(CLI::App& app, ServeOptions& options) {
  add_model_options(app, options.model);
  add_network(app, options);
  add_model(app, options);
  add_engine(app, options);
  add_durable(app, options);
  add_limits(app, options);
}

engine::EngineOptions ServeOptions::engine() const {
  engine::EngineOptions e;
  e.numerics = model.resolved_numerics();
  e.max_running = max_running;
  e.max_step_tokens = max_step_tokens;
  e.kv_bytes = kv_bytes;
  e.draft_tokens = draft_tokens;
  e.max_draft_batch = max_draft_batch;
  e.snapshot_interval = snapshot_interval;
  e.snapshot_bytes = snapshot_bytes;
  e.pinned_share = pinned_share;
  e.prefix_cache = !no_prefix_cache;
  e.preemption = preemption == "swap" ? engine::EngineOptions::Preemption::swap
                                      : engine::EngineOptions::Preemption::drop;
  if (!data.empty()) e.swap_directory = data / "swap";
  return e;
}

server::AppOptions ServeOptions::app() const {
  server::AppOptions a;
  a.generation.defaults.max_output_tokens = max_output;
  a.generation.defaults.enable_tasks = enable_tasks;
  a.generation.defaults.response_format_in_prompt = !no_schema_in_prompt;
  a.generation.defaults.mid_system_as_user = mid_system == "user";
  a.generation.defaults.strict_reasoning = missing_reasoning == "strict";
  a.generation.defaults.reasoning_alias = !no_reasoning_alias;
  a.generation.in_reasoning = dsml_in_reasoning == "text" ? protocol::DsmlInReasoning::text
                                                          : protocol::DsmlInReasoning::implicit_end;
  a.generation.fixed_thinking_sampling = thinking_sampling == "fixed";
  a.generation.isolate_users = isolate_users == "on";
  a.generation.trust_special_tokens = trust_special_tokens;
  a.admission.max_queue_requests = max_queue_requests;
  a.admission.max_queue_tokens = max_queue_tokens;
  a.registry.detached_ttl_s = static_cast<double>(detached_ttl_s);
  a.registry.retention_s = static_cast<double>(retention_s);
  a.registry.patience.queue_s = static_cast<double>(queue_timeout_s);
  a.workers = workers;
  a.cors_origins = cors_origins;
  a.deepseek_status_codes = deepseek_status_codes;
  a.version = HADAL_VERSION;
  if (const auto policy = sync_policy()) a.journal_policy = policy->to_string();
  if (!quiet) a.log = [](const std::string& line) { remark(line); };
  return a;
}

server::HttpServerOptions ServeOptions::http() const {
  server::HttpServerOptions h;
  h.address = host;
  h.port = static_cast<std::uint16_t>(port);
  h.io_threads = io_threads;
  h.tls_certificate = tls_certificate;
  h.tls_key = tls_key;
  h.limits.body_bytes = max_body_bytes;
  h.limits.max_connections = static_cast<std::size_t>(max_connections);
  return h;
}

std::optional<journal::SyncPolicy> ServeOptions::sync_policy() const {
  if (data.empty() || journal == "off") return std::nullopt;
  const auto policy = journal::SyncPolicy::parse(journal);
  if (!policy) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("--journal {}: wanted off, none, interval:50ms or step", journal));
  }
  return policy;
}

}  // namespace hadal::cli
