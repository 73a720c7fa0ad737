#include "server/live_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace hadal::server {

namespace {

constexpr std::size_t kTokensPerWrite = 64;

double seconds(SteadyClock::duration d) {
  return std::chrono::duration<double>(d).count();
}

std::string sse_text(const std::string& stream, const PositionedEvent& event) {
  std::string text = "id: " + stream + ":" + event.position.to_string() + "\n";
  if (!event.sse.event.empty()) text += "event: " + event.sse.event + "\n";
  return text + "data: " + event.sse.data + "\n\n";
}

}  // namespace

class LiveStream::Sink final : public engine::OutputSink {
 public:
  Sink(std::shared_ptr<LiveStream> stream, std::size_t part)
      : stream_(std::move(stream)), part_(part) {}
  void on_prompt(const engine::PromptStats& stats) override { stream_->on_prompt(part_, stats); }
  void on_tokens(const std::vector<engine::TokenEvent>& tokens) override {
    stream_->on_tokens(part_, tokens);
  }
  void on_finish(const engine::Finish& finish) override { stream_->on_finish(part_, finish); }
  void on_progress(std::int64_t done, std::int64_t /*total*/) override {
    stream_->on_progress(part_, done);
  }

 private:
  const std::shared_ptr<LiveStream> stream_;
  const std::size_t part_;
};

bool LiveStream::Part::ended() const {
  return std::ranges::all_of(ends, [](const auto& end) { return end.has_value(); });
}

LiveStream::LiveStream(StreamInfo info, Generator& generator, TaskQueue& tasks,
                       const StreamEvents& events, std::size_t output_bytes)
    : info_(std::move(info)),
      generator_(generator),
      tasks_(tasks),
      events_(events),
      output_bytes_(output_bytes),
      parts_(info_.parts.size()) {
  const auto n = static_cast<std::size_t>(info_.plan->request.n);
  for (Part& part : parts_) part.ends.resize(n);
}

std::shared_ptr<engine::OutputSink> LiveStream::sink(std::size_t part) {
  return std::make_shared<Sink>(shared_from_this(), part);
}

void LiveStream::restore(std::size_t part, std::vector<LoggedToken> tokens,
                         std::vector<std::vector<engine::TopLogprob>> top,
                         std::vector<std::optional<engine::Finish>> ends) {
  const std::lock_guard lock(log_mutex_);
  Part& p = parts_.at(part);
  p.tokens = std::move(tokens);
  if (info_.plan->request.top_logprobs > 0) {
    top.resize(p.tokens.size());
    p.top = std::move(top);
  }
  ends.resize(p.ends.size());
  p.ends = std::move(ends);
  if (p.ended()) {
    const auto n = static_cast<std::int64_t>(info_.plan->prompts.at(part).size());
    p.prompt = engine::PromptStats{.prompt_tokens = n};
  }
  finished_ = all_ended();
  if (finished_) times_.finished = SteadyClock::now();
  detached_since_ = SteadyClock::now();
}

bool LiveStream::all_ended() const {
  return std::ranges::all_of(parts_, [](const Part& part) { return part.ended(); });
}

bool LiveStream::all_prompted() const {
  return std::ranges::all_of(parts_, [](const Part& part) { return part.prompt.has_value(); });
}

// What the engine says. None of this waits for a reader.

void LiveStream::on_prompt(std::size_t part, const engine::PromptStats& stats) {
  bool admitted = false;
  {
    const std::lock_guard lock(log_mutex_);
    Part& p = parts_.at(part);
    if (!p.prompt) p.prompt = stats;
    p.prefill_done = stats.prompt_tokens;
    if (all_prompted()) {
      if (!times_.prompted) times_.prompted = SteadyClock::now();
      admitted = !std::exchange(admitted_, true);
    }
  }
  if (admitted && events_.on_admitted) events_.on_admitted(shared_from_this());
  schedule_pump();
}

