// A client that says exactly what it is told, over a real loopback socket.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hadal::server::test {

struct Reply {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // without chunk framing
  bool whole = false;                          // its end was seen
};

class Client {
 public:
  explicit Client(std::uint16_t port, int receive_buffer = 0)
      : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) {
      ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      throw std::runtime_error("cannot connect");
    }
  }
  ~Client() { close(); }
  Client(Client&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), in_(std::move(other.in_)), ended_(other.ended_) {}
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  void half_close() { ::shutdown(fd_, SHUT_WR); }

  // False when the server has cut the connection.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }
  bool request(std::string_view method, std::string_view target, std::string_view body = "",
               const std::vector<std::pair<std::string, std::string>>& headers = {}) {
    std::string text =
        std::string(method) + " " + std::string(target) + " HTTP/1.1\r\nHost: test\r\n";
    for (const auto& [name, value] : headers) text += name + ": " + value + "\r\n";
    if (!body.empty() || method == "POST") {
      text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
    }
    return send(text + "\r\n" + std::string(body));
  }

  // One response; `head_only` for HEAD and 100 Continue.
  Reply reply(bool head_only = false) {
    Reply reply;
    const std::size_t end = read_until("\r\n\r\n");
    if (end == std::string::npos) return reply;
    const std::string head = in_.substr(0, end);
    in_.erase(0, end + 4);
    reply.status = std::stoi(head.substr(9, 3));
    std::size_t at = head.find("\r\n");
    while (at != std::string::npos) {
      const std::size_t next = head.find("\r\n", at + 2);
      std::string line = head.substr(at + 2, next == std::string::npos ? next : next - at - 2);
      const std::size_t colon = line.find(": ");
      std::string name = line.substr(0, colon);
      for (char& c : name) c = static_cast<char>(std::tolower(c));
      reply.headers[name] = line.substr(colon + 2);
      at = next;
    }
    if (head_only || reply.status == 100 || reply.status == 304) {
      reply.whole = true;
    } else if (reply.headers.count("content-length") != 0) {
      const std::size_t n = std::stoul(reply.headers["content-length"]);
      while (in_.size() < n && read_more()) {
      }
      reply.whole = in_.size() >= n;
      reply.body = in_.substr(0, n);
      in_.erase(0, n);
    } else if (reply.headers.count("transfer-encoding") != 0) {
      read_chunks(reply);
    } else {
      while (read_more()) {
      }
      reply.whole = true;
      reply.body = std::exchange(in_, {});
    }
    return reply;
  }
  Reply ask(std::string_view method, std::string_view target, std::string_view body = "",
            const std::vector<std::pair<std::string, std::string>>& headers = {}) {
    request(method, target, body, headers);
    return reply(method == "HEAD");
  }

  // Raw bytes up to and including `mark`; npos at the end of the connection.
  std::size_t read_until(std::string_view mark) {
    for (;;) {
      const std::size_t found = in_.find(mark);
      if (found != std::string::npos) return found;
      if (!read_more()) return std::string::npos;
    }
  }
  std::string take(std::size_t n) {
    std::string out = in_.substr(0, n);
    in_.erase(0, n);
    return out;
  }
  // Whether the server ends the connection within `ms`; what it says before is kept.
  bool ends_within(int ms) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
    while (!ended_ && std::chrono::steady_clock::now() < until) (void)read_more(50);
    return ended_;
  }
  const std::string& unread() const { return in_; }

  // False at the end of the connection, or when nothing comes for `ms`.
  bool read_more(int ms = 20'000) {
    if (ended_) return false;
    pollfd poll{fd_, POLLIN, 0};
    if (::poll(&poll, 1, ms) <= 0) return false;
    char buffer[16384];
    const ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
    if (n <= 0) {
      ended_ = true;
      return false;
    }
    in_.append(buffer, static_cast<std::size_t>(n));
    return true;
  }

 private:
  void read_chunks(Reply& reply) {
    for (;;) {
      const std::size_t line = read_until("\r\n");
      if (line == std::string::npos) return;
      const std::size_t n = std::stoul(in_.substr(0, line), nullptr, 16);
      while (in_.size() < line + 2 + n + 2) {
        if (read_more()) continue;
        reply.body += in_.substr(line + 2);
        return;
      }
      reply.body += in_.substr(line + 2, n);
      in_.erase(0, line + 2 + n + 2);
      if (n == 0) {
        reply.whole = true;
        return;
      }
    }
  }

  int fd_;
  std::string in_;
  bool ended_ = false;
};

}  // namespace hadal::server::test
