// The JSON header of a safetensors file, held against the format and the file's size.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.h"

namespace hadal::io {

// "F8_E4M3" -> f8_e4m3. BOOL is u8 and F8_E8M0FNU, a spelling seen in the wild, is ue8m0.
[[nodiscard]] std::optional<DType> safetensors_dtype(std::string_view name);
[[nodiscard]] const char* safetensors_dtype_name(DType dtype);  // f4_e2m1: "I8", as packed

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;
};

// `json` is the header alone, `data_begin` the offset of the data in the file and `data_size` the
// number of bytes behind it. Every offset returned lies inside the file, the entries tile the data
// without overlap or hole, and no allocation follows a number that the file claims.
// Throws Error corrupt_data or unsupported, beginning with `file_name`.
[[nodiscard]] SafetensorsHeader parse_safetensors_header(std::string_view json,
                                                         std::size_t data_begin,
                                                         std::size_t data_size,
                                                         const std::string& file_name);

}  // namespace hadal::io
