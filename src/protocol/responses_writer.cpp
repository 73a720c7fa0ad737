// POST /v1/responses: the answer, as one object or as a stream of numbered events.
#include <fmt/format.h>

#include <utility>

#include "core/error.h"
#include "protocol/answer_pointer.h"
#include "protocol/api_common.h"
#include "protocol/api_dispatch.h"
#include "protocol/openai_parts.h"
#include "protocol/responses_object.h"

namespace hadal::protocol {
namespace {

class ResponsesWriter final : public ResponseWriter {
 public:
  using Kind = ResponsesItem::Kind;

  ResponsesWriter(const ApiRequest& request, ResponseIdentity identity)
      : identity_(std::move(identity)),
        stream_(request.stream),
        background_(request.background),
        logprobs_(request.logprobs),
        echoed_(request.echoed),
        tools_(responses_tools(echoed_.find("tools"))),
        pointer_(answer_pointer(identity_, 0)) {}

  std::vector<SseEvent> begin(const Usage& usage) override {
    prompt_ = usage;
    if (stream_) {
      send_response("response.created", outcome_);
      send_response("response.in_progress", outcome_);
    }
    return take();
  }

  std::vector<SseEvent> events(std::int32_t /*choice*/, const std::vector<DsmlEvent>& events,
                               const TokenLogprobText* logprob, bool in_reasoning) override {
    if (outcome_.error) return {};
    if (logprobs_ && logprob != nullptr && !in_reasoning) {
      if (!pending_logprobs_.empty()) pending_logprobs_ += ',';
      pending_logprobs_ += logprob_entry(*logprob);
    }
    for (const DsmlEvent& event : events) read(event);
    send_pending();
    return take();
  }

  std::vector<SseEvent> finish(std::int32_t /*choice*/, AnswerEnd end, const std::string& detail,
                               const Usage& usage) override {
    if (outcome_.error) return {};
    switch (end) {
      case AnswerEnd::error:
        send_pending();
        outcome_.status = "failed";
        outcome_.error = failed_answer(detail);
        outcome_.usage = prompt_;
        outcome_.usage->completion_tokens = usage.completion_tokens;
        outcome_.usage->reasoning_tokens = usage.reasoning_tokens;
        if (stream_) send_response("response.failed", outcome_);
        return take();
      case AnswerEnd::length:
        outcome_.status = "incomplete";
        outcome_.incomplete_reason = "max_output_tokens";
        break;
      case AnswerEnd::cancelled:
        outcome_.status = "cancelled";
        break;
      default:
        outcome_.status = "completed";
        break;
    }
    close_item(outcome_.incomplete_reason != nullptr ? ItemStatus::incomplete
                                                     : ItemStatus::completed);
    return take();
  }

  std::vector<SseEvent> end(const Usage& usage) override {
    if (outcome_.error) return {};
    outcome_.usage = usage;
    if (stream_) {
      const bool is_completed = std::string_view(outcome_.status) == "completed";
      send_response(is_completed ? "response.completed" : "response.incomplete", outcome_);
    }
    return take();
  }

  [[nodiscard]] std::string body() const override {
    // A response in the background is asked for later, and then has its failure to tell.
    if (outcome_.error && !background_) return error_body(Api::responses, *outcome_.error, {});
    JsonWriter out;
    write_response(out, identity_, echoed_, background_, items_, outcome_, pointer_);
    return out.take();
  }

 private:
  [[nodiscard]] JsonWriter event_of(std::string_view type) {
    JsonWriter out;
    out.begin_object().member("type", type).member("sequence_number", n_events_++);
    return out;
  }
  [[nodiscard]] JsonWriter item_event(std::string_view type, bool has_content_index) {
    JsonWriter out = event_of(type);
    out.member("item_id", items_.back().id).member("output_index", index());
    if (has_content_index) out.member("content_index", std::int64_t{0});
    return out;
  }
  void send(std::string_view type, JsonWriter& event) {
    event.end_object();
    out_.push_back({std::string(type), event.take()});
  }
  void send_response(std::string_view type, const ResponsesOutcome& outcome) {
    JsonWriter out = event_of(type);
    out.key("response");
    write_response(out, identity_, echoed_, background_, items_, outcome, pointer_);
    send(type, out);
  }
  void send_item(std::string_view type, ItemStatus status, bool is_empty) {
    JsonWriter out = event_of(type);
    out.member("output_index", index()).key("item");
    write_item(out, items_.back(), status, is_empty, pointer_);
    send(type, out);
  }
  void send_part(std::string_view type, bool is_empty) {
    JsonWriter out = item_event(type, true);
    out.key("part");
    write_part(out, items_.back(), is_empty);
    send(type, out);
  }
  std::vector<SseEvent> take() { return std::exchange(out_, {}); }
  [[nodiscard]] std::int64_t index() const { return std::ssize(items_) - 1; }

  void read(const DsmlEvent& event) {
    if (const auto* reasoning = std::get_if<ReasoningDelta>(&event)) {
      text(Kind::reasoning, reasoning->text);
    } else if (const auto* content = std::get_if<ContentDelta>(&event)) {
      text(Kind::message, content->text);
    } else if (const auto* malformed = std::get_if<Malformed>(&event)) {
      // What nothing could make sense of is text; behind the end of the turn it is nothing.
      if (malformed->error == DsmlError::trailing_text) return;
      text(Kind::message, malformed->text);
    } else if (const auto* begin = std::get_if<ToolCallBegin>(&event)) {
      open_call(*begin);
    } else if (const auto* argument = std::get_if<ArgumentDelta>(&event)) {
      add(argument->text);
    } else if (std::holds_alternative<ToolCallEnd>(event)) {
      items_.back().is_complete = true;
      close_item(ItemStatus::completed);
    }
  }

