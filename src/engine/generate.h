#pragma once

#include <atomic>
#include <string>

#include "engine/request.h"
#include "engine/session.h"

namespace hadal::engine {

struct GenerationRequest {
  std::vector<TokenId> prompt{};
  SamplingParams sampling{};
  std::int64_t max_tokens = 0;                // 0: until the context is full
  std::vector<TokenId> stop_tokens{};         // end the answer and are not part of it
  const std::atomic<bool>* cancel = nullptr;  // looked at between steps and prefill chunks
};

struct GenerationResult {
  std::vector<SampledToken> tokens;  // without the stop token
  FinishReason reason = FinishReason::length;
  TokenId stop_token = -1;  // the one that was drawn, or -1
};

// Called with every token in order; false ends the generation (reason stop: a stop string, say).
using OnToken = std::function<bool(const SampledToken&)>;

// Prompt in, tokens out, over one session. Afterwards the session's text ends with the last token
// of the result (and the stop token, where one was drawn), so the next turn can continue from it.
[[nodiscard]] GenerationResult generate(Session& session, const GenerationRequest& request,
                                        const OnToken& on_token,
                                        const Session::PrefillProgress& progress = nullptr);

// Finds stop strings in streamed text and holds back what may become one.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops);  // throws invalid_argument on an empty one
  // Text that is safe to show. After stopped() it stays empty.
  [[nodiscard]] std::string feed(std::string_view text);
  [[nodiscard]] std::string finish();  // releases what was held back
  [[nodiscard]] bool stopped() const { return stopped_; }
  // The one that was found first; "" before.
  [[nodiscard]] const std::string& matched() const { return matched_; }

 private:
  std::vector<std::string> stops_;
  std::string matched_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace hadal::engine
