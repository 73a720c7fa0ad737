#pragma once

#include "cli/common.h"

namespace hadal::cli {

// Finishes what the journal in `directory` left unfinished, as a server would after a restart, and
// prints what became of it. Exit status; 130 when Ctrl-C came first: the rest stays unfinished.
[[nodiscard]] int resume_journal(const Path& directory, const ModelOptions& model);

}  // namespace hadal::cli
