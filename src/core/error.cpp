#include "core/error.h"

#include <fmt/format.h>

namespace hadal {

const char* to_string(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument:
      return "invalid argument";
    case ErrorCode::not_found:
      return "not found";
    case ErrorCode::corrupt_data:
      return "corrupt data";
    case ErrorCode::unsupported:
      return "unsupported";
    case ErrorCode::out_of_memory:
      return "out of memory";
    case ErrorCode::device:
      return "device error";
    case ErrorCode::io:
      return "i/o error";
    case ErrorCode::cancelled:
      return "cancelled";
  }
  return "error";
}

void throw_check_failed(const char* expression, const char* file, int line) {
  throw Error(ErrorCode::invalid_argument,
              fmt::format("internal check failed: {} ({}:{}); this is a bug in hadal", expression,
                          file, line),
              file, line);
}

}  // namespace hadal
