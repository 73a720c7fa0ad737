// Any bytes as the body of a request to any of the APIs: refused with an ApiException that can be
// sent, or read into a request that an answer can be written to.
//
// The first byte says which API (the remainder by 4) and whether what is policy is strict (bit 2);
// the rest is the body.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/error.h"
#include "io/utf8.h"
#include "protocol/api.h"

namespace {

using namespace hadal;
using namespace hadal::protocol;

ApiDefaults defaults_of(unsigned flags) {
  ApiDefaults defaults;
  if ((flags & 4U) != 0) {
    defaults.profile = ChatProfile::v4_0731;
    defaults.enable_tasks = true;
    defaults.mid_system_as_user = false;
    defaults.strict_reasoning = true;
    defaults.thinking_mode = ThinkingMode::chat;
  }
  return defaults;
}

void check_event(const SseEvent& event) {
  HADAL_CHECK(event.data.find_first_of("\r\n") == std::string::npos);
  HADAL_CHECK(event.data == "[DONE]" || is_json(event.data));
}

void check_events(const std::vector<SseEvent>& events) {
  for (const SseEvent& event : events) check_event(event);
}

// A short answer with a call to whatever tool there is.
void answer(const ApiRequest& request) {
  const ResponseIdentity identity{"id", request.model, 1, "fp", "nonce"};
  const auto writer = make_writer(request, identity);
  const Usage usage{.prompt_tokens = 2, .completion_tokens = 3};
  check_events(writer->begin(usage));
  const TokenLogprobText logprob{"\xE4", -1, {{"\xE4", -1}}};
  check_events(writer->events(0, {ReasoningDelta{"r"}, ContentDelta{"c"}},
                              request.logprobs ? &logprob : nullptr, true));
  if (!request.tools.empty()) {
    const Json* name = request.tools.front().find("name");
    check_events(writer->events(
        0, {ToolCallBegin{0, *name->as<std::string>()}, ArgumentDelta{0, "{}"}, ToolCallEnd{0}},
        nullptr, false));
  }
  const auto n_choices =
      static_cast<std::int32_t>(request.prompts.empty() ? 1 : request.prompts.size()) * request.n;
  for (std::int32_t choice = 0; choice < n_choices; ++choice) {
    check_events(writer->finish(choice, AnswerEnd::stop, "", usage));
  }
  check_events(writer->end(usage));
  if (!request.stream) HADAL_CHECK(is_json(writer->body()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto api = static_cast<Api>(data[0] % 4);
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    const Json json = parse_body(body);
    const ApiRequest request = parse_request(api, json, defaults_of(data[0]));
    HADAL_CHECK(request.api == api && !request.model.empty() && request.n >= 1);
    HADAL_CHECK(request.tools.empty() == (request.tool_policy.mode == ToolMode::none));
    HADAL_CHECK(request.tools.size() == request.tool_policy.strict.size());
    if (api == Api::completions) {
      HADAL_CHECK(!request.prompts.empty());
    } else if (!request.previous_response_id) {
      HADAL_CHECK(!request.conversation.messages.empty());
    }
    for (const std::size_t mark : request.cache_marks) {
      HADAL_CHECK(mark < request.conversation.messages.size());
    }
    answer(request);
  } catch (const ApiException& e) {
    HADAL_CHECK(e.error.status >= 400 && e.error.status < 500 && !e.error.message.empty());
    const std::string sent = error_body(api, e.error, "req_1");
    HADAL_CHECK(is_json(sent) && !io::find_invalid_utf8(sent));
    check_event(stream_error(api, e.error, "req_1"));
  }
  return 0;
}
