// server: the engine and the protocol meet here, and only here. HTTP in, HTTP out; no kernel, no
// layer and no prompt text is known to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hadal::server {

using Headers = std::vector<std::pair<std::string, std::string>>;

// A request as a handler sees it: parsed, within all limits, complete.
struct HttpRequest {
  std::string method;  // upper case, as sent
  std::string target;  // as sent
  std::string path;    // of the target, percent-decoded
  std::string query;   // of the target, behind '?', as sent
  Headers headers;     // names in lower case, in the order they came
  std::string body;
  std::string remote;  // the client's address

  // The first header of that (lower-case) name.
  [[nodiscard]] std::optional<std::string_view> header(std::string_view name) const;
  // The first query parameter of that name, percent-decoded.
  [[nodiscard]] std::optional<std::string> parameter(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  Headers headers = {};  // without Content-Length and Connection
  std::string body = {};
  bool close = false;  // the connection, afterwards
};

// One request and the way back to its client. All members may be called from any thread; a
// response has either respond(), or begin(), any number of write() and end(). What is said after
// the client has gone is ignored. Dropped unanswered, it answers 500 itself.
class Exchange {
 public:
  virtual ~Exchange() = default;
  [[nodiscard]] virtual const HttpRequest& request() const = 0;

  virtual void respond(HttpResponse response) = 0;
  virtual void begin(int status, const Headers& headers) = 0;
  virtual void write(std::string_view bytes) = 0;
  virtual void end() = 0;
  // Ends a begun response so that the client can see it is not whole: the connection is cut.
  virtual void abort() = 0;

  // Bytes written that the kernel has not taken yet.
  [[nodiscard]] virtual std::size_t buffered() const = 0;
  // The client is gone: it closed (or half-closed) the connection before the response was whole.
  [[nodiscard]] virtual bool closed() const = 0;
  // Called once when that happens; at once when it already has. Never after end().
  virtual void on_close(std::function<void()> callback) = 0;
  // Called whenever buffered() falls to half of the connection's output limit or below.
  virtual void on_drain(std::function<void()> callback) = 0;
};

// Called on an IO thread; must not block it.
using Handler = std::function<void(std::shared_ptr<Exchange>)>;

struct HttpLimits {
  std::size_t header_bytes = std::size_t{32} << 10;
  std::size_t body_bytes = std::size_t{64} << 20;
  std::size_t output_bytes = std::size_t{1} << 20;         // a slower reader counts as stalled
  std::size_t send_buffer_bytes = std::size_t{256} << 10;  // the kernel's; it would grow to MiBs
  std::size_t read_ahead_bytes = std::size_t{64} << 10;
  std::size_t max_connections = 4096;
  std::int64_t header_ms = 15'000;    // from the first byte to the end of the headers
  std::int64_t body_ms = 30'000;      // grace; then the body needs min_body_rate on average
  std::int64_t min_body_rate = 8192;  // bytes a second
  std::int64_t idle_ms = 75'000;      // between two requests
  std::int64_t write_ms = 900'000;    // without any byte taken by the client
  std::int64_t linger_ms = 2'000;     // reading on after a refusal, so that it arrives
};

// The line and headers of a response, up to the empty line. Line breaks in values become blanks.
[[nodiscard]] std::string response_head(int status, const Headers& headers);
[[nodiscard]] std::string_view reason_phrase(int status);
// "%41%2F" -> "A/"; broken escapes stay as they are. `plus_is_space` as forms have it.
[[nodiscard]] std::string percent_decoded(std::string_view text, bool plus_is_space);
// The path and the query of a request target in origin or absolute form.
void split_target(HttpRequest& request);

}  // namespace hadal::server
