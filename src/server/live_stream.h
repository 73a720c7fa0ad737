// One response while it is made, and afterwards as long as it is kept: its tokens, and whoever
// reads them.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/digest.h"
#include "engine/request.h"
#include "server/admission.h"
#include "server/generator.h"
#include "server/http.h"
#include "server/response_stream.h"
#include "server/task_queue.h"

namespace hadal::server {

using SteadyClock = std::chrono::steady_clock;

// Fixed when the request was accepted.
struct StreamInfo {
  std::string id;  // the client's, or ours
  std::shared_ptr<const ResponsePlan> plan;
  Sha256Digest request_sha256{};
  bool resumable = false;        // outlives its readers, and a restart
  bool recovered = false;        // begun by an earlier process
  bool same_fingerprint = true;  // ... that drew with what this one draws with
  std::string key_name, domain, request_id;
  std::uint64_t seed = 0;
  std::int64_t max_tokens = 0;  // of a choice
  // The engine's names of its parts: one a prompt.
  std::vector<std::string> parts;
  std::shared_ptr<Ticket> ticket;  // its place in the queue and in the limits of its key
  std::string body;                // of the request, where a later one may go on from it
};

// How a reader wants the response.
struct ReaderOptions {
  bool sse = true;                                   // else one body at the end
  std::optional<StreamPosition> after = {};          // events up to here are known
  std::optional<std::uint64_t> after_sequence = {};  // of the Responses API
  Headers headers = {};                              // beside those of the response itself
};

// What a stream tells its surroundings; all may be called on any thread, not under its locks.
struct StreamEvents {
  std::function<void(std::shared_ptr<class LiveStream>)> on_admitted;  // its prompts are through
  std::function<void(std::shared_ptr<class LiveStream>)> on_finished;  // once
  std::function<void(std::shared_ptr<class LiveStream>)> on_last_reader_left;
  std::function<void(std::size_t n, double seconds_between)> on_tokens;
  std::function<void(double)> on_first_token;  // seconds since arrival
};

struct StreamTimes {
  SteadyClock::time_point arrival = SteadyClock::now();
  std::optional<SteadyClock::time_point> prompted, first_token, last_token, finished;
};

// Results come in on the engine's (or the journal's) thread and are only appended to; a task writes
// them out to the readers.
class LiveStream : public std::enable_shared_from_this<LiveStream> {
 public:
  // All references must outlive the stream.
  LiveStream(StreamInfo info, Generator& generator, TaskQueue& tasks, const StreamEvents& events,
             std::size_t output_bytes);

  [[nodiscard]] const StreamInfo& info() const { return info_; }
  // Where the engine is to put what it makes of part `part`.
  [[nodiscard]] std::shared_ptr<engine::OutputSink> sink(std::size_t part);

  // What an earlier process drew; `top` by token, as far as they were asked for. Before anything
  // else.
  void restore(std::size_t part, std::vector<LoggedToken> tokens,
               std::vector<std::vector<engine::TopLogprob>> top,
               std::vector<std::optional<engine::Finish>> ends);

  void attach(std::shared_ptr<Exchange> exchange, ReaderOptions options);
  // Ends the generation. `failure`: what readers are told when the response has not begun.
  void cancel(std::optional<protocol::ApiError> failure = std::nullopt);
  // Keep-alives and patience with slow readers; called once a second.
  struct Patience {
    double keep_alive_s = 10, stall_s = 60, queue_s = 600;
  };
  void tick(const Patience& patience);

  struct Snapshot {
    bool finished = false, prompted = false, cancelled = false, suspended = false;
    std::int64_t n_tokens = 0, n_readers = 0, prefill_done = 0;
    engine::PromptStats prompt;  // sums over the prompts
    StreamTimes times;
    std::optional<SteadyClock::time_point> detached_since;
    std::vector<engine::Finish> ends;
  };
  [[nodiscard]] Snapshot snapshot() const;
  [[nodiscard]] std::vector<LoggedToken> tokens() const;  // in log order
  // The event with which a reader would begin, and how the whole would be read.
  [[nodiscard]] protocol::Usage prompt_usage() const;

 private:
  struct Part {
    std::vector<LoggedToken> tokens;
    std::vector<std::vector<engine::TopLogprob>> top;  // by token; empty when not asked for
    std::optional<engine::PromptStats> prompt;
    std::vector<std::optional<engine::Finish>> ends;  // by choice
    std::int64_t prefill_done = 0;
    [[nodiscard]] bool ended() const;
  };
  struct Reader {
    std::shared_ptr<Exchange> exchange;
    ReaderOptions options;
    ResponseStream stream;
    std::size_t part = 0, at = 0;
    bool begun = false, prompted = false, done = false, stalled = false;
    SteadyClock::time_point last_write = SteadyClock::now();
    SteadyClock::time_point stalled_since{};
  };
  class Sink;

  void on_prompt(std::size_t part, const engine::PromptStats& stats);
  void on_tokens(std::size_t part, const std::vector<engine::TokenEvent>& tokens);
  void on_finish(std::size_t part, const engine::Finish& finish);
  void on_progress(std::size_t part, std::int64_t done);
  void schedule_pump();
  void pump();
  void pump(Reader& reader);
  void begin(Reader& reader);
  void write(Reader& reader, const ResponseStream::Events& events);
  void end(Reader& reader);
  void reader_left(const Exchange* exchange);
  void say_goodbye(Reader& reader);
  void apply_backpressure();
  [[nodiscard]] Headers response_headers(const Reader& reader) const;
  [[nodiscard]] bool all_ended() const;     // under log_mutex_
  [[nodiscard]] bool all_prompted() const;  // under log_mutex_
  [[nodiscard]] std::vector<engine::Finish> ends() const;

  const StreamInfo info_;
  Generator& generator_;
  TaskQueue& tasks_;
  const StreamEvents& events_;
  const std::size_t output_bytes_;

  mutable std::mutex log_mutex_;  // what has come from the engine
  std::vector<Part> parts_;
  StreamTimes times_;
  bool finished_ = false, cancelled_ = false, admitted_ = false;
  std::optional<protocol::ApiError> failure_;
  std::optional<SteadyClock::time_point> detached_since_;

  mutable std::mutex pump_mutex_;  // the readers; taken before log_mutex_
  std::vector<std::unique_ptr<Reader>> readers_;
  std::atomic<bool> suspended_{false};
  bool preempted_ = false;
  std::atomic<bool> pump_scheduled_{false};
  std::atomic<std::int64_t> n_readers_{0};
};

}  // namespace hadal::server
