// Amounts as people read them.
#pragma once

#include <string>

namespace hadal {

// "1.50 GiB", "12.3 MiB", "512 B".
[[nodiscard]] std::string format_bytes(double nbytes);
// "1h02m", "3m05s", "4.2 s".
[[nodiscard]] std::string format_seconds(double seconds);
// "999", "1.25k", "12.5M", "1.20G", "32.0T": three digits and a power of 1000.
[[nodiscard]] std::string format_count(double n);

}  // namespace hadal
