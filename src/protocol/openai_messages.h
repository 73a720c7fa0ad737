// The messages of a chat completion request.
#pragma once

#include "protocol/api_fields.h"

namespace hadal::protocol {

// Reads `messages` in OpenAI's form with DeepSeek's members (reasoning_content, prefix, and task
// where that is switched on) into the conversation of `request`, message by message as they are
// sent; finish_conversation() judges the whole. Source: serving notes §1.2, §4.6, §4.8.
void read_chat_messages(Fields& body, const ApiDefaults& defaults, ApiRequest& request);

}  // namespace hadal::protocol
