#include <gtest/gtest.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include "core/error.h"
#include "http_client.h"
#include "server/http_server.h"

namespace hadal::server {
namespace {

// A certificate and key that mean nothing outside this test.
HttpServerOptions tls_options() {
  const Path data = Path(HADAL_TEST_DATA_DIR) / "server/data";
  HttpServerOptions options;
  options.port = 0;
  options.tls_certificate = data / "test_certificate.pem";
  options.tls_key = data / "test_key.pem";
  return options;
}

TEST(Tls, ServesOverIt) {
  HttpServer server(tls_options(), [](const std::shared_ptr<Exchange>& exchange) {
    exchange->begin(200, {});
    exchange->write("hello ");
    exchange->write(std::string(100'000, 'x'));
    exchange->end();
  });
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(server.port());
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  SSL* ssl = SSL_new(context);
  SSL_set_fd(ssl, fd);
  ASSERT_EQ(SSL_connect(ssl), 1);
  const std::string request = "GET / HTTP/1.0\r\nHost: h\r\n\r\n";
  ASSERT_EQ(SSL_write(ssl, request.data(), static_cast<int>(request.size())),
            static_cast<int>(request.size()));
  std::string reply;
  char buffer[4096];
  for (int n = 0; (n = SSL_read(ssl, buffer, sizeof buffer)) > 0;) {
    reply.append(buffer, static_cast<std::size_t>(n));
  }
  EXPECT_EQ(reply.substr(0, 15), "HTTP/1.1 200 OK");
  EXPECT_EQ(reply.substr(reply.find("\r\n\r\n") + 4, 8), "hello xx");
  EXPECT_EQ(reply.size() - reply.find("\r\n\r\n") - 4, 100'006u);
  SSL_free(ssl);
  SSL_CTX_free(context);
  ::close(fd);

  test::Client plain(server.port());  // no TLS: nobody else is harmed
  plain.request("GET", "/");
  EXPECT_TRUE(plain.ends_within(20'000));
  server.stop();
}

TEST(Tls, RefusesFilesThatAreNoCertificateOrKey) {
  const Handler nothing = [](const std::shared_ptr<Exchange>&) {};
  HttpServerOptions no_key = tls_options(), wrong = tls_options(), swapped = tls_options();
  no_key.tls_key.clear();
  wrong.tls_certificate = Path(HADAL_SOURCE_DIR) / "CMakeLists.txt";
  std::swap(swapped.tls_certificate, swapped.tls_key);
  for (const HttpServerOptions& options : {no_key, wrong, swapped}) {
    try {
      const HttpServer server(options, nothing);
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::invalid_argument);
    }
  }
}

}  // namespace
}  // namespace hadal::server
