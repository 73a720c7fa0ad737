#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hadal::cache {

// The state of a sequence at a page boundary: window rows and unfinished compressor rows. With the
// pages before it, all that is needed to go on from there.
struct Snapshot {
  std::int64_t position = 0;     // a multiple of the page size
  std::vector<std::byte> state;  // PagedKv::save_state
};

}  // namespace hadal::cache
