#include "model/convert.h"

#include <gmock/gmock.h>

#include <cstring>

#include "support/failing_file_system.h"
#include "support/model_fixture.h"
#include "support/safetensors_bytes.h"

namespace hadal::model {
namespace {

using test::ScratchDirectory;

constexpr const char* kPlain = HADAL_TEST_DATA_DIR "/golden/hf-tiny";            // f32, no MTP
constexpr const char* kPublished = HADAL_TEST_DATA_DIR "/golden/official-tiny";  // fp4, fp8, MTP

ConversionReport convert(const Path& from, const Path& to, WeightFormat format, int threads = 2,
                         std::size_t shard_bytes = 1u << 30) {
  ThreadPool pool(threads);
  return convert_checkpoint(FileSystem::real(), pool, from, to,
                            {.format = format, .output = {.shard_bytes = shard_bytes}});
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.bytes(), b.bytes(), a.nbytes()) == 0;
}

std::vector<float> dequantised(const QuantTensor& w) {
  std::vector<float> out(static_cast<std::size_t>(w.data.numel()));
  dequantize_rows(w, 0, w.rows(), out.data());
  return out;
}

bool is_matrix(const ExpectedWeight& w) {
  return w.role == WeightRole::linear || w.role == WeightRole::expert;
}

TEST(Convert, PublishedFormatHoldsWhatTheReferenceQuantisersGive) {
  const ScratchDirectory scratch;
  const ConversionReport report = convert(kPlain, scratch / "q", WeightFormat::published);
  const test::LoadedModel before(kPlain), after((scratch / "q").string());
  ASSERT_EQ(after.config.expert_dtype, ExpertDType::fp4);
  ASSERT_TRUE(after.config.quantization_config.has_value());
  for (const ExpectedWeight& w : expected_weights(before.config)) {
    SCOPED_TRACE(w.name);
    if (!is_matrix(w)) {
      EXPECT_TRUE(same_bytes(before.weights.plain(w.name), after.weights.plain(w.name)));
      continue;
    }
    const QuantTensor& got = after.weights.linear(w.name);
    const QuantTensor want = w.role == WeightRole::expert
                                 ? quantize_fp4(before.weights.linear(w.name).data)
                                 : quantize_fp8(before.weights.linear(w.name).data);
    EXPECT_TRUE(same_bytes(got.data, want.data));
    EXPECT_TRUE(same_bytes(got.scale, want.scale));
  }
  // Rounding to nearest: at most half a step, 2^-4 of a value in E4M3. In a block of E2M1 the
  // largest error is a third of the largest value.
  for (const ConvertedKind& kind : report.kinds) {
    if (kind.what == "linear fp8") {
      EXPECT_GT(kind.relative_error, 0.01);
      EXPECT_LT(kind.relative_error, 1.0 / 16);
    } else if (kind.what == "expert fp4") {
      EXPECT_GT(kind.relative_error, 0.05);
      EXPECT_LT(kind.relative_error, 1.0 / 3);
    } else {
      EXPECT_EQ(kind.relative_error, 0) << kind.what;
    }
  }
  EXPECT_EQ(report.bytes_after, io::Checkpoint::open(scratch / "q").total_bytes());
}

TEST(Convert, PublishedStaysAsItIs) {
  const ScratchDirectory scratch;
  const ConversionReport report = convert(kPublished, scratch / "q", WeightFormat::published);
  const io::Checkpoint before = io::Checkpoint::open(kPublished),
                       after = io::Checkpoint::open(scratch / "q");
  ASSERT_EQ(after.size(), before.size());
  for (const std::string& name : before.names()) {
    SCOPED_TRACE(name);
    const Tensor was = before.tensor(name), is = after.tensor(name);
    if (was.dtype() == DType::i32) {  // tid2eid is stored as i64
      EXPECT_EQ(is.dtype(), DType::i64);
      for (std::int64_t i = 0; i < was.numel(); ++i) {
        ASSERT_EQ(is.data<const std::int64_t>()[i], was.data<const std::int32_t>()[i]);
      }
    } else {
      EXPECT_TRUE(same_bytes(was, is));
    }
  }
  EXPECT_TRUE(report.notes.empty());
  for (const ConvertedKind& kind : report.kinds) EXPECT_EQ(kind.relative_error, 0) << kind.what;
}

// E2M1 and E4M3 times a power of two are bf16 numbers, so nothing is lost either way.
TEST(Convert, ToBf16AndBackIsExact) {
  const ScratchDirectory scratch;
  const ConversionReport wide = convert(kPublished, scratch / "bf16", WeightFormat::bf16);
  const ConversionReport back = convert(scratch / "bf16", scratch / "q", WeightFormat::published);
  for (const auto& report : {wide, back}) {
    for (const ConvertedKind& kind : report.kinds) EXPECT_EQ(kind.relative_error, 0) << kind.what;
  }
  const test::LoadedModel first(kPublished), bf16((scratch / "bf16").string()),
      last((scratch / "q").string());
  EXPECT_FALSE(bf16.config.quantization_config.has_value());
  EXPECT_EQ(bf16.config.expert_dtype, ExpertDType::unstated);
  EXPECT_EQ(last.config.expert_dtype, ExpertDType::fp4);
  for (const ExpectedWeight& w : expected_weights(first.config)) {
    if (!is_matrix(w)) continue;
    SCOPED_TRACE(w.name);
    EXPECT_EQ(bf16.weights.linear(w.name).data.dtype(), DType::bf16);
    EXPECT_FALSE(bf16.weights.linear(w.name).scale);
    test::expect_equal(dequantised(bf16.weights.linear(w.name)),
                       dequantised(first.weights.linear(w.name)), "bf16");
    test::expect_equal(dequantised(last.weights.linear(w.name)),
                       dequantised(first.weights.linear(w.name)), "back");
  }
}

TEST(Convert, Fp8AndF32) {
  const ScratchDirectory scratch;
  (void)convert(kPublished, scratch / "fp8", WeightFormat::fp8);
  (void)convert(kPublished, scratch / "f32", WeightFormat::f32);
  const test::LoadedModel fp8((scratch / "fp8").string()), f32((scratch / "f32").string());
  EXPECT_EQ(fp8.config.expert_dtype, ExpertDType::fp8);
  const char* expert = "layers.1.ffn.experts.0.w1.weight";
  EXPECT_EQ(fp8.weights.linear(expert).data.dtype(), DType::f8_e4m3);
  EXPECT_EQ(f32.weights.linear(expert).data.dtype(), DType::f32);
  EXPECT_EQ(f32.weights.plain("embed.weight").dtype(), DType::f32);
}

TEST(Convert, ThreadsAndShardsDoNotChangeTheValues) {
  const ScratchDirectory scratch;
  (void)convert(kPlain, scratch / "one", WeightFormat::published, 1);
  const ConversionReport many =
      convert(kPlain, scratch / "many", WeightFormat::published, 3, 20'000);
  EXPECT_GT(many.n_shards, 3u);
  const io::Checkpoint a = io::Checkpoint::open(scratch / "one"),
                       b = io::Checkpoint::open(scratch / "many");
  ASSERT_EQ(a.size(), b.size());
  for (const std::string& name : a.names()) {
    EXPECT_TRUE(same_bytes(a.tensor(name), b.tensor(name))) << name;
  }
}

// A copy of the f32 model with one tensor made anew.
void write_changed(const Path& to, const std::string& changed,
                   const std::function<Tensor(const Tensor&)>& change) {
  std::filesystem::create_directories(to);
  std::filesystem::copy_file(Path(kPlain) / "config.json", to / "config.json");
  const io::Checkpoint checkpoint = io::Checkpoint::open(kPlain);
  std::vector<io::TensorDecl> decls;
  std::map<std::string, Tensor> tensors;
  for (const std::string& name : checkpoint.names()) {
    Tensor t = checkpoint.tensor(name);
    if (name == changed) t = change(t);
    decls.push_back({name, t.dtype(), t.shape(), {}});
    tensors.emplace(name, t);
  }
  decls = io::aligned_order(decls);
  io::SafetensorsWriter writer(FileSystem::real(), to / "model.safetensors", decls);
  for (const auto& decl : decls) writer.write(decl.name, tensors.at(decl.name));
  writer.finish();
}

TEST(Convert, NamesTheValueThatIsNotFinite) {
  const ScratchDirectory scratch;
  std::string name;
  for (const std::string& n : io::Checkpoint::open(kPlain).names()) {
    if (n.find("q_b_proj.weight") != std::string::npos ||
        n.find("wq_b.weight") != std::string::npos) {
      name = n;
      break;
    }
  }
  ASSERT_FALSE(name.empty());
  write_changed(scratch / "nan", name, [](const Tensor& t) {
    Tensor copy = Tensor::empty(t.shape(), t.dtype());
    std::memcpy(copy.bytes(), t.bytes(), t.nbytes());
    copy.data<float>()[t.dim(1) + 3] = NAN;
    return copy;
  });
  EXPECT_ERROR(convert(scratch / "nan", scratch / "out", WeightFormat::published),
               ErrorCode::corrupt_data, "wq_b.weight: row 1 column 3 is NaN or infinite");
  EXPECT_EQ(scratch.n_entries(), 1u);
}

TEST(Convert, FullDiskLeavesNoHalfModel) {
  const ScratchDirectory scratch;
  ThreadPool pool(1);
  const auto attempt = [&](FileSystem& fs) {
    (void)convert_checkpoint(fs, pool, kPlain, scratch / "out",
                             {.format = WeightFormat::published, .output = {}});
  };
  test::FailingFileSystem whole;
  attempt(whole);
  std::filesystem::remove_all(scratch / "out");
  // The writer's own test goes through every operation; here the first, the last and some between.
  for (const int limit : {0, 1, 2, 3, whole.n_operations() / 2, whole.n_operations() - 1}) {
    test::FailingFileSystem full(limit);
    EXPECT_ERROR(attempt(full), ErrorCode::io, "No space left on device");
    EXPECT_EQ(scratch.n_entries(), 0u) << "limit " << limit;
  }
}

TEST(Convert, RefusesToReplaceItself) {
  EXPECT_ERROR(convert(kPlain, kPlain, WeightFormat::published), ErrorCode::invalid_argument,
               "would replace itself");
}

// w1 and w3 have hidden_size columns; 48 is no multiple of 32.
TEST(Convert, KeepsExpertsThatFp4CannotHold) {
  const ScratchDirectory scratch;
  Config config = load_config(kPlain);
  config.moe_intermediate_size = 48;
  config.finalize();
  const Path from = scratch / "odd";
  std::filesystem::create_directories(from);
  test::write_text(from / "config.json", to_json(config));
  auto decls = io::aligned_order(stored_tensors(config, WeightFormat::bf16));
  io::SafetensorsWriter writer(FileSystem::real(), from / "model.safetensors", decls);
  for (const auto& d : decls) {
    Tensor t = Tensor::zeros(d.shape, d.dtype);
    if (d.dtype == DType::i64) {  // distinct experts
      for (std::int64_t i = 0; i < t.numel(); ++i) {
        t.data<std::int64_t>()[i] = i % config.num_experts_per_tok;
      }
    }
    writer.write(d.name, t);
  }
  writer.finish();
  const ConversionReport report = convert(from, scratch / "out", WeightFormat::published);
  ASSERT_EQ(report.notes.size(), 1u);
  EXPECT_THAT(report.notes[0], testing::HasSubstr("no multiple of 32"));
  const test::LoadedModel loaded((scratch / "out").string());
  EXPECT_EQ(loaded.weights.linear("layers.1.ffn.experts.0.w2.weight").data.dtype(), DType::bf16);
  EXPECT_EQ(loaded.weights.linear("layers.1.ffn.experts.0.w1.weight").data.dtype(), DType::f4_e2m1);
}

}  // namespace
}  // namespace hadal::model