void LiveStream::on_progress(std::size_t part, std::int64_t done) {
  const std::lock_guard lock(log_mutex_);
  parts_.at(part).prefill_done = done;
}

void LiveStream::on_tokens(std::size_t part, const std::vector<engine::TokenEvent>& tokens) {
  if (tokens.empty()) return;
  const SteadyClock::time_point now = SteadyClock::now();
  double since_arrival = -1, between = 0;
  {
    const std::lock_guard lock(log_mutex_);
    Part& p = parts_.at(part);
    const auto first = static_cast<std::int32_t>(part) * info_.plan->request.n;
    for (const engine::TokenEvent& event : tokens) {
      p.tokens.push_back({event.token, first + event.choice, event.logprob, event.is_stop_token});
      if (info_.plan->request.top_logprobs > 0) p.top.push_back(event.top);
    }
    if (!times_.first_token) {
      times_.first_token = now;
      since_arrival = seconds(now - times_.arrival);
    } else {
      between = seconds(now - *times_.last_token);
    }
    times_.last_token = now;
  }
  if (since_arrival >= 0 && events_.on_first_token) events_.on_first_token(since_arrival);
  if (events_.on_tokens) events_.on_tokens(tokens.size(), since_arrival >= 0 ? -1 : between);
  schedule_pump();
}

void LiveStream::on_finish(std::size_t part, const engine::Finish& finish) {
  bool finished = false, admitted = false;
  {
    const std::lock_guard lock(log_mutex_);
    parts_.at(part).ends.at(static_cast<std::size_t>(finish.choice)) = finish;
    if (!finished_ && all_ended()) {
      finished_ = finished = true;
      times_.finished = SteadyClock::now();
      admitted = !std::exchange(admitted_, true);
    }
  }
  // A request that ends without ever having run leaves the queue, too.
  if (admitted && events_.on_admitted) events_.on_admitted(shared_from_this());
  if (finished && events_.on_finished) events_.on_finished(shared_from_this());
  schedule_pump();
}

// What readers get.

void LiveStream::attach(std::shared_ptr<Exchange> exchange, ReaderOptions options) {
  const bool sse = options.sse;
  auto reader = std::make_unique<Reader>(Reader{.exchange = exchange,
                                                .options = std::move(options),
                                                .stream = ResponseStream(info_.plan, sse)});
  {
    const std::lock_guard lock(pump_mutex_);
    readers_.push_back(std::move(reader));
    n_readers_ = static_cast<std::int64_t>(readers_.size());
  }
  {
    const std::lock_guard lock(log_mutex_);
    detached_since_.reset();
  }
  const std::weak_ptr<LiveStream> weak = weak_from_this();
  exchange->on_drain([weak] {
    if (const auto self = weak.lock()) self->schedule_pump();
  });
  exchange->on_close([weak, raw = exchange.get()] {
    if (const auto self = weak.lock()) self->reader_left(raw);
  });
  schedule_pump();
}

void LiveStream::reader_left(const Exchange* exchange) {
  tasks_.post([self = shared_from_this(), exchange] {
    bool last = false;
    {
      const std::lock_guard lock(self->pump_mutex_);
      const std::size_t n = std::erase_if(self->readers_, [&](const auto& reader) {
        if (reader->exchange.get() != exchange) return false;
        self->say_goodbye(*reader);
        return true;
      });
      if (n == 0) return;
      self->n_readers_ = static_cast<std::int64_t>(self->readers_.size());
      last = self->readers_.empty();
    }
    if (last) {
      {
        const std::lock_guard lock(self->log_mutex_);
        self->detached_since_ = SteadyClock::now();
      }
      if (self->events_.on_last_reader_left) self->events_.on_last_reader_left(self);
    }
    self->pump();
  });
}

