#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
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

// Gumbel noise of (seed, choice, index, id): argmax of logit + noise is a draw from
// softmax(logits), and it needs no normalisation and no order of summation.
class GumbelNoise {
 public:
  GumbelNoise(std::uint64_t seed, std::uint32_t choice, std::int64_t index)
      : seed_(seed), choice_(choice), index_(static_cast<std::uint32_t>(index)) {}
  // In (0, 1).
  [[nodiscard]] float uniform(TokenId id) {
    const auto lane = static_cast<std::uint32_t>(id) / 4;
    if (lane != lane_) {
      block_ =
          philox4x32({index_, choice_, static_cast<std::uint32_t>(Purpose::target), lane}, seed_);
      lane_ = lane;
    }
    return uniform_open(block_[static_cast<std::uint32_t>(id) % 4]);
  }
  [[nodiscard]] static float gumbel(float uniform) { return -std::log(-std::log(uniform)); }
  // Whether noise of `uniform` surely cannot lift a logit by `gap` >= 0 or more. gumbel(u) < gap
  // is -log(u) > exp(-gap), and -log(u) >= 1 - u, and exp(gap) is at least its Taylor polynomial:
  // three multiplications instead of two logarithms, for nearly every token.
  [[nodiscard]] static bool surely_below(float uniform, float gap) {
    const float exp_gap = 1.0f + gap * (1.0f + gap * (0.5f + gap * (1.0f / 6.0f)));
    return (1.0f - uniform) * exp_gap > 1.001f;  // the margin covers all roundings
  }

