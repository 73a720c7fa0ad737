// POST /v1/messages: the answer, as one message or as a stream of its blocks.
#include <algorithm>
#include <utility>

#include "core/error.h"
#include "protocol/answer_pointer.h"
#include "protocol/api_dispatch.h"
#include "protocol/api_json.h"
#include "protocol/openai_parts.h"

namespace hadal::protocol {
namespace {

struct Block {
  enum class Kind : std::uint8_t { thinking, text, tool_use } kind;
  std::string text = {};  // of a call: its arguments
  std::string name = {};  // of a call
  std::size_t call_index = 0;
  bool is_complete = true;  // a call that was cut off is not
};

class MessagesWriter final : public ResponseWriter {
 public:
  MessagesWriter(const ApiRequest& request, ResponseIdentity identity)
      : identity_(std::move(identity)), stream_(request.stream) {}

  std::vector<SseEvent> begin(const Usage& usage) override {
    usage_ = usage;
    if (stream_) {
      JsonWriter out = event_of("message_start");
      out.key("message");
      write_message(out, false);
      send("message_start", out);
      JsonWriter ping = event_of("ping");
      send("ping", ping);
    }
    return take();
  }

  std::vector<SseEvent> events(std::int32_t /*choice*/, const std::vector<DsmlEvent>& events,
                               const TokenLogprobText* /*logprob*/,
                               bool /*in_reasoning*/) override {
    if (error_) return {};
    for (const DsmlEvent& event : events) read(event);
    send_pending();
    return take();
  }

  std::vector<SseEvent> finish(std::int32_t /*choice*/, AnswerEnd end, const std::string& detail,
                               const Usage& /*usage*/) override {
    if (error_) return {};
    if (end == AnswerEnd::error) {
      error_ = failed_answer(detail);
      if (stream_) out_.push_back(stream_error(Api::messages, *error_, {}));
      return take();
    }
    end_ = end;
    if (end == AnswerEnd::stop_string) matched_stop_ = detail;
    close_block();
    return take();
  }

  std::vector<SseEvent> end(const Usage& usage) override {
    usage_ = usage;
    is_ended_ = true;
    if (!stream_ || error_) return {};
    JsonWriter delta = event_of("message_delta");
    delta.key("delta").begin_object();
    write_stop(delta);
    delta.end_object().key("usage");
    write_usage(delta);
    send("message_delta", delta);
    JsonWriter stop = event_of("message_stop");
    send("message_stop", stop);
    return take();
  }

  [[nodiscard]] std::string body() const override {
    if (error_) return error_body(Api::messages, *error_, {});
    JsonWriter out;
    write_message(out, true);
    return out.take();
  }

 private:
  static JsonWriter event_of(const char* type) {
    JsonWriter out;
    out.begin_object().member("type", type);
    return out;
  }
  static JsonWriter block_event(const char* type, std::size_t index) {
    JsonWriter out = event_of(type);
    out.member("index", static_cast<std::int64_t>(index));
    return out;
  }
  void send(const char* type, JsonWriter& event) {
    event.end_object();
    out_.push_back({type, event.take()});
  }
  std::vector<SseEvent> take() { return std::exchange(out_, {}); }

  void read(const DsmlEvent& event) {
    if (const auto* reasoning = std::get_if<ReasoningDelta>(&event)) {
      text(Block::Kind::thinking, reasoning->text);
    } else if (const auto* content = std::get_if<ContentDelta>(&event)) {
      text(Block::Kind::text, content->text);
    } else if (const auto* malformed = std::get_if<Malformed>(&event)) {
      // What nothing could make sense of is text; behind the end of the turn it is nothing.
      if (malformed->error == DsmlError::trailing_text) return;
      text(Block::Kind::text, malformed->text);
    } else if (const auto* begin = std::get_if<ToolCallBegin>(&event)) {
      open_block({.kind = Block::Kind::tool_use,
                  .name = begin->name,
                  .call_index = begin->index,
                  .is_complete = false});
    } else if (const auto* argument = std::get_if<ArgumentDelta>(&event)) {
      add(argument->text);
    } else if (std::holds_alternative<ToolCallEnd>(event)) {
      blocks_.back().is_complete = true;
      has_complete_call_ = true;
      close_block();
    }
  }

  void text(Block::Kind kind, const std::string& text) {
    if (text.empty()) return;
    if (!is_open_ || blocks_.back().kind != kind) open_block({.kind = kind});
    add(text);
  }

  void add(const std::string& text) {
    HADAL_CHECK(is_open_);
    pending_ += text;
  }

  void open_block(Block block) {
    close_block();
    blocks_.push_back(std::move(block));
    is_open_ = true;
    if (!stream_) return;
    JsonWriter out = block_event("content_block_start", blocks_.size() - 1);
    out.key("content_block");
    write_block_start(out, blocks_.back());
    out.end_object();
    send("content_block_start", out);
  }

