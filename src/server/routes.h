// Paths -> handlers.
#pragma once

#include <string>
#include <string_view>

#include "server/app.h"

namespace hadal::server {

struct RouteTable {
  enum class Where : std::uint8_t { io_thread, worker };
  enum class Access : std::uint8_t { anyone, key };
  struct Route {
    std::string_view method, pattern;  // "{id}" stands for one part of the path
    App::Method handler;
    Where where;
    Access access;
  };
  struct Match {
    const Route* route = nullptr;
    std::string id;
    std::string allow;  // the methods that the path has, when `method` is none of them
  };
  [[nodiscard]] static Match find(std::string_view method, std::string_view path);
  // Whose shape an error on this path has.
  [[nodiscard]] static protocol::Api api_of(std::string_view path);
};

}  // namespace hadal::server
