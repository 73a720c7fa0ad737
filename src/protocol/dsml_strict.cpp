// The published parser's grammar, read as a stream. It rejects exactly what that parser rejects,
// except that a turn cut off between tags is an error here and passes there by accident.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "core/error.h"
#include "protocol/chat_format.h"
#include "protocol/dsml_grammar.h"

namespace hadal::protocol {
namespace {

constexpr std::string_view kGlue = ">\n";  // between tags
constexpr std::string_view kName = "name=\"";
constexpr std::string_view kKey = " name=\"";
constexpr std::string_view kString = "\" string=\"true\">";
constexpr std::string_view kJson = "\" string=\"false\">";

struct Reasoning {};
struct Content {};
struct Block {};  // behind the name of a tag around invokes
struct InvokeHeader {
  Searched parameter, close;
};
struct Parameters {};  // behind the name of a parameter's closer
struct ParameterHeader {
  Searched is_string, is_json, close;
};
struct StringValue {};
struct JsonValue {
  std::string key;
  Searched close;
};
struct AfterBlock {};
struct Done {};
struct Failed {
  DsmlError error;
};

class StrictGrammar final : public DsmlGrammar {
 public:
  explicit StrictGrammar(const DsmlOptions& options)
      : format_(chat_format(options.profile)),
        calls_open_(fmt::format("\n\n<{}{}", format_.dsml_mark, format_.calls_tag)),
        calls_close_(fmt::format("</{}{}>", format_.dsml_mark, format_.calls_tag)),
        invoke_open_(fmt::format("<{}{}", format_.dsml_mark, format_.invoke_tag)),
        invoke_close_(fmt::format("</{}{}", format_.dsml_mark, format_.invoke_tag)),
        parameter_open_(fmt::format("<{}{}", format_.dsml_mark, format_.parameter_tag)),
        // Without its bracket: what stands before must be one, and where it is not, the parameter
        // is bad.
        parameter_close_(fmt::format("/{}{}", format_.dsml_mark, format_.parameter_tag)),
        value_close_("<" + parameter_close_) {
    if (options.thinking_mode == ThinkingMode::thinking) state_ = Reasoning{};
  }

  bool step(DsmlText& text, EventSink& sink) override {
    return std::visit([&](auto& state) { return step(state, text, sink); }, state_);
  }
  bool close(DsmlText& text, EventSink& sink) override;
  bool in_block() const override { return false; }  // it is an error anyway
  std::uint64_t needed_from(const DsmlText& text) const override {
    return call_ ? call_->begin : text.offset();
  }

 private:
  struct OpenCall {
    std::size_t index;
    std::uint64_t begin;  // of its tag
    CallArguments arguments;
  };
  struct Trigger {
    std::string_view pattern;
    std::optional<DsmlError> error;  // finding it is one
  };

  bool step(Reasoning&, DsmlText& text, EventSink& sink);
  bool step(Content&, DsmlText& text, EventSink& sink);
  bool step(Block&, DsmlText& text, EventSink& sink);
  bool step(InvokeHeader&, DsmlText& text, EventSink& sink);
  bool step(Parameters&, DsmlText& text, EventSink& sink);
  bool step(ParameterHeader&, DsmlText& text, EventSink& sink);
  bool step(StringValue&, DsmlText& text, EventSink& sink);
  bool step(JsonValue&, DsmlText& text, EventSink& sink);
  bool step(AfterBlock&, DsmlText& text, EventSink& sink);
  bool step(Done&, DsmlText& text, EventSink& sink);
  bool step(Failed&, DsmlText& text, EventSink& sink);

  // The first trigger in the text; what stands before it (or before what may become one) is passed
  // to `emit`, and the cursor moves up to the trigger.
  template <std::size_t N, class Emit>
  const Trigger* scan(DsmlText& text, const Trigger (&triggers)[N], std::string_view first_bytes,
                      Emit&& emit);
  // The tag, of the two, that follows after ">\n"; the cursor moves behind it. Anything else fails.
  std::string_view glued(DsmlText& text, std::string_view either, std::string_view other,
                         DsmlError error);

