#include "train/initialise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <set>

#include "core/error.h"
#include "kernels/hyper_connection.h"
#include "train/hash_table.h"
#include "train/small_config.h"

namespace hadal::train {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

ParameterStore initialised(const model::Config& c, std::uint64_t seed, int n_threads = 2) {
  ParameterStore store(c);
  ThreadPool pool(n_threads);
  initialise(pool, store, seed);
  return store;
}

std::span<const float> values(const ParameterStore& store, std::string_view name) {
  const Tensor& t = store.at(name).value;
  return {t.data<const float>(), static_cast<std::size_t>(t.numel())};
}

TEST(Initialise, MatricesAreNormalWithOneDeviation) {
  model::Config c = test::small_config();
  c.hidden_size = 640;  // 0.5 / sqrt(640) = 0.0198
  c.finalize();
  EXPECT_NEAR(initial_deviation(c), 0.5 / std::sqrt(640.0), 1e-12);
  EXPECT_EQ(initial_deviation(test::small_config()), 0.02);
  const ParameterStore store = initialised(c, 1);
  for (const char* name : {"embed.weight", "head.weight", "layers.1.attn.wq_a.weight",
                           "layers.2.ffn.experts.3.w2.weight", "layers.0.hc_attn_fn"}) {
    const std::span<const float> w = values(store, name);
    const auto n = static_cast<double>(w.size());
    double mean = 0, square = 0, fourth = 0;
    for (const float x : w) {
      const double z = x / initial_deviation(c);
      mean += z / n, square += z * z / n, fourth += z * z * z * z / n;
    }
    // Five standard errors of each moment of a normal.
    EXPECT_NEAR(mean, 0.0, 5 / std::sqrt(n)) << name;
    EXPECT_NEAR(square, 1.0, 5 * std::sqrt(2 / n)) << name;
    EXPECT_NEAR(fourth, 3.0, 5 * std::sqrt(96 / n)) << name;
  }
}

TEST(Initialise, TheRestIsAsTheTableSays) {
  const ParameterStore store = initialised(test::small_config(), 1);
  EXPECT_THAT(values(store, "layers.1.attn_norm.weight"), Each(1.0f));
  EXPECT_THAT(values(store, "layers.1.attn.compressor.norm.weight"), Each(1.0f));
  EXPECT_THAT(values(store, "mtp.0.enorm.weight"), Each(1.0f));
  EXPECT_THAT(values(store, "layers.1.attn.compressor.ape"), Each(0.0f));
  EXPECT_THAT(values(store, "layers.1.attn.attn_sink"), Each(0.0f));
  EXPECT_THAT(values(store, "layers.1.ffn.gate.bias"), Each(0.0f));
  EXPECT_THAT(values(store, "layers.1.hc_ffn_scale"), Each(0.01f));
  EXPECT_THAT(values(store, "hc_head_scale"), Each(0.01f));
  EXPECT_THAT(values(store, "hc_head_base"), Each(-std::log(3.0f)));
}

// Through the model's own reading of the gates: a plain residual network, nearly.
TEST(Initialise, HyperConnectionsStartAsAResidual) {
  const model::Config c = test::small_config();
  const ParameterStore store = initialised(c, 1);
  const auto gates_of = [&](const std::string& site, std::int64_t tilted) {
    const std::vector<float> mixes(24, 0.0f);
    float pre[4], post[4], comb[16];
    hc_split(mixes.data(), values(store, site + "_scale").data(),
             values(store, site + "_base").data(), 4, 20, 1e-6f, pre, post, comb);
    for (std::int64_t i = 0; i < 4; ++i) {
      const double wanted = 1 / (1 + 3 * std::exp(i == tilted ? -0.5 : 0.0));
      EXPECT_NEAR(pre[i], wanted, 1e-5) << site << " " << i;
      EXPECT_NEAR(post[i], 1.0, 1e-5);
      for (std::int64_t j = 0; j < 4; ++j) {
        EXPECT_NEAR(comb[4 * i + j], i == j ? 0.948 : 0.0174, 1e-3);
      }
    }
  };
  gates_of("layers.0.hc_attn", 0);
  gates_of("layers.0.hc_ffn", 1);
  gates_of("layers.3.hc_attn", 2);
  gates_of("mtp.0.hc_ffn", 1);  // after the 8 sites of four layers: site 9
}

TEST(Initialise, BitsFollowFromSeedAndIdAlone) {
  const model::Config c = test::small_config();
  const ParameterStore one = initialised(c, 7, 1), other = initialised(c, 7, 3);
  const ParameterStore reseeded = initialised(c, 8);
  model::Config larger = c;
  larger.vocab_size = 200;  // another embedding, the same tensors after it
  larger.finalize();
  const ParameterStore beside = initialised(larger, 7);
  for (const Parameter& p : one.parameters()) {
    const Tensor& b = other.at(p.info.id).value;
    EXPECT_EQ(std::memcmp(p.value.bytes(), b.bytes(), b.nbytes()), 0) << p.info.name;
    if (p.info.name.find("wq_a") == std::string::npos) continue;
    EXPECT_NE(std::memcmp(p.value.bytes(), reseeded.at(p.info.id).value.bytes(), 64), 0);
    EXPECT_EQ(std::memcmp(p.value.bytes(), beside.at(p.info.id).value.bytes(), p.value.nbytes()),
              0);
  }
  EXPECT_NE(values(one, "layers.1.attn.wq_a.weight")[0],
            values(one, "layers.2.attn.wq_a.weight")[0]);
}

std::vector<std::int64_t> loads(const Tensor& table, std::int64_t n_experts,
                                const std::vector<std::int64_t>& counts) {
  std::vector<std::int64_t> load(static_cast<std::size_t>(n_experts), 0);
  for (std::int64_t t = 0; t < table.dim(0); ++t) {
    for (std::int64_t j = 0; j < table.dim(1); ++j) {
      load[static_cast<std::size_t>(table.data<std::int32_t>()[t * table.dim(1) + j])] +=
          counts[static_cast<std::size_t>(t)];
    }
  }
  return load;
}

double imbalance(const std::vector<std::int64_t>& load) {
  const double mean = static_cast<double>(std::accumulate(load.begin(), load.end(), 0LL)) /
                      static_cast<double>(load.size());
  return static_cast<double>(*std::max_element(load.begin(), load.end())) / mean;
}

TEST(HashTable, RowsAreDistinctExpertsInOrder) {
  const Tensor t = build_hash_table({1000, 16, 6, 3, 1}, {});
  ASSERT_EQ(t.dtype(), DType::i32);
  for (std::int64_t r = 0; r < 1000; ++r) {
    const std::int32_t* row = t.data<std::int32_t>() + r * 6;
    for (int j = 0; j < 6; ++j) {
      EXPECT_GE(row[j], j == 0 ? 0 : row[j - 1] + 1);
      EXPECT_LT(row[j], 16);
    }
  }
}

TEST(HashTable, UniformTokensAreBalancedExactly) {
  // 4096 * 4 promises over 32 experts: 512 each.
  const Tensor t = build_hash_table({4096, 32, 4, 1, 0}, {});
  EXPECT_THAT(loads(t, 32, std::vector<std::int64_t>(4096, 1)), Each(512));
}

TEST(HashTable, ZipfCorpusIsBalancedAndUnseenTokensAreSpread) {
  // Frequency 1 / (r + 8), the most frequent below 1 / E of all, half of the tokens never seen.
  std::vector<std::int64_t> counts(4000, 0);
  for (std::size_t r = 0; r < 2000; ++r) {
    counts[(r * 1579) % 4000] = static_cast<std::int64_t>(1e7 / (static_cast<double>(r) + 8));
  }
  const Tensor t = build_hash_table({4000, 16, 2, 1, 0}, counts);
  EXPECT_LT(imbalance(loads(t, 16, counts)), 1.001);
  std::vector<std::int64_t> unseen(4000);
  for (std::size_t i = 0; i < 4000; ++i) unseen[i] = counts[i] == 0 ? 1 : 0;
  EXPECT_LT(imbalance(loads(t, 16, unseen)), 4.0);
}

TEST(HashTable, AnOverfrequentTokenLoadsItsExpertsAlone) {
  std::vector<std::int64_t> counts(500, 1);
  counts[17] = 100000;
  const Tensor t = build_hash_table({500, 8, 2, 1, 0}, counts);
  std::set<std::int32_t> its{t.data<std::int32_t>()[34], t.data<std::int32_t>()[35]};
  for (std::int64_t r = 0; r < 500; ++r) {
    if (r == 17) continue;
    EXPECT_FALSE(its.contains(t.data<std::int32_t>()[2 * r]));
    EXPECT_FALSE(its.contains(t.data<std::int32_t>()[2 * r + 1]));
  }
}

TEST(HashTable, SeedAndLayerChangeItAndNothingElseDoes) {
  const auto bytes = [](std::uint64_t seed, std::int64_t layer) {
    const Tensor t = build_hash_table({300, 8, 2, seed, layer}, {});
    return std::vector<std::int32_t>(t.data<std::int32_t>(), t.data<std::int32_t>() + 600);
  };
  EXPECT_EQ(bytes(1, 0), bytes(1, 0));
  EXPECT_NE(bytes(1, 0), bytes(2, 0));
  EXPECT_NE(bytes(1, 0), bytes(1, 1));
}

TEST(HashTable, CountsMustFitTheVocabulary) {
  const auto message = [](const std::vector<std::int64_t>& counts) -> std::string {
    try {
      (void)build_hash_table({3, 4, 2, 0, 0}, counts);
    } catch (const Error& e) {
      EXPECT_EQ(e.code, ErrorCode::invalid_argument);
      return e.what();
    }
    return "no error";
  };
  EXPECT_THAT(message({1, 2}), HasSubstr("2 token counts for a vocabulary of 3"));
  EXPECT_THAT(message({1, -5, 2}), HasSubstr("token 1 has the count -5"));
}

}  // namespace
}  // namespace hadal::train