  // A call that was cut off stays open for ever: nobody must execute it.
  void close_block() {
    send_pending();
    if (!std::exchange(is_open_, false) || !stream_ || !blocks_.back().is_complete) return;
    const std::size_t index = blocks_.size() - 1;
    if (blocks_.back().kind == Block::Kind::thinking) {
      JsonWriter out = block_event("content_block_delta", index);
      out.key("delta").begin_object().member("type", "signature_delta");
      out.member("signature", answer_pointer(identity_, 0)).end_object();
      send("content_block_delta", out);
    }
    JsonWriter out = block_event("content_block_stop", index);
    send("content_block_stop", out);
  }

  void send_pending() {
    if (pending_.empty()) return;
    Block& block = blocks_.back();
    if (stream_) {
      static constexpr std::pair<const char*, const char*> kNames[] = {
          {"thinking_delta", "thinking"},
          {"text_delta", "text"},
          {"input_json_delta", "partial_json"}};
      const auto& [type, member] = kNames[static_cast<std::size_t>(block.kind)];
      JsonWriter out = block_event("content_block_delta", blocks_.size() - 1);
      out.key("delta").begin_object().member("type", type).member(member, pending_).end_object();
      send("content_block_delta", out);
    } else {
      block.text += pending_;
    }
    pending_.clear();
  }

  void write_block_start(JsonWriter& out, const Block& block) const {
    out.begin_object();
    switch (block.kind) {
      case Block::Kind::thinking:
        out.member("type", "thinking").member("thinking", "").member("signature", "");
        break;
      case Block::Kind::text:
        out.member("type", "text").member("text", "").key("citations").null();
        break;
      case Block::Kind::tool_use:
        write_call(out, block);
        out.key("input").begin_object().end_object();
        break;
    }
  }

  void write_block(JsonWriter& out, const Block& block) const {
    out.begin_object();
    switch (block.kind) {
      case Block::Kind::thinking:
        out.member("type", "thinking").member("thinking", block.text);
        out.member("signature", answer_pointer(identity_, 0));
        break;
      case Block::Kind::text:
        out.member("type", "text").member("text", block.text).key("citations").null();
        break;
      case Block::Kind::tool_use:
        write_call(out, block);
        out.key("input").raw(block.text);
        break;
    }
    out.end_object();
  }

  void write_call(JsonWriter& out, const Block& block) const {
    out.member("type", "tool_use");
    out.member("id", tool_call_id(Api::messages, identity_, 0, block.call_index));
    out.member("name", block.name);
  }

  void write_message(JsonWriter& out, bool with_content) const {
    out.begin_object().member("id", "msg_" + identity_.id).member("type", "message");
    out.member("role", "assistant").member("model", identity_.model).key("content").begin_array();
    for (const Block& block : blocks_) {
      if (with_content && block.is_complete) write_block(out, block);
    }
    out.end_array();
    write_stop(out);
    out.key("usage");
    write_usage(out);
    out.end_object();
  }

  void write_stop(JsonWriter& out) const {
    out.key("stop_reason");
    if (is_ended_) {
      out.text(stop_reason());
    } else {
      out.null();
    }
    out.key("stop_sequence");
    if (is_ended_ && end_ == AnswerEnd::stop_string) {
      out.text(matched_stop_);
    } else {
      out.null();
    }
  }

  [[nodiscard]] const char* stop_reason() const {
    switch (end_) {
      case AnswerEnd::length:
        return "max_tokens";
      case AnswerEnd::stop_string:
        return "stop_sequence";
      default:
        return has_complete_call_ ? "tool_use" : "end_turn";
    }
  }

  // The parts of the prompt add up to all of it.  Source: serving notes §4.10.
  void write_usage(JsonWriter& out) const {
    const std::int64_t read = usage_.cached_tokens;
    const std::int64_t written =
        std::clamp<std::int64_t>(usage_.cache_write_tokens, 0, usage_.prompt_tokens - read);
    out.begin_object().member("input_tokens", usage_.prompt_tokens - read - written);
    out.member("cache_creation_input_tokens", written).member("cache_read_input_tokens", read);
    out.member("output_tokens", is_ended_ ? usage_.completion_tokens : 0);
    if (is_ended_) {
      out.key("output_tokens_details").begin_object();
      out.member("thinking_tokens", usage_.reasoning_tokens).end_object();
    }
    out.end_object();
  }

  ResponseIdentity identity_;
  bool stream_;
  std::vector<SseEvent> out_;
  std::vector<Block> blocks_;  // their texts only where there is no stream
  bool is_open_ = false;       // the last of them
  std::string pending_;        // of the open block, not sent yet
  bool has_complete_call_ = false;
  AnswerEnd end_ = AnswerEnd::stop;
  std::string matched_stop_;
  bool is_ended_ = false;
  Usage usage_;
  std::optional<ApiError> error_;
};

}  // namespace

std::unique_ptr<ResponseWriter> make_messages_writer(const ApiRequest& request,
                                                     const ResponseIdentity& identity) {
  return std::make_unique<MessagesWriter>(request, identity);
}

}  // namespace hadal::protocol
