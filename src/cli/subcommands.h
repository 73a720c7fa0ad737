#pragma once

#include <span>

#include "cli/common.h"

namespace hadal::cli {

// One file each.
extern const Subcommand kBench;
extern const Subcommand kChat;
extern const Subcommand kData;
extern const Subcommand kExport;
extern const Subcommand kGenerate;
extern const Subcommand kInspect;
extern const Subcommand kLogits;
extern const Subcommand kQuantize;
extern const Subcommand kReplay;
extern const Subcommand kReport;
extern const Subcommand kServe;
extern const Subcommand kSynthesize;
extern const Subcommand kTokenize;
extern const Subcommand kTokenizer;
extern const Subcommand kTrain;

// Makes `app` a group: its action is that of the one of `nested` that was chosen.
[[nodiscard]] Action add_nested(CLI::App& app, std::span<const Subcommand> nested);

}  // namespace hadal::cli
