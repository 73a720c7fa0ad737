#include <algorithm>

#include "protocol/dsml_tolerant.h"
#include "protocol/json_text.h"

namespace hadal::protocol {
namespace {

constexpr std::string_view kName = "name=\"";
constexpr std::size_t kMaxInvokeHeader = 512;  // bytes; names have at most 64 characters

// Inside a block what the end of the text cuts off is no text, so it stays unread for close().
constexpr bool kMayGrow = true;

}  // namespace

void TolerantGrammar::Gap::add(std::string_view whitespace) {
  const auto n = std::count(whitespace.begin(), whitespace.end(), '\n');
  n_newlines += static_cast<std::size_t>(n);
  n_others += whitespace.size() - static_cast<std::size_t>(n);
}

bool TolerantGrammar::step(Block& state, DsmlText& text, EventSink& sink) {
  const std::size_t n_whitespace = whitespace_prefix(text.rest());
  state.gap.add(text.rest().substr(0, n_whitespace));
  text.advance(n_whitespace);
  const std::string_view rest = text.rest();
  if (rest.empty()) return false;

  const TagMatch tag = tags_.match(rest, kMayGrow);
  const Match eos = match_prefix(rest, format_.eos, kMayGrow);
  if (tag.match == Match::partial || eos == Match::partial) return false;
  if (tag.match == Match::full && (tag.tag->kind == TagKind::invoke) && !tag.tag->closing) {
    const bool is_canonical = state.gap.n_newlines == 1 && state.gap.n_others == 0;
    if (!is_canonical && !state.at_invoke) {
      if (opening_) {
        opening_->rules |= 1u << 2;
      } else {
        count(2);
      }
    }
    call_.emplace(OpenCall{.index = n_calls_,
                           .begin = text.offset(),
                           .mark = tag.tag->mark,
                           .tool = nullptr,
                           .arguments = CallArguments(n_calls_),
                           .wrapped = std::nullopt});
    state_ = InvokeHeader{};
    text.advance(tag.tag->text.size());
    return true;
  }
  const bool closes =
      tag.match == Match::full && tag.tag->kind == TagKind::calls && tag.tag->closing;
  if (opening_ && !(closes && opening_->is_canonical)) {
    reopen_as_text(text, sink);
    return true;
  }
  opening_.reset();
  if (closes) {
    text.advance(tag.tag->text.size());
  } else if (has_wrapper_) {
    count(4);
  }
  after_block_ = true;
  if (eos == Match::full) {
    text.advance(format_.eos.size());
    state_ = Done{};
  } else {
    state_ = AfterBlock{};
  }
  return true;
}

bool TolerantGrammar::step(InvokeHeader&, DsmlText& text, EventSink& sink) {
  // Looked at up to the limit even when more is there, or the cut of the text would decide.
  const std::string_view rest = text.rest().substr(0, kMaxInvokeHeader);
  const std::size_t n_whitespace = whitespace_prefix(rest);
  const std::string_view attributes = rest.substr(n_whitespace);
  const Match opener = match_prefix(attributes, kName, kMayGrow);
  const std::string_view name_on = opener == Match::full ? attributes.substr(kName.size()) : "";
  const std::size_t n_name = name_on.find("\">");
  const std::string_view name = name_on.substr(0, n_name);

  const bool is_bad = opener == Match::none || name.find_first_of("<\n") != std::string_view::npos;
  const bool is_whole = opener == Match::full && n_name != std::string_view::npos;
  const DeclaredTool* tool = is_whole ? declared(name) : nullptr;
  const bool is_refused =
      is_whole && (name.empty() || (opening_ && opening_->needs_declared && tool == nullptr));
  if (is_bad || is_refused || (!is_whole && rest.size() == kMaxInvokeHeader)) {
    if (opening_) {
      reopen_as_text(text, sink);
      return true;
    }
    return fail(DsmlError::bad_invoke_header, text, sink);
  }
  if (!is_whole) return false;

  if (opening_) {
    for (std::size_t rule = 1; rule < recoveries.size(); ++rule) {
      if (opening_->rules >> rule & 1u) count(rule);
    }
    if (opening_->in_reasoning) {
      count(6);
      end_reasoning();
      think_close_pending_ = true;
    }
    opening_.reset();
  }
  call().tool = tool;
  ++n_calls_;
  sink.begin_call(call().index, name);
  text.advance(n_whitespace + kName.size() + n_name + 2);
  state_ = Parameters{.gap = {}, .after_header = true};
  return true;
}

bool TolerantGrammar::step(Parameters& state, DsmlText& text, EventSink& sink) {
  const std::size_t n_whitespace = whitespace_prefix(text.rest());
  state.gap.add(text.rest().substr(0, n_whitespace));
  text.advance(n_whitespace);
  const std::string_view rest = text.rest();
  if (rest.empty()) return false;

  const TagMatch tag = tags_.match(rest, kMayGrow);
  const Match eos = match_prefix(rest, format_.eos, kMayGrow);
  if (tag.match == Match::partial || eos == Match::partial) return false;
  const bool is_canonical =
      state.gap.n_others == 0 &&
      (state.gap.n_newlines == 1 || (state.after_header && state.gap.n_newlines == 2));
  const bool after_header = state.after_header;

  if (eos == Match::full || (tag.match == Match::full && tag.tag->kind == TagKind::calls) ||
      (tag.match == Match::full && tag.tag->kind == TagKind::invoke && !tag.tag->closing)) {
    count(5);  // the invoke is closed by what must stand outside it, which is read there
    end_call(sink);
    state_ = Block{.gap = {}, .at_invoke = true};
    return true;
  }
  if (tag.match == Match::full && tag.tag->kind == TagKind::invoke) {
    if (!is_canonical) count(2);
    text.advance(tag.tag->text.size());
    end_call(sink);
    state_ = Block{};
    return true;
  }
  if (tag.match == Match::full && !tag.tag->closing) {
    if (!is_canonical) count(2);
    text.advance(tag.tag->text.size());
    state_ = ParameterHeader{
        .closer = tags_.closer(tag.tag->mark, TagKind::parameter), .past = {}, .end = {}};
    return true;
  }
  if (rest[0] == '{' && after_header) {
    state_ = JsonBody{.closer = tags_.closer(call().mark, TagKind::invoke), .end = {}};
    return true;
  }
  return fail(after_header ? DsmlError::bad_invoke_header : DsmlError::bad_parameter_glue, text,
              sink);
}

// ` name="KEY" string="true|false">`; the string attribute may be missing or unreadable (R12).
bool TolerantGrammar::step(ParameterHeader& state, DsmlText& text, EventSink& sink) {
  const std::string_view rest = text.rest();
  const std::size_t past = state.past.find(rest, "\">");
  const std::size_t end = state.end.find(rest, state.closer);
  if (std::min(past, end) == std::string_view::npos) return false;
  const std::string_view header = rest.substr(0, std::min(past, end));
  const std::size_t n_whitespace = whitespace_prefix(header);
  if (end < past || !header.substr(n_whitespace).starts_with(kName)) {
    return fail(DsmlError::bad_parameter, text, sink);
  }

  std::string_view key = header.substr(n_whitespace + kName.size());
  std::optional<bool> is_string;
  for (const bool flag : {true, false}) {
    const std::string_view attribute = flag ? "\" string=\"true" : "\" string=\"false";
    if (key.ends_with(attribute) && !is_string) {
      key.remove_suffix(attribute.size());
      is_string = flag;
    }
  }
  if (!is_string) key = key.substr(0, key.find('"'));
  text.advance(past + 2);
  return enter_value(std::string(key), is_string, std::move(state.closer), sink);
}

bool TolerantGrammar::enter_value(std::string key, std::optional<bool> is_string,
                                  std::string closer, EventSink& sink) {
  OpenCall& open = call();
  const DeclaredTool* tool = open.tool;
  const auto* property = tool == nullptr ? nullptr : tool->find(key);
  if (!is_string) {
    count(12);
    if (property != nullptr && property->type == "string") is_string = true;
  }
  const ValueForm form = !is_string   ? ValueForm::unknown
                         : *is_string ? ValueForm::string
                                      : ValueForm::json;
  const bool may_be_wrapper = open.arguments.empty() && !open.wrapped && tool != nullptr &&
                              !tool->properties.empty() && property == nullptr &&
                              (key == "arguments" || key == "input");
  if (open.wrapped && open.wrapped->key != key) settle_wrapped(sink);
  if (open.wrapped || open.arguments.has(key)) {
    count(14);
    state_ = HeldValue{.closer = std::move(closer),
                       .key = std::move(key),
                       .form = ValueForm::discarded,
                       .may_be_wrapper = false,
                       .end = {}};
  } else if (form == ValueForm::string && !may_be_wrapper) {
    open.arguments.begin_string(key, sink);
    state_ = StringValue{std::move(closer)};
  } else {
    state_ = HeldValue{.closer = std::move(closer),
                       .key = std::move(key),
                       .form = form,
                       .may_be_wrapper = may_be_wrapper,
                       .end = {}};
  }
  return true;
}

// Passed on while it arrives. An end-of-sentence token is held back with its last character: at the
// end of the turn it is no part of the value, before more text it is.
bool TolerantGrammar::step(StringValue& state, DsmlText& text, EventSink& sink) {
  const std::string_view rest = text.rest();
  const auto begins = [](std::string_view view, std::string_view pattern) {
    return pattern.substr(0, view.size()) == view;  // all of the view, so more may complete it
  };
  std::size_t at = rest.find('<');
  bool is_closed = false;
  for (; at != std::string_view::npos; at = rest.find('<', at + 1)) {
    const std::string_view ahead = rest.substr(at);
    is_closed = ahead.starts_with(state.closer);
    if (is_closed || begins(ahead, state.closer) || begins(ahead, format_.eos)) break;
  }
  const std::string_view before = rest.substr(0, at);
  call().arguments.string_piece(before, sink);
  text.advance(before.size());
  if (!is_closed) return false;
  text.advance(state.closer.size());
  call().arguments.end_string(sink);
  state_ = Parameters{};
  return true;
}

bool TolerantGrammar::step(HeldValue& state, DsmlText& text, EventSink& sink) {
  const std::string_view rest = text.rest();
  const std::size_t end = state.end.find(rest, state.closer);
  if (end == std::string_view::npos) return false;
  const std::string_view value = rest.substr(0, end);
  if (state.may_be_wrapper) {
    call().wrapped =
        WrappedArguments{.key = state.key, .value = std::string(value), .form = state.form};
  } else {
    put_value(state.key, value, state.form, sink);
  }
  text.advance(end + state.closer.size());
  state_ = Parameters{};
  return true;
}

void TolerantGrammar::put_value(const std::string& key, std::string_view value, ValueForm form,
                                EventSink& sink) {
  if (form == ValueForm::discarded) return;
  if (form == ValueForm::string) return call().arguments.string(key, value, sink);
  if (is_json(value)) return call().arguments.json(key, value, sink);
  if (form == ValueForm::json) count(13);
  call().arguments.string(key, value, sink);
}

// R11: the one parameter holds an object of the schema's own keys.
bool TolerantGrammar::unwrap(EventSink& sink) {
  OpenCall& open = call();
  if (!open.wrapped) return false;
  const std::string_view value = trimmed(open.wrapped->value);
  const std::optional<Json> json = Json::try_parse(value);
  const auto* object = json ? json->as<Json::Object>() : nullptr;
  if (object == nullptr) return false;
  for (const Json::Member& member : *object) {
    if (open.tool->find(member.key) == nullptr) return false;
  }
  count(11);
  open.arguments.end_with(value, sink);
  return true;
}

void TolerantGrammar::settle_wrapped(EventSink& sink) {
  OpenCall& open = call();
  if (!open.wrapped) return;
  const WrappedArguments wrapped = std::move(*open.wrapped);
  open.wrapped.reset();
  put_value(wrapped.key, wrapped.value, wrapped.form, sink);
}

void TolerantGrammar::end_call(EventSink& sink) {
  if (!unwrap(sink)) {
    settle_wrapped(sink);
    call().arguments.end(sink);
  }
  call_.reset();
}

bool TolerantGrammar::step(JsonBody& state, DsmlText& text, EventSink& sink) {
  const std::string_view rest = text.rest();
  const std::size_t end = state.end.find(rest, state.closer);
  if (end == std::string_view::npos) return false;
  const std::string_view body = trimmed(rest.substr(0, end));
  if (!is_json(body)) return fail(DsmlError::bad_invoke_header, text, sink);
  count(10);
  call().arguments.end_with(body, sink);
  text.advance(end + state.closer.size());
  call_.reset();
  state_ = Block{};
  return true;
}

// From the tag of the call on, the turn is passed on as it is.
bool TolerantGrammar::fail(DsmlError error, DsmlText& text, EventSink& sink) {
  text.rewind(call().begin);
  call_.reset();
  sink.malformed(error, {});
  state_ = Failed{error};
  return true;
}

}  // namespace hadal::protocol
