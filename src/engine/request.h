// One generation as the engine sees it: tokens in, tokens out, for one or more choices.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/token.h"
#include "engine/sampler.h"
#include "grammar/constraint.h"

namespace hadal::engine {

enum class FinishReason : std::uint8_t {
  stop,       // a stop token, or an observer that had seen enough
  length,     // max_tokens, or the context is full
  cancelled,  // by the client, or its going away
  error       // of the engine: the message is in Finish
};
[[nodiscard]] const char* to_string(FinishReason reason);

// Looks at the tokens of one choice as they are drawn, on the engine's thread, before anybody else
// sees them: stop strings, "only one tool call". A pure function of the tokens seen.
class TokenObserver {
 public:
  virtual ~TokenObserver() = default;
  // True ends the choice with this token as its last one.
  [[nodiscard]] virtual bool ends_with(TokenId token) = 0;
};

struct TopLogprob {
  TokenId token;
  float logprob;
};

// What was drawn, in the order of the journal.
struct TokenEvent {
  std::int32_t choice = 0;
  std::int64_t index = 0;  // output index within the choice
  TokenId token = 0;
  float logprob = 0;
  bool is_stop_token = false;        // counted, but not part of the text
  std::vector<TopLogprob> top = {};  // as many as Request::top_logprobs asks for, best first
};

struct Finish {
  std::int32_t choice = 0;
  FinishReason reason = FinishReason::stop;
  std::string error = {};  // a sentence, when reason is error
  std::int64_t n_tokens = 0;
};

// How the prompt went; known when its last chunk has run.
struct PromptStats {
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_tokens = 0;    // their forward pass was skipped
  std::int64_t replayed_tokens = 0;  // run again only to rebuild a window after a hit
  std::int64_t written_tokens = 0;   // newly reusable by later prompts
  double queue_seconds = 0, prefill_seconds = 0;
};

// Where a generation's results go. Called on the thread that publishes (the journal's, when there
// is one), one call at a time for a generation, in order; must not block and must not throw.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  virtual void on_prompt(const PromptStats& stats) = 0;  // once, before the first token
  virtual void on_tokens(const std::vector<TokenEvent>& tokens) = 0;
  virtual void on_finish(const Finish& finish) = 0;  // once a choice; nothing for it afterwards
  // Prefill goes on: for keep-alives and progress bars.
  virtual void on_progress(std::int64_t done, std::int64_t total) { (void)done, (void)total; }
};

struct Request {
  std::string stream;           // its name in the journal, unique among all kept there
  std::vector<TokenId> prompt;  // at least one token
  SamplingParams sampling;      // choice c draws with the noise of (seed, c)
  std::int32_t n_choices = 1;
  std::int64_t max_tokens = 0;  // of each choice; 0: until the context is full
  std::vector<TokenId> stop_tokens;
  std::int32_t top_logprobs = 0;

  std::string cache_domain;   // prompts share their past only within a domain
  std::string fairness_key;   // requests of one key share one turn
  std::int32_t priority = 0;  // higher first
  // Prompt positions where a snapshot is wanted beside the usual ones (the token before a think
  // tag, the end of a system prompt, cache_control marks); sorted.
  std::vector<std::int64_t> snapshot_positions;
  // How many of the prompt's first tokens (a system prompt with its tools) other prompts may begin
  // with as well: cache::PrefixCache::note_preamble. 0: none.
  std::int64_t preamble_tokens = 0;

  // Per choice; may be empty functions, or return null.
  std::function<std::unique_ptr<grammar::Constraint>(std::int32_t choice)> make_constraint;
  std::function<std::unique_ptr<TokenObserver>(std::int32_t choice)> make_observer;

  // A generation that was interrupted: what every choice had drawn already (they are not published
  // again), and which choices are finished. Empty for a new one.
  struct Drawn {
    std::vector<TokenId> tokens;
    bool finished = false;
  };
  std::vector<Drawn> drawn;

  std::shared_ptr<OutputSink> sink;
};

}  // namespace hadal::engine
