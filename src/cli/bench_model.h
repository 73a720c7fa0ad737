// `hadal bench model`: forward passes of a model, with its own weights or with random ones.
#pragma once

#include "cli/common.h"

namespace hadal::cli {

// Adds `model` to the subcommand `bench`.
[[nodiscard]] Action add_bench_model(CLI::App& app);

}  // namespace hadal::cli
