#include "train/working_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>

#include "core/error.h"
#include "core/rng.h"
#include "support/failing_file_system.h"
#include "train/initialise.h"
#include "train/small_config.h"

namespace hadal::train {
namespace {

using model::WeightFormat;
using ::testing::HasSubstr;

// Every role, and sizes that all formats can hold.
model::Config config() {
  return model::load_config(HADAL_TEST_DATA_DIR "/golden/official-tiny");
}

std::string bytes_of(const Tensor& t) {
  return {reinterpret_cast<const char*>(t.bytes()), t.nbytes()};
}
std::string bytes_of(const QuantTensor& w) {
  return bytes_of(w.data) + (w.scale ? bytes_of(w.scale) : "");
}

struct Fixture {
  explicit Fixture(const model::Config& c = config()) : store(c) { initialise(pool, store, 3); }
  ThreadPool pool{2};
  ParameterStore store;
};

class WorkingWeightsTest : public ::testing::TestWithParam<WeightFormat> {};

TEST(WorkingWeights, AreTheMastersThemselvesInF32) {
  Fixture f;
  WorkingWeights weights(f.store, WeightFormat::f32, f.pool);
  EXPECT_EQ(weights.nbytes(), 0u);
  const model::BoundWeights bound = weights.bind();
  for (const Parameter& p : f.store.parameters()) {
    const bool plain =
        p.info.role != model::WeightRole::linear && p.info.role != model::WeightRole::expert;
    const Tensor& w = plain ? bound.plain(p.info.name) : bound.linear(p.info.name).data;
    EXPECT_EQ(w.bytes(), p.value.bytes()) << p.info.name;
  }
  EXPECT_EQ(weights.refresh(f.pool).n_lifted, 0);
}

TEST_P(WorkingWeightsTest, FollowTheirMastersInPlace) {
  Fixture f;
  WorkingWeights weights(f.store, GetParam(), f.pool);
  const model::BoundWeights bound = weights.bind();
  const auto find = [&](const Parameter& p) -> QuantTensor {
    switch (p.info.role) {
      case model::WeightRole::linear:
      case model::WeightRole::expert:
        return bound.linear(p.info.name);
      default:
        return {bound.plain(p.info.name), {}, {}};
    }
  };
  std::map<std::string, std::string> before;
  for (const Parameter& p : f.store.parameters()) before[p.info.name] = bytes_of(find(p));
  for (const Parameter& p : f.store.parameters()) {
    if (p.value.dtype() != DType::f32) continue;
    for (std::int64_t i = 0; i < p.value.numel(); ++i) p.value.data<float>()[i] += 0.25f;
  }
  static_cast<void>(weights.refresh(f.pool));
  for (const Parameter& p : f.store.parameters()) {
    const QuantTensor w = find(p);
    if (p.value.dtype() == DType::f32) {
      EXPECT_NE(bytes_of(w), before[p.info.name]) << p.info.name;
    }
    EXPECT_EQ(w.data.variable(), p.info.group == ParameterGroup::frozen ? 0u : p.info.id)
        << p.info.name;
  }
  // What a fresh one makes of the same masters.
  const WorkingWeights fresh(f.store, GetParam(), f.pool);
  const model::BoundWeights again = fresh.bind();
  for (const Parameter& p : f.store.parameters()) {
    if (p.info.role == model::WeightRole::expert || p.info.role == model::WeightRole::linear) {
      EXPECT_EQ(bytes_of(again.linear(p.info.name)), bytes_of(find(p))) << p.info.name;
    }
  }
}

TEST_P(WorkingWeightsTest, WriteWhatTheyAre) {
  Fixture f;
  const WorkingWeights weights(f.store, GetParam(), f.pool);
  const test::ScratchDirectory scratch;
  io::CheckpointWriter writer(FileSystem::real(), scratch / "model", weights.declarations(),
                              {.shard_bytes = 100'000});
  std::size_t done = 0;
  weights.write(writer, [&](std::size_t n, std::size_t total) {
    EXPECT_GE(n, done);
    EXPECT_LE(n, total);
    done = n;
  });
  writer.finish();
  EXPECT_GT(done, 0u);

  const model::Config written = model::load_config(scratch / "model");
  const bool scaled = GetParam() == WeightFormat::published || GetParam() == WeightFormat::fp8;
  EXPECT_EQ(written.quantization_config.has_value(), scaled);
  EXPECT_EQ(written.expert_dtype, GetParam() == WeightFormat::published ? model::ExpertDType::fp4
                                  : scaled                              ? model::ExpertDType::fp8
                                           : model::ExpertDType::unstated);
  const io::Checkpoint files = io::Checkpoint::open(scratch / "model");
  const model::BoundWeights loaded =
      model::BoundWeights::bind(files, written, {.check_finite = true});
  EXPECT_TRUE(loaded.warnings().empty());
  const model::BoundWeights bound = weights.bind();
  for (const Parameter& p : f.store.parameters()) {
    const std::string& name = p.info.name;
    switch (p.info.role) {
      case model::WeightRole::linear:
      case model::WeightRole::expert:
        EXPECT_EQ(bytes_of(loaded.linear(name)), bytes_of(bound.linear(name))) << name;
        EXPECT_EQ(loaded.linear(name).data.dtype(), bound.linear(name).data.dtype()) << name;
        break;
      case model::WeightRole::norm: {  // bf16 in the file
        const Tensor& norm = loaded.plain(name);
        for (std::int64_t i = 0; i < norm.numel(); ++i) {
          const float x = norm.dtype() == DType::bf16 ? to_float(norm.data<const bf16>()[i])
                                                      : norm.data<const float>()[i];
          EXPECT_EQ(x, bound.plain(name).data<const float>()[i]) << name;
        }
        break;
      }
      default:
        EXPECT_EQ(bytes_of(loaded.plain(name)), bytes_of(bound.plain(name))) << name;
    }
  }
}

TEST_P(WorkingWeightsTest, NameTheWeightThatIsNotFinite) {
  if (GetParam() == WeightFormat::bf16 || GetParam() == WeightFormat::f32) {
    GTEST_SKIP() << "bf16 and f32 hold NaN; only blocks with a scale cannot";
  }
  Fixture f;
  WorkingWeights weights(f.store, GetParam(), f.pool);
  f.store.at("layers.1.ffn.experts.3.w2.weight").value.data<float>()[5] = NAN;
  try {
    static_cast<void>(weights.refresh(f.pool));
    FAIL() << "NaN went through";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::corrupt_data);
    EXPECT_THAT(e.what(), HasSubstr("layers.1.ffn.experts.3.w2.weight"));
    EXPECT_THAT(e.what(), HasSubstr("row 0 column 5"));
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, WorkingWeightsTest,
                         ::testing::Values(WeightFormat::published, WeightFormat::fp8,
                                           WeightFormat::bf16, WeightFormat::f32),
                         [](const auto& f) { return std::string(model::to_string(f.param)); });

TEST(WorkingWeights, CountLiftedScales) {
  Fixture f;
  WorkingWeights weights(f.store, WeightFormat::published, f.pool);
  EXPECT_EQ(weights.refresh(f.pool).n_lifted, 0);
  for (const char* name : {"layers.0.ffn.experts.0.w1.weight", "mtp.0.ffn.experts.7.w3.weight"}) {
    auto* row = f.store.at(name).value.data<float>();
    for (int i = 0; i < 32; ++i) row[i] *= 0x1p-13f;
  }
  EXPECT_EQ(weights.refresh(f.pool).n_lifted, 2);
  // And what the experts are multiplied as is exact in FP8, all of them.
  const model::BoundWeights bound = weights.bind();
  for (const Parameter& p : f.store.parameters()) {
    if (p.info.role != model::WeightRole::expert) continue;
    EXPECT_NO_THROW((void)fp8_from_fp4(bound.linear(p.info.name))) << p.info.name;
  }
}

TEST(WorkingWeights, RefuseFp4ThatDoesNotFit) {
  Fixture f(test::small_config());
  try {
    const WorkingWeights weights(f.store, WeightFormat::published, f.pool);
    FAIL() << "16 columns in blocks of 32";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::invalid_argument);
    EXPECT_THAT(e.what(), HasSubstr("w2.weight: [32, 16] has 16 columns"));
  }
  EXPECT_NO_THROW(WorkingWeights(f.store, WeightFormat::bf16, f.pool));
}

TEST(WorkingWeights, KnowTheirSize) {
  Fixture f;
  std::size_t stored = 0;
  for (const io::TensorDecl& d : model::stored_tensors(config(), WeightFormat::bf16)) {
    if (d.dtype == DType::bf16) stored += nbytes(d.shape, d.dtype);
  }
  for (const Parameter& p : f.store.parameters()) {  // norms are f32 beside the masters
    if (p.info.role == model::WeightRole::norm) stored += nbytes(p.info.shape, DType::bf16);
  }
  EXPECT_EQ(WorkingWeights(f.store, WeightFormat::bf16, f.pool).nbytes(), stored);
}

}  // namespace
}  // namespace hadal::train
