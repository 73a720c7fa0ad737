// What the acceptor and a connection know of each other. Internal to the HTTP server.
#pragma once

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <memory>

#include "server/http.h"
#include "server/http_server.h"

namespace hadal::server {

// Shared by all connections of a server, and outlives them.
struct ConnectionContext {
  HttpServerOptions options;
  Handler handler;
  std::atomic<std::size_t> n_connections{0};
  std::atomic<bool> stopping{false};  // close after the present response
};

// Keeps itself alive by its pending operations.
class Connection {
 public:
  virtual ~Connection() = default;
  virtual void start() = 0;
  virtual void close_if_idle() = 0;  // from any thread
  virtual void kill() = 0;           // from any thread
};

[[nodiscard]] std::shared_ptr<Connection> make_plain_connection(
    boost::asio::ip::tcp::socket socket, std::shared_ptr<ConnectionContext> context);
[[nodiscard]] std::shared_ptr<Connection> make_tls_connection(
    boost::asio::ip::tcp::socket socket, boost::asio::ssl::context& tls,
    std::shared_ptr<ConnectionContext> context);

}  // namespace hadal::server
