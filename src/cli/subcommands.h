#pragma once

#include "cli/common.h"

namespace hadal::cli {

// One file each.
extern const Subcommand kBench;
extern const Subcommand kChat;
extern const Subcommand kGenerate;
extern const Subcommand kInspect;
extern const Subcommand kLogits;
extern const Subcommand kQuantize;
extern const Subcommand kReplay;
extern const Subcommand kServe;
extern const Subcommand kSynthesize;
extern const Subcommand kTokenize;

}  // namespace hadal::cli
