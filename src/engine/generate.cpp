#include "engine/generate.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace hadal::engine {

GenerationResult generate(Session& session, const GenerationRequest& request,
                          const OnToken& on_token, const Session::PrefillProgress& progress) {
  GenerationResult result;
  const auto cancelled = [&] { return request.cancel != nullptr && request.cancel->load(); };
  Sampler sampler(request.sampling, session.vocab_size());
  try {
    session.set_prompt(request.prompt, [&](std::int64_t done, std::int64_t total) {
      return (!progress || progress(done, total)) && !cancelled();
    });
  } catch (const Error& error) {
    if (error.code != ErrorCode::cancelled) throw;
    result.reason = FinishReason::cancelled;
    return result;
  }
  sampler.see_prompt(request.prompt);
  const auto is_stop = [&](TokenId id) {
    return std::find(request.stop_tokens.begin(), request.stop_tokens.end(), id) !=
           request.stop_tokens.end();
  };
  for (;;) {
    if (cancelled()) {
      result.reason = FinishReason::cancelled;
      return result;
    }
    const std::int64_t before = static_cast<std::int64_t>(session.tokens().size());
    const auto index = static_cast<std::int64_t>(result.tokens.size());
    const std::vector<SampledToken> drawn = session.step(sampler, index);
    if (drawn.empty()) return result;  // the context is full
    std::int64_t used = 0;
    bool done = false;
    for (const SampledToken& token : drawn) {
      ++used;
      if (is_stop(token.token)) {
        result.reason = FinishReason::stop;
        result.stop_token = token.token;
        done = true;
        break;
      }
      result.tokens.push_back(token);
      if (on_token && !on_token(token)) {
        result.reason = FinishReason::stop;
        done = true;
        break;
      }
      if (request.max_tokens > 0 &&
          static_cast<std::int64_t>(result.tokens.size()) >= request.max_tokens) {
        done = true;
        break;
      }
    }
    // Tokens that a draft run drew beyond the end never existed.
    session.truncate(before + used);
    if (done) return result;
  }
}

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    if (stop.empty()) {
      throw Error(ErrorCode::invalid_argument, "a stop string is empty; it would end every answer");
    }
  }
}

std::string StopStrings::feed(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  std::size_t first = std::string::npos;
  for (const std::string& stop : stops_) {
    const std::size_t found = held_.find(stop);
    if (found < first) first = found, matched_ = stop;
  }
  if (first != std::string::npos) {
    stopped_ = true;
    std::string out = held_.substr(0, first);
    held_.clear();
    return out;
  }
  // The longest suffix that is the beginning of a stop string waits for what follows.
  std::size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (std::size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
      if (std::string_view(held_).substr(held_.size() - n) == std::string_view(stop).substr(0, n)) {
        keep = n;
      }
    }
  }
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return out;
}

std::string StopStrings::finish() {
  return std::exchange(held_, {});
}

}  // namespace hadal::engine