  void text(Kind kind, const std::string& text) {
    if (text.empty()) return;
    if (!is_open_ || items_.back().kind != kind) {
      ResponsesItem item{.kind = kind};
      item.id = item_id(kind == Kind::reasoning ? "rs_" : "msg_");
      open_item(std::move(item));
      if (stream_) send_part("response.content_part.added", true);
    }
    add(text);
  }

  void open_call(const ToolCallBegin& begin) {
    ResponsesItem item{.kind = Kind::call};
    const auto tool = tools_.find(begin.name);
    item.tool = tool == tools_.end() ? ResponsesTool{.name = begin.name} : tool->second;
    item.id = item_id(item.tool.is_custom ? "ctc_" : "fc_");
    item.call_id = tool_call_id(Api::responses, identity_, 0, begin.index);
    item.is_complete = false;
    open_item(std::move(item));
  }

  [[nodiscard]] std::string item_id(std::string_view prefix) const {
    return derived_id(prefix, identity_, "item", 0, items_.size());
  }

  void open_item(ResponsesItem item) {
    close_item(ItemStatus::completed);
    items_.push_back(std::move(item));
    is_open_ = true;
    if (stream_) send_item("response.output_item.added", ItemStatus::in_progress, true);
  }

  void add(const std::string& text) {
    HADAL_CHECK(is_open_);
    pending_ += text;
  }

  // What was added since the last event. The input of a freeform tool is known when its arguments
  // are complete.
  void send_pending() {
    if (pending_.empty()) return;
    ResponsesItem& item = items_.back();
    item.text += pending_;
    if (item.kind == Kind::message) take_logprobs(item);
    pending_logprobs_.clear();  // those of calls have no place
    const std::string delta = std::exchange(pending_, {});
    const std::string logprobs = std::exchange(delta_logprobs_, {});
    if (!stream_ || item.tool.is_custom) return;
    static constexpr std::string_view kTypes[] = {"response.reasoning_text.delta",
                                                  "response.output_text.delta",
                                                  "response.function_call_arguments.delta"};
    const std::string_view type = kTypes[static_cast<std::size_t>(item.kind)];
    JsonWriter out = item_event(type, item.kind != Kind::call);
    out.member("delta", delta);
    if (item.kind == Kind::message) out.key("logprobs").raw("[" + logprobs + "]");
    send(type, out);
  }

  // Logprobs belong to the text that they are sent with, or to the next.
  void take_logprobs(ResponsesItem& item) {
    if (pending_logprobs_.empty()) return;
    if (!item.logprobs.empty()) item.logprobs += ',';
    item.logprobs += pending_logprobs_;
    delta_logprobs_ = std::exchange(pending_logprobs_, {});
  }

  // A call that was cut off is done, because clients insist, but its arguments never are: nobody
  // must execute it.
  void close_item(ItemStatus status) {
    send_pending();
    if (!std::exchange(is_open_, false)) return;
    ResponsesItem& item = items_.back();
    if (item.kind == Kind::message) take_logprobs(item);
    delta_logprobs_.clear();
    if (!stream_) return;
    if (!item.is_complete) {
      status = ItemStatus::incomplete;
    } else if (item.kind == Kind::call) {
      close_call(item);
    } else {
      const bool is_message = item.kind == Kind::message;
      const std::string_view type =
          is_message ? "response.output_text.done" : "response.reasoning_text.done";
      JsonWriter out = item_event(type, true);
      out.member("text", item.text);
      if (is_message) out.key("logprobs").raw("[" + item.logprobs + "]");
      send(type, out);
      send_part("response.content_part.done", false);
    }
    send_item("response.output_item.done", status, false);
  }

  void close_call(const ResponsesItem& item) {
    if (!item.tool.is_custom) {
      constexpr std::string_view kDone = "response.function_call_arguments.done";
      JsonWriter out = item_event(kDone, false);
      out.member("name", item.tool.name).member("arguments", item.text);
      send(kDone, out);
      return;
    }
    const std::string input = custom_input(item.text);
    if (!input.empty()) {
      JsonWriter out = item_event("response.custom_tool_call_input.delta", false);
      out.member("delta", input);
      send("response.custom_tool_call_input.delta", out);
    }
    JsonWriter out = item_event("response.custom_tool_call_input.done", false);
    out.member("input", input);
    send("response.custom_tool_call_input.done", out);
  }

  ResponseIdentity identity_;
  bool stream_, background_, logprobs_;
  Json echoed_;
  std::map<std::string, ResponsesTool> tools_;
  std::string pointer_;
  Usage prompt_;

  std::vector<SseEvent> out_;
  std::int64_t n_events_ = 0;
  std::vector<ResponsesItem> items_;
  bool is_open_ = false;          // the last of them
  std::string pending_;           // text of the open item, not sent yet
  std::string pending_logprobs_;  // of tokens whose text is not sent yet
  std::string delta_logprobs_;    // of the text that is being sent
  ResponsesOutcome outcome_{.status = "in_progress"};
};

}  // namespace

std::unique_ptr<ResponseWriter> make_responses_writer(const ApiRequest& request,
                                                      const ResponseIdentity& identity) {
  return std::make_unique<ResponsesWriter>(request, identity);
}

}  // namespace hadal::protocol
