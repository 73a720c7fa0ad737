#include "cli/bench_serve_client.h"

#include <fmt/format.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/error.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <utility>

#include "core/error.h"

namespace hadal::cli {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::use_awaitable;

namespace {

constexpr std::size_t kPiece = std::size_t{16} << 10;

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(1000 * seconds));
}

std::string failure_name(const beast::error_code& error) {
  if (error == beast::error::timeout) return "timeout";
  if (error == asio::error::connection_refused) return "connection refused";
  if (error == asio::error::connection_reset || error == asio::error::broken_pipe ||
      error == http::error::end_of_stream || error == http::error::partial_message ||
      error == asio::error::eof) {
    return "connection cut";
  }
  return error.message();
}

}  // namespace

Endpoint parse_url(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  if (!url.starts_with(kScheme) || url.size() == kScheme.size()) {
    throw Error(
        ErrorCode::invalid_argument,
        fmt::format("--url {}: wanted http://HOST:PORT; for a server with TLS, run a second "
                    "one without it on the loopback address",
                    url));
  }
  std::string rest = url.substr(kScheme.size());
  Endpoint endpoint{.host = {}, .port = "80", .base = {}};
  if (const auto slash = rest.find('/'); slash != std::string::npos) {
    endpoint.base = rest.substr(slash);
    rest.resize(slash);
    while (endpoint.base.ends_with('/')) endpoint.base.pop_back();
  }
  const auto bracket = rest.rfind(']');
  if (const auto colon = rest.rfind(':');
      colon != std::string::npos && (bracket == std::string::npos || colon > bracket)) {
    endpoint.port = rest.substr(colon + 1);
    rest.resize(colon);
  }
  if (rest.starts_with('[') && rest.ends_with(']')) rest = rest.substr(1, rest.size() - 2);
  endpoint.host = rest;
  return endpoint;
}

HttpConnection::HttpConnection(asio::io_context& io, const Endpoint& endpoint, std::string api_key)
    : io_(io), endpoint_(endpoint), api_key_(std::move(api_key)) {}

void HttpConnection::close() {
  stream_.reset();
  buffer_.clear();
}

asio::awaitable<void> HttpConnection::connect(double timeout_s) {
  close();
  used_ = false;
  asio::ip::tcp::resolver resolver(io_);
  const auto addresses =
      co_await resolver.async_resolve(endpoint_.host, endpoint_.port, use_awaitable);
  stream_ = std::make_unique<beast::tcp_stream>(io_);
  stream_->expires_after(milliseconds(timeout_s));
  co_await stream_->async_connect(addresses, use_awaitable);
  stream_->socket().set_option(asio::ip::tcp::no_delay(true));
}

asio::awaitable<HttpAnswer> HttpConnection::exchange(const HttpCall& call) {
  if (!stream_) co_await connect(call.timeout_s);
  http::request<http::string_body> request(http::string_to_verb(call.method),
                                           endpoint_.base + call.path, 11);
  request.set(http::field::host, endpoint_.host);
  if (!call.body.empty()) request.set(http::field::content_type, "application/json");
  if (!api_key_.empty()) request.set(http::field::authorization, "Bearer " + api_key_);
  request.body() = call.body;
  request.prepare_payload();
  stream_->expires_after(milliseconds(call.timeout_s));
  co_await http::async_write(*stream_, request, use_awaitable);

  http::response_parser<http::buffer_body> parser;
  parser.body_limit(boost::none);
  stream_->expires_after(milliseconds(call.timeout_s));
  co_await http::async_read_header(*stream_, buffer_, parser, use_awaitable);
  used_ = true;
  HttpAnswer answer{.status = static_cast<int>(parser.get().result_int()), .body = {}};
  const bool streamed = call.on_bytes && answer.status == 200;
  std::string piece(kPiece, '\0');
  while (!parser.is_done()) {
    parser.get().body().data = piece.data();
    parser.get().body().size = piece.size();
    stream_->expires_after(milliseconds(call.timeout_s));
    beast::error_code error;
    co_await http::async_read_some(*stream_, buffer_, parser,
                                   asio::redirect_error(use_awaitable, error));
    if (error && error != http::error::need_buffer) throw beast::system_error(error);
    const std::string_view bytes(piece.data(), piece.size() - parser.get().body().size);
    if (bytes.empty()) continue;
    if (streamed) {
      call.on_bytes(bytes);
    } else {
      answer.body += bytes;
    }
  }
  if (!parser.keep_alive()) close();
  co_return answer;
}

asio::awaitable<HttpAnswer> HttpConnection::call(const HttpCall& call) {
  // A kept connection may have been closed by the server meanwhile; that is no failure of this
  // call, as long as nothing of its answer has come.
  for (;;) {
    const bool kept = stream_ != nullptr && used_;
    beast::error_code error;
    used_ = false;
    try {
      co_return co_await exchange(call);
    } catch (const beast::system_error& failure) {
      error = failure.code();
    }
    const bool answered = used_;
    close();
    if (kept && !answered && error != beast::error::timeout) continue;
    throw RequestFailure(failure_name(error));
  }
}

void SseReader::feed(std::string_view bytes) {
  while (!bytes.empty()) {
    const auto end = bytes.find('\n');
    if (end == std::string_view::npos) {
      partial_ += bytes;
      return;
    }
    if (partial_.empty()) {
      line(bytes.substr(0, end));
    } else {
      partial_ += bytes.substr(0, end);
      line(partial_);
      partial_.clear();
    }
    bytes.remove_prefix(end + 1);
  }
}

void SseReader::line(std::string_view text) {
  if (text.ends_with('\r')) text.remove_suffix(1);
  if (text.empty()) {
    if (!data_.empty()) on_data_(data_);
    data_.clear();
  } else if (text.front() == ':') {
    ++n_comments_;
  } else if (text.starts_with("data:")) {
    text.remove_prefix(5);
    if (text.starts_with(' ')) text.remove_prefix(1);
    if (!data_.empty()) data_ += '\n';
    data_ += text;
  }
}

}  // namespace hadal::cli
