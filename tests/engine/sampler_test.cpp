#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "core/error.h"

namespace hadal::engine {
namespace {

TokenId draw(const SamplingParams& params, std::vector<float> logits, std::int64_t index = 0) {
  Sampler sampler(params, static_cast<std::int64_t>(logits.size()));
  return sampler.sample(logits, index).token;
}

std::map<TokenId, int> histogram(const SamplingParams& params, const std::vector<float>& logits,
                                 int n) {
  Sampler sampler(params, static_cast<std::int64_t>(logits.size()));
  std::map<TokenId, int> counts;
  for (int i = 0; i < n; ++i) {
    std::vector<float> scratch = logits;
    ++counts[sampler.sample(scratch, i).token];
  }
  return counts;
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowestIdOfEquals) {
  EXPECT_EQ(draw({.temperature = 0}, {1, 3, 2}), 1);
  EXPECT_EQ(draw({.temperature = 0}, {1, 3, 3, 3}), 1);
}

TEST(Sampler, SameSeedAndIndexSameToken) {
  const std::vector<float> logits(50, 0.0f);
  int different_index = 0, different_seed = 0;
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(draw({.seed = 7}, logits, i), draw({.seed = 7}, logits, i));
    different_index += draw({.seed = 7}, logits, i) != draw({.seed = 7}, logits, i + 1) ? 1 : 0;
    different_seed += draw({.seed = 7}, logits, i) != draw({.seed = 8}, logits, i) ? 1 : 0;
  }
  EXPECT_GT(different_index, 80);
  EXPECT_GT(different_seed, 80);
}

// Chi-square of 20,000 draws against softmax: 3 degrees of freedom, 16.3 is the 0.1 % point.
TEST(Sampler, DrawsFromSoftmaxAtTheGivenTemperature) {
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f, -1.0f};
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    const int n = 20000;
    auto counts = histogram({.temperature = temperature, .seed = 5}, logits, n);
    double sum = 0, chi_square = 0;
    for (const float l : logits) sum += std::exp(l / temperature);
    for (TokenId id = 0; id < 4; ++id) {
      const double expected =
          n * std::exp(logits[static_cast<std::size_t>(id)] / temperature) / sum;
      chi_square += std::pow(counts[id] - expected, 2) / expected;
    }
    EXPECT_LT(chi_square, 16.3) << "temperature " << temperature;
  }
}

TEST(Sampler, TopKKeepsTheBestAndTheLowestIdOfEquals) {
  const auto counts = histogram({.top_k = 2}, {1, 2, 2, 2, 0}, 500);
  EXPECT_EQ(counts.size(), 2U);
  EXPECT_TRUE(counts.contains(1) && counts.contains(2));
}

TEST(Sampler, TopPKeepsTheSmallestSetWithTheMass) {
  // Probabilities 0.5, 0.3, 0.15, 0.05.
  const std::vector<float> logits = {std::log(0.3f), std::log(0.5f), std::log(0.05f),
                                     std::log(0.15f)};
  EXPECT_EQ(histogram({.top_p = 0.49f}, logits, 300).size(), 1U);
  EXPECT_EQ(histogram({.top_p = 0.79f}, logits, 300).size(), 2U);
  EXPECT_EQ(histogram({.top_p = 0.94f}, logits, 1000).size(), 3U);
  EXPECT_EQ(histogram({.top_p = 1.0f}, logits, 3000).size(), 4U);
}

TEST(Sampler, TopPOfALargeFlatVocabularyKeepsTheLowestIds) {
  const std::vector<float> logits(1000, 1.5f);
  for (const auto& [id, count] : histogram({.top_p = 0.25f}, logits, 2000)) EXPECT_LT(id, 251);
}

TEST(Sampler, MinPIsRelativeToTheMostProbable) {
  const std::vector<float> logits = {std::log(0.6f), std::log(0.3f), std::log(0.1f)};
  EXPECT_EQ(histogram({.min_p = 0.4f}, logits, 500).size(), 2U);
  EXPECT_EQ(histogram({.min_p = 0.6f}, logits, 500).size(), 1U);
}

TEST(Sampler, PenaltiesLookAtPromptAndOutput) {
  Sampler repetition({.temperature = 0, .repetition_penalty = 2.0f}, 3);
  repetition.see_prompt(std::vector<TokenId>{1});
  std::vector<float> logits = {1.0f, 1.9f, -1.0f};
  EXPECT_EQ(repetition.sample(logits, 0).token, 0);  // 1.9 / 2 < 1

  Sampler frequency({.temperature = 0, .frequency_penalty = 0.5f}, 3);
  frequency.see_prompt(std::vector<TokenId>{1});  // does not count
  logits = {1.0f, 1.9f, -1.0f};
  EXPECT_EQ(frequency.sample(logits, 0).token, 1);
  frequency.see_output(1), frequency.see_output(1);
  logits = {1.0f, 1.9f, -1.0f};
  EXPECT_EQ(frequency.sample(logits, 2).token, 0);
  frequency.forget_output(1);
  logits = {1.0f, 1.9f, -1.0f};
  EXPECT_EQ(frequency.sample(logits, 1).token, 1);
}

TEST(Sampler, BiasComesFirstAndLogprobsStayTheModels) {
  Sampler sampler({.temperature = 0, .logit_bias = {{2, 10.0f}}}, 3);
  std::vector<float> logits = {0.0f, 0.0f, 0.0f};
  const SampledToken token = sampler.sample(logits, 0);
  EXPECT_EQ(token.token, 2);
  EXPECT_NEAR(token.logprob, std::log(1.0 / 3), 1e-6);
}

TEST(Sampler, RefusesDamagedLogitsAndWrongParameters) {
  EXPECT_THROW(draw({}, {1.0f, NAN}), Error);
  EXPECT_THROW(draw({}, {1.0f, INFINITY}), Error);
  EXPECT_THROW(Sampler({.temperature = -1}, 3), Error);
  EXPECT_THROW(Sampler({.top_p = 0}, 3), Error);
  EXPECT_THROW(Sampler({.logit_bias = {{3, 1.0f}}}, 3), Error);
}

}  // namespace
}  // namespace hadal::engine
