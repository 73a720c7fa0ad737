// What the answers of OpenAI's APIs have in common.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "protocol/api.h"
#include "protocol/api_json.h"

namespace hadal::protocol {

// The response object up to its choices: {"id": ..., "choices":[
[[nodiscard]] std::string response_head(std::string_view id_prefix, std::string_view object,
                                        const ResponseIdentity& identity);
// Source: serving notes §4.3.
void write_usage(JsonWriter& out, const Usage& usage);

// A token's bytes as text: U+FFFD for what is no whole character.
[[nodiscard]] std::string token_text(std::string_view bytes);
// A logprob as JSON has it: -9999 for minus infinity, as OpenAI writes it; null for none.
void write_logprob(JsonWriter& out, double logprob);
// One entry of a list of logprobs, as chat completions and responses have it.
[[nodiscard]] std::string logprob_entry(const TokenLogprobText& token);

// stop, length, tool_calls. Source: serving notes §4.3.
[[nodiscard]] const char* openai_finish_reason(AnswerEnd end, bool has_complete_call);
// The error that a choice with AnswerEnd::error stands for.
[[nodiscard]] ApiError failed_answer(const std::string& detail);

}  // namespace hadal::protocol
