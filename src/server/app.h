// The server without its sockets: requests in, responses out.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "journal/writer.h"
#include "protocol/answer_memory.h"
#include "protocol/api.h"
#include "server/admission.h"
#include "server/auth.h"
#include "server/generation.h"
#include "server/http.h"
#include "server/server_metrics.h"
#include "server/stream_registry.h"
#include "server/task_queue.h"

namespace hadal::server {

struct AppOptions {
  GenerationSettings generation = {};
  AdmissionOptions admission = {};
  RegistryOptions registry = {};
  std::size_t output_bytes = std::size_t{1} << 20;  // as HttpLimits::output_bytes
  int workers = 1;
  std::vector<std::string> cors_origins = {};  // "*" for any
  bool deepseek_status_codes = false;          // 422 for a parameter that is wrong
  std::string model_name = {};                 // of the metrics
  std::string version = {};
  MetricLabels cache_info = {};
  std::string journal_policy = {};
  std::function<void(const std::string&)> log = {};  // a line about a request, for people
};

// What there is once a model is loaded. All but the model must outlive the App.
struct Backend {
  ServedModel model;
  Generator* generator = nullptr;
  journal::Writer* journal = nullptr;                 // may be null
  protocol::AnswerMemory* memory = nullptr;           // may be null
  grammar::GrammarCache* grammars = nullptr;          // null: answers are free
  std::int64_t max_running = 0, max_step_tokens = 0;  // for the status page
};

// One request on its way through.
struct Call {
  std::shared_ptr<Exchange> exchange;
  protocol::Api api = protocol::Api::chat_completions;  // whose shape errors have
  std::string request_id;
  ApiKey* key = nullptr;
  std::string id;  // what the path has in place of {id}

  [[nodiscard]] const HttpRequest& request() const { return exchange->request(); }
};

class App {
 public:
  // `keys` must outlive the App.
  App(AppOptions options, const KeyRing& keys);
  ~App();
  // Ends the workers: afterwards nothing here calls the generator or answers anybody. The engine
  // and the journal hold streams of this App: end them after this, and before the App.
  void stop();

  // Until then every request for the model is answered 503. Takes up what an earlier process left
  // unfinished in the journal, by the names there: resumable streams go on from where they stood,
  // those that another model began end with an error, and the others are closed as cancelled.
  // Returns how many go on.
  std::size_t start(Backend backend, std::span<const std::string> unfinished = {});

  // For HttpServer.
  void handle(const std::shared_ptr<Exchange>& exchange);
  [[nodiscard]] std::optional<HttpResponse> check_headers(const HttpRequest& request) const;
  [[nodiscard]] HttpResponse refusal(int status, const std::string& message,
                                     const std::string& path) const;
  void tick();  // once a second

  // No new generations; /ready says 503.
  void drain();
  // Waits until nothing is unfinished, at most so long; then cancels what cannot be resumed and
  // leaves the rest to the journal. True when everything finished by itself.
  bool wait_drained(std::chrono::milliseconds patience);

  [[nodiscard]] ServerMetrics& metrics() { return metrics_; }
  [[nodiscard]] std::size_t n_unfinished() const { return registry_.n_unfinished(); }

 private:
  friend struct RouteTable;
  using Method = void (App::*)(Call&);

  // app.cpp
  void dispatch(Call& call, Method method);
  void fail(Call& call, const protocol::ApiError& error, Headers headers = {});
  void respond(Call& call, int status, std::string body,
               std::string content_type = "application/json", Headers headers = {});
  [[nodiscard]] Headers common_headers(const Call& call) const;
  [[nodiscard]] Backend& backend();  // throws overloaded while there is none
  [[nodiscard]] bool loaded() const { return loaded_.load(std::memory_order_acquire); }

  // app_generate.cpp
  void chat_completions(Call& call);
  void completions(Call& call);
  void responses(Call& call);
  void messages(Call& call);
  void generate(Call& call);
  [[nodiscard]] protocol::ApiRequest parse(Call& call, protocol::Json& body);
  [[nodiscard]] std::shared_ptr<LiveStream> make_stream(StreamInfo info);
  void open_journal(const StreamInfo& info, const std::vector<PreparedPart>& parts,
                    std::int64_t created, const std::string& body, const ApiKey& key);
  void submit(const std::shared_ptr<LiveStream>& stream, std::vector<PreparedPart> parts);
  void finished(const std::shared_ptr<LiveStream>& stream);
  void remember_answers(const LiveStream& stream);
  void observe(const LiveStream& stream);
  void attach(Call& call, const std::shared_ptr<LiveStream>& stream, ReaderOptions options);
  void begin_background(Call& call, const LiveStream& stream);

  // app_streams.cpp
  void get_stream(Call& call);
  void delete_stream(Call& call);
  void get_response(Call& call);
  void cancel_response(Call& call);
  [[nodiscard]] std::shared_ptr<LiveStream> find_stream(const Call& call, const std::string& id);
  [[nodiscard]] std::shared_ptr<LiveStream> find_response(const Call& call);
  std::size_t recover(std::span<const std::string> unfinished);
  struct Rebuilt {
    std::shared_ptr<LiveStream> stream;
    std::vector<PreparedPart> parts;  // with what was drawn
  };
  [[nodiscard]] std::optional<Rebuilt> rebuild(const std::string& id,
                                               const std::string* key_name = nullptr);
  [[nodiscard]] std::string other_model(const journal::StreamInfo& known) const;
  [[nodiscard]] std::string response_json(const LiveStream& stream) const;

  // app_models.cpp
  void list_models(Call& call);
  void get_model(Call& call);
  void tokenize(Call& call);
  void detokenize(Call& call);
  void render_chat(Call& call);
  void count_tokens(Call& call);
  [[nodiscard]] std::string model_json(const std::string& id) const;

  // app_status.cpp
  void health(Call& call);
  void ready(Call& call);
  void version(Call& call);
  void metrics_text(Call& call);
  void status_json(Call& call);
  void web_file(Call& call);

  const AppOptions options_;
  GenerationSettings generation_;
  const KeyRing& keys_;
  ServerMetrics metrics_;
  Admission admission_;
  StreamRegistry registry_;
  StreamEvents events_;
  TaskQueue tasks_;     // requests
  TaskQueue pumps_{1};  // events out: no long prompt is in their way
  std::optional<Backend> backend_;
  std::atomic<bool> loaded_{false}, draining_{false};
  const std::int64_t started_;
  const SteadyClock::time_point started_at_ = SteadyClock::now();

  // Sums at the last ticks, for rates over a few seconds.
  struct Sample {
    SteadyClock::time_point at;
    std::uint64_t generated, prompt;
  };
  mutable std::mutex samples_mutex_;
  std::vector<Sample> samples_;
};

// Random letters and digits.
[[nodiscard]] std::string random_base62(std::size_t n);

}  // namespace hadal::server
