// The response object of the Responses API and its output items, as JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "protocol/api.h"
#include "protocol/api_json.h"
#include "protocol/responses_tools.h"

namespace hadal::protocol {

struct ResponsesItem {
  enum class Kind : std::uint8_t { reasoning, message, call } kind;
  std::string id = {};
  std::string text = {};      // of a call: its arguments
  std::string logprobs = {};  // of a message: the inside of an array
  std::string call_id = {};   // of a call
  ResponsesTool tool = {};    // of a call
  bool is_complete = true;    // a call that was cut off is not, and is no output
};

enum class ItemStatus : std::uint8_t { in_progress, completed, incomplete };

// `is_empty`: as it is announced, before it has any content.
void write_item(JsonWriter& out, const ResponsesItem& item, ItemStatus status, bool is_empty,
                const std::string& pointer);
// The only part that a message or a reasoning item has.
void write_part(JsonWriter& out, const ResponsesItem& item, bool is_empty);

struct ResponsesOutcome {
  const char* status;                       // "in_progress", "completed", ...
  const char* incomplete_reason = nullptr;  // of "incomplete"
  std::optional<ApiError> error = {};       // of "failed"
  std::optional<Usage> usage = {};
};

// The whole object. `pointer` names the answer to whoever brings its reasoning back.
void write_response(JsonWriter& out, const ResponseIdentity& identity, const Json& echoed,
                    bool background, const std::vector<ResponsesItem>& items,
                    const ResponsesOutcome& outcome, const std::string& pointer);

}  // namespace hadal::protocol
