// The input of the Responses API: a text or a list of items.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "protocol/api_fields.h"

namespace hadal::protocol {

// Reads `instructions` and `input` into the conversation of `request`. What an assistant said,
// thought and called between two user messages or results is one message. Appends to `paths`, for
// every message, where the client wrote it.  Source: serving notes §4.9.
void read_responses_input(Fields& body, ApiRequest& request, std::vector<std::string>& paths);

// The response that a request goes on from, if it names one; does not judge the rest of the body.
[[nodiscard]] std::optional<std::string> previous_response_id(const Json& body);

// `body` as if its client had replayed everything itself: the input of the request before (whose
// own input had been completed so), the output of its response, then the input of `body`. Its other
// members, instructions among them, are those of `body`.
[[nodiscard]] Json with_previous_response(const Json& body, const Json& previous_body,
                                          const Json& previous_response);

}  // namespace hadal::protocol
