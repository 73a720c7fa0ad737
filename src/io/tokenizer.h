// Text to tokens and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "core/token.h"
#include "io/text_segment.h"

namespace hadal::io {

// What to do with added tokens, <｜User｜> and its kind.
//   encode: parse finds them in the text; ignore makes them ordinary text.
//   decode: parse prints them; ignore leaves out those the file flags as special.
enum class SpecialTokens : std::uint8_t { parse, ignore };

// A byte-level BPE tokenizer as a tokenizer.json describes it. decode(encode(text)) == text for
// every valid UTF-8 text, if the vocabulary has a token for every byte. Copies share one immutable
// table and are cheap; all members may be called from many threads at once.
// Source: DeepSeek-V4's tokenizer.json; Hugging Face tokenizers for how such a file is read.
class Tokenizer {
 public:
  // Throws Error: not_found or io for the file; corrupt_data and unsupported as parse() does, with
  // the path in front.
  [[nodiscard]] static Tokenizer load(const Path& tokenizer_json);
  // Throws Error corrupt_data when `json` contradicts the format or itself, unsupported when it
  // asks for what hadal has no code for: a normalizer, an unknown token, strip flags, a Split
  // other than Isolated, ... Nothing is guessed.
  [[nodiscard]] static Tokenizer parse(std::string_view json);

  // No BOS or EOS is added. Throws Error invalid_argument, with the byte offset, when `text` is not
  // valid UTF-8; unsupported when a byte has no token or a Split pattern gives up.
  [[nodiscard]] std::vector<TokenId> encode(std::string_view text,
                                            SpecialTokens special = SpecialTokens::parse) const;
  // Encodes the concatenation as one run of text, except that an added token is only found where
  // all of it lies in trusted text (which may be several adjacent segments). Offsets in errors
  // count from the beginning of the concatenation.
  [[nodiscard]] std::vector<TokenId> encode(std::span<const TextSegment> segments) const;

  // The bytes of the tokens; valid UTF-8 only if `ids` says so (see Utf8Stream). Throws Error
  // invalid_argument for an id that is no token.
  [[nodiscard]] std::string decode(std::span<const TokenId> ids,
                                   SpecialTokens special = SpecialTokens::parse) const;
  // The bytes of one token, an added token's text; lives as long as the tokenizer or a copy of it.
  // Throws Error invalid_argument for an id that is no token.
  [[nodiscard]] std::string_view token_bytes(TokenId id) const;
  // The token whose bytes are exactly `text`, added tokens before the vocabulary.
  [[nodiscard]] std::optional<TokenId> token_id(std::string_view text) const;
  // Whether the file flags it as special; false for what is no token.
  [[nodiscard]] bool is_special(TokenId id) const;
  // Whether it is an added token: found in text before anything else, and spelt by itself alone.
  [[nodiscard]] bool is_added(TokenId id) const;

  [[nodiscard]] std::int64_t vocab_size() const;     // highest id + 1
  [[nodiscard]] std::size_t n_added_tokens() const;  // as many as the file lists

 private:
  struct Tables;
  explicit Tokenizer(std::shared_ptr<const Tables> tables);
  std::shared_ptr<const Tables> tables_;
};

}  // namespace hadal::io