 private:
  std::uint64_t seed_;
  std::uint32_t choice_, index_;
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

// exp(x) for x <= 0, within 2 units in the last place, in operations that compilers turn into
// vectors: the library's costs most of drawing a token. Cephes' polynomial.
float exp_of_negative(float x) {
  x = std::max(x, -87.0f);
  // Adding and taking away 1.5 * 2^23 rounds to an integer.
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return std::bit_cast<float>(std::bit_cast<std::int32_t>(p) +
                              (static_cast<std::int32_t>(n) << 23));
}

// Of exp(logit - peak), over all. The lanes fix the order of the sum.
double sum_of_exp(std::span<const float> logits, float peak) {
  constexpr std::size_t kLanes = 16;
  std::array<float, kLanes> block{};
  double sum = 0;
  std::size_t i = 0;
  while (i + 32 * kLanes <= logits.size()) {  // few enough floats to add up exactly enough
    block.fill(0.0f);
    for (std::size_t end = i + 32 * kLanes; i < end; i += kLanes) {
      for (std::size_t j = 0; j < kLanes; ++j) block[j] += exp_of_negative(logits[i + j] - peak);
    }
    for (const float lane : block) sum += static_cast<double>(lane);
  }
  for (; i < logits.size(); ++i) sum += static_cast<double>(exp_of_negative(logits[i] - peak));
  return sum;
}

// The smallest best-first set with mass >= top_p. A histogram by distance from the peak finds the
// bucket in which it ends; there, quickselect by mass in place of rank. Only a short piece is
// sorted.
void keep_top_p(std::vector<Candidate>& candidates, float peak, float top_p) {
  constexpr std::size_t kBuckets = 256;
  constexpr float kBucketsPerNat = 12.0f;
  const std::size_t n = candidates.size();
  std::vector<float> weights(n);
  std::vector<std::uint8_t> buckets(n);
  for (std::size_t i = 0; i < n; ++i) {
    const float below = peak - candidates[i].logit;
    weights[i] = exp_of_negative(-below);
    buckets[i] = static_cast<std::uint8_t>(
        std::min(below * kBucketsPerNat, static_cast<float>(kBuckets - 1)));
  }
  std::array<double, kBuckets> bucket_mass{};
  for (std::size_t i = 0; i < n; ++i) bucket_mass[buckets[i]] += static_cast<double>(weights[i]);
  double total = 0;
  for (const double m : bucket_mass) total += m;
  double wanted = static_cast<double>(top_p) * total;
  std::size_t last = 0;  // the bucket in which the set ends
  while (last + 1 < kBuckets && bucket_mass[last] < wanted) wanted -= bucket_mass[last++];

  std::vector<Candidate> open;  // those of that bucket; the set takes the best of them
  for (std::size_t i = 0; i < n; ++i) {
    if (buckets[i] == last) open.push_back(candidates[i]);
  }
  const auto at = [&](std::size_t i) { return open.begin() + static_cast<std::ptrdiff_t>(i); };
  const auto mass = [&](std::size_t from, std::size_t to) {
    double sum = 0;
    for (std::size_t i = from; i < to; ++i) {
      sum += static_cast<double>(exp_of_negative(open[i].logit - peak));
    }
    return sum;
  };
  std::size_t begin = 0, end = open.size();  // [0, begin) is in, nothing from `end` on
  while (end - begin > 32) {
    const std::size_t middle = begin + (end - begin) / 2;
    std::nth_element(at(begin), at(middle), at(end), better);
    const double left = mass(begin, middle);
    if (left >= wanted) {
      end = middle;
    } else {
      wanted -= left;
      begin = middle;
    }
  }
  std::sort(at(begin), at(end), better);
  std::size_t kept = begin;
  for (double sum = 0; kept < end && sum < wanted; ++kept) sum += mass(kept, kept + 1);
  // Of [0, begin) only the worst matters, and it stands before all of [begin, end).
  if (kept == begin && begin > 0) std::nth_element(at(0), at(begin - 1), at(begin), better);
  const Candidate cutoff = open[std::max<std::size_t>(1, kept) - 1];
  std::erase_if(candidates, [&](const Candidate& c) { return better(cutoff, c); });
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

namespace {

struct SoftmaxSum {
  float peak = kMinusInfinity;
  double sum = 0;  // of exp(logit - peak)
  [[nodiscard]] float logprob(float logit) const {
    return static_cast<float>(static_cast<double>(logit - peak) - std::log(sum));
  }
};

SoftmaxSum softmax_sum(std::span<const float> logits) {
  SoftmaxSum s;
  for (const float l : logits) s.peak = std::max(s.peak, l);
  s.sum = sum_of_exp(logits, s.peak);
  return s;
}

void expect_finite(std::span<const float> logits, std::int64_t index) {
  bool finite = true;
  for (const float l : logits) finite &= std::fabs(l) <= std::numeric_limits<float>::max();
  if (finite) return;
  const auto bad =
      std::find_if(logits.begin(), logits.end(), [](float l) { return !std::isfinite(l); });
  throw Error(ErrorCode::corrupt_data,
              fmt::format("logit {} of output token {} is {}; the weights or the cache are damaged "
                          "(--check-finite looks through the weights)",
                          bad - logits.begin(), index, *bad));
}

}  // namespace

std::vector<SampledToken> top_logprobs(std::span<const float> logits, std::int32_t n) {
  const SoftmaxSum softmax = softmax_sum(logits);
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto kept = std::min<std::size_t>(static_cast<std::size_t>(std::max(n, 0)), ids.size());
  const auto logit = [&](TokenId id) { return logits[static_cast<std::size_t>(id)]; };
  std::partial_sort(
      ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(kept), ids.end(),
      [&](TokenId a, TokenId b) { return logit(a) != logit(b) ? logit(a) > logit(b) : a < b; });
  std::vector<SampledToken> top(kept);
  for (std::size_t i = 0; i < kept; ++i) top[i] = {ids[i], softmax.logprob(logit(ids[i]))};
  return top;
}

SampledToken Sampler::sample(std::span<float> logits, std::int64_t index,
                             const grammar::TokenMask* mask) const {
  expect_finite(logits, index);
  const SoftmaxSum softmax = softmax_sum(logits);

  const bool changes = penalised_ || !params_.logit_bias.empty();
  std::vector<float> raw;
  if (changes) {
    raw.assign(logits.begin(), logits.end());
    apply_penalties(logits);
  }
  // Under the model: before the stages changed it.
  const auto drawn = [&](TokenId id) {
    const auto i = static_cast<std::size_t>(id);
    return SampledToken{id, softmax.logprob(changes ? raw[i] : logits[i])};
  };

  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  Candidate best{-1, kMinusInfinity};
  const float temperature = params_.temperature == 0.0f ? 1.0f : params_.temperature;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    if (mask != nullptr && !mask->allows(id)) continue;
    candidates.push_back({id, logits[i] / temperature});
    if (best.id < 0 || candidates.back().logit > best.logit) best = candidates.back();
  }
  if (best.id < 0) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("no token may follow output token {}: the answer's form allows none",
                            index - 1));
  }
  if (params_.temperature == 0.0f) return drawn(best.id);

  if (params_.top_k > 0 && static_cast<std::size_t>(params_.top_k) < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + (params_.top_k - 1), candidates.end(),
                     better);
    candidates.resize(static_cast<std::size_t>(params_.top_k));
  }
  if (params_.top_p < 1.0f) keep_top_p(candidates, best.logit, params_.top_p);
  if (params_.min_p > 0.0f) {
    const float floor = best.logit + std::log(params_.min_p);
    std::erase_if(candidates, [&](const Candidate& c) { return c.logit < floor; });
  }
  // By id, so that neighbours share a block of noise; the winner does not depend on the order.
  const auto by_id = [](const Candidate& a, const Candidate& b) { return a.id < b.id; };
  if (!std::is_sorted(candidates.begin(), candidates.end(), by_id)) {
    std::sort(candidates.begin(), candidates.end(), by_id);
  }
  GumbelNoise noise(params_.seed, params_.choice, index);
  // The likeliest token first: its score is a bar that most others cannot reach.
  Candidate winner{best.id, best.logit + GumbelNoise::gumbel(noise.uniform(best.id))};
  for (const Candidate& c : candidates) {
    const float uniform = noise.uniform(c.id);
    const float gap = winner.logit - c.logit;
    if (gap >= 0 && GumbelNoise::surely_below(uniform, gap)) continue;
    const float score = c.logit + GumbelNoise::gumbel(uniform);
    if (score > winner.logit || (score == winner.logit && c.id < winner.id)) {
      winner = {c.id, score};
    }
  }
  return drawn(winner.id);
}

}  // namespace hadal::engine
