// POST /v1/chat/completions: the answer, as one object or as a stream of chunks.
#include <utility>

#include "core/error.h"
#include "protocol/api_dispatch.h"
#include "protocol/openai_writer.h"

namespace hadal::protocol {
namespace {

// The logprobs of a choice that are not written yet, as the inside of two JSON arrays.
struct LogprobLists {
  std::string content, reasoning;

  void add(const TokenLogprobText& token, bool in_reasoning) {
    std::string& list = in_reasoning ? reasoning : content;
    if (!list.empty()) list += ',';
    list += logprob_entry(token);
  }
};

struct Call {
  std::string name, arguments;
  bool is_complete = false;
};

struct Choice {
  std::string content, reasoning;  // kept only where there is no stream
  std::vector<Call> calls;         // arguments as well
  bool has_complete_call = false;
  LogprobLists logprobs;
};

// What one chunk says: some reasoning, some content, or fragments of calls; never two of them.
struct Delta {
  enum class Kind : std::uint8_t { none, reasoning, content, calls } kind = Kind::none;
  struct Fragment {
    std::size_t index;
    const std::string* name;  // where the call begins here
    std::string arguments;
  };
  std::string text;
  std::vector<Fragment> fragments;
};

class ChatWriter final : public OpenAiWriter {
 public:
  ChatWriter(const ApiRequest& request, const ResponseIdentity& identity)
      : OpenAiWriter(
            request,
            response_head("chatcmpl-", request.stream ? "chat.completion.chunk" : "chat.completion",
                          identity),
            static_cast<std::size_t>(request.n)),
        identity_(identity),
        logprobs_(request.logprobs),
        alias_(request.reasoning_alias),
        thinks_(request.thinking_mode == ThinkingMode::thinking),
        choices_(n_choices()) {}

  std::vector<SseEvent> begin(const Usage& /*usage*/) override {
    std::vector<SseEvent> out;
    if (!streams()) return out;
    for (std::size_t i = 0; i < choices_.size(); ++i) {
      out.push_back(chunk(i, R"({"role":"assistant","content":""})", false));
    }
    return out;
  }

  std::vector<SseEvent> events(std::int32_t index, const std::vector<DsmlEvent>& events,
                               const TokenLogprobText* logprob, bool in_reasoning) override {
    std::vector<SseEvent> out;
    if (failed()) return out;
    const auto at = static_cast<std::size_t>(index);
    Choice& choice = choices_.at(at);
    if (logprobs_ && logprob != nullptr) choice.logprobs.add(*logprob, in_reasoning);
    Delta delta;
    for (const DsmlEvent& event : events) take(at, event, delta, out);
    flush(at, delta, out);
    return out;
  }

 protected:
  SseEvent last_chunk(std::size_t at) override { return chunk(at, "{}", true); }

  void write_whole(JsonWriter& out, std::size_t at) const override {
    out.begin_object().member("index", static_cast<std::int64_t>(at)).key("message");
    write_message(out, at);
    out.key("logprobs").raw(logprobs_json(choices_[at].logprobs, true));
    write_finish(out, at, true, choices_[at].has_complete_call);
    out.end_object();
  }

 private:
  // Takes one event into `delta`, which goes out first where the event is of another kind.
  void take(std::size_t at, const DsmlEvent& event, Delta& delta, std::vector<SseEvent>& out) {
    Choice& choice = choices_[at];
    if (const auto* reasoning = std::get_if<ReasoningDelta>(&event)) {
      text(at, Delta::Kind::reasoning, reasoning->text, delta, out);
    } else if (const auto* content = std::get_if<ContentDelta>(&event)) {
      text(at, Delta::Kind::content, content->text, delta, out);
    } else if (const auto* malformed = std::get_if<Malformed>(&event)) {
      // What nothing could make sense of is content; behind the end of the turn it is nothing.
      if (malformed->error == DsmlError::trailing_text) return;
      text(at, Delta::Kind::content, malformed->text, delta, out);
    } else if (const auto* begin = std::get_if<ToolCallBegin>(&event)) {
      HADAL_CHECK(begin->index == choice.calls.size());
      choice.calls.push_back({begin->name, {}});
      turn_to(at, Delta::Kind::calls, delta, out);
      delta.fragments.push_back({begin->index, &begin->name, {}});
    } else if (const auto* argument = std::get_if<ArgumentDelta>(&event)) {
      if (!streams()) choice.calls.at(argument->index).arguments += argument->text;
      turn_to(at, Delta::Kind::calls, delta, out);
      if (delta.fragments.empty() || delta.fragments.back().index != argument->index) {
        delta.fragments.push_back({argument->index, nullptr, {}});
      }
      delta.fragments.back().arguments += argument->text;
    } else if (const auto* end = std::get_if<ToolCallEnd>(&event)) {
      choice.calls.at(end->index).is_complete = true;
      choice.has_complete_call = true;
    }
  }

