// The ranks that this test program runs as: alone, or all that mpirun started.
#pragma once

#include "parallel/communicator.h"

namespace hadal::test {

// Lives until the last test is over.
[[nodiscard]] parallel::Communicator& ranks();

}  // namespace hadal::test
