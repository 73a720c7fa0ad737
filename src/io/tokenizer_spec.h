// What a tokenizer.json says, checked and without JSON.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/token.h"
#include "io/bpe.h"

namespace hadal::io {

struct VocabularyEntry {
  std::string spelling;  // in the byte alphabet, or raw for the names of control tokens
  TokenId id;
};

struct AddedToken {
  std::string content;  // raw text
  TokenId id;
  bool special;     // decoders asked to may leave it out
  bool normalized;  // looked for only in what the others left
};

struct TokenizerSpec {
  std::vector<VocabularyEntry> vocabulary;  // ids and spellings unique
  std::vector<Merge> merges;                // by rank
  bool ignore_merges = false;  // a piece that is a token is that token, whatever merges say
  std::vector<std::string> split_patterns;  // Oniguruma regexes, one a stage, all isolating
  std::vector<AddedToken> added_tokens;     // contents unique; an id shared with `vocabulary` has
                                            // the same spelling there
  std::size_t n_ids = 0;                    // highest id + 1
};

// Reads the family of byte-level BPE: pre_tokenizer = Splits, then ByteLevel. Throws Error
// corrupt_data for what contradicts the format or itself, unsupported for well-formed features that
// hadal has no code for (normalizers, dropout, byte fallback, strip flags, other behaviors, ...),
// each naming the key and the value. Memory is in proportion to `json`, whatever numbers it holds.
// Source: Hugging Face tokenizers 0.23, serialization of Tokenizer.
[[nodiscard]] TokenizerSpec parse_tokenizer_spec(std::string_view json);

}  // namespace hadal::io
