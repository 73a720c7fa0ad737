// A trained vocabulary as the tokenizer.json that hadal and Hugging Face's tokenizers read.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>

#include "io/bpe_trainer.h"

namespace hadal::io {

// The control tokens of DeepSeek-V4's format: the first kFirstControlTokens have the lowest ids,
// the others the highest, as in the published tokenizer.
// Source: DeepSeek-V4's tokenizer.json; serving notes §1.1.
inline constexpr std::size_t kFirstControlTokens = 3;
inline constexpr std::array<std::string_view, 20> kControlTokens = {
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<｜System｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "｜DSML｜",
    "<｜latest_reminder｜>",
    "<｜action｜>",
    "<｜query｜>",
    "<｜authority｜>",
    "<｜domain｜>",
    "<｜title｜>",
    "<｜extracted_url｜>",
    "<｜read_url｜>",
};

// Names of the control tokens that documents are made with.
inline constexpr std::string_view kBeginOfSentence = kControlTokens[0];
inline constexpr std::string_view kEndOfSentence = kControlTokens[1];
inline constexpr std::string_view kPadding = kControlTokens[2];
inline constexpr std::string_view kFimHole = kControlTokens[4];
inline constexpr std::string_view kFimBegin = kControlTokens[5];
inline constexpr std::string_view kFimEnd = kControlTokens[6];

// How DeepSeek-V3 and V4 cut text: up to three digits, CJK runs, then words, punctuation with its
// newlines, and blanks.  Source: their tokenizer.json.
inline constexpr std::array<std::string_view, 3> kDeepSeekSplitPatterns = {
    R"(\p{N}{1,3})",
    "[一-龥぀-ゟ゠-ヿ]+",
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)"
    R"( ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
};

// The pretokenizer of those patterns.
[[nodiscard]] Pretokenizer deepseek_pretokenizer();

// tokenizer.json with kControlTokens around the tokens of `bpe`, so that there are
// bpe.tokens.size() + kControlTokens.size() ids without gaps. Tokenizer::parse reads it, and
// Tokenizer::encode then gives what Hugging Face's tokenizers give.
[[nodiscard]] std::string write_tokenizer_json(const TrainedBpe& bpe);

}  // namespace hadal::io
