#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/file.h"
#include "server/http.h"

namespace hadal::server {

struct HttpServerOptions {
  std::string address = "127.0.0.1";  // an IP address, or a host name
  std::uint16_t port = 8000;          // 0: a free one
  int io_threads = 1;
  Path tls_certificate = {}, tls_key = {};  // PEM; both or neither
  HttpLimits limits = {};
  // Looks at a request whose headers have come and whose body has not: an answer ends it before
  // the body is read. Called on an IO thread.
  std::function<std::optional<HttpResponse>(const HttpRequest&)> check_headers = {};
  // What to answer when a request is no HTTP, too large or too slow. `path` is empty when the
  // request's was not seen.
  std::function<HttpResponse(int status, const std::string& message, const std::string& path)>
      refusal = {};
};

// HTTP/1.1 over TCP or TLS: keep-alive, pipelining, chunked bodies both ways, Expect:
// 100-continue. Every connection is read from at all times, so that a client that leaves is
// noticed while nothing is written to it.
class HttpServer {
 public:
  // Binds and serves. Throws io when the address cannot be bound, invalid_argument for a
  // certificate or key that cannot be used.
  HttpServer(HttpServerOptions options, Handler handler);
  ~HttpServer();  // cuts what is still open

  [[nodiscard]] std::uint16_t port() const;
  [[nodiscard]] std::size_t n_connections() const;
  [[nodiscard]] const HttpServerOptions& options() const;

  // Calls `callback` on an IO thread every `period` until the server ends; never two at once.
  void every(std::chrono::milliseconds period, std::function<void()> callback);
  // No new connections; those that stand idle are closed, others after their present response.
  void stop_accepting();
  // Cuts everything and joins the threads; handlers have returned then. Idempotent.
  void stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Whether an address can only be reached from this machine. False for what is no IP address but
// "localhost".
[[nodiscard]] bool is_loopback(const std::string& address);

}  // namespace hadal::server
