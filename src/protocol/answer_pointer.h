// The name that an answer is given in signatures and encrypted reasoning, and known by when a
// client brings it back.
#pragma once

#include <string>
#include <string_view>

#include "protocol/api.h"

namespace hadal::protocol {

// Unguessable, and the same whenever this response is written again: "answer_" and 24 base62
// characters. Says nothing by itself; AnswerMemory knows what it stands for.
[[nodiscard]] std::string answer_pointer(const ResponseIdentity& identity, std::int32_t choice);

// `signature` if it may be one of ours, else "": other servers' signatures mean nothing here.
[[nodiscard]] std::string answer_pointer_from(std::string_view signature);

}  // namespace hadal::protocol
