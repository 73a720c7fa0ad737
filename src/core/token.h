#pragma once

#include <cstdint>

namespace hadal {

using TokenId = std::int32_t;

}  // namespace hadal
