#include "engine/journal_log.h"

#include <utility>

namespace hadal::engine {

void JournalLog::commit(std::span<const Token> tokens, std::span<const Closed> closed,
                        std::function<void()> publish) {
  std::vector<journal::TokenEntry> entries;
  entries.reserve(tokens.size());
  const std::string* present = nullptr;  // a stream's tokens come in runs
  journal::LocalId local = 0;
  const auto local_of = [&](const std::string* stream) {
    if (present == nullptr || (stream != present && *stream != *present)) {
      local = writer_.local_of(*stream).value_or(0);
    }
    present = stream;
    return local;
  };
  for (const Token& token : tokens) {
    const TokenEvent& event = *token.event;
    journal::TokenEntry& entry = entries.emplace_back();
    entry.local = local_of(token.stream);
    entry.choice = static_cast<std::uint16_t>(event.choice);
    entry.is_stop_token = event.is_stop_token;
    entry.index = static_cast<std::uint32_t>(event.index);
    entry.token = event.token;
    entry.logprob = event.logprob;
    entry.top.reserve(event.top.size());
    for (const TopLogprob& top : event.top) entry.top.push_back({top.token, top.logprob});
  }
  std::vector<journal::ChoiceEnd> ends;
  ends.reserve(closed.size());
  for (const Closed& end : closed) {
    ends.push_back({.local = local_of(end.stream),
                    .choice = static_cast<std::uint16_t>(end.finish->choice),
                    .reason = close_reason(end.finish->reason),
                    .detail = end.finish->error});
  }
  writer_.commit(std::move(entries), std::move(ends), std::move(publish));
}

FinishReason finish_reason(journal::CloseReason reason) {
  switch (reason) {
    case journal::CloseReason::stop:
      return FinishReason::stop;
    case journal::CloseReason::length:
      return FinishReason::length;
    case journal::CloseReason::cancelled:
      return FinishReason::cancelled;
    case journal::CloseReason::error:
      break;
  }
  return FinishReason::error;
}

journal::CloseReason close_reason(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return journal::CloseReason::stop;
    case FinishReason::length:
      return journal::CloseReason::length;
    case FinishReason::cancelled:
      return journal::CloseReason::cancelled;
    case FinishReason::error:
      break;
  }
  return journal::CloseReason::error;
}

TokenEvent to_event(const journal::TokenEntry& entry) {
  TokenEvent event{.choice = entry.choice,
                   .index = entry.index,
                   .token = entry.token,
                   .logprob = entry.logprob.value_or(0),
                   .is_stop_token = entry.is_stop_token};
  event.top.reserve(entry.top.size());
  for (const journal::TopEntry& top : entry.top) event.top.push_back({top.token, top.logprob});
  return event;
}

Finish to_finish(const journal::ChoiceState& choice, std::int32_t number) {
  return {.choice = number,
          .reason = finish_reason(choice.close->reason),
          .error = choice.close->detail,
          .n_tokens = choice.close->n_tokens};
}

std::vector<Request::Drawn> drawn_of(const journal::Stream& stream) {
  std::vector<Request::Drawn> drawn;
  drawn.reserve(stream.choices.size());
  for (const journal::ChoiceState& choice : stream.choices) {
    drawn.push_back({.tokens = choice.tokens, .finished = choice.close.has_value()});
  }
  return drawn;
}

}  // namespace hadal::engine
