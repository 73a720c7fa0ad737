#include "protocol/dsml_call.h"

#include "protocol/json_text.h"

namespace hadal::protocol {
namespace {

template <class Delta>
Delta* last_as(std::vector<DsmlEvent>& out) {
  return out.empty() ? nullptr : std::get_if<Delta>(&out.back());
}

template <class Delta>
void append_text(std::vector<DsmlEvent>& out, std::string_view text) {
  if (text.empty()) return;
  if (auto* last = last_as<Delta>(out)) {
    last->text += text;
  } else {
    out.push_back(Delta{std::string(text)});
  }
}

}  // namespace

void EventSink::reasoning(std::string_view text) {
  append_text<ReasoningDelta>(out_, text);
}

void EventSink::content(std::string_view text) {
  append_text<ContentDelta>(out_, text);
}

void EventSink::begin_call(std::size_t index, std::string_view name) {
  out_.emplace_back(ToolCallBegin{.index = index, .name = std::string(name)});
}

void EventSink::argument(std::size_t index, std::string_view text) {
  if (text.empty()) return;
  auto* last = last_as<ArgumentDelta>(out_);
  if (last != nullptr && last->index == index) {
    last->text += text;
  } else {
    out_.emplace_back(ArgumentDelta{.index = index, .text = std::string(text)});
  }
}

void EventSink::end_call(std::size_t index) {
  out_.emplace_back(ToolCallEnd{index});
}

void EventSink::malformed(DsmlError error, std::string_view text) {
  auto* last = last_as<Malformed>(out_);
  if (last != nullptr && last->error == error) {
    last->text += text;
  } else {
    out_.emplace_back(Malformed{.error = error, .text = std::string(text)});
  }
}

std::string CallArguments::member(std::string_view key) {
  std::string out = keys_.empty() ? "{" : ", ";
  keys_.emplace(key);
  out += json_string(key);
  out += ": ";
  return out;
}

void CallArguments::begin_string(std::string_view key, EventSink& sink) {
  sink.argument(index_, member(key) + '"');
}

void CallArguments::string_piece(std::string_view text, EventSink& sink) {
  std::string escaped;
  append_json_escaped(escaped, text);
  sink.argument(index_, escaped);
}

void CallArguments::end_string(EventSink& sink) {
  sink.argument(index_, "\"");
}

void CallArguments::string(std::string_view key, std::string_view text, EventSink& sink) {
  begin_string(key, sink);
  string_piece(text, sink);
  end_string(sink);
}

void CallArguments::json(std::string_view key, std::string_view text, EventSink& sink) {
  sink.argument(index_, member(key));
  sink.argument(index_, text);
}

void CallArguments::end(EventSink& sink) {
  sink.argument(index_, keys_.empty() ? "{}" : "}");
  sink.end_call(index_);
}

void CallArguments::end_with(std::string_view object, EventSink& sink) {
  sink.argument(index_, object);
  sink.end_call(index_);
}

}  // namespace hadal::protocol
