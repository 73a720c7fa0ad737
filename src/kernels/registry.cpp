#include "kernels/registry.h"

#include <fmt/format.h>

namespace hadal {

KernelRegistry::AnyFn KernelRegistry::lookup(const char* name, KernelKey key) const {
  const auto found = table_.find({name, key});
  if (found != table_.end()) return found->second;
  std::string have;
  for (const auto& [entry, fn] : table_) {
    if (entry.first != name) continue;
    have += fmt::format("{}{} {}", have.empty() ? "" : ", ", to_string(entry.second.device),
                        to_string(entry.second.dtype));
  }
  throw Error(ErrorCode::unsupported,
              fmt::format("no kernel \"{}\" for {} {}; there is: {}", name, to_string(key.device),
                          to_string(key.dtype), have.empty() ? "none" : have));
}

std::string KernelRegistry::describe() const {
  std::string text;
  std::string_view last;
  for (const auto& [entry, fn] : table_) {
    if (entry.first != last)
      text += fmt::format("{}{:<20}", last.empty() ? "" : "\n", entry.first);
    else
      text += ",";
    text += fmt::format(" {} {}", to_string(entry.second.device), to_string(entry.second.dtype));
    last = entry.first;
  }
  return text;
}

}  // namespace hadal
