// POST /v1/completions: the answer, as one object or as a stream of the same.
#include <set>
#include <utility>

#include "protocol/api_dispatch.h"
#include "protocol/openai_writer.h"

namespace hadal::protocol {
namespace {

// Characters that begin in `bytes`, whole or not.
std::int64_t count_characters(std::string_view bytes) {
  std::int64_t n = 0;
  for (const char byte : bytes) n += (static_cast<unsigned char>(byte) & 0xC0U) != 0x80U;
  return n;
}

void append_item(std::string& list, std::string_view item) {
  if (!list.empty()) list += ',';
  list += item;
}

// Four JSON arrays side by side, as their insides; what is not written yet.
struct LogprobArrays {
  std::string tokens, logprobs, tops, offsets;
  [[nodiscard]] bool empty() const { return tokens.empty(); }
};

struct Choice {
  std::string text;  // kept only where there is no stream
  LogprobArrays logprobs;
  std::int64_t offset = 0;  // where the next token's text begins, in characters
};

class CompletionsWriter final : public OpenAiWriter {
 public:
  CompletionsWriter(const ApiRequest& request, const ResponseIdentity& identity)
      : OpenAiWriter(request, response_head("cmpl-", "text_completion", identity),
                     request.prompts.size() * static_cast<std::size_t>(request.n)),
        logprobs_(request.logprobs),
        n_top_(static_cast<std::size_t>(request.top_logprobs)),
        choices_(n_choices()) {}

  std::vector<SseEvent> begin(const Usage& /*usage*/) override { return {}; }

  std::vector<SseEvent> events(std::int32_t index, const std::vector<DsmlEvent>& events,
                               const TokenLogprobText* logprob, bool /*in_reasoning*/) override {
    if (failed()) return {};
    const auto at = static_cast<std::size_t>(index);
    Choice& choice = choices_.at(at);
    std::string text;
    for (const DsmlEvent& event : events) {
      if (const auto* content = std::get_if<ContentDelta>(&event)) text += content->text;
    }
    if (logprob == nullptr) {
      choice.offset += count_characters(text);  // a prompt that is only repeated
    } else {
      if (logprobs_) add_logprob(choice, *logprob);
      choice.offset += count_characters(logprob->bytes);
    }
    if (!streams()) {
      choice.text += text;
      return {};
    }
    if (text.empty()) return {};
    return {chunk(at, text, false)};
  }

 protected:
  SseEvent last_chunk(std::size_t at) override { return chunk(at, "", true); }

  void write_whole(JsonWriter& out, std::size_t at) const override {
    write_choice(out, at, choices_[at].text, choices_[at].logprobs,
                 {.whole = true, .finished = true});
  }

 private:
  void add_logprob(Choice& choice, const TokenLogprobText& token) const {
    LogprobArrays& arrays = choice.logprobs;
    const std::string text = token_text(token.bytes);
    JsonWriter logprob;
    write_logprob(logprob, token.logprob);
    append_item(arrays.tokens, JsonWriter().text(text).take());
    append_item(arrays.logprobs, logprob.take());
    append_item(arrays.offsets, std::to_string(choice.offset));
    append_item(arrays.tops, top_json(token, text));
  }

  // The best tokens and the one that was drawn, by their texts. Of tokens with the same text (parts
  // of characters) the best is kept.
  [[nodiscard]] std::string top_json(const TokenLogprobText& token, const std::string& text) const {
    JsonWriter out;
    if (token.top.empty() || n_top_ == 0) return out.null().take();
    std::set<std::string> seen;
    out.begin_object();
    const auto put = [&](const std::string& key, double logprob) {
      if (!seen.insert(key).second) return;
      out.key(key);
      write_logprob(out, logprob);
    };
    for (const TokenLogprobText::Top& top : token.top) put(token_text(top.bytes), top.logprob);
    put(text, token.logprob);
    return out.end_object().take();
  }

  SseEvent chunk(std::size_t at, std::string_view text, bool is_last) {
    JsonWriter out;
    write_choice(out, at, text, std::exchange(choices_[at].logprobs, {}), {.finished = is_last});
    return chunk_of(out.take());
  }

  struct Extent {
    bool whole = false;  // of the answer, not of a chunk, which may have no logprobs
    bool finished = false;
  };
  void write_choice(JsonWriter& out, std::size_t at, std::string_view text,
                    const LogprobArrays& arrays, Extent extent) const {
    out.begin_object().member("text", text).member("index", static_cast<std::int64_t>(at));
    out.key("logprobs");
    if (!logprobs_ || (!extent.whole && arrays.empty())) {
      out.null();
    } else {
      out.begin_object().key("tokens").raw("[" + arrays.tokens + "]");
      out.key("token_logprobs").raw("[" + arrays.logprobs + "]");
      out.key("top_logprobs").raw(n_top_ == 0 ? "null" : "[" + arrays.tops + "]");
      out.key("text_offset").raw("[" + arrays.offsets + "]").end_object();
    }
    write_finish(out, at, extent.finished, false);
    out.end_object();
  }

  bool logprobs_;
  std::size_t n_top_;
  std::vector<Choice> choices_;
};

}  // namespace

std::unique_ptr<ResponseWriter> make_completions_writer(const ApiRequest& request,
                                                        const ResponseIdentity& identity) {
  return std::make_unique<CompletionsWriter>(request, identity);
}

}  // namespace hadal::protocol
