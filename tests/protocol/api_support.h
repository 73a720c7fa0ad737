// What the tests of the HTTP APIs share: requests from text, refusals as text, and events joined.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "protocol/api.h"

namespace hadal::protocol::test {

// What `read` throws, as "STATUS TYPE PARAM CODE: MESSAGE" with "-" for what is absent; "accepted"
// when it throws nothing. The type is left out where it is invalid_request_error.
inline std::string refusal(const std::function<void()>& read) {
  try {
    read();
  } catch (const ApiException& e) {
    std::string out = std::to_string(e.error.status);
    if (e.error.type != "invalid_request_error") out += " " + e.error.type;
    out += " " + e.error.param.value_or("-");
    if (e.error.code) out += " " + *e.error.code;
    return out + " | " + e.error.message;
  }
  return "accepted";
}

inline ResponseIdentity identity() {
  return {.id = "ID",
          .model = "deepseek-v4",
          .created = 1700000000,
          .system_fingerprint = "fp",
          .nonce = "0123456789abcdef"};
}

// One call of a writer.
struct WriterStep {
  std::int32_t choice = 0;
  std::vector<DsmlEvent> events = {};
  std::optional<TokenLogprobText> logprob = {};
  bool in_reasoning = false;
};
struct WriterFinish {
  std::int32_t choice = 0;
  AnswerEnd end = AnswerEnd::stop;
  std::string detail = {};
};

inline std::string line_of(const SseEvent& event) {
  return (event.event.empty() ? "" : event.event + " ") + event.data;
}

// All events of an answer, "EVENT DATA" each.
inline std::vector<std::string> run(ResponseWriter& writer, const std::vector<WriterStep>& steps,
                                    const std::vector<WriterFinish>& finishes, const Usage& usage) {
  std::vector<std::string> lines;
  const auto add = [&](const std::vector<SseEvent>& events) {
    for (const SseEvent& event : events) lines.push_back(line_of(event));
  };
  add(writer.begin({.prompt_tokens = usage.prompt_tokens, .cached_tokens = usage.cached_tokens}));
  for (const WriterStep& step : steps) {
    add(writer.events(step.choice, step.events, step.logprob ? &*step.logprob : nullptr,
                      step.in_reasoning));
  }
  for (const WriterFinish& finish : finishes) {
    add(writer.finish(finish.choice, finish.end, finish.detail, {}));
  }
  add(writer.end(usage));
  return lines;
}

}  // namespace hadal::protocol::test