// A client that only half-closed its connection can read why it gets no more.
void LiveStream::say_goodbye(Reader& reader) {
  if (reader.begun || reader.done) return;
  constexpr int kClientClosedRequest = 499;  // nginx's
  const protocol::ApiError error{
      .status = kClientClosedRequest,
      .message =
          "the client closed its side of the connection, which ends a request; keep it open "
          "until the response is there, or name a stream_id to come back to"};
  Headers headers = reader.options.headers;
  headers.emplace_back("Content-Type", "application/json");
  reader.exchange->respond({.status = kClientClosedRequest,
                            .headers = std::move(headers),
                            .body = error_body(info_.plan->request.api, error, info_.request_id)});
}

void LiveStream::schedule_pump() {
  if (pump_scheduled_.exchange(true)) return;
  tasks_.post([self = shared_from_this()] { self->pump(); });
}

void LiveStream::pump() {
  const std::lock_guard lock(pump_mutex_);
  pump_scheduled_ = false;
  for (const auto& reader : readers_) pump(*reader);
  const std::size_t gone = std::erase_if(readers_, [](const auto& reader) { return reader->done; });
  n_readers_ = static_cast<std::int64_t>(readers_.size());
  if (gone > 0 && readers_.empty()) {
    const std::lock_guard log_lock(log_mutex_);
    detached_since_ = SteadyClock::now();
  }
  apply_backpressure();
}

Headers LiveStream::response_headers(const Reader& reader) const {
  Headers headers = reader.options.headers;
  headers.emplace_back("X-Stream-Id", info_.id);
  headers.emplace_back("X-Seed", std::to_string(info_.seed));
  if (reader.options.sse) {
    headers.emplace_back("Content-Type", "text/event-stream; charset=utf-8");
    headers.emplace_back("Cache-Control", "no-cache");
    headers.emplace_back("X-Accel-Buffering", "no");
  } else {
    headers.emplace_back("Content-Type", "application/json");
  }
  const std::lock_guard lock(log_mutex_);
  if (all_prompted()) {
    std::int64_t cached = 0;
    double queued = 0;
    for (const Part& part : parts_) {
      cached += part.prompt->cached_tokens;
      queued = std::max(queued, part.prompt->queue_seconds);
    }
    headers.emplace_back("X-Cached-Tokens", std::to_string(cached));
    headers.emplace_back("X-Queue-Ms", std::to_string(static_cast<std::int64_t>(queued * 1000)));
  }
  return headers;
}

void LiveStream::begin(Reader& reader) {
  if (std::exchange(reader.begun, true)) return;
  reader.exchange->begin(200, response_headers(reader));
  reader.last_write = SteadyClock::now();
}

void LiveStream::write(Reader& reader, const ResponseStream::Events& events) {
  if (!reader.options.sse) return;
  std::string text;
  for (const PositionedEvent& event : events) {
    if (reader.options.after && event.position <= *reader.options.after) continue;
    if (reader.options.after_sequence && event.sequence <= *reader.options.after_sequence) continue;
    text += sse_text(info_.id, event);
  }
  if (text.empty()) return;
  begin(reader);
  reader.exchange->write(text);
  reader.last_write = SteadyClock::now();
}

