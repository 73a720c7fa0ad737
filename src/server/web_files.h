// The pages under src/server/web, compiled in.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace hadal::server {

struct WebFile {
  std::string_view path;  // "/app.js"
  std::string_view content_type;
  std::string_view bytes;
  std::string_view etag;  // with its quotes
};

// Made at build time by cmake/embed_web.cmake.
[[nodiscard]] std::span<const WebFile> web_files();
// "/" is index.html, "/status" is status.html; null when there is no such file.
[[nodiscard]] const WebFile* find_web_file(std::string_view path);

}  // namespace hadal::server
