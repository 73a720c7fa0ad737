#pragma once

#include "cli/common.h"

namespace hadal::cli {

// One file each.
extern const Subcommand kQuantize;

}  // namespace hadal::cli
