// What generate, chat and bench share: options of drawing tokens, prompts as ids, text as it comes.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/common.h"
#include "engine/generate.h"
#include "io/utf8.h"
#include "protocol/message.h"

namespace hadal::cli {

struct GenerationOptions {
  // Unset ones come from the model's generation_config.json, else from SamplingParams.
  std::optional<float> temperature, top_p, min_p, repetition_penalty, presence_penalty,
      frequency_penalty;
  std::optional<std::int64_t> top_k;
  std::uint64_t seed = 0;
  std::int64_t max_tokens = 0;
  std::vector<std::string> stop;
  std::int64_t chunk = 512, draft_tokens = 1;
  bool no_mtp = false, ignore_eos = false, stats = false;

  // Throws corrupt_data when generation_config.json is no JSON, invalid_argument for a value out
  // of range.
  [[nodiscard]] engine::SamplingParams sampling(const engine::LoadedModel& loaded) const;
  [[nodiscard]] engine::SessionOptions session(Numerics numerics) const;
};
void add_generation_options(CLI::App& app, GenerationOptions& options);

// The ids of `text` behind the beginning-of-sentence token. Control tokens written in the text are
// control tokens, unless `special` is ignore. Throws invalid_argument for what is no UTF-8 and,
// with `special` parse, for what looks like a control token (<｜...｜>) and is none.
[[nodiscard]] std::vector<TokenId> raw_prompt(const engine::LoadedModel& loaded,
                                              std::string_view text, io::SpecialTokens special);

// A message without anything but its text.
[[nodiscard]] inline protocol::Message message_of(protocol::Role role, std::string content) {
  protocol::Message message;
  message.role = role;
  message.content = std::move(content);
  return message;
}

// Throws unsupported when the tokenizer lacks a control token that the chat template writes.
void expect_chat_tokens(const io::Tokenizer& tokenizer, protocol::ChatProfile profile);

// Tokens that end an answer: the config's, and in a chat the headers of turns, too.
[[nodiscard]] std::vector<TokenId> stop_tokens(const engine::LoadedModel& loaded,
                                               std::optional<protocol::ChatProfile> profile);

// Text as tokens arrive: whole characters, and nothing of or after a stop string.
class TextStream {
 public:
  TextStream(const io::Tokenizer& tokenizer, std::vector<std::string> stops)
      : tokenizer_(tokenizer), stops_(std::move(stops)) {}
  [[nodiscard]] std::string feed(TokenId token) {
    return stops_.feed(utf8_.feed(tokenizer_.token_bytes(token)));
  }
  [[nodiscard]] std::string finish() {
    if (stopped()) return {};
    const std::string text = stops_.feed(utf8_.finish());
    return text + stops_.finish();
  }
  [[nodiscard]] bool stopped() const { return stops_.stopped(); }

 private:
  const io::Tokenizer& tokenizer_;
  io::Utf8Stream utf8_;
  engine::StopStrings stops_;
};

// "prompt 321 tokens, 210 tokens/s; answer ...": for people.
[[nodiscard]] std::string stats_text(const engine::Session& session);

}  // namespace hadal::cli
