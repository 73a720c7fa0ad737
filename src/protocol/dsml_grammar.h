// The two readings of a completion behind DsmlParser. Internal to the DSML parser.
#pragma once

#include <memory>

#include "protocol/dsml_call.h"
#include "protocol/dsml_event.h"
#include "protocol/dsml_text.h"

namespace hadal::protocol {

// A state machine that moves over the text, one trigger a step.
class DsmlGrammar {
 public:
  virtual ~DsmlGrammar() = default;

  // Takes one step: moves the cursor, changes the state, or both. False when it can do neither
  // before more text arrives (or, once the text has ended, at all).
  virtual bool step(DsmlText& text, EventSink& sink) = 0;
  // After the end of the text, when step() has returned false: closes what is open. True when there
  // is text to be stepped over again.
  virtual bool close(DsmlText& text, EventSink& sink) = 0;
  // Whether the text has come to stand inside a block, where a broken character is no content.
  [[nodiscard]] virtual bool in_block() const = 0;
  // The earliest offset that step() may still rewind to.
  [[nodiscard]] virtual std::uint64_t needed_from(const DsmlText& text) const = 0;

  DsmlRecoveries recoveries{};
};

[[nodiscard]] std::unique_ptr<DsmlGrammar> strict_dsml_grammar(const DsmlOptions& options);
[[nodiscard]] std::unique_ptr<DsmlGrammar> tolerant_dsml_grammar(DsmlOptions options);

}  // namespace hadal::protocol
