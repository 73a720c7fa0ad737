#include "server/web_files.h"

namespace hadal::server {

const WebFile* find_web_file(std::string_view path) {
  if (path == "/") path = "/index.html";
  if (path == "/status") path = "/status.html";
  for (const WebFile& file : web_files()) {
    if (file.path == path) return &file;
  }
  return nullptr;
}

}  // namespace hadal::server
