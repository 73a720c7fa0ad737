#pragma once

#include "core/file.h"

namespace hadal::cli {

// Brings a checkpoint's files into the page cache, with a progress bar, so that the first tokens
// do not wait for the disk page by page. Does nothing for what is there already, and nothing at all
// for files that would not fit into memory together.
void preload(const Path& directory);

}  // namespace hadal::cli
