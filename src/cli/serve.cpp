// hadal serve: everything put together, until a signal takes it apart.
#include <fmt/format.h>

#include <csignal>
#include <ctime>

#include "cache/disk_store.h"
#include "cli/generation.h"
#include "cli/serve_options.h"
#include "cli/subcommands.h"
#include "core/error.h"
#include "engine/journal_log.h"
#include "grammar/grammar_cache.h"
#include "journal/recovery.h"
#include "server/generator.h"

namespace hadal::cli {

namespace {

// SIGINT and SIGTERM are waited for by one thread; blocked before any other begins.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set_, &before_);
  }
  ~Signals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  [[nodiscard]] int wait() const {
    int signal = 0;
    while (sigwait(&set_, &signal) != 0) {
    }
    return signal;
  }
  // A second one, from somebody who does not want to wait, ends the process as it is: what matters
  // is in the journal.
  void let_the_next_one_kill() const {
    ::signal(SIGINT, SIG_DFL);
    ::signal(SIGTERM, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &set_, nullptr);
  }

 private:
  sigset_t set_{}, before_{};
};

void add_keys(const ServeOptions& options, server::KeyRing& keys) {
  for (std::size_t i = 0; i < options.api_keys.size(); ++i) {
    if (options.api_keys[i].empty()) {
      throw Error(ErrorCode::invalid_argument, "--api-key is empty; anybody could guess it");
    }
    keys.add(fmt::format("key-{}", i + 1), options.api_keys[i], {.max_priority = 100});
  }
  if (!options.api_key_file.empty()) keys.add_file(options.api_key_file);
  if (keys.empty() && !options.allow_anonymous && !server::is_loopback(options.host)) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("--host {} can be reached from other machines and there is no key: "
                            "give --api-key or --api-key-file, or say --allow-anonymous if "
                            "everybody who gets there may use the model",
                            options.host));
  }
}

// What is lost, and when, in a sentence.
std::string journal_sentence(const ServeOptions& options) {
  const auto policy = options.sync_policy();
  if (!policy) {
    return fmt::format("no journal ({}): a restart ends all requests",
                       options.data.empty() ? "--data is not given" : "--journal off");
  }
  using Kind = journal::SyncPolicy::Kind;
  const char* promise =
      policy->kind == Kind::step   ? "no token is shown before it is on stable storage"
      : policy->kind == Kind::none ? "a crash of the process takes back nothing that was shown; a "
                                     "power cut may"
                                   : "a crash of the process takes back nothing that was shown; a "
                                     "power cut at most the last moment";
  return fmt::format("journal in {}, sync {}: {}", (options.data / "journal").string(),
                     policy->to_string(), promise);
}

std::string served_name(const ServeOptions& options) {
  if (!options.served_name.empty()) return options.served_name;
  const Path directory =
      std::filesystem::absolute(options.model.resolved_directory()).lexically_normal();
  return (directory.has_filename() ? directory : directory.parent_path()).filename().string();
}

// All parts of a running server. They hold each other: taken apart in the order of shut_down(),
// whichever way it ends.
class Process {
 public:
  explicit Process(const ServeOptions& options) : options_(options) {
    add_keys(options, keys_);
    server::AppOptions app = options.app();
    app.model_name = served_name(options);
    app_ = std::make_unique<server::App>(std::move(app), keys_);
    server::HttpServerOptions http = options.http();
    http.check_headers = [this](const server::HttpRequest& r) { return app_->check_headers(r); };
    http.refusal = [this](int status, const std::string& message, const std::string& path) {
      return app_->refusal(status, message, path);
    };
    http_ = std::make_unique<server::HttpServer>(
        std::move(http), [this](const std::shared_ptr<server::Exchange>& e) { app_->handle(e); });
  }
  ~Process() { shut_down(); }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  [[nodiscard]] std::string url() const {
    const bool is_ipv6 = options_.host.find(':') != std::string::npos;
    return fmt::format("{}://{}{}{}:{}", options_.tls_certificate.empty() ? "http" : "https",
                       is_ipv6 ? "[" : "", options_.host, is_ipv6 ? "]" : "", http_->port());
  }