void LiveStream::pump(Reader& reader) {
  if (reader.done || reader.exchange->closed()) return;
  for (;;) {
    // Less of it at once than the limit: one write must not jump far over it.
    const bool full = reader.options.sse && reader.exchange->buffered() >= output_bytes_;
    if (full != reader.stalled) {
      reader.stalled = full;
      reader.stalled_since = SteadyClock::now();
    }
    if (full) return;
    std::vector<LoggedToken> tokens;
    std::vector<std::vector<engine::TopLogprob>> top;
    bool prompted = false, ended = false, last_part = false;
    std::optional<protocol::ApiError> failure;
    {
      const std::lock_guard lock(log_mutex_);
      prompted = all_prompted();
      ended = finished_;
      failure = failure_;
      if (prompted || ended) {
        const Part& part = parts_[reader.part];
        const std::size_t n = std::min(part.tokens.size() - reader.at, kTokensPerWrite);
        const auto from = static_cast<std::ptrdiff_t>(reader.at);
        const auto to = static_cast<std::ptrdiff_t>(reader.at + n);
        tokens.assign(part.tokens.begin() + from, part.tokens.begin() + to);
        if (!part.top.empty()) top.assign(part.top.begin() + from, part.top.begin() + to);
        reader.at += n;
        last_part = reader.part + 1 == parts_.size();
        if (n == 0 && part.ended() && !last_part) {
          ++reader.part;
          reader.at = 0;
          continue;
        }
      }
    }
    if (!prompted && !ended) return;
    if (ended && failure && tokens.empty() && !reader.prompted) {
      end(reader);  // it never began
      return;
    }
    ResponseStream::Events events;
    if (!std::exchange(reader.prompted, true)) reader.stream.begin(prompt_usage(), events);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      reader.stream.token(tokens[i], i < top.size() ? &top[i] : nullptr, events);
    }
    write(reader, events);
    if (reader.options.sse) begin(reader);
    if (!tokens.empty()) continue;
    if (ended && last_part) end(reader);
    return;
  }
}

void LiveStream::end(Reader& reader) {
  reader.done = true;
  std::optional<protocol::ApiError> failure;
  {
    const std::lock_guard lock(log_mutex_);
    failure = failure_;
  }
  const protocol::Api api = info_.plan->request.api;
  const std::vector<engine::Finish> finishes = ends();
  std::optional<std::string> error;
  for (const engine::Finish& finish : finishes) {
    if (finish.reason == engine::FinishReason::error) error = finish.error;
  }
  if (failure && !reader.begun) {
    Headers headers = reader.options.headers;
    headers.emplace_back("Content-Type", "application/json");
    if (failure->status == 503 || failure->status == 429) headers.emplace_back("Retry-After", "5");
    reader.exchange->respond({.status = error_status(api, *failure),
                              .headers = std::move(headers),
                              .body = error_body(api, *failure, info_.request_id)});
    return;
  }
  if (failure && reader.options.sse) {
    const protocol::SseEvent event = stream_error(api, *failure, info_.request_id);
    std::string text;
    if (!event.event.empty()) text = "event: " + event.event + "\n";
    reader.exchange->write(text + "data: " + event.data + "\n\n");
    reader.exchange->end();
    return;
  }
  if (failure) {
    // Its headers went out with a keep-alive: all that is left is the body.
    reader.exchange->write(error_body(api, *failure, info_.request_id));
    reader.exchange->end();
    return;
  }
  ResponseStream::Events events;
  if (!std::exchange(reader.prompted, true)) reader.stream.begin(prompt_usage(), events);
  reader.stream.finish(finishes, events);
  if (reader.options.sse) {
    write(reader, events);
    begin(reader);  // even when all of it was known
    reader.exchange->end();
  } else if (reader.begun) {
    reader.exchange->write(reader.stream.body());
    reader.exchange->end();
  } else {
    reader.exchange->respond({.status = error ? 500 : 200,
                              .headers = response_headers(reader),
                              .body = reader.stream.body()});
  }
}

// When every reader is slow, the generation waits for them.
void LiveStream::apply_backpressure() {
  const bool all_stalled =
      !readers_.empty() && std::ranges::all_of(readers_, [](const auto& r) { return r->stalled; });
  bool finished = false;
  {
    const std::lock_guard lock(log_mutex_);
    finished = finished_;
  }
  if (finished || all_stalled == suspended_) return;
  suspended_ = all_stalled;
  preempted_ = false;
  for (const std::string& part : info_.parts) generator_.suspend(part, suspended_);
}

