// The TOML form of a training run's options.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/file.h"
#include "train/run_config.h"

namespace hadal::cli {

// `overrides` are "section.key=value", the value as TOML writes it, and go on top of the text. A
// relative data.directory, model.config or tokenizer is meant from the file's directory.
// Throws Error: corrupt_data with file, line and column when it is no TOML, invalid_argument with
// key, found and wanted for unknown keys, wrong types and impossible values, what
// model::parse_config throws for the section [model].
[[nodiscard]] train::RunConfig parse_run_config(std::string_view toml, const Path& source,
                                                std::span<const std::string> overrides = {});
[[nodiscard]] train::RunConfig load_run_config(const Path& path,
                                               std::span<const std::string> overrides = {});

// Every key with its value and what it means. The model stands beside it, in the config.json of the
// same directory; with that, parse_run_config reads the same config back.
[[nodiscard]] std::string to_toml(const train::RunConfig& config);

}  // namespace hadal::cli
