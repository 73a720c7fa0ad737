// From a document as it was read to the tokens that a model is trained on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/token.h"
#include "dataset/document_reader.h"
#include "io/tokenizer.h"
#include "protocol/message.h"
#include "train/data_shard_writer.h"

namespace hadal::dataset {

// Whether an answer is preceded by reasoning.
enum class ChatMode : std::uint8_t {
  automatic,  // thinking where a conversation has reasoning, chat elsewhere
  chat,
  thinking
};

struct EncodeOptions {
  std::uint64_t seed = 0;
  // Part of the text documents that become fill-in-the-middle ones: prefix, suffix, middle.
  // Source: DeepSeek-V3 §4.1 (0.1); DeepSeek-V4 §4.1 inherits it.
  double fim_rate = 0;
  // Part of the tokens made of punctuation and line breaks that are cut in two in text documents,
  // so that a model also meets the two apart.  Source: DeepSeek-V3 §4.1; V4 §4.1 inherits it.
  double split_rate = 0;
  ChatMode chat_mode = ChatMode::automatic;
  protocol::ChatProfile profile = protocol::ChatProfile::v4_preview;
};

// Identifies a document by its content, so that equal documents have equal fates.
[[nodiscard]] std::uint64_t content_key(std::string_view text);
// The key as a number in [0, 1).
[[nodiscard]] double unit_of(std::uint64_t key);

// A text document is begin-of-sentence, its tokens, end-of-sentence, with a loss on all of them;
// nothing in it becomes a control token. A conversation is what the serving renderer makes of it,
// with a loss on what its assistant wrote: reasoning, text, calls and the end of sentence.
// All members may be called from many threads at once.
class DocumentEncoder {
 public:
  // Throws Error unsupported when the tokenizer lacks a control token that the options need.
  DocumentEncoder(io::Tokenizer tokenizer, const EncodeOptions& options);

  // Nothing for an empty document of several. `key` is content_key of its text; what is random
  // depends on it and the seed alone. Throws Error corrupt_data, beginning with `place` and naming
  // the byte, for an empty file, NUL bytes, what is not UTF-8, a line that is no JSON, or an object
  // that is neither text nor a conversation to learn from.
  [[nodiscard]] std::optional<train::TokenDocument> encode(const RawDocument& document,
                                                           const std::string& place,
                                                           std::uint64_t key) const;

  [[nodiscard]] TokenId begin_token() const { return begin_; }
  [[nodiscard]] TokenId end_token() const { return end_; }
  // The padding token, or the end token where the tokenizer has none.
  [[nodiscard]] TokenId pad_token() const { return pad_; }

 private:
  struct SplitToken {
    TokenId token;
    std::vector<TokenId> parts;
  };
  [[nodiscard]] train::TokenDocument encode_text(std::string_view text, std::uint64_t key) const;
  [[nodiscard]] std::vector<TokenId> encode_fim(std::string_view text, std::uint64_t key) const;
  [[nodiscard]] std::vector<TokenId> split_some(const std::vector<TokenId>& tokens,
                                                std::uint64_t key) const;
  [[nodiscard]] const SplitToken* find_split(TokenId token) const;
  void find_split_tokens();

  io::Tokenizer tokenizer_;
  EncodeOptions options_;
  TokenId begin_, end_, pad_;
  std::vector<SplitToken> split_tokens_;  // by token
};

// What of a document is ordinary text, control tokens and the template's own words left out: what a
// tokenizer learns from. Throws as DocumentEncoder::encode.
[[nodiscard]] std::vector<std::string> plain_texts(const RawDocument& document,
                                                   const std::string& place);

}  // namespace hadal::dataset
