// hadal data: build, stats, show.
#pragma once

#include "cli/subcommands.h"

namespace hadal::cli {

extern const Subcommand kDataBuild;
extern const Subcommand kDataStats;
extern const Subcommand kDataShow;

}  // namespace hadal::cli
