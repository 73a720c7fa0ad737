// The parts of Anthropic's Messages API that have no place among the neutral functions.
#pragma once

#include <cstdint>
#include <string>

#include "protocol/api_fields.h"

namespace hadal::protocol {

// The body of POST /v1/messages/count_tokens: that of /v1/messages, where max_tokens may be
// missing. Throws as parse_request() does.
[[nodiscard]] ApiRequest parse_count_tokens(const Json& body, const ApiDefaults& defaults);
// Its answer.
[[nodiscard]] std::string count_tokens_body(std::int64_t n_tokens);

// `system` without the lines that some clients put there for their billing, which change with every
// request and so would keep any two prompts from sharing a word.  Source: serving notes §4.10.
[[nodiscard]] std::string without_billing_lines(std::string_view system);

// Reads `system`, `messages` and the cache marks on both into the conversation of `request`.
// Appends to `paths`, for every message, where the client wrote it. `marks_system` asks for a mark
// behind the system text whatever it says of itself.
void read_anthropic_messages(Fields& body, bool marks_system, ApiRequest& request,
                             std::vector<std::string>& paths);

}  // namespace hadal::protocol