void LiveStream::tick(const Patience& patience) {
  const SteadyClock::time_point now = SteadyClock::now();
  bool waiting_too_long = false;
  {
    const std::lock_guard lock(log_mutex_);
    waiting_too_long = !finished_ && !cancelled_ && !admitted_ && !info_.recovered &&
                       seconds(now - times_.arrival) > patience.queue_s;
  }
  if (waiting_too_long) {
    return cancel(protocol::ApiError{
        .status = 408,
        .type = "timeout_error",
        .message = fmt::format("the request waited {:.0f} s without being started; the server has "
                               "more work than it can do, try again later",
                               patience.queue_s)});
  }
  const std::lock_guard lock(pump_mutex_);
  bool all_stalled_long = !readers_.empty();
  for (const auto& reader : readers_) {
    if (reader->done) continue;
    all_stalled_long = all_stalled_long && reader->stalled &&
                       seconds(now - reader->stalled_since) > patience.stall_s;
    if (seconds(now - reader->last_write) < patience.keep_alive_s || reader->stalled) continue;
    // Proxies and clients take silence for a dead connection.
    begin(*reader);
    const bool pings = info_.plan->request.api == protocol::Api::messages && reader->prompted;
    reader->exchange->write(!reader->options.sse ? "\n"
                            : pings              ? "event: ping\ndata: {\"type\": \"ping\"}\n\n"
                                                 : ": keep-alive\n\n");
    reader->last_write = now;
  }
  if (all_stalled_long && suspended_ && !std::exchange(preempted_, true)) {
    for (const std::string& part : info_.parts) generator_.preempt(part);
  }
}

void LiveStream::cancel(std::optional<protocol::ApiError> failure) {
  {
    const std::lock_guard lock(log_mutex_);
    if (finished_ || std::exchange(cancelled_, true)) return;
    failure_ = std::move(failure);
  }
  for (const std::string& part : info_.parts) generator_.cancel(part);
}

std::vector<engine::Finish> LiveStream::ends() const {
  const std::lock_guard lock(log_mutex_);
  std::vector<engine::Finish> out;
  for (const Part& part : parts_) {
    for (const auto& end : part.ends) out.push_back(end.value_or(engine::Finish{}));
  }
  return out;
}

protocol::Usage LiveStream::prompt_usage() const {
  const std::lock_guard lock(log_mutex_);
  protocol::Usage usage;
  for (const Part& part : parts_) {
    if (!part.prompt) continue;
    usage.prompt_tokens += part.prompt->prompt_tokens;
    usage.cached_tokens += part.prompt->cached_tokens;
    usage.cache_write_tokens += part.prompt->written_tokens;
  }
  return usage;
}

LiveStream::Snapshot LiveStream::snapshot() const {
  const std::lock_guard lock(log_mutex_);
  Snapshot out;
  out.finished = finished_;
  out.cancelled = cancelled_;
  out.prompted = all_prompted();
  out.times = times_;
  out.detached_since = detached_since_;
  out.n_readers = n_readers_;
  out.suspended = suspended_;
  for (const Part& part : parts_) {
    out.n_tokens += static_cast<std::int64_t>(part.tokens.size());
    out.prefill_done += part.prefill_done;
    if (part.prompt) {
      out.prompt.prompt_tokens += part.prompt->prompt_tokens;
      out.prompt.cached_tokens += part.prompt->cached_tokens;
      out.prompt.replayed_tokens += part.prompt->replayed_tokens;
      out.prompt.queue_seconds = std::max(out.prompt.queue_seconds, part.prompt->queue_seconds);
      out.prompt.prefill_seconds += part.prompt->prefill_seconds;
    }
    for (const auto& end : part.ends) {
      if (end) out.ends.push_back(*end);
    }
  }
  return out;
}

std::vector<LoggedToken> LiveStream::tokens() const {
  const std::lock_guard lock(log_mutex_);
  std::vector<LoggedToken> out;
  for (const Part& part : parts_) {
    out.insert(out.end(), part.tokens.begin(), part.tokens.end());
  }
  return out;
}

}  // namespace hadal::server