  void text(std::size_t at, Delta::Kind kind, const std::string& text, Delta& delta,
            std::vector<SseEvent>& out) {
    if (text.empty()) return;
    turn_to(at, kind, delta, out);
    delta.text += text;
  }

  void turn_to(std::size_t at, Delta::Kind kind, Delta& delta, std::vector<SseEvent>& out) {
    if (delta.kind == kind) return;
    flush(at, delta, out);
    delta.kind = kind;
  }

  void flush(std::size_t at, Delta& delta, std::vector<SseEvent>& out) {
    if (delta.kind == Delta::Kind::none) return;
    if (streams()) {
      out.push_back(chunk(at, delta_json(at, delta), false));
    } else if (delta.kind == Delta::Kind::reasoning) {
      choices_[at].reasoning += delta.text;
    } else if (delta.kind == Delta::Kind::content) {
      choices_[at].content += delta.text;
    }
    delta = {};
  }

  [[nodiscard]] std::string delta_json(std::size_t at, const Delta& delta) const {
    JsonWriter out;
    out.begin_object();
    if (delta.kind == Delta::Kind::content) out.member("content", delta.text);
    if (delta.kind == Delta::Kind::reasoning) {
      out.member("reasoning_content", delta.text);
      if (alias_) out.member("reasoning", delta.text);
    }
    if (delta.kind == Delta::Kind::calls) {
      out.key("tool_calls").begin_array();
      for (const Delta::Fragment& fragment : delta.fragments) {
        out.begin_object().member("index", static_cast<std::int64_t>(fragment.index));
        if (fragment.name != nullptr) {
          out.member("id", call_id(at, fragment.index)).member("type", "function");
        }
        out.key("function").begin_object();
        if (fragment.name != nullptr) out.member("name", *fragment.name);
        out.member("arguments", fragment.arguments).end_object().end_object();
      }
      out.end_array();
    }
    out.end_object();
    return out.take();
  }

  // With whatever logprobs have come together since the last one.
  SseEvent chunk(std::size_t at, std::string_view delta, bool is_last) {
    JsonWriter out;
    out.begin_object().member("index", static_cast<std::int64_t>(at)).key("delta").raw(delta);
    out.key("logprobs").raw(logprobs_json(std::exchange(choices_[at].logprobs, {}), false));
    write_finish(out, at, is_last, choices_[at].has_complete_call);
    return chunk_of(out.end_object().take());
  }

  // `whole`: of the answer, not of a chunk, which may have none.
  [[nodiscard]] std::string logprobs_json(const LogprobLists& lists, bool whole) const {
    if (!logprobs_ || (!whole && lists.content.empty() && lists.reasoning.empty())) return "null";
    return R"({"content":[)" + lists.content + R"(],"refusal":null,"reasoning_content":[)" +
           lists.reasoning + "]}";
  }

  void write_message(JsonWriter& out, std::size_t at) const {
    const Choice& choice = choices_[at];
    const auto text_or_null = [&out](std::string_view key, const std::string& text) {
      out.key(key);
      if (text.empty()) {
        out.null();
      } else {
        out.text(text);
      }
    };
    out.begin_object().member("role", "assistant");
    text_or_null("content", choice.content);
    out.key("refusal").null();
    if (thinks_ || !choice.reasoning.empty()) {
      text_or_null("reasoning_content", choice.reasoning);
      if (alias_) text_or_null("reasoning", choice.reasoning);
    }
    if (choice.has_complete_call) {
      out.key("tool_calls").begin_array();
      for (std::size_t i = 0; i < choice.calls.size(); ++i) {
        const Call& call = choice.calls[i];
        if (!call.is_complete) continue;  // cut off: not to be executed
        out.begin_object().member("id", call_id(at, i)).member("type", "function");
        out.key("function").begin_object();
        out.member("name", call.name).member("arguments", call.arguments);
        out.end_object().end_object();
      }
      out.end_array();
    }
    out.end_object();
  }

  [[nodiscard]] std::string call_id(std::size_t at, std::size_t index) const {
    return tool_call_id(Api::chat_completions, identity_, static_cast<std::int32_t>(at), index);
  }

  ResponseIdentity identity_;
  bool logprobs_, alias_, thinks_;
  std::vector<Choice> choices_;
};

}  // namespace

std::unique_ptr<ResponseWriter> make_chat_writer(const ApiRequest& request,
                                                 const ResponseIdentity& identity) {
  return std::make_unique<ChatWriter>(request, identity);
}

}  // namespace hadal::protocol
