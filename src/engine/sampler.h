#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/token.h"
#include "grammar/constraint.h"

namespace hadal::engine {

// How the next token is drawn. The order of the stages is part of the contract: mask, bias,
// repetition, presence and frequency penalties, temperature, top_k, top_p, min_p, draw. Every
// filter keeps at least one token.  Source: serving.md §5.9.
struct SamplingParams {
  float temperature = 1.0f;         // 0: the largest logit, the lowest id among equals
  float top_p = 1.0f;               // smallest set with this mass, by probability, then id
  std::int64_t top_k = 0;           // 0: off
  float min_p = 0.0f;               // relative to the most probable token
  float repetition_penalty = 1.0f;  // over prompt and output: divides positive logits
  float presence_penalty = 0.0f;    // over the output, once a token
  float frequency_penalty = 0.0f;   // over the output, per occurrence
  std::unordered_map<TokenId, float> logit_bias{};
  std::uint64_t seed = 0;
  std::uint32_t choice = 0;  // answers to one prompt draw with noise of their own

  // Throws invalid_argument: parameter, found, allowed range.
  void validate(std::int64_t vocab_size) const;
};

struct SampledToken {
  TokenId token = 0;
  float logprob = 0;  // natural log of its probability under the model, before all stages
};

// The `n` most probable tokens under the model, best first, ties to the lower id.
//   logits  [vocab_size], finite
[[nodiscard]] std::vector<SampledToken> top_logprobs(std::span<const float> logits, std::int32_t n);

// Draws tokens for one sequence. There is no hidden random state: the noise of token `index` is a
// function of (seed, index), so whoever resumes at an index draws what an uninterrupted run would,
// and a draft is right exactly when the target would have drawn it.  Source: serving.md §5.7-5.8.
class Sampler {
 public:
  Sampler(SamplingParams params, std::int64_t vocab_size);

  // What penalties look at. The prompt once; then every token that was drawn, in order.
  void see_prompt(std::span<const TokenId> prompt);
  void see_output(TokenId token);
  void forget_output(TokenId token);  // undoes see_output, newest first

  // `logits` [vocab_size] is scratch: changed. `index` counts output tokens from 0. Only tokens
  // that `mask` allows are drawn; null allows all.
  // Throws corrupt_data when a logit is NaN or infinite, or when the mask allows nothing.
  [[nodiscard]] SampledToken sample(std::span<float> logits, std::int64_t index,
                                    const grammar::TokenMask* mask = nullptr) const;

  [[nodiscard]] const SamplingParams& params() const { return params_; }

 private:
  void apply_penalties(std::span<float> logits) const;

  SamplingParams params_;
  bool penalised_;
  struct Seen {
    bool in_prompt = false;
    std::int32_t in_output = 0;
  };
  std::unordered_map<TokenId, Seen> seen_;  // only kept when there are penalties
};

}  // namespace hadal::engine
