// Bytes as they may come over a socket, against a whole server with an engine that answers at once.
// Whatever they are, the server answers or closes, and goes on.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>

#include "fuzz_server.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static hadal::fuzz::FuzzServer server;
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(server.port());
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) std::abort();
  (void)::send(fd, data, size, MSG_NOSIGNAL);
  (void)::shutdown(fd, SHUT_WR);
  // To its end: a server that neither answers nor closes is a find.
  char buffer[4096];
  for (;;) {
    pollfd poll{fd, POLLIN, 0};
    if (::poll(&poll, 1, 20'000) <= 0) std::abort();
    if (::recv(fd, buffer, sizeof buffer, 0) <= 0) break;
  }
  ::close(fd);
  return 0;
}
