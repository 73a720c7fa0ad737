// tests/golden/units.safetensors: single operations of the published code (see its README).
// Exact where codes are defined.
#include <numeric>

#include "core/quant.h"
#include "io/safetensors.h"
#include "ops/hyper_connection.h"
#include "ops/indexer.h"
#include "ops/kv_rows.h"
#include "ops/rope.h"
#include "ops/sparse_attention.h"
#include "support/context.h"
#include "support/golden.h"

namespace hadal::test {
namespace {

const io::SafetensorsFile& units() {
  static const auto file =
      io::SafetensorsFile::open(HADAL_TEST_DATA_DIR "/golden/units.safetensors");
  return file;
}

TEST(UnitsGolden, DecodesEveryCode) {
  std::vector<float> e4m3, e8m0, e2m1;
  for (int i = 0; i < 256; ++i) {
    e4m3.push_back(to_float(f8_e4m3{static_cast<std::uint8_t>(i)}));
    e8m0.push_back(to_float(ue8m0{static_cast<std::uint8_t>(i)}));
  }
  for (int i = 0; i < 16; ++i) e2m1.push_back(e2m1_to_float(static_cast<std::uint8_t>(i)));
  expect_equal(e4m3, values(units().tensor("decode.e4m3")), "e4m3");
  expect_equal(e8m0, values(units().tensor("decode.e8m0")), "e8m0");
  expect_equal(e2m1, values(units().tensor("decode.e2m1")), "e2m1");
}

TEST(UnitsGolden, RoundsToNearestEvenSaturating) {
  std::vector<float> e4m3, e2m1;
  for (const float x : values(units().tensor("round_e4m3.x"))) {
    e4m3.push_back(to_float(to_e4m3(x)));
  }
  for (const float x : values(units().tensor("round_e2m1.x"))) {
    e2m1.push_back(e2m1_to_float(to_e2m1(x)));
  }
  expect_equal(e4m3, values(units().tensor("round_e4m3.y")), "e4m3");
  expect_equal(e2m1, values(units().tensor("round_e2m1.y")), "e2m1");
}

TEST(UnitsGolden, QuantisesActivations) {
  const std::vector<float> x = values(units().tensor("act_quant.x"));
  const std::vector<float> want_q = values(units().tensor("act_quant.ue8m0.q"));
  const std::vector<float> want_scale = values(units().tensor("act_quant.ue8m0.scale"));
  std::vector<float> q, scale;
  for (std::size_t block = 0; block < x.size() / kActQuantBlock; ++block) {
    const float* b = x.data() + block * kActQuantBlock;
    float amax = 0;
    for (int i = 0; i < kActQuantBlock; ++i) amax = std::max(amax, std::fabs(b[i]));
    scale.push_back(exp2_int(e4m3_scale_exponent(amax)));
    for (int i = 0; i < kActQuantBlock; ++i) {
      q.push_back(static_cast<float>(to_e4m3(b[i] / scale.back()).bits));
    }
  }
  expect_equal(q, want_q, "act_quant codes");
  expect_equal(scale, want_scale, "act_quant scales");
}

TEST(UnitsGolden, RoundsKvInBlocksOf64) {
  TestContext t(Numerics::official);
  const Tensor x = to_dtype(units().tensor("act_quant.x"), DType::bf16);
  const KvRowFormat format{.kind = KvRowKind::fp8_mixed, .width = x.dim(1), .rope = 0};
  const ops::StepRows rows = ops::store_step_rows(t.ctx, x, format);
  std::vector<float> got;
  for (std::int64_t r = 0; r < x.dim(0); ++r) {
    for (std::int64_t c = 0; c < x.dim(1); ++c) {
      const auto code = std::to_integer<std::uint8_t>(rows.view().data(r)[c]);
      const auto scale = std::to_integer<std::uint8_t>(rows.view().scale(r)[c / kKvQuantBlock]);
      got.push_back(to_float(f8_e4m3{code}) * to_float(ue8m0{scale}));
    }
  }
  expect_equal(got, values(units().tensor("act_quant.inplace64.y")), "kvquant64");
}

TEST(UnitsGolden, RoundsToFp4AndRotatesByHadamard) {
  TestContext t(Numerics::official);
  const Tensor x = units().tensor("act_quant.x");
  expect_equal(values(ops::fake_quantize_fp4(t.ctx, to_dtype(x, DType::bf16))),
               values(units().tensor("fp4_act_quant.inplace.y")), "fp4sim32");
  Tensor half = Tensor::empty({x.dim(0), 128}, DType::bf16);
  for (std::int64_t i = 0; i < half.numel(); ++i) {
    half.data<bf16>()[i] = x.data<const bf16>()[i / 128 * x.dim(1) + i % 128];
  }
  expect_equal(values(ops::hadamard(t.ctx, half)), values(units().tensor("hadamard128.y")),
               "hadamard128");
}

TEST(UnitsGolden, SplitsHyperConnectionGates) {
  const std::vector<float> mixes = values(units().tensor("hc.mixes"));
  const Tensor scale = units().tensor("hc.scale"), base = units().tensor("hc.base");
  std::vector<float> pre(14 * 4), post(14 * 4), comb(14 * 16);
  for (std::size_t t = 0; t < 14; ++t) {
    hc_split(mixes.data() + t * 24, scale.data<const float>(), base.data<const float>(), 4, 20,
             1e-6f, pre.data() + t * 4, post.data() + t * 4, comb.data() + t * 16);
  }
  // Transcendental functions of two libraries and 39 normalisations: a few f32 ulps of 1.
  EXPECT_LE(difference(pre, values(units().tensor("hc.pre"))).max_abs, 2e-7);
  EXPECT_LE(difference(post, values(units().tensor("hc.post"))).max_abs, 2.5e-7);
  EXPECT_LE(difference(comb, values(units().tensor("hc.comb"))).max_abs, 2e-7);
}

TEST(UnitsGolden, BuildsRopeTables) {
  TestContext t(Numerics::official);
  std::vector<std::int64_t> positions(512);
  std::iota(positions.begin(), positions.end(), 0);
  const auto check = [&](const std::string& name, ops::RopeParameters p) {
    p.rope_dim = 64;
    const std::vector<float> table =
        values(ops::rope_table(t.ctx, ops::rope_frequencies(p), positions));
    std::vector<float> cosine, sine;
    for (std::size_t i = 0; i < table.size(); i += 2) {
      cosine.push_back(table[i]), sine.push_back(table[i + 1]);
    }
    // Half an f32 ulp of 1 on either side; a one-ulp frequency would show as 1.5e-5.
    EXPECT_LE(difference(cosine, values(units().tensor("rope." + name + ".cos"))).max_abs, 1e-7);
    EXPECT_LE(difference(sine, values(units().tensor("rope." + name + ".sin"))).max_abs, 1e-7);
  };
  check("main", {.theta = 10000});
  check("yarn", {.theta = 160000, .yarn_factor = 16, .original_max_position_embeddings = 65536});
  check("yarn_small", {.theta = 160000, .yarn_factor = 16, .original_max_position_embeddings = 64});
}

// The published check values of architecture.md §1.3.
TEST(UnitsGolden, RopeFrequenciesOfTheReleasedModels) {
  const auto f = ops::rope_frequencies({.rope_dim = 64,
                                        .theta = 160000,
                                        .yarn_factor = 16,
                                        .original_max_position_embeddings = 65536})
                     .inverse_wavelength;
  EXPECT_EQ(f[0], 1.0f);
  EXPECT_EQ(f[1], 0.687656045f);
  EXPECT_EQ(f[15], 0.00363553851f);
  EXPECT_EQ(f[16], 0.00226562493f);
  EXPECT_EQ(f[20], 0.000296977785f);
  EXPECT_EQ(f[24], 1.95312532e-05f);
  EXPECT_EQ(f[31], 5.6805294e-07f);
}

// Rows [0, n) of a plain bf16 matrix as unquantised KV rows, -1 entries left out. The golden lists
// mix positions freely, so every row is given as a compressed entry of its own list.
TEST(UnitsGolden, AttendsWithSinksAndMasks) {
  TestContext t(Numerics::official);
  const Tensor q = units().tensor("sparse_attn.q");      // [1, 5, 4, 128]
  const Tensor kv = units().tensor("sparse_attn.kv");    // [1, 40, 128]
  const Tensor idx = units().tensor("sparse_attn.idx");  // [1, 5, 16]
  const std::int64_t n_queries = 5, n_heads = 4, width = 128, list = 16;
  const KvRowFormat format{.kind = KvRowKind::f32, .width = width};
  std::vector<float> got;
  for (std::int64_t i = 0; i < n_queries; ++i) {
    std::vector<std::int64_t> rows;
    for (std::int64_t k = 0; k < list; ++k) {
      const std::int32_t row = idx.data<const std::int32_t>()[i * list + k];
      if (row >= 0) rows.push_back(row);
    }
    // The list becomes the window: its last row is the query's own position.
    const auto n = static_cast<std::int64_t>(rows.size());
    Tensor history = Tensor::empty({n, width}, DType::bf16);
    for (std::int64_t k = 0; k < n; ++k) {
      std::copy_n(kv.data<const bf16>() + rows[static_cast<std::size_t>(k)] * width, width,
                  history.data<bf16>() + k * width);
    }
    const ops::StepRows ring = ops::store_step_rows(t.ctx, history, format);
    const ops::StepRows own = ops::store_step_rows(t.ctx, history.slice(n - 1, n), format);
    const AttentionSequence sequence{0, 1, n - 1, ring.view(), n, {}};
    const Tensor one = q.reshape({n_queries, n_heads, width}).slice(i, i + 1);
    const Tensor o = ops::sparse_attention(
        t.ctx, one, own, units().tensor("sparse_attn.sink"), {},
        {.window = n, .ratio = 0, .softmax_scale = static_cast<float>(1 / std::sqrt(128.0))},
        {&sequence, 1});
    const std::vector<float> row = values(o);
    got.insert(got.end(), row.begin(), row.end());
  }
  const std::vector<float> want = values(units().tensor("sparse_attn.o"));
  // Sums in another order flip a bf16 rounding now and then: one bf16 ulp at most, in few places.
  EXPECT_LE(difference(got, want).relative_l2, 1e-3);
  EXPECT_GE(equal_rows(got, want, 1), static_cast<int>(want.size()) * 98 / 100);
}

}  // namespace
}  // namespace hadal::test