  bool fail(DsmlText& text, DsmlError error) {
    if (call_) text.rewind(call_->begin);
    call_.reset();
    state_ = Failed{error};
    return true;
  }
  OpenCall& call() {
    HADAL_CHECK(call_.has_value());
    return *call_;
  }
  void begin_call(DsmlText& text) {
    call_.emplace(
        OpenCall{.index = n_calls_, .begin = text.offset(), .arguments = CallArguments(n_calls_)});
  }
  void end_call(EventSink& sink) {
    call().arguments.end(sink);
    call_.reset();
    state_ = Block{};
  }

  const ChatFormat& format_;
  std::string calls_open_, calls_close_, invoke_open_, invoke_close_, parameter_open_,
      parameter_close_, value_close_;
  std::optional<OpenCall> call_;
  std::size_t n_calls_ = 0;
  std::variant<Reasoning, Content, Block, InvokeHeader, Parameters, ParameterHeader, StringValue,
               JsonValue, AfterBlock, Done, Failed>
      state_ = Content{};
};

template <std::size_t N, class Emit>
const StrictGrammar::Trigger* StrictGrammar::scan(DsmlText& text, const Trigger (&triggers)[N],
                                                  std::string_view first_bytes, Emit&& emit) {
  const std::string_view rest = text.rest();
  const Trigger* found = nullptr;
  std::size_t at = rest.find_first_of(first_bytes);
  for (; at != std::string_view::npos; at = rest.find_first_of(first_bytes, at + 1)) {
    bool waits = false;
    for (const Trigger& trigger : triggers) {
      const Match match = text.match(rest.substr(at), trigger.pattern);
      if (match == Match::full && found == nullptr) found = &trigger;
      waits |= match == Match::partial;
    }
    if (found != nullptr || waits) break;
  }
  const std::string_view before = rest.substr(0, at);
  emit(before);
  text.advance(before.size());
  return found;
}

bool StrictGrammar::step(Reasoning&, DsmlText& text, EventSink& sink) {
  const Trigger triggers[] = {{.pattern = format_.think_close, .error = std::nullopt},
                              {.pattern = calls_open_, .error = DsmlError::missing_think_end},
                              {.pattern = format_.eos, .error = DsmlError::missing_think_end},
                              {.pattern = format_.bos, .error = DsmlError::special_in_text},
                              {.pattern = format_.think_open, .error = DsmlError::special_in_text},
                              {.pattern = format_.dsml_mark, .error = DsmlError::special_in_text}};
  const char first_bytes[] = {'\n', '<', format_.dsml_mark[0], 0};
  const Trigger* found =
      scan(text, triggers, first_bytes, [&](std::string_view before) { sink.reasoning(before); });
  if (found == nullptr) return false;
  if (found->error) return fail(text, *found->error);
  text.advance(found->pattern.size());
  state_ = Content{};
  return true;
}

bool StrictGrammar::step(Content&, DsmlText& text, EventSink& sink) {
  const Trigger triggers[] = {{.pattern = calls_open_, .error = std::nullopt},
                              {.pattern = format_.eos, .error = std::nullopt},
                              {.pattern = format_.bos, .error = DsmlError::special_in_text},
                              {.pattern = format_.think_open, .error = DsmlError::special_in_text},
                              {.pattern = format_.think_close, .error = DsmlError::special_in_text},
                              {.pattern = format_.dsml_mark, .error = DsmlError::special_in_text}};
  const char first_bytes[] = {'\n', '<', format_.dsml_mark[0], 0};
  const Trigger* found =
      scan(text, triggers, first_bytes, [&](std::string_view before) { sink.content(before); });
  if (found == nullptr) return false;
  if (found->error) return fail(text, *found->error);
  text.advance(found->pattern.size());
  if (found == &triggers[0]) {
    state_ = Block{};
  } else {
    state_ = Done{};
  }
  return true;
}

std::string_view StrictGrammar::glued(DsmlText& text, std::string_view either,
                                      std::string_view other, DsmlError error) {
  const std::string_view rest = text.rest();
  Match best = text.match(rest, kGlue);
  if (best == Match::full) {
    best = Match::none;
    for (const std::string_view tag : {either, other}) {
      const Match match = text.match(rest.substr(kGlue.size()), tag);
      if (match == Match::full) {
        text.advance(kGlue.size() + tag.size());
        return tag;
      }
      if (match == Match::partial) best = Match::partial;
    }
  }
  if (best == Match::none && !rest.empty()) fail(text, error);
  return {};
}

bool StrictGrammar::step(Block&, DsmlText& text, EventSink&) {
  const std::string_view tag = glued(text, invoke_open_, calls_close_, DsmlError::bad_block_glue);
  if (tag.empty()) return std::holds_alternative<Failed>(state_);
  if (tag == invoke_open_) {
    text.rewind(text.offset() - tag.size());
    begin_call(text);
    text.advance(tag.size());
    state_ = InvokeHeader{};
  } else {
    state_ = AfterBlock{};
  }
  return true;
}

// The header reaches to the next tag and must be: whitespace, name="...">, one or two newlines.
bool StrictGrammar::step(InvokeHeader& state, DsmlText& text, EventSink& sink) {
  const std::string_view rest = text.rest();
  const std::size_t parameter = state.parameter.find(rest, parameter_open_);
  const std::size_t end = state.close.find(rest, invoke_close_);
  const std::size_t past = std::min(parameter, end);
  if (past == std::string_view::npos) return false;

  std::string_view header = rest.substr(0, past);
  header.remove_prefix(whitespace_prefix(header));
  if (!header.starts_with(kName)) return fail(text, DsmlError::bad_invoke_header);
  header.remove_prefix(kName.size());
  const std::size_t n_tail = header.ends_with("\">\n\n") ? 4 : header.ends_with("\">\n") ? 3 : 0;
  if (n_tail == 0) return fail(text, DsmlError::bad_invoke_header);
  header.remove_suffix(n_tail);

  ++n_calls_;
  sink.begin_call(call().index, header);
  if (parameter < end) {
    text.advance(past + parameter_open_.size());
    state_ = ParameterHeader{};
  } else {
    text.advance(past + invoke_close_.size());
    end_call(sink);
  }
  return true;
}

bool StrictGrammar::step(Parameters&, DsmlText& text, EventSink& sink) {
  const std::string_view tag =
      glued(text, parameter_open_, invoke_close_, DsmlError::bad_parameter_glue);
  if (tag.empty()) return std::holds_alternative<Failed>(state_);
  if (tag == parameter_open_) {
    state_ = ParameterHeader{};
  } else {
    end_call(sink);
  }
  return true;
}

// The key ends where a whole string attribute first follows, so it may hold quotes and brackets.
bool StrictGrammar::step(ParameterHeader& state, DsmlText& text, EventSink& sink) {
  std::string_view rest = text.rest();
  const Match name = text.match(rest, kKey);
  if (name == Match::partial) return false;
  if (name == Match::none) return !rest.empty() && fail(text, DsmlError::bad_parameter);
  rest.remove_prefix(kKey.size());

  const std::size_t is_string = state.is_string.find(rest, kString);
  const std::size_t is_json = state.is_json.find(rest, kJson);
  const std::size_t end = state.close.find(rest, parameter_close_);
  const std::size_t past = std::min(is_string, is_json);
  if (end < past) return fail(text, DsmlError::bad_parameter);
  if (past == std::string_view::npos) return false;

  const std::string key(rest.substr(0, past));
  if (call().arguments.has(key)) return fail(text, DsmlError::duplicate_parameter);
  if (is_string < is_json) {
    text.advance(kKey.size() + past + kString.size());
    call().arguments.begin_string(key, sink);
    state_ = StringValue{};
  } else {
    text.advance(kKey.size() + past + kJson.size());
    state_ = JsonValue{.key = key, .close = {}};
  }
  return true;
}

bool StrictGrammar::step(StringValue&, DsmlText& text, EventSink& sink) {
  const Trigger triggers[] = {{.pattern = value_close_, .error = std::nullopt},
                              {.pattern = parameter_close_, .error = DsmlError::bad_parameter}};
  const Trigger* found = scan(text, triggers, "</", [&](std::string_view before) {
    call().arguments.string_piece(before, sink);
  });
  if (found == nullptr) return false;
  if (found->error) return fail(text, *found->error);
  text.advance(value_close_.size());
  call().arguments.end_string(sink);
  state_ = Parameters{};
  return true;
}

// Pasted as it is, JSON or not: the published parser does not look.
bool StrictGrammar::step(JsonValue& state, DsmlText& text, EventSink& sink) {
  const std::string_view rest = text.rest();
  const std::size_t end = state.close.find(rest, parameter_close_);
  if (end == std::string_view::npos) return false;
  if (end == 0 || rest[end - 1] != '<') return fail(text, DsmlError::bad_parameter);
  call().arguments.json(state.key, rest.substr(0, end - 1), sink);
  text.advance(end + parameter_close_.size());
  state_ = Parameters{};
  return true;
}

bool StrictGrammar::step(AfterBlock&, DsmlText& text, EventSink&) {
  const std::string_view rest = text.rest();
  if (rest.empty()) return false;
  const Match match = text.match(rest, format_.eos);
  if (match == Match::partial) return false;
  if (match == Match::none) return fail(text, DsmlError::text_after_block);
  text.advance(format_.eos.size());
  state_ = Done{};
  return true;
}

bool StrictGrammar::step(Done&, DsmlText& text, EventSink&) {
  return !text.rest().empty() && fail(text, DsmlError::trailing_text);
}

bool StrictGrammar::step(Failed& state, DsmlText& text, EventSink& sink) {
  const std::string_view rest = text.rest();
  if (rest.empty()) return false;
  sink.malformed(state.error, rest);
  text.advance(rest.size());
  return false;
}

bool StrictGrammar::close(DsmlText& text, EventSink& sink) {
  struct Closing {
    std::optional<DsmlError> operator()(const Reasoning&) { return DsmlError::missing_think_end; }
    std::optional<DsmlError> operator()(const Content&) { return DsmlError::missing_eos; }
    std::optional<DsmlError> operator()(const Block&) { return DsmlError::bad_block_glue; }
    std::optional<DsmlError> operator()(const InvokeHeader&) {
      return DsmlError::bad_invoke_header;
    }
    std::optional<DsmlError> operator()(const Parameters&) { return DsmlError::bad_parameter_glue; }
    std::optional<DsmlError> operator()(const ParameterHeader&) { return DsmlError::bad_parameter; }
    std::optional<DsmlError> operator()(const StringValue&) { return DsmlError::bad_parameter; }
    std::optional<DsmlError> operator()(const JsonValue&) { return DsmlError::bad_parameter; }
    std::optional<DsmlError> operator()(const AfterBlock&) { return std::nullopt; }
    std::optional<DsmlError> operator()(const Done&) { return std::nullopt; }
    std::optional<DsmlError> operator()(const Failed&) { return std::nullopt; }
  };
  const std::optional<DsmlError> error = std::visit(Closing{}, state_);
  if (!error) return false;
  fail(text, *error);
  sink.malformed(*error, {});  // also when there is no text left to go with it
  return true;
}

}  // namespace

std::unique_ptr<DsmlGrammar> strict_dsml_grammar(const DsmlOptions& options) {
  return std::make_unique<StrictGrammar>(options);
}

}  // namespace hadal::protocol
