// One HTTP connection of the load generator, and what it reads from streams.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

namespace hadal::cli {

struct Endpoint {
  std::string host, port, base;  // base: what stands before every path
};
// "http://HOST[:PORT][/BASE]". Throws invalid_argument for anything else, https included.
[[nodiscard]] Endpoint parse_url(const std::string& url);

// A request that got no whole answer: what kind of failure, in a few words.
class RequestFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct HttpCall {
  std::string method, path, body;
  double timeout_s = 30;                                // without a byte
  std::function<void(std::string_view)> on_bytes = {};  // pieces of the body as they come
};
struct HttpAnswer {
  int status = 0;
  std::string body;  // empty when on_bytes took it: only of status 200
};

// Keeps the connection for the next call where the server does. One call at a time.
class HttpConnection {
 public:
  HttpConnection(boost::asio::io_context& io, const Endpoint& endpoint, std::string api_key);
  // Throws RequestFailure.
  [[nodiscard]] boost::asio::awaitable<HttpAnswer> call(const HttpCall& call);
  void close();

 private:
  boost::asio::awaitable<void> connect(double timeout_s);
  boost::asio::awaitable<HttpAnswer> exchange(const HttpCall& call);

  boost::asio::io_context& io_;
  const Endpoint& endpoint_;
  const std::string api_key_;
  std::unique_ptr<boost::beast::tcp_stream> stream_;
  boost::beast::flat_buffer buffer_;
  bool used_ = false;  // by an earlier call: the server may have closed it since
};

// Cuts the bytes of an event stream into the data of its events, and counts its comments.
class SseReader {
 public:
  explicit SseReader(std::function<void(const std::string&)> on_data)
      : on_data_(std::move(on_data)) {}
  void feed(std::string_view bytes);
  [[nodiscard]] std::int64_t n_comments() const { return n_comments_; }

 private:
  void line(std::string_view text);
  std::function<void(const std::string&)> on_data_;
  std::string partial_, data_;
  std::int64_t n_comments_ = 0;
};

}  // namespace hadal::cli
