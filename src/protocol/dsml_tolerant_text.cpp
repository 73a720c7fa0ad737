#include <algorithm>

#include "protocol/dsml_tolerant.h"

namespace hadal::protocol {
namespace {

// Newlines at the beginning, as far as they can be a separator: up to two.
std::size_t separator_prefix(std::string_view view) {
  std::size_t n = 0;
  while (n < 2 && n < view.size() && view[n] == '\n') ++n;
  return n;
}

}  // namespace

std::unique_ptr<DsmlGrammar> tolerant_dsml_grammar(DsmlOptions options) {
  return std::make_unique<TolerantGrammar>(std::move(options));
}

TolerantGrammar::TolerantGrammar(DsmlOptions options)
    : options_(std::move(options)),
      format_(chat_format(options_.profile)),
      tags_(format_),
      in_reasoning_(options_.thinking_mode == ThinkingMode::thinking) {
  if (in_reasoning_) state_ = Reasoning{};
}

bool TolerantGrammar::step(DsmlText& text, EventSink& sink) {
  return std::visit([&](auto& state) { return step(state, text, sink); }, state_);
}

bool TolerantGrammar::in_block() const {
  return call_ || std::holds_alternative<Block>(state_);
}

std::uint64_t TolerantGrammar::needed_from(const DsmlText& text) const {
  if (const auto* orphans = std::get_if<OrphanClosers>(&state_)) return orphans->begin;
  if (opening_) return opening_->begin;
  return call_ ? call_->begin : text.offset();
}

const DeclaredTool* TolerantGrammar::declared(std::string_view name) const {
  for (const DeclaredTool& tool : options_.tools) {
    if (tool.name == name) return &tool;
  }
  return nullptr;
}

void TolerantGrammar::emit(std::size_t n, DsmlText& text, EventSink& sink) {
  const std::string_view piece = text.rest().substr(0, n);
  if (piece.empty()) return;
  markdown_.feed(piece);
  if (in_reasoning_) {
    sink.reasoning(piece);
  } else {
    if (after_block_) count(15);
    after_block_ = false;
    sink.content(piece);
  }
  text.advance(piece.size());
}

void TolerantGrammar::end_reasoning() {
  in_reasoning_ = false;
  markdown_ = MarkdownCode();
}

bool TolerantGrammar::step(Reasoning&, DsmlText& text, EventSink& sink) {
  const std::string_view rest = text.rest();
  if (at_start_) {
    const Match opener = text.match(rest, format_.think_open);
    if (opener == Match::partial) return false;
    if (opener == Match::full) {
      count(7);
      text.advance(format_.think_open.size());
    }
    at_start_ = false;
    return true;
  }
  const bool reads_calls =
      !options_.tools.empty() && options_.in_reasoning == DsmlInReasoning::implicit_end;
  const std::string_view first_bytes = reads_calls ? "\n<" : "<";
  std::size_t at = rest.find_first_of(first_bytes);
  for (; at != std::string_view::npos; at = rest.find_first_of(first_bytes, at + 1)) {
    const std::string_view ahead = rest.substr(at);
    const std::size_t separator = separator_prefix(ahead);
    if (separator == 0) {
      const Match closer = text.match(ahead, format_.think_close);
      const Match eos = text.match(ahead, format_.eos);
      if (closer == Match::full || eos == Match::full) {
        emit(at, text, sink);
        text.advance((eos == Match::full ? format_.eos : format_.think_close).size());
        end_reasoning();
        if (eos == Match::full) {
          state_ = Done{};
        } else {
          state_ = Content{};
        }
        return true;
      }
      if (closer == Match::partial || eos == Match::partial) break;
    }
    if (!reads_calls) continue;
    const TagMatch tag = tags_.match_block_open(ahead.substr(separator), !text.ended());
    if (tag.match == Match::partial) break;
    if (tag.match == Match::full) {
      emit(at, text, sink);
      meet_tag(*tag.tag, separator, text, sink);
      return true;
    }
  }
  emit(std::min(at, rest.size()), text, sink);
  return false;
}

bool TolerantGrammar::step(Content&, DsmlText& text, EventSink& sink) {
  const std::string_view rest = text.rest();
  if (at_start_ && options_.thinking_mode == ThinkingMode::chat) {
    const Match closer = text.match(rest, format_.think_close);
    if (closer == Match::partial) return false;
    if (closer == Match::full) {
      count(8);
      text.advance(format_.think_close.size());
    }
    at_start_ = false;
    return true;
  }
  std::size_t at = rest.find_first_of("\n<");
  for (; at != std::string_view::npos; at = rest.find_first_of("\n<", at + 1)) {
    const std::string_view ahead = rest.substr(at);
    const std::size_t separator = separator_prefix(ahead);
    if (separator == 0) {
      const Match eos = text.match(ahead, format_.eos);
      if (eos == Match::full) {
        emit(at, text, sink);
        text.advance(format_.eos.size());
        state_ = Done{};
        return true;
      }
      if (eos == Match::partial) break;
    }
    const TagMatch tag = tags_.match(ahead.substr(separator), !text.ended());
    if (tag.match == Match::partial) break;
    if (tag.match == Match::full) {
      emit(at, text, sink);
      meet_tag(*tag.tag, separator, text, sink);
      return true;
    }
  }
  emit(std::min(at, rest.size()), text, sink);
  return false;
}

void TolerantGrammar::meet_tag(const DsmlTag& tag, std::size_t separator, DsmlText& text,
                               EventSink& sink) {
  const bool in_code = markdown_.in_code_after({"\n\n", separator});
  if (tag.closing) {
    if (!content_has_opener_ && !in_code) {
      const std::uint64_t past = text.offset() + separator + tag.text.size();
      state_ = OrphanClosers{.begin = text.offset(), .past_last = past};
      text.rewind(past);
      return;
    }
  } else if (!options_.tools.empty() && !(tag.is_dialect && in_code)) {
    Opening opening{.begin = text.offset(),
                    .separator = separator,
                    .in_reasoning = in_reasoning_,
                    .needs_declared = tag.is_dialect || in_reasoning_,
                    .is_canonical = separator == 2 && !tag.is_dialect && !in_reasoning_,
                    .rules = 0};
    if (tag.is_dialect) opening.rules |= 1u << 9;
    if (tag.is_legacy) opening.rules |= 1u << 19;
    // Behind a block the separator has been dropped with the whitespace there.
    if (tag.kind == TagKind::calls) {
      if (separator != 2 && !after_block_) opening.rules |= 1u << 1;
      open_block(opening, tag, text);
      return;
    }
    const bool at_line_start = separator > 0 || markdown_.at_line_start();
    if (tag.kind == TagKind::invoke && at_line_start && !in_code) {
      opening.needs_declared = true;
      opening.is_canonical = false;
      opening.rules |= 1u << 3;
      open_block(opening, tag, text);
      return;
    }
  }
  if (!tag.closing && !in_reasoning_) content_has_opener_ = true;
  emit(separator + 1, text, sink);
}

void TolerantGrammar::open_block(const Opening& opening, const DsmlTag& tag, DsmlText& text) {
  opening_ = opening;
  has_wrapper_ = tag.kind == TagKind::calls;
  text.advance(opening.separator + (has_wrapper_ ? tag.text.size() : 0));
  state_ = Block{.gap = {}, .at_invoke = !has_wrapper_};
}

void TolerantGrammar::reopen_as_text(DsmlText& text, EventSink& sink) {
  HADAL_CHECK(opening_.has_value());
  const Opening opening = *opening_;
  opening_.reset();
  call_.reset();
  text.rewind(opening.begin);
  if (opening.in_reasoning) {
    state_ = Reasoning{};
  } else {
    content_has_opener_ = true;
    state_ = Content{};
  }
  emit(opening.separator + 1, text, sink);
}

// Whitespace and closing tags only: they go if the turn ends, and are content if it goes on.
bool TolerantGrammar::step(OrphanClosers& state, DsmlText& text, EventSink& sink) {
  text.advance(whitespace_prefix(text.rest()));
  const std::string_view rest = text.rest();
  if (rest.empty()) return false;
  const Match eos = text.match(rest, format_.eos);
  if (eos == Match::full) {
    count(16);
    text.advance(format_.eos.size());
    state_ = Done{};
    return true;
  }
  const TagMatch tag = tags_.match(rest, !text.ended());
  if (tag.match == Match::full && tag.tag->closing) {
    text.advance(tag.tag->text.size());
    state.past_last = text.offset();
    return true;
  }
  if (eos == Match::partial || tag.match == Match::partial) return false;
  const std::size_t n = state.past_last - state.begin;
  text.rewind(state.begin);
  state_ = Content{};
  emit(n, text, sink);
  return true;
}

bool TolerantGrammar::step(AfterBlock&, DsmlText& text, EventSink&) {
  text.advance(whitespace_prefix(text.rest()));
  if (text.rest().empty()) return false;
  if (think_close_pending_) {
    const Match closer = text.match(text.rest(), format_.think_close);
    if (closer == Match::partial) return false;
    think_close_pending_ = false;
    if (closer == Match::full) {
      text.advance(format_.think_close.size());
      return true;
    }
  }
  markdown_ = MarkdownCode();
  state_ = Content{};
  return true;
}

bool TolerantGrammar::step(Done&, DsmlText& text, EventSink& sink) {
  const std::string_view rest = text.rest();
  if (!rest.empty()) sink.malformed(DsmlError::trailing_text, rest);
  text.advance(rest.size());
  return false;
}

// The rest of the turn, without the token that ends it.
bool TolerantGrammar::step(Failed& state, DsmlText& text, EventSink& sink) {
  const std::string_view rest = text.rest();
  std::size_t at = rest.find('<');
  for (; at != std::string_view::npos; at = rest.find('<', at + 1)) {
    if (text.match(rest.substr(at), format_.eos) != Match::none) break;
  }
  const std::string_view before = rest.substr(0, at);
  if (!before.empty()) sink.malformed(state.error, before);
  text.advance(before.size());
  if (text.match(text.rest(), format_.eos) != Match::full) return false;
  text.advance(format_.eos.size());
  state_ = Done{};
  return true;
}

bool TolerantGrammar::close(DsmlText& text, EventSink& sink) {
  if (std::holds_alternative<OrphanClosers>(state_)) {
    count(16);
    text.advance(text.rest().size());
    state_ = Done{};
    return false;
  }
  if (opening_) {
    // A block that began as it should was cut off before its first call; any other guess is text.
    if (!opening_->is_canonical) {
      reopen_as_text(text, sink);
      return true;
    }
    count(17);
  } else if (call_ || !text.rest().empty()) {
    count(17);  // no end of the call: a reader of the events drops it
  }
  opening_.reset();
  call_.reset();
  text.advance(text.rest().size());
  state_ = Done{};
  return false;
}

}  // namespace hadal::protocol