  void load() {
    runtime_ = options_.model.runtime();
    loaded_ = options_.model.load(runtime_.get());
    model_ =
        server::served_model(*loaded_, {.id = served_name(options_),
                                        .aliases = options_.aliases,
                                        .profile = protocol::chat_profile_from(options_.profile),
                                        .max_output_tokens = options_.max_output,
                                        .max_context = options_.max_context,
                                        .numerics = options_.model.numerics,
                                        .version = HADAL_VERSION,
                                        .created = std::time(nullptr),
                                        .defaults = GenerationOptions{}.sampling(*loaded_)});
    if (!options_.free_answers) {
      grammars_ = std::make_unique<grammar::GrammarCache>(model_->tokenizer);
    }
    FileSystem& fs = FileSystem::real();
    if (!options_.data.empty()) fs.create_directories(options_.data);
    open_journal(fs);
    memory_ = std::make_unique<protocol::AnswerMemory>(protocol::AnswerMemoryOptions{
        .file = options_.data.empty() ? Path() : options_.data / "answers.log",
        .fingerprint = model_->fingerprint_text});
    const engine::EngineOptions engine = options_.engine();
    open_disk(fs, engine);
    engine_ =
        std::make_unique<engine::Engine>(*runtime_, *loaded_, engine, log_.get(), disk_.get());
    engine_->on_step(
        [this](const engine::StepReport& report) { app_->metrics().count_step(report); });
    generator_ = std::make_unique<server::EngineGenerator>(*engine_);
    n_resumed_ = app_->start({.model = *model_,
                              .generator = generator_.get(),
                              .journal = writer_.get(),
                              .memory = memory_.get(),
                              .grammars = grammars_.get(),
                              .max_running = engine.max_running,
                              .max_step_tokens = engine.max_step_tokens},
                             unfinished_);
    http_->every(std::chrono::seconds(1), [this] {
      app_->tick();
      app_->metrics().connections.set(static_cast<double>(http_->n_connections()));
      if (disk_) {
        const auto disk = disk_->statistics();
        app_->metrics().kv_disk_bytes.set(static_cast<double>(disk.bytes));
        app_->metrics().kv_disk_hits.set(disk.snapshot_hits);
      }
    });
  }

  void describe() const {
    const engine::EngineStatus status = engine_->status();
    const auto mib = [](std::size_t n) { return static_cast<double>(n) / (1 << 20); };
    remark(fmt::format("serving {} at {}: context {} tokens, {} numerics", model_->id, url(),
                       model_->context_length, options_.model.numerics));
    remark(fmt::format("histories may take {:.0f} MiB ({} pages), up to {} sequences run at once",
                       mib(options_.kv_bytes), status.pages_total, options_.max_running));
    remark(journal_sentence(options_));
    if (disk_) {
      remark(fmt::format("KV cache in {}: at most {:.0f} MiB, windows {}",
                         (options_.data / "kv").string(), mib(options_.kv_disk_bytes),
                         options_.kv_windows));
    }
    if (n_resumed_ > 0) {
      remark(fmt::format("{} unfinished {} of the last run {}", n_resumed_,
                         n_resumed_ == 1 ? "stream" : "streams",
                         n_resumed_ == 1 ? "goes on" : "go on"));
    }
    if (keys_.empty()) remark("no API key is set: whoever reaches this address may use it");
    remark(fmt::format("chat in a browser: {}/   state: {}/status   stop: Ctrl-C", url(), url()));
  }

  void drain() {
    app_->drain();
    const std::size_t n = app_->n_unfinished();
    if (n > 0) {
      remark(fmt::format("stopping: {} {} {} s to finish; press Ctrl-C again to stop now", n,
                         n == 1 ? "request has" : "requests have", options_.drain_s));
    }
    const bool all = app_->wait_drained(std::chrono::seconds(options_.drain_s));
    http_->stop_accepting();
    if (!all)
      remark("stopped before all requests were finished; resumable ones are in the journal");
  }

