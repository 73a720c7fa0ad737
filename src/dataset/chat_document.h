// A conversation to learn from: rendered as a server renders it, a loss on what the assistant
// wrote.
#pragma once

#include <vector>

#include "dataset/document_encoder.h"
#include "io/tokenizer.h"
#include "protocol/chat_template.h"
#include "protocol/json_text.h"
#include "train/data_shard_writer.h"

namespace hadal::dataset {

struct ChatDocument {
  protocol::Conversation conversation;
  std::vector<bool> has_loss;  // by message; only an assistant's counts
  protocol::RenderOptions render;
};

// {"messages": [...], "tools": [...], "thinking_mode": "chat" | "thinking", "reasoning_effort":
// "high"}: messages and tools as the chat API takes them, all but messages optional. "weight": 0 on
// an assistant's message leaves it out of the loss. Throws Error invalid_argument for what a server
// would refuse too, and when no message of an assistant is to be learnt.
[[nodiscard]] ChatDocument chat_from_json(const protocol::Json& object,
                                          const EncodeOptions& options);

// tokenizer.encode(protocol::render(...)), with the loss mask. Source: DeepSeek-V4 §5.1 (the
// format); training notes §5.2 (the mask).
[[nodiscard]] train::TokenDocument encode_chat(const io::Tokenizer& tokenizer,
                                               const ChatDocument& chat);

}  // namespace hadal::dataset
