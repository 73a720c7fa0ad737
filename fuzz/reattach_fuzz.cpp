// Positions that a client may claim to have seen, against one finished response: any of them gives
// exactly the events behind it, or is refused.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "fuzz_server.h"
#include "server/response_stream.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static hadal::fuzz::FuzzServer server;
  static const std::string whole = server.finished_stream("fuzz");
  const std::string id(reinterpret_cast<const char*>(data), size);
  for (const char c : id) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return 0;  // no header could say it
  }
  const std::string rest = server.get("/v1/streams/fuzz", id);
  const auto position = hadal::server::StreamPosition::parse(id);
  if (rest.starts_with("HTTP/1.1 200")) {
    const std::string body = rest.substr(rest.find("\r\n\r\n") + 4);
    // Whatever was left out stands at the beginning.
    if (!whole.ends_with(body)) std::abort();
  } else if (!rest.starts_with("HTTP/1.1 4")) {
    std::abort();
  } else if (position && position->n_tokens <= 1) {
    std::abort();  // a position that exists was refused
  }
  return 0;
}
