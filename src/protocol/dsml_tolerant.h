// The grammar of tolerant mode. Internal to the DSML parser.
#pragma once

#include <optional>
#include <string>
#include <variant>

#include "core/error.h"
#include "protocol/chat_format.h"
#include "protocol/dsml_grammar.h"
#include "protocol/dsml_tags.h"
#include "protocol/markdown_code.h"

namespace hadal::protocol {

// Strict grammar plus the recoveries R1-R19 of serving notes §1.7.3. Where a block may have begun
// but no call has (no name seen, or none declared where one must be), nothing is decided:
// `opening_` remembers the place, and the text is read again as text when the guess was wrong.
//
// Text states are in dsml_tolerant_text.cpp, states inside a block in dsml_tolerant_block.cpp.
class TolerantGrammar final : public DsmlGrammar {
 public:
  explicit TolerantGrammar(DsmlOptions options);

  bool step(DsmlText& text, EventSink& sink) override;
  bool close(DsmlText& text, EventSink& sink) override;
  bool in_block() const override;
  std::uint64_t needed_from(const DsmlText& text) const override;

 private:
  // Whitespace between two tags, which may be the canonical newline or not (R2).
  struct Gap {
    std::size_t n_newlines = 0, n_others = 0;
    void add(std::string_view whitespace);
  };
  // What becomes of a value that is not passed on while it arrives.
  enum class ValueForm : std::uint8_t {
    json,     // string="false": JSON, or a string after all (R13)
    unknown,  // no string attribute and no schema that says string (R12)
    string,
    discarded  // a duplicate (R14)
  };

  // Outside blocks.
  struct Reasoning {};
  struct Content {};
  struct OrphanClosers {  // R16: closing tags that go if the turn ends here
    std::uint64_t begin, past_last;
  };
  struct AfterBlock {};
  struct Done {};
  struct Failed {
    DsmlError error;
  };
  // Inside.
  struct Block {
    Gap gap;
    bool at_invoke = false;  // R3: an invoke tag lies ahead, no gap before it
  };
  struct InvokeHeader {};
  struct Parameters {
    Gap gap;
    bool after_header = false;
  };
  struct ParameterHeader {
    std::string closer;  // of the parameter
    Searched past, end;
  };
  struct StringValue {
    std::string closer;
  };
  struct HeldValue {
    std::string closer;
    std::string key;
    ValueForm form;
    bool may_be_wrapper;  // R11: may hold the whole arguments object
    Searched end;
  };
  struct JsonBody {      // R10
    std::string closer;  // of the invoke
    Searched end;
  };

  // A block that may have begun.
  struct Opening {
    std::uint64_t begin;    // of the separator
    std::size_t separator;  // newlines before the tag, at most two
    bool in_reasoning;
    bool needs_declared;
    bool is_canonical;    // as the strict grammar wants it, so far
    std::uint32_t rules;  // bit r: Rr was needed, if this is a block
  };
  struct WrappedArguments {  // R11: the only parameter so far
    std::string key, value;
    ValueForm form;
  };
  struct OpenCall {
    std::size_t index;
    std::uint64_t begin;  // of its tag
    std::string_view mark;
    const DeclaredTool* tool;  // null when undeclared
    CallArguments arguments;
    std::optional<WrappedArguments> wrapped;
  };

  bool step(Reasoning&, DsmlText& text, EventSink& sink);
  bool step(Content&, DsmlText& text, EventSink& sink);
  bool step(OrphanClosers&, DsmlText& text, EventSink& sink);
  bool step(AfterBlock&, DsmlText& text, EventSink& sink);
  bool step(Done&, DsmlText& text, EventSink& sink);
  bool step(Failed&, DsmlText& text, EventSink& sink);
  bool step(Block&, DsmlText& text, EventSink& sink);
  bool step(InvokeHeader&, DsmlText& text, EventSink& sink);
  bool step(Parameters&, DsmlText& text, EventSink& sink);
  bool step(ParameterHeader&, DsmlText& text, EventSink& sink);
  bool step(StringValue&, DsmlText& text, EventSink& sink);
  bool step(HeldValue&, DsmlText& text, EventSink& sink);
  bool step(JsonBody&, DsmlText& text, EventSink& sink);

  // Passes on the next n bytes as reasoning or content, whichever is being read.
  void emit(std::size_t n, DsmlText& text, EventSink& sink);
  void end_reasoning();
  // Decides on the tag behind `separator` newlines at the cursor: enters a state, or emits the
  // tag's bracket as text.
  void meet_tag(const DsmlTag& tag, std::size_t separator, DsmlText& text, EventSink& sink);
  void open_block(const Opening& opening, const DsmlTag& tag, DsmlText& text);
  // The guess was wrong: back to where it was made, and past the bracket.
  void reopen_as_text(DsmlText& text, EventSink& sink);

  bool enter_value(std::string key, std::optional<bool> is_string, std::string closer,
                   EventSink& sink);
  void put_value(const std::string& key, std::string_view value, ValueForm form, EventSink& sink);
  bool unwrap(EventSink& sink);
  void settle_wrapped(EventSink& sink);
  void end_call(EventSink& sink);
  bool fail(DsmlError error, DsmlText& text, EventSink& sink);

  // What a state inside a call, or inside a block that is not certain, may rely on.
  OpenCall& call() {
    HADAL_CHECK(call_.has_value());
    return *call_;
  }
  void count(std::size_t rule) { ++recoveries[rule]; }
  const DeclaredTool* declared(std::string_view name) const;

  const DsmlOptions options_;
  const ChatFormat& format_;
  const DsmlTags tags_;

  bool in_reasoning_;
  bool at_start_ = true;              // R7, R8: nothing has been read yet
  bool content_has_opener_ = false;   // R16: an opening tag stands in the content as text
  bool after_block_ = false;          // R15: no content since the last block
  bool think_close_pending_ = false;  // R6 ended the reasoning; its closer may still come
  bool has_wrapper_ = false;          // the current block has one, so its closer is expected
  MarkdownCode markdown_;
  std::optional<Opening> opening_;
  std::optional<OpenCall> call_;
  std::size_t n_calls_ = 0;
  std::variant<Reasoning, Content, OrphanClosers, AfterBlock, Done, Failed, Block, InvokeHeader,
               Parameters, ParameterHeader, StringValue, HeldValue, JsonBody>
      state_ = Content{};
};

}  // namespace hadal::protocol
