// core: no model, no maths. What everything else stands on.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace hadal {

enum class ErrorCode : std::uint8_t {
  invalid_argument,  // the caller asked for something that cannot be
  not_found,         // a file, tensor or name that should exist does not
  corrupt_data,      // what was read contradicts its format or its config
  unsupported,       // well-formed, but hadal has no code for it
  out_of_memory,
  device,
  io,
  cancelled
};

[[nodiscard]] const char* to_string(ErrorCode code);

// The only exception hadal throws. what() is written for whoever has to act on it: the name, what
// was found, what was wanted, and the way out where there is one.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode error_code, const std::string& message,
        const char* source_file = __builtin_FILE(), int source_line = __builtin_LINE())
      : std::runtime_error(message), code(error_code), file(source_file), line(source_line) {}
  const ErrorCode code;
  const char* const file;
  const int line;
};

[[noreturn]] void throw_check_failed(const char* expression, const char* file, int line);

}  // namespace hadal

// A broken invariant of hadal's own. Throws in every build; never used on input, which deserves a
// sentence of its own.
#define HADAL_CHECK(expression) \
  ((expression) ? void(0) : ::hadal::throw_check_failed(#expression, __FILE__, __LINE__))
