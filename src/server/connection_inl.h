// One client. Included by the two files that instantiate it, for TCP and for TLS.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <mutex>
#include <string>
#include <type_traits>

#include "server/connection.h"

namespace hadal::server {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using SysError = boost::system::error_code;

// Everything but the callbacks of Exchange and enqueue() happens on the socket's strand.
template <class Stream>
class StreamConnection final : public Connection,
                               public std::enable_shared_from_this<StreamConnection<Stream>> {
 public:
  static constexpr bool kTls = !std::is_same_v<Stream, asio::ip::tcp::socket>;

  template <class... Args>
  explicit StreamConnection(std::shared_ptr<ConnectionContext> context, Args&&... args)
      : context_(std::move(context)),
        limits_(context_->options.limits),
        stream_(std::forward<Args>(args)...),
        timer_(stream_.get_executor()) {
    ++context_->n_connections;
  }
  ~StreamConnection() override { --context_->n_connections; }

  void start() override {
    SysError ignored;
    socket().set_option(asio::ip::tcp::no_delay(true), ignored);
    socket().set_option(
        asio::socket_base::send_buffer_size(static_cast<int>(limits_.send_buffer_bytes)), ignored);
    const auto endpoint = socket().remote_endpoint(ignored);
    if (!ignored) remote_ = endpoint.address().to_string();
    asio::dispatch(stream_.get_executor(), [self = this->shared_from_this()] { self->open(); });
  }
  void close_if_idle() override {
    asio::post(stream_.get_executor(), [self = this->shared_from_this()] {
      if (self->state_ == State::idle) self->close();
    });
  }
  void kill() override {
    asio::post(stream_.get_executor(), [self = this->shared_from_this()] { self->close(); });
  }

 private:
  enum class State : std::uint8_t {
    idle,        // between requests
    header,      // part of a request's headers is there
    body,        // part of its body
    responding,  // the handler has it
    lingering,   // refused; reading on so that the client can read why
    closed
  };
  using Parser = http::request_parser<http::string_body>;
  using Clock = std::chrono::steady_clock;

  // The handler's end of the connection. Output goes through enqueue(), from any thread.
  class ExchangeImpl final : public Exchange {
   public:
    ExchangeImpl(std::shared_ptr<StreamConnection> connection, HttpRequest request, bool keep_alive,
                 bool chunks)
        : connection_(std::move(connection)),
          request_(std::move(request)),
          head_only_(request_.method == "HEAD"),
          keep_alive_(keep_alive),
          chunks_(chunks) {}
    ~ExchangeImpl() override {
      if (phase_ == Phase::fresh && !closed_) {
        respond({.status = 500, .headers = {}, .body = "no answer\n", .close = true});
      }
      abort();  // nothing else would end the connection of a client that left
    }

    const HttpRequest& request() const override { return request_; }

    void respond(HttpResponse response) override {
      if (!turn(Phase::fresh, Phase::ended)) return;
      const bool close = response.close || !keep_alive_ || stopping();
      response.headers.emplace_back("Content-Length", std::to_string(response.body.size()));
      if (close) response.headers.emplace_back("Connection", "close");
      std::string bytes = response_head(response.status, response.headers) + "\r\n";
      if (!head_only_ && response.status != 304) bytes += response.body;
      drop_callbacks();
      connection_->enqueue(std::move(bytes), close ? After::close : After::next);
    }
    void begin(int status, const Headers& headers) override {
      if (!turn(Phase::fresh, Phase::begun)) return;
      Headers all = headers;
      if (chunks_) {
        all.emplace_back("Transfer-Encoding", "chunked");
      } else {
        keep_alive_ = false;  // HTTP/1.0: the end of the connection is the end of the body
      }
      if (stopping()) keep_alive_ = false;
      if (!keep_alive_) all.emplace_back("Connection", "close");
      connection_->enqueue(response_head(status, all) + "\r\n", After::more);
    }
    void write(std::string_view bytes) override {
      if (phase_ != Phase::begun || bytes.empty() || head_only_) return;
      std::string out;
      if (!chunks_) {
        out = bytes;
      } else {
        char size[20];
        const int n = std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
        out.reserve(bytes.size() + static_cast<std::size_t>(n) + 2);
        out.append(size, static_cast<std::size_t>(n)).append(bytes).append("\r\n");
      }
      connection_->enqueue(std::move(out), After::more);
    }
    void end() override {
      if (!turn(Phase::begun, Phase::ended)) return;
      drop_callbacks();
      connection_->enqueue(chunks_ && !head_only_ ? "0\r\n\r\n" : "",
                           keep_alive_ ? After::next : After::close);
    }
    void abort() override {
      if (phase_.exchange(Phase::ended) == Phase::ended) return;
      drop_callbacks();
      connection_->enqueue("", After::close);
    }
    std::size_t buffered() const override { return connection_->buffered_; }
    bool closed() const override { return closed_; }
    void on_close(std::function<void()> callback) override {
      {
        const std::lock_guard lock(mutex_);
        if (phase_ == Phase::ended) return;
        if (!closed_) {
          on_close_ = std::move(callback);
          return;
        }
      }
      callback();
    }
    void on_drain(std::function<void()> callback) override {
      const std::lock_guard lock(mutex_);
      if (phase_ != Phase::ended) on_drain_ = std::move(callback);
    }

    void client_left() {
      std::function<void()> callback, dropped;
      {
        const std::lock_guard lock(mutex_);
        if (closed_.exchange(true)) return;
        callback = std::exchange(on_close_, nullptr);
        dropped = std::exchange(on_drain_, nullptr);
      }
      if (callback) callback();
    }
    void drained() {
      std::function<void()> callback;
      {
        const std::lock_guard lock(mutex_);
        callback = on_drain_;
      }
      if (callback) callback();
    }

   private:
    enum class Phase : std::uint8_t { fresh, begun, ended };

    bool turn(Phase from, Phase to) { return phase_.compare_exchange_strong(from, to); }
    bool stopping() const { return connection_->context_->stopping; }
    // They hold whatever holds this exchange.
    void drop_callbacks() {
      std::function<void()> close, drain;
      const std::lock_guard lock(mutex_);
      close.swap(on_close_), drain.swap(on_drain_);
    }

    const std::shared_ptr<StreamConnection> connection_;
    const HttpRequest request_;
    const bool head_only_;
    std::atomic<bool> keep_alive_;
    const bool chunks_;
    std::atomic<Phase> phase_{Phase::fresh};
    std::atomic<bool> closed_{false};
    std::mutex mutex_;  // of the callbacks
    std::function<void()> on_close_, on_drain_;
  };

  enum class After : std::uint8_t { more, next, close };

  asio::ip::tcp::socket& socket() {
    if constexpr (kTls) {
      return stream_.next_layer();
    } else {
      return stream_;
    }
  }

  void open() {
    if constexpr (kTls) {
      arm(limits_.header_ms);
      stream_.async_handshake(asio::ssl::stream_base::server,
                              [self = this->shared_from_this()](SysError error) {
                                if (error) return self->close();
                                self->next_request();
                              });
    } else {
      next_request();
    }
  }

  void next_request() {
    if (state_ == State::closed) return;
    parser_.emplace();
    parser_->header_limit(static_cast<std::uint32_t>(limits_.header_bytes));
    parser_->body_limit(limits_.body_bytes);
    parser_->eager(true);
    checked_ = false;
    body_begin_ = {};
    body_seen_ = 0;
    exchange_.reset();
    state_ = State::idle;
    if (context_->stopping && in_.empty()) return close();
    arm(in_.empty() ? limits_.idle_ms : limits_.header_ms);
    parse();
    read();
  }

  void read() {
    if (reading_ || state_ == State::closed || peer_ended_) return;
    if (state_ == State::responding && in_.size() >= limits_.read_ahead_bytes) return;
    reading_ = true;
    stream_.async_read_some(asio::buffer(chunk_),
                            [self = this->shared_from_this()](SysError error, std::size_t n) {
                              self->reading_ = false;
                              self->on_read(error, n);
                            });
  }

  void on_read(SysError error, std::size_t n) {
    if (state_ == State::closed) return;
    if (error) {
      peer_ended_ = true;
      const bool half_closed =
          error == asio::error::eof || (kTls && error == asio::ssl::error::stream_truncated);
      if (state_ == State::responding) {
        // A half-closed client may still read. Its generation ends all the same: whoever left
        // looks exactly like this until something is written.
        close_when_done_ = true;
        if (const auto exchange = exchange_.lock()) exchange->client_left();
        if (!half_closed) close();
        return;
      }
      if (half_closed && (state_ == State::header || state_ == State::body)) {
        return refuse(400, "the request ends in the middle; the connection was half-closed");
      }
      return close();
    }
    if (state_ == State::lingering) {
      lingered_ += n;
      if (lingered_ > limits_.body_bytes) return close();
      return read();
    }
    in_.append(chunk_.data(), n);
    if (state_ == State::idle) {
      state_ = State::header;
      arm(limits_.header_ms);
    }
    if (state_ != State::responding) parse();
    read();
  }

  void parse() {
    while (!in_.empty() &&
           (state_ == State::idle || state_ == State::header || state_ == State::body)) {
      if (state_ == State::idle) state_ = State::header;
      SysError error;
      const std::size_t used = parser_->put(asio::const_buffer(in_.data(), in_.size()), error);
      if (state_ == State::body) body_seen_ += used;
      in_.erase(0, used);
      if (error == http::error::need_more) error = {};
      if (error) return refuse_parse_error(error);
      if (parser_->is_header_done() && !checked_ && !check_headers()) return;
      if (parser_->is_done()) return dispatch();
      if (parser_->is_header_done()) {
        state_ = State::body;
        const auto allowed = std::chrono::milliseconds(
            limits_.body_ms + static_cast<std::int64_t>(body_seen_) * 1000 / limits_.min_body_rate);
        arm_until(body_begin_ + allowed);
      }
      if (used == 0) return;  // wants more
    }
  }

  // False when the request was answered already.
  bool check_headers() {
    checked_ = true;
    body_begin_ = Clock::now();
    const auto& message = parser_->get();
    if (message.version() != 11 && message.version() != 10) {
      refuse(505, "this server speaks HTTP/1.1 and HTTP/1.0");
      return false;
    }
    if (message.version() == 11 && message.find(http::field::host) == message.end()) {
      refuse(400, "the request has no Host header, which HTTP/1.1 wants");
      return false;
    }
    if (parser_->is_done()) return true;
    if (context_->options.check_headers) {
      if (auto response = context_->options.check_headers(take_head())) {
        response->close = true;
        answer_and_linger(std::move(*response));
        return false;
      }
    }
    const auto expect = message.find(http::field::expect);
    if (expect != message.end()) {
      if (!boost::beast::iequals(expect->value(), "100-continue")) {
        refuse(417, "the only expectation this server can meet is 100-continue");
        return false;
      }
      if (message.version() == 11) enqueue("HTTP/1.1 100 Continue\r\n\r\n", After::more);
    }
    return true;
  }

  HttpRequest take_head() const {
    HttpRequest request;
    const auto& message = parser_->get();
    request.method = std::string(message.method_string());
    request.target = std::string(message.target());
    request.remote = remote_;
    for (const auto& field : message) {
      std::string name(field.name_string());
      for (char& c : name) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
      request.headers.emplace_back(std::move(name), std::string(field.value()));
    }
    split_target(request);
    return request;
  }

  void dispatch() {
    HttpRequest request = take_head();
    const bool keep_alive = parser_->get().keep_alive() && parser_->get().version() == 11;
    const bool chunks = parser_->get().version() == 11;
    request.body = std::move(parser_->get().body());
    parser_.reset();
    state_ = State::responding;
    deadline_ = Clock::time_point::max();
    auto exchange = std::make_shared<ExchangeImpl>(this->shared_from_this(), std::move(request),
                                                   keep_alive, chunks);
    exchange_ = exchange;
    context_->handler(std::move(exchange));
  }

  void refuse_parse_error(SysError error) {
    if (error == http::error::body_limit) {
      return refuse(413, "the request body is larger than " + std::to_string(limits_.body_bytes) +
                             " bytes, the limit of this server");
    }
    if (error == http::error::header_limit) {
      return refuse(431, "the request headers are larger than " +
                             std::to_string(limits_.header_bytes) +
                             " bytes, the limit of this server");
    }
    refuse(400, "the request is not HTTP/1.1: " + error.message());
  }

  void refuse(int status, const std::string& message) {
    HttpResponse response;
    if (context_->options.refusal) {
      const bool has_path = parser_ && !parser_->get().target().empty();
      response = context_->options.refusal(status, message, has_path ? take_head().path : "");
    } else {
      response = {.status = status,
                  .headers = {{"Content-Type", "text/plain; charset=utf-8"}},
                  .body = message + "\n"};
    }
    answer_and_linger(std::move(response));
  }
  void answer_and_linger(HttpResponse response) {
    state_ = State::lingering;
    in_.clear();
    response.headers.emplace_back("Content-Length", std::to_string(response.body.size()));
    response.headers.emplace_back("Connection", "close");
    enqueue(response_head(response.status, response.headers) + "\r\n" + response.body,
            After::close);
    arm(limits_.linger_ms);
    read();
  }

  // From any thread.
  void enqueue(std::string bytes, After after) {
    bool start = false;
    {
      const std::lock_guard lock(out_mutex_);
      buffered_ += bytes.size();
      pending_ += bytes;
      if (after != After::more) after_ = after;
      start = !std::exchange(writing_, true);
    }
    if (start) {
      asio::post(stream_.get_executor(), [self = this->shared_from_this()] { self->flush(); });
    }
  }

  void flush() {
    if (state_ == State::closed) return;
    After after = After::more;
    {
      const std::lock_guard lock(out_mutex_);
      if (out_at_ == out_.size()) {
        out_.clear();
        out_at_ = 0;
        out_.swap(pending_);
      }
      if (out_.empty()) {
        writing_ = false;
        after = std::exchange(after_, After::more);
      }
    }
    if (out_at_ < out_.size()) {
      if (state_ == State::responding) arm(limits_.write_ms);
      stream_.async_write_some(asio::buffer(out_.data() + out_at_, out_.size() - out_at_),
                               [self = this->shared_from_this()](SysError error, std::size_t n) {
                                 self->on_written(error, n);
                               });
      return;
    }
    if (state_ == State::responding) deadline_ = Clock::time_point::max();
    if (after == After::close || (after == After::next && close_when_done_)) return shut_down();
    if (after == After::next) next_request();
  }

  void on_written(SysError error, std::size_t n) {
    if (error) {
      if (const auto exchange = exchange_.lock()) exchange->client_left();
      return close();
    }
    out_at_ += n;
    const std::size_t half = limits_.output_bytes / 2;
    const std::size_t before = buffered_.fetch_sub(n);
    if (before > half && before - n <= half) {
      if (const auto exchange = exchange_.lock()) exchange->drained();
    }
    flush();
  }

  // All is written. The rest of what the client sends is read and dropped for a moment: closing a
  // socket with unread input would reset the connection and lose the response.
  void shut_down() {
    if (state_ == State::closed) return;
    if (peer_ended_) return close();
    state_ = State::lingering;
    if constexpr (kTls) {
      arm(limits_.linger_ms);
      stream_.async_shutdown([self = this->shared_from_this()](SysError) { self->close(); });
      return;
    }
    SysError ignored;
    socket().shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
    arm(limits_.linger_ms);
    read();
  }

  void close() {
    if (state_ == State::closed) return;
    state_ = State::closed;
    timer_.cancel();
    SysError ignored;
    socket().close(ignored);
    if (const auto exchange = exchange_.lock()) exchange->client_left();
  }

  void arm(std::int64_t milliseconds) {
    arm_until(Clock::now() + std::chrono::milliseconds(milliseconds));
  }
  // One wait at a time: a deadline that only moves back is looked at when the old one has passed.
  void arm_until(Clock::time_point deadline) {
    const bool sooner = !waiting_ || deadline < waiting_until_;
    deadline_ = deadline;
    if (sooner) wait();
  }
  void wait() {
    waiting_ = true;
    waiting_until_ = deadline_;
    const std::uint64_t turn = ++wait_turn_;
    timer_.expires_at(deadline_);
    timer_.async_wait([self = this->shared_from_this(), turn](SysError) {
      if (turn == self->wait_turn_) self->on_timer();
    });
  }
  void on_timer() {
    waiting_ = false;
    if (state_ == State::closed || deadline_ == Clock::time_point::max()) return;
    if (Clock::now() < deadline_) return wait();
    deadline_ = Clock::time_point::max();
    if (state_ == State::header || state_ == State::body) {
      return refuse(408, "the request took too long to arrive");
    }
    close();
  }

  const std::shared_ptr<ConnectionContext> context_;
  const HttpLimits& limits_;
  Stream stream_;
  asio::steady_timer timer_;
  std::string remote_;

  State state_ = State::idle;
  bool reading_ = false, peer_ended_ = false, close_when_done_ = false, checked_ = false;
  std::array<char, 8192> chunk_;
  std::string in_;  // read and not parsed
  std::optional<Parser> parser_;
  Clock::time_point body_begin_{};
  std::size_t body_seen_ = 0, lingered_ = 0;
  std::weak_ptr<ExchangeImpl> exchange_;

  std::mutex out_mutex_;
  std::string pending_;  // behind out_
  bool writing_ = false;
  After after_ = After::more;
  std::string out_;  // being written, from out_at_
  std::size_t out_at_ = 0;
  std::atomic<std::size_t> buffered_{0};

  Clock::time_point deadline_ = Clock::time_point::max(), waiting_until_{};
  bool waiting_ = false;
  std::uint64_t wait_turn_ = 0;
};

}  // namespace hadal::server
