#include "protocol/prompt_encoder.h"

#include <algorithm>

#include "protocol/answer_memory.h"
#include "protocol/chat_format.h"

namespace hadal::protocol {
namespace {

class Encoder final : public RenderListener {
 public:
  Encoder(const Conversation& conversation, const RenderOptions& render_options,
          const io::Tokenizer& tokenizer, const PromptEncodeOptions& options)
      : conversation_(conversation),
        render_options_(render_options),
        tokenizer_(tokenizer),
        options_(options),
        digest_(options.domain) {
    const ChatFormat& format = chat_format(render_options.profile);
    // A text may be cut at a special token and nowhere else.
    can_cut_ = options.memory != nullptr && tokenizer.token_id(format.think_open) &&
               tokenizer.token_id(format.think_close);
    while (n_system_ < conversation.messages.size() &&
           conversation.messages[n_system_].role == Role::system) {
      ++n_system_;
    }
  }

  EncodedPrompt run() {
    encode(render(conversation_, render_options_, this));
    std::ranges::sort(out_.mark_positions);
    const auto repeated = std::ranges::unique(out_.mark_positions);
    out_.mark_positions.erase(repeated.begin(), repeated.end());
    return std::move(out_);
  }

  void message_rendered(std::size_t index, const SegmentWriter& text) override {
    is_last_header_ = false;
    if (index + 1 == n_system_) places_.push_back({text.nbytes(), Place::end_of_system});
    if (std::ranges::find(options_.marks, index) != options_.marks.end()) {
      places_.push_back({text.nbytes(), Place::mark});
    }
  }

  void header_begins(const SegmentWriter& text) override {
    is_last_header_ = true;
    places_.push_back({text.nbytes(), Place::header});
  }

  bool answer_begins(std::size_t index, ThinkingMode mode, SegmentWriter& text) override {
    ++out_.n_answers;
    if (!can_cut_) return false;
    encode(text.take());
    const auto answer = options_.memory->find(conversation_.messages[index], mode, digest_);
    if (!answer) return false;
    add(*answer);
    ++out_.n_remembered;
    return true;
  }

 private:
  struct Place {
    std::size_t offset;  // in the text that is still to be encoded
    enum Kind : std::uint8_t { header, end_of_system, mark } kind;
  };

  void add(const std::vector<TokenId>& tokens) {
    out_.tokens.insert(out_.tokens.end(), tokens.begin(), tokens.end());
    if (options_.memory != nullptr) digest_.extend(tokens);
  }

  void encode(std::vector<io::TextSegment> segments) {
    if (render_options_.trust_special_tokens) {
      for (io::TextSegment& segment : segments) segment.trusted = true;
    }
    const std::vector<TokenId> tokens = tokenizer_.encode(segments);
    // Places come in the order of the text; a place inside a token counts as before it.
    std::size_t n_tokens = 0, offset = 0;
    for (const Place& place : places_) {
      while (n_tokens < tokens.size()) {
        const std::size_t next = offset + tokenizer_.token_bytes(tokens[n_tokens]).size();
        if (next > place.offset) break;
        offset = next;
        ++n_tokens;
      }
      const auto position = static_cast<std::int64_t>(out_.tokens.size() + n_tokens);
      if (place.kind == Place::end_of_system) out_.end_of_system_position = position;
      if (place.kind == Place::mark && position > 0) out_.mark_positions.push_back(position);
      // All headers pass here; the last one counts, if nothing came behind it.
      if (place.kind == Place::header) out_.think_token_position = position;
    }
    places_.clear();
    if (!is_last_header_) out_.think_token_position.reset();
    add(tokens);
  }

  const Conversation& conversation_;
  const RenderOptions& render_options_;
  const io::Tokenizer& tokenizer_;
  const PromptEncodeOptions& options_;
  bool can_cut_ = false;
  std::size_t n_system_ = 0;  // at the head
  std::vector<Place> places_;
  bool is_last_header_ = false;
  PromptDigest digest_;
  EncodedPrompt out_;
};

}  // namespace

EncodedPrompt encode_prompt(const Conversation& conversation, const RenderOptions& render_options,
                            const io::Tokenizer& tokenizer, const PromptEncodeOptions& options) {
  return Encoder(conversation, render_options, tokenizer, options).run();
}

}  // namespace hadal::protocol
