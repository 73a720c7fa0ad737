// A conversation as the tokens that the model reads, with the places that a cache wants to know.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/token.h"
#include "io/tokenizer.h"
#include "protocol/chat_template.h"
#include "protocol/message.h"

namespace hadal::protocol {

class AnswerMemory;

struct EncodedPrompt {
  std::vector<TokenId> tokens;

  // Positions are numbers of tokens: the prefix [0, position) ends there.
  // Before the think tag of the header at the end; nothing when the prompt ends inside an answer.
  // The next turn shares the prompt this far even where its header closes the reasoning.
  std::optional<std::int64_t> think_token_position;
  std::int64_t end_of_system_position = 0;   // behind the system messages at the head; 0: none
  std::vector<std::int64_t> mark_positions;  // behind the marked messages; ascending, no 0

  std::size_t n_answers = 0;     // that follow a header
  std::size_t n_remembered = 0;  // of those, written as they were sampled
};

struct PromptEncodeOptions {
  AnswerMemory* memory = nullptr;       // none: every answer in its canonical form
  std::string_view domain = {};         // of the memory: whose prompts this one may learn from
  std::vector<std::size_t> marks = {};  // indices of messages; out of range ones are ignored
};

// Without a memory, or where it knows nothing, exactly tokenizer.encode(render(conversation)).
// Answers that the memory knows are put in as the tokens that were sampled, so that the prompt
// continues an earlier prompt and its answer token by token. Only behind a header like the one they
// were sampled behind: an answer whose reasoning this rendering drops stands in canonical form.
// Throws as render() and Tokenizer::encode() do.  Source: serving notes §1.10.
[[nodiscard]] EncodedPrompt encode_prompt(const Conversation& conversation,
                                          const RenderOptions& render_options,
                                          const io::Tokenizer& tokenizer,
                                          const PromptEncodeOptions& options = {});

}  // namespace hadal::protocol
