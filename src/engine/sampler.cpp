#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "core/error.h"
#include "core/rng.h"

namespace hadal::engine {

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Who asks for randomness: never reused, so that purposes never share noise.
enum class Purpose : std::uint32_t { target = 0 };

void require(bool ok, const char* name, double found, const char* wanted) {
  if (ok) return;
  throw Error(ErrorCode::invalid_argument,
              fmt::format("{} is {}; it must be {}", name, found, wanted));
}

// Gumbel noise of (seed, index, id): argmax of logit + noise is a draw from softmax(logits), and
// it needs no normalisation and no order of summation.
class GumbelNoise {
 public:
  GumbelNoise(std::uint64_t seed, std::int64_t index) : seed_(seed), index_(index) {}
  [[nodiscard]] float at(TokenId id) {
    const auto lane = static_cast<std::uint32_t>(id) / 4;
    if (lane != lane_) {
      block_ =
          philox4x32({static_cast<std::uint32_t>(index_), static_cast<std::uint32_t>(index_ >> 32),
                      static_cast<std::uint32_t>(Purpose::target), lane},
                     seed_);
      lane_ = lane;
    }
    return -std::log(-std::log(uniform_open(block_[static_cast<std::uint32_t>(id) % 4])));
  }

 private:
  std::uint64_t seed_;
  std::int64_t index_;
  std::uint32_t lane_ = ~0U;
  std::array<std::uint32_t, 4> block_{};
};

struct Candidate {
  TokenId id;
  float logit;
};
bool better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// The smallest best-first prefix with mass >= top_p.
void keep_top_p(std::vector<Candidate>& candidates, float peak, float top_p) {
  double total = 0;
  for (const Candidate& c : candidates) total += std::exp(static_cast<double>(c.logit - peak));
  // Tokens below (1 - top_p) / n of the mass sum to less than 1 - top_p: none of them is needed,
  // and leaving them out spares sorting the whole vocabulary.
  const double negligible =
      (1.0 - static_cast<double>(top_p)) * total / static_cast<double>(candidates.size());
  std::erase_if(candidates, [&](const Candidate& c) {
    return c.logit < peak && std::exp(static_cast<double>(c.logit - peak)) < negligible;
  });
  std::sort(candidates.begin(), candidates.end(), better);
  double mass = 0;
  std::size_t kept = 0;
  while (kept < candidates.size() && mass < static_cast<double>(top_p) * total) {
    mass += std::exp(static_cast<double>(candidates[kept++].logit - peak));
  }
  candidates.resize(std::max<std::size_t>(1, kept));
}

}  // namespace

void SamplingParams::validate(std::int64_t vocab_size) const {
  require(temperature >= 0 && temperature <= 100, "temperature", temperature, "from 0 to 100");
  require(top_p > 0 && top_p <= 1, "top_p", top_p, "above 0 and at most 1");
  require(top_k >= 0, "top_k", static_cast<double>(top_k), "0 (off) or positive");
  require(min_p >= 0 && min_p <= 1, "min_p", min_p, "from 0 to 1");
  require(repetition_penalty > 0 && std::isfinite(repetition_penalty), "repetition_penalty",
          repetition_penalty, "positive (1 is off)");
  require(std::fabs(presence_penalty) <= 2, "presence_penalty", presence_penalty, "from -2 to 2");
  require(std::fabs(frequency_penalty) <= 2, "frequency_penalty", frequency_penalty,
          "from -2 to 2");
  for (const auto& [id, bias] : logit_bias) {
    if (id < 0 || id >= vocab_size) {
      throw Error(
          ErrorCode::invalid_argument,
          fmt::format("logit_bias: token id {} is outside the vocabulary [0, {})", id, vocab_size));
    }
    require(!std::isnan(bias), "logit_bias", bias, "a number");
  }
}

Sampler::Sampler(SamplingParams params, std::int64_t vocab_size)
    : params_(std::move(params)),
      penalised_(params_.repetition_penalty != 1.0f || params_.presence_penalty != 0.0f ||
                 params_.frequency_penalty != 0.0f) {
  params_.validate(vocab_size);
}

void Sampler::see_prompt(std::span<const TokenId> prompt) {
  if (!penalised_) return;
  for (const TokenId id : prompt) seen_[id].in_prompt = true;
}

void Sampler::see_output(TokenId token) {
  if (penalised_) ++seen_[token].in_output;
}

void Sampler::forget_output(TokenId token) {
  if (penalised_) --seen_[token].in_output;
}

void Sampler::apply_penalties(std::span<float> logits) const {
  for (const auto& [id, bias] : params_.logit_bias) logits[static_cast<std::size_t>(id)] += bias;
  for (const auto& [id, seen] : seen_) {
    float& logit = logits[static_cast<std::size_t>(id)];
    if (seen.in_prompt || seen.in_output > 0) {
      logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
    }
    if (seen.in_output > 0) {
      logit -=
          params_.presence_penalty + params_.frequency_penalty * static_cast<float>(seen.in_output);
    }
  }
}

SampledToken Sampler::sample(std::span<float> logits, std::int64_t index) const {
  float raw_peak = kMinusInfinity;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!std::isfinite(logits[i])) {
      throw Error(ErrorCode::corrupt_data,
                  fmt::format("logit {} of output token {} is {}; the weights or the cache are "
                              "damaged (--check-finite looks through the weights)",
                              i, index, logits[i]));
    }
    raw_peak = std::max(raw_peak, logits[i]);
  }
  double raw_sum = 0;
  for (const float l : logits) raw_sum += std::exp(static_cast<double>(l - raw_peak));
  // The chosen token's own logit, before the stages change it.
  const auto logprob_of = [&](float raw) {
    return static_cast<float>(static_cast<double>(raw - raw_peak) - std::log(raw_sum));
  };

  const bool changes = penalised_ || !params_.logit_bias.empty();
  std::vector<float> raw;
  if (changes) {
    raw.assign(logits.begin(), logits.end());
    apply_penalties(logits);
  }
  const auto raw_logit = [&](TokenId id) {
    return (changes ? raw[static_cast<std::size_t>(id)] : logits[static_cast<std::size_t>(id)]);
  };

  if (params_.temperature == 0.0f) {
    const auto best = std::max_element(logits.begin(), logits.end());  // the first: the lowest id
    const auto id = static_cast<TokenId>(best - logits.begin());
    return {id, logprob_of(raw_logit(id))};
  }

  std::vector<Candidate> candidates(logits.size());
  float peak = kMinusInfinity;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    candidates[i] = {static_cast<TokenId>(i), logits[i] / params_.temperature};
    peak = std::max(peak, candidates[i].logit);
  }
  if (params_.top_k > 0 && static_cast<std::size_t>(params_.top_k) < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + (params_.top_k - 1), candidates.end(),
                     better);
    candidates.resize(static_cast<std::size_t>(params_.top_k));
  }
  if (params_.top_p < 1.0f) keep_top_p(candidates, peak, params_.top_p);
  if (params_.min_p > 0.0f) {
    const float floor = peak + std::log(params_.min_p);
    std::erase_if(candidates, [&](const Candidate& c) { return c.logit < floor; });
  }
  // By id, so that neighbours share a block of noise; the winner does not depend on the order.
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  GumbelNoise noise(params_.seed, index);
  Candidate winner{0, kMinusInfinity};
  for (const Candidate& c : candidates) {
    const float score = c.logit + noise.at(c.id);
    if (score > winner.logit) winner = {c.id, score};
  }
  return {winner.id, logprob_of(raw_logit(winner.id))};
}

}  // namespace hadal::engine
