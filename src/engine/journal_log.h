// The engine's side of the journal: steps in, published when the log's policy allows.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/request.h"
#include "journal/writer.h"

namespace hadal::engine {

// Tokens of streams that the journal does not know are published in the same order, unlogged.
class JournalLog final : public TokenLog {
 public:
  explicit JournalLog(journal::Writer& writer) : writer_(writer) {}  // must outlive this
  void commit(std::span<const Token> tokens, std::span<const Closed> closed,
              std::function<void()> publish) override;

 private:
  journal::Writer& writer_;
};

// What the journal says, in the engine's words.
[[nodiscard]] FinishReason finish_reason(journal::CloseReason reason);
[[nodiscard]] journal::CloseReason close_reason(FinishReason reason);
[[nodiscard]] TokenEvent to_event(const journal::TokenEntry& entry);
// Of a choice that is closed.
[[nodiscard]] Finish to_finish(const journal::ChoiceState& choice, std::int32_t number);
// Every choice's past, for Request::drawn. A choice whose CLOSE was lost with the process although
// its last token ends it is the engine's to notice: the tokens are here, stop token included.
[[nodiscard]] std::vector<Request::Drawn> drawn_of(const journal::Stream& stream);

}  // namespace hadal::engine
