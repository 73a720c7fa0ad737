// Cuts text into the pieces inside which BPE works.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "io/split_regex.h"

namespace hadal::io {

// GPT-2's pattern, which ByteLevel applies when its use_regex is true.
inline constexpr std::string_view kByteLevelPattern =
    R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// A sequence of isolating splits: each stage cuts every piece of the stage before into its matches
// and what lies between them, and sees nothing outside that piece. No stages: one piece.
// Source: Hugging Face tokenizers, pre_tokenizers Sequence and Split (behavior Isolated).
class Pretokenizer {
 public:
  explicit Pretokenizer(std::vector<SplitRegex> stages);

  using Sink = std::function<void(std::string_view piece)>;
  // Hands the pieces of `text` (valid UTF-8) to `sink` in order. They are not empty, and their
  // concatenation is `text`. Thread-safe with a scratch per thread.
  void split(std::string_view text, RegexScratch& scratch, const Sink& sink) const;

 private:
  void split_from(std::size_t stage, std::string_view text, RegexScratch& scratch,
                  const Sink& sink) const;
  std::vector<SplitRegex> stages_;
};

}  // namespace hadal::io
