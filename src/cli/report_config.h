#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/file.h"

namespace hadal::cli {

// The options of a run as rows of a table: "lr.peak" and "0.001" out of config.toml, then
// "model.hidden_size" and so on out of config.json, both as far as they are there and can be read.
[[nodiscard]] std::vector<std::pair<std::string, std::string>> config_rows(const Path& run);

}  // namespace hadal::cli
