#include "server/http_server.h"

#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/write.hpp>
#include <mutex>
#include <thread>
#include <vector>

#include "core/error.h"
#include "server/connection.h"

namespace hadal::server {

namespace asio = boost::asio;
using asio::ip::tcp;

namespace {

std::unique_ptr<asio::ssl::context> tls_context(const HttpServerOptions& options) {
  if (options.tls_certificate.empty() && options.tls_key.empty()) return nullptr;
  if (options.tls_certificate.empty() || options.tls_key.empty()) {
    throw Error(hadal::ErrorCode::invalid_argument,
                "TLS needs both a certificate and its private key; one of them was not given");
  }
  auto tls = std::make_unique<asio::ssl::context>(asio::ssl::context::tls_server);
  tls->set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_sslv2 |
                   asio::ssl::context::no_sslv3 | asio::ssl::context::no_tlsv1 |
                   asio::ssl::context::no_tlsv1_1);
  boost::system::error_code error;
  tls->use_certificate_chain_file(options.tls_certificate.string(), error);
  if (error) {
    throw Error(hadal::ErrorCode::invalid_argument,
                fmt::format("{}: no certificate chain in PEM form: {}",
                            options.tls_certificate.string(), error.message()));
  }
  tls->use_private_key_file(options.tls_key.string(), asio::ssl::context::pem, error);
  if (error) {
    throw Error(
        hadal::ErrorCode::invalid_argument,
        fmt::format("{}: no private key in PEM form that belongs to {}: {}",
                    options.tls_key.string(), options.tls_certificate.string(), error.message()));
  }
  return tls;
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(HttpServerOptions options, Handler handler)
      : tls_(tls_context(options)), acceptor_(io_), retry_(io_) {
    context_->options = std::move(options);
    context_->handler = std::move(handler);
    listen();
    accept();
    const int n_threads = std::max(1, context_->options.io_threads);
    threads_.reserve(static_cast<std::size_t>(n_threads));
    for (int i = 0; i < n_threads; ++i) {
      threads_.emplace_back([this] { io_.run(); });
    }
  }
  ~Impl() { stop(); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void every(std::chrono::milliseconds period, std::function<void()> callback) {
    struct Ticker : std::enable_shared_from_this<Ticker> {
      asio::steady_timer timer;
      std::chrono::milliseconds period;
      std::function<void()> callback;
      explicit Ticker(asio::io_context& io) : timer(io), period(), callback() {}
      void wait() {
        timer.expires_after(period);
        timer.async_wait([self = shared_from_this()](boost::system::error_code error) {
          if (error) return;
          self->callback();
          self->wait();
        });
      }
    };
    const auto ticker = std::make_shared<Ticker>(io_);
    ticker->period = period;
    ticker->callback = std::move(callback);
    asio::post(io_, [ticker] { ticker->wait(); });
  }

  void stop_accepting() {
    context_->stopping = true;
    asio::post(acceptor_.get_executor(), [this] {
      boost::system::error_code ignored;
      acceptor_.close(ignored);
    });
    for (const auto& connection : connections()) connection->close_if_idle();
  }

  void stop() {
    if (threads_.empty()) return;
    stop_accepting();
    for (const auto& connection : connections()) connection->kill();
    // Connections close on their strands; what they hold must go before the io_context does.
    for (int i = 0; i < 100 && context_->n_connections > 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    io_.stop();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  [[nodiscard]] std::uint16_t port() const { return port_; }
  [[nodiscard]] const ConnectionContext& context() const { return *context_; }

 private:
  void listen() {
    const HttpServerOptions& options = context_->options;
    const std::string where = fmt::format("{}:{}", options.address, options.port);
    boost::system::error_code error;
    tcp::resolver resolver(io_);
    const auto found = resolver.resolve(options.address, std::to_string(options.port),
                                        tcp::resolver::passive, error);
    if (error || found.empty()) {
      throw Error(hadal::ErrorCode::io,
                  fmt::format("cannot listen on {}: no such address: {}", where, error.message()));
    }
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(1024, error);
    if (error) {
      throw Error(hadal::ErrorCode::io,
                  fmt::format("cannot listen on {}: {}; choose another --port, or stop what "
                              "uses it",
                              where, error.message()));
    }
    port_ = acceptor_.local_endpoint().port();
  }

  void accept() {
    acceptor_.async_accept(asio::make_strand(io_),
                           [this](boost::system::error_code error, tcp::socket socket) {
                             on_accept(error, std::move(socket));
                           });
  }
  void on_accept(boost::system::error_code error, tcp::socket socket) {
    if (!acceptor_.is_open()) return;
    if (error) {
      // Out of descriptors, most likely: connections that end will give some back.
      retry_.expires_after(std::chrono::milliseconds(50));
      retry_.async_wait([this](boost::system::error_code stopped) {
        if (!stopped) accept();
      });
      return;
    }
    if (context_->n_connections >= context_->options.limits.max_connections) {
      turn_away(std::move(socket));
    } else {
      const auto connection = tls_ ? make_tls_connection(std::move(socket), *tls_, context_)
                                   : make_plain_connection(std::move(socket), context_);
      remember(connection);
      connection->start();
    }
    accept();
  }
  void turn_away(tcp::socket socket) {
    if (tls_) return;
    HttpResponse response{.status = 503, .headers = {}, .body = "too many connections\n"};
    if (context_->options.refusal) {
      response = context_->options.refusal(503, "the server has too many connections", "");
    }
    response.headers.emplace_back("Content-Length", std::to_string(response.body.size()));
    response.headers.emplace_back("Connection", "close");
    response.headers.emplace_back("Retry-After", "5");
    const std::string bytes = response_head(503, response.headers) + "\r\n" + response.body;
    boost::system::error_code ignored;
    socket.non_blocking(true, ignored);
    socket.write_some(asio::buffer(bytes), ignored);
  }

  void remember(const std::shared_ptr<Connection>& connection) {
    const std::lock_guard lock(mutex_);
    if (connections_.size() >= forget_at_) {
      std::erase_if(connections_, [](const auto& known) { return known.expired(); });
      forget_at_ = std::max<std::size_t>(64, 2 * connections_.size());
    }
    connections_.push_back(connection);
  }
  std::vector<std::shared_ptr<Connection>> connections() {
    const std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<Connection>> alive;
    for (const auto& known : connections_) {
      if (auto connection = known.lock()) alive.push_back(std::move(connection));
    }
    return alive;
  }

  const std::shared_ptr<ConnectionContext> context_ = std::make_shared<ConnectionContext>();
  std::unique_ptr<asio::ssl::context> tls_;
  asio::io_context io_;
  tcp::acceptor acceptor_;
  asio::steady_timer retry_;
  std::uint16_t port_ = 0;
  std::mutex mutex_;
  std::vector<std::weak_ptr<Connection>> connections_;
  std::size_t forget_at_ = 64;
  std::vector<std::thread> threads_;
};

HttpServer::HttpServer(HttpServerOptions options, Handler handler)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(handler))) {}
HttpServer::~HttpServer() = default;

std::uint16_t HttpServer::port() const {
  return impl_->port();
}
std::size_t HttpServer::n_connections() const {
  return impl_->context().n_connections;
}
const HttpServerOptions& HttpServer::options() const {
  return impl_->context().options;
}
void HttpServer::every(std::chrono::milliseconds period, std::function<void()> callback) {
  impl_->every(period, std::move(callback));
}
void HttpServer::stop_accepting() {
  impl_->stop_accepting();
}
void HttpServer::stop() {
  impl_->stop();
}

bool is_loopback(const std::string& address) {
  if (address == "localhost") return true;
  boost::system::error_code error;
  const auto parsed = asio::ip::make_address(address, error);
  return !error && parsed.is_loopback();
}

}  // namespace hadal::server