 private:
  void open_journal(FileSystem& fs) {
    const auto policy = options_.sync_policy();
    if (!policy) return;
    const Path directory = options_.data / "journal";
    journal::Recovery recovery =
        journal::recover(fs, directory, {.repair = options_.journal_repair});
    if (recovery.torn_bytes > 0) {
      remark(fmt::format("the journal's last write was cut off: {} bytes dropped ({})",
                         recovery.torn_bytes, recovery.torn_reason));
    }
    for (const std::string& note : recovery.notes) remark(note);
    for (const journal::Stream* stream : recovery.unfinished()) {
      if (stream->fault.empty() && !stream->cancelled) unfinished_.push_back(stream->open.name);
    }
    server::ServerMetrics& metrics = app_->metrics();
    writer_ = std::make_unique<journal::Writer>(
        fs, directory,
        journal::WriterOptions{.sync = *policy,
                               .retention = std::chrono::seconds(options_.retention_s),
                               .on_append = [&metrics](double s) { metrics.wal_append.observe(s); },
                               .on_sync = [&metrics](double s) { metrics.wal_fsync.observe(s); },
                               .unix_seconds = {}},
        recovery);
    log_ = std::make_unique<engine::JournalLog>(*writer_);
  }

  void open_disk(FileSystem& fs, const engine::EngineOptions& engine) {
    if (options_.data.empty() || options_.kv_windows == "off" || !engine.prefix_cache) return;
    const bool drafts = engine.draft_tokens > 0 && loaded_->model.n_mtp() > 0;
    const cache::KvLayout layout(loaded_->config, engine.numerics, engine.page_tokens,
                                 drafts ? engine.draft_tokens + 1 : 0);
    disk_ = std::make_unique<cache::DiskStore>(
        fs, options_.data / "kv", layout,
        cache::DiskStoreOptions{.fingerprint = model_->fingerprint_text,
                                .budget_bytes = options_.kv_disk_bytes,
                                .strategy = cache::parse_window_strategy(options_.kv_windows)});
  }

  void shut_down() {
    if (http_) http_->stop();
    if (app_) app_->stop();
    engine_.reset();  // writes to the log and the disk until here
    generator_.reset();
    if (writer_) (void)writer_->flush();
    log_.reset();
    writer_.reset();
    disk_.reset();
    app_.reset();  // its streams hold connections of the HTTP server
    http_.reset();
  }

  const ServeOptions& options_;
  server::KeyRing keys_;
  std::unique_ptr<engine::Runtime> runtime_;
  std::unique_ptr<engine::LoadedModel> loaded_;
  std::optional<server::ServedModel> model_;
  std::unique_ptr<grammar::GrammarCache> grammars_;
  std::unique_ptr<protocol::AnswerMemory> memory_;
  std::unique_ptr<journal::Writer> writer_;
  std::unique_ptr<engine::JournalLog> log_;
  std::unique_ptr<cache::DiskStore> disk_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<server::EngineGenerator> generator_;
  std::unique_ptr<server::App> app_;
  std::unique_ptr<server::HttpServer> http_;
  std::vector<std::string> unfinished_;
  std::size_t n_resumed_ = 0;
};

int run(const ServeOptions& options) {
  const Signals signals;
  Process process(options);
  remark(fmt::format("listening on {}; loading {}", process.url(),
                     options.model.resolved_directory().string()));
  process.load();
  process.describe();
  (void)signals.wait();
  signals.let_the_next_one_kill();
  process.drain();
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<ServeOptions>();
  add_serve_options(app, *options);
  return [options] { return run(*options); };
}

}  // namespace

const Subcommand kServe{
    "serve", "Serve the OpenAI and Anthropic APIs, and a web page",
    "  hadal serve\n"
    "  hadal serve --data /var/lib/hadal --journal step --api-key sk-secret --host 0.0.0.0\n"
    "  hadal serve --model DeepSeek-V4-Flash --kv-bytes 64GiB --api-key-file keys.json \\\n"
    "    --tls-cert cert.pem --tls-key key.pem --port 443 --host 0.0.0.0\n"
    "  hadal serve --print-config > serve.toml; hadal --options serve.toml serve\n"
    "\n"
    "  curl http://127.0.0.1:8000/v1/chat/completions -d '{\"model\": \"hadal-bootstrap\",\n"
    "    \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}], \"stream\": true}'\n"
    "\n"
    "OpenAI's clients want base_url http://127.0.0.1:8000/v1, Anthropic's http://127.0.0.1:8000.\n"
    "Ctrl-C or SIGTERM stops: /ready answers 503 at once, running requests get --drain seconds.\n"
    "More: docs/serving/README.md",
    add};

}  // namespace hadal::cli
