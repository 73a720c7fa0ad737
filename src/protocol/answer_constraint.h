// One answer as the engine constrains it: reasoning, content, tool calls, end.
#pragma once

#include <memory>
#include <span>

#include "core/token.h"
#include "grammar/constraint.h"
#include "grammar/grammar_cache.h"
#include "protocol/api.h"

namespace hadal::protocol {

// What `request` demands of the tokens of one of its answers; null when it demands nothing.
//
// - Reasoning is free up to its end. thinking_budget closes it after that many tokens. Where
//   content has to follow, the reasoning may neither end the answer nor open a tool block.
// - With tools, a tool block is held to its grammar from its first mark on: names that are declared
//   (and allowed), keys and kinds of values as declared, everything else as the schema says under
//   strict; the end of the answer behind it. Content before it is free, unless tool_choice wants a
//   call.
// - A format is held to in the content; with tools a block may stand in its place.
// - min_tokens keeps the answer from ending, except where nothing else may follow.
// - An answer that continues a message takes that message's text as its own beginning. Where a
//   call is demanded, it is content before the block.
//
// Tags are those that the vocabulary has a mark for: ordinary tokens cannot spell one where one has
// to stand. A token that the mask forbids ends all of it.
//
// Throws ApiException (400) when a schema cannot be compiled, or a continued message does not begin
// what the format demands; `param` names it. `cache` must be of the same tokenizer; it may go
// before the constraint does. Source: serving notes §1.7.3, §4.5, §4.7.
[[nodiscard]] std::unique_ptr<grammar::Constraint> make_answer_constraint(
    const ApiRequest& request, const io::Tokenizer& tokenizer, ChatProfile profile,
    std::span<const TokenId> stop_tokens, grammar::GrammarCache& cache);

}  // namespace hadal::protocol
