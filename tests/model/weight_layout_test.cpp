#include "model/weight_layout.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "io/safetensors_header.h"
#include "support/safetensors_bytes.h"

namespace hadal::model {
namespace {

using test::parse_bytes;
using test::RawTensor;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Config load(const char* name) {
  return load_config(Path(HADAL_TEST_DATA_DIR "/golden") / name);
}

std::pair<std::size_t, std::size_t> count_and_bytes(const Config& c, WeightFormat format) {
  const auto tensors = stored_tensors(c, format);
  std::size_t bytes = 0;
  for (const auto& t : tensors) bytes += nbytes(t.shape, t.dtype);
  return {tensors.size(), bytes};
}

// The totals of the published indices: names, shapes and widths are right to the byte.
TEST(WeightLayout, SumsToThePublishedCheckpoints) {
  const Config flash = load_config(HADAL_SOURCE_DIR "/configs/deepseek-v4-flash.json");
  const Config pro = load_config(HADAL_SOURCE_DIR "/configs/deepseek-v4-pro.json");
  EXPECT_EQ(count_and_bytes(flash, WeightFormat::published),
            std::pair(std::size_t{69'187}, std::size_t{159'609'485'896}));
  EXPECT_EQ(count_and_bytes(pro, WeightFormat::published),
            std::pair(std::size_t{145'116}, std::size_t{864'704'792'696}));
  const auto in_mtp = [](const Config& c) {
    const auto all = stored_tensors(c, WeightFormat::published);
    return std::count_if(all.begin(), all.end(),
                         [](const auto& t) { return t.name.starts_with("mtp."); });
  };
  EXPECT_EQ(in_mtp(flash), 1'575);
  EXPECT_EQ(in_mtp(pro), 2'343);
}

// A small model with every kind of layer whose tensors a test can change before binding.
class Files {
 public:
  Files(const Config& config, WeightFormat format) {
    for (const io::TensorDecl& t : stored_tensors(config, format)) {
      std::vector<std::int64_t> shape(t.shape.dims().begin(), t.shape.dims().end());
      if (t.dtype == DType::f4_e2m1) shape.back() /= 2;
      std::string data(nbytes(t.shape, t.dtype), '\0');
      if (t.name.ends_with("tid2eid")) {
        auto* ids = reinterpret_cast<std::int64_t*>(data.data());
        for (std::int64_t i = 0; i < t.shape.numel(); ++i) {
          const std::int64_t row = i / t.shape[1], col = i % t.shape[1];
          ids[i] = (row + col) % config.n_routed_experts;
        }
      }
      tensors[t.name] = {t.name, io::safetensors_dtype_name(t.dtype), shape, std::move(data)};
    }
  }
  [[nodiscard]] io::Checkpoint checkpoint() const {
    std::vector<RawTensor> list;
    for (const auto& [name, t] : tensors) list.push_back(t);
    std::stable_sort(list.begin(), list.end(), [](const RawTensor& a, const RawTensor& b) {
      return bits(*io::safetensors_dtype(a.dtype)) > bits(*io::safetensors_dtype(b.dtype));
    });
    if (misaligned) list.insert(list.begin(), {"odd", "U8", {1}, "x"});
    return io::Checkpoint::from_files({parse_bytes(test::safetensors_bytes(list))}, "ckpt");
  }
  RawTensor& at(const std::string& name) { return tensors.at(name); }
  void add(const std::string& name, const std::string& dtype, std::vector<std::int64_t> shape,
           std::size_t n_bytes) {
    tensors[name] = {name, dtype, std::move(shape), std::string(n_bytes, '\0')};
  }
  void rename(const std::string& from, const std::string& to) {
    auto node = tensors.extract(from);
    node.key() = to;
    node.mapped().name = to;
    tensors.insert(std::move(node));
  }

  std::map<std::string, RawTensor> tensors;
  bool misaligned = false;
};

class Binding : public testing::Test {
 protected:
  const Config config_ = load("official-tiny");
  Files files_{config_, WeightFormat::published};

  BoundWeights bind(const BindOptions& options = {}) const {
    return BoundWeights::bind(files_.checkpoint(), config_, options);
  }
};

TEST(WeightLayout, BindsTheGoldenCheckpoints) {
  const Config official = load("official-tiny");
  const auto w =
      BoundWeights::bind(io::Checkpoint::open(HADAL_TEST_DATA_DIR "/golden/official-tiny"),
                         official, {.check_finite = true});
  EXPECT_THAT(w.warnings(), IsEmpty());
  const QuantTensor& dense = w.linear("layers.2.attn.wq_b.weight");
  EXPECT_EQ(dense.data.dtype(), DType::f8_e4m3);
  EXPECT_EQ(dense.data.shape(), Shape({512, 128}));
  EXPECT_EQ(dense.scale.dtype(), DType::ue8m0);
  EXPECT_EQ(dense.block, kFp8Block);
  const QuantTensor& expert = w.linear("mtp.0.ffn.experts.7.w2.weight");
  EXPECT_EQ(expert.data.dtype(), DType::f4_e2m1);
  EXPECT_EQ(expert.data.shape(), Shape({128, 128}));  // logical
  EXPECT_EQ(expert.scale.shape(), Shape({128, 4}));
  EXPECT_EQ(expert.block, kFp4Block);
  EXPECT_EQ(w.plain("layers.0.ffn.gate.tid2eid").dtype(), DType::i32);
  EXPECT_EQ(w.plain("layers.0.attn.attn_sink").dtype(), DType::f32);
  EXPECT_EQ(w.plain("norm.weight").dtype(), DType::bf16);
  EXPECT_FALSE(w.linear("head.weight").scale);
  EXPECT_FALSE(w.contains("layers.3.attn.indexer.wq_b.weight"));  // HCA has no indexer

  // Saved by Hugging Face: other names, f32, i64 expert ids.
  const auto hf = BoundWeights::bind(io::Checkpoint::open(HADAL_TEST_DATA_DIR "/golden/hf-tiny"),
                                     load("hf-tiny"), {.check_finite = true});
  EXPECT_THAT(hf.warnings(), IsEmpty());
  EXPECT_EQ(hf.linear("layers.4.ffn.experts.7.w2.weight").data.shape(), Shape({64, 32}));
  EXPECT_EQ(hf.plain("layers.0.ffn.gate.tid2eid").dtype(), DType::i32);
  EXPECT_EQ(hf.plain("layers.4.attn.kv_norm.weight").shape(), Shape({32}));
}

TEST_F(Binding, AcceptsEveryStorageFormat) {
  EXPECT_THAT(bind().warnings(), IsEmpty());
  for (const auto& [format, dtype] :
       {std::pair{WeightFormat::fp8, DType::f8_e4m3}, std::pair{WeightFormat::bf16, DType::bf16},
        std::pair{WeightFormat::f32, DType::f32}}) {
    files_ = Files(config_, format);
    const BoundWeights w = bind();
    EXPECT_EQ(w.linear("layers.3.ffn.experts.0.w1.weight").data.dtype(), dtype);
    EXPECT_EQ(static_cast<bool>(w.linear("layers.3.ffn.experts.0.w1.weight").scale),
              format == WeightFormat::fp8);
  }
}

TEST_F(Binding, DecidesByDtypeNotByConfig) {
  Config claims_fp8 = config_;
  claims_fp8.expert_dtype = ExpertDType::fp8;
  const auto w = BoundWeights::bind(files_.checkpoint(), claims_fp8);
  EXPECT_EQ(w.linear("layers.3.ffn.experts.0.w1.weight").data.dtype(), DType::f4_e2m1);
}

TEST_F(Binding, AcceptsForeignScales) {
  RawTensor& scale = files_.at("layers.2.attn.wq_b.scale");  // [4, 1]
  scale.dtype = "F32";
  scale.data.assign(16, '\0');
  files_.at("layers.2.ffn.experts.0.w1.scale").dtype = "U8";
  files_.rename("layers.2.attn.wkv.scale", "layers.2.attn.wkv.weight_scale_inv");
  const BoundWeights w = bind();
  EXPECT_EQ(w.linear("layers.2.attn.wq_b.weight").scale.dtype(), DType::f32);
  EXPECT_EQ(w.linear("layers.2.ffn.experts.0.w1.weight").scale.dtype(), DType::ue8m0);
  EXPECT_TRUE(static_cast<bool>(w.linear("layers.2.attn.wkv.weight").scale));
  EXPECT_THAT(w.warnings(), IsEmpty());
}

TEST_F(Binding, WidensHalvesExactly) {
  RawTensor& norm = files_.at("norm.weight");
  norm.dtype = "F16";
  norm.data[0] = '\x00', norm.data[1] = '\x3e';  // 1.5
  RawTensor& sink = files_.at("layers.0.attn.attn_sink");
  sink.dtype = "BF16";
  sink.data.assign(8, '\0');
  sink.data[2] = '\x20', sink.data[3] = '\xc0';  // -2.5
  const BoundWeights w = bind();
  EXPECT_EQ(w.plain("norm.weight").data<float>()[0], 1.5f);
  EXPECT_EQ(w.plain("layers.0.attn.attn_sink").data<float>()[1], -2.5f);
}

TEST_F(Binding, SplitsFusedExperts) {
  files_ = Files(config_, WeightFormat::bf16);
  const std::int64_t E = 8, I = 128, d = 128;
  std::string gate_up, down;
  for (std::int64_t e = 0; e < E; ++e) {
    for (const char* part : {"w1", "w2", "w3"}) {
      files_.tensors.erase(fmt::format("layers.1.ffn.experts.{}.{}.weight", e, part));
    }
    gate_up += std::string(static_cast<std::size_t>(I * d * 2), static_cast<char>(10 + e));
    gate_up += std::string(static_cast<std::size_t>(I * d * 2), static_cast<char>(30 + e));
    down += std::string(static_cast<std::size_t>(I * d * 2), static_cast<char>(50 + e));
  }
  const std::string prefix = "model.layers.1.mlp.experts.";
  files_.tensors["gu"] = {prefix + "gate_up_proj", "BF16", {E, 2 * I, d}, gate_up};
  files_.tensors["d"] = {prefix + "down_proj", "BF16", {E, d, I}, down};
  const BoundWeights w = bind();
  EXPECT_THAT(w.warnings(), IsEmpty());
  const auto first_byte = [&](const char* name) {
    const QuantTensor& t = w.linear(name);
    EXPECT_EQ(t.data.bytes()[0], t.data.bytes()[t.data.nbytes() - 1]);
    return std::to_integer<int>(t.data.bytes()[0]);
  };
  EXPECT_EQ(first_byte("layers.1.ffn.experts.0.w1.weight"), 10);
  EXPECT_EQ(first_byte("layers.1.ffn.experts.0.w3.weight"), 30);
  EXPECT_EQ(first_byte("layers.1.ffn.experts.7.w1.weight"), 17);
  EXPECT_EQ(first_byte("layers.1.ffn.experts.7.w3.weight"), 37);
  EXPECT_EQ(first_byte("layers.1.ffn.experts.7.w2.weight"), 57);
  EXPECT_EQ(w.linear("layers.1.ffn.experts.7.w2.weight").data.shape(), Shape({d, I}));

  files_.tensors["gu"].shape = {E, I, 2 * d};
  const auto thrown = test::thrown_by([&] { (void)bind(); });
  ASSERT_TRUE(thrown);
  EXPECT_THAT(thrown->message, HasSubstr("1 problem\n  model.layers.1.mlp.experts.gate_up_proj: "
                                         "[8, 128, 256] bf16 in the file, config.json implies "
                                         "[8, 256, 128]"));
}

TEST_F(Binding, EachProblemHasItsSentence) {
  const auto problem = [&](const std::function<void()>& change, const std::string& sentence) {
    files_ = Files(config_, WeightFormat::published);
    change();
    EXPECT_ERROR(bind({.check_finite = true}), ErrorCode::corrupt_data, sentence);
  };
  problem([&] { files_.tensors.erase("norm.weight"); }, "norm.weight: missing");
  problem([&] { files_.tensors.erase("layers.2.attn.wq_b.scale"); },
          "layers.2.attn.wq_b.scale: missing; layers.2.attn.wq_b.weight is f8_e4m3 and needs it");
  problem([&] { files_.at("layers.2.attn.wq_b.weight").shape = {256, 256}; },
          "layers.2.attn.wq_b.weight: [256, 256] f8_e4m3 in the file, config.json implies [512, "
          "128]");
  problem([&] { files_.at("layers.2.ffn.experts.3.w1.weight").shape = {64, 128}; },
          "layers.2.ffn.experts.3.w1.weight: [64, 128] i8 in the file, config.json implies [128, "
          "64]");
  problem([&] { files_.at("layers.2.attn.wq_b.weight").dtype = "I8"; },
          "layers.2.attn.wq_b.weight: I8 in the file, wanted f8_e4m3, bf16, f16 or f32");
  problem([&] { files_.add("norm.weight", "F8_E4M3", {128}, 128); },
          "norm.weight: F8_E4M3 in the file, wanted bf16, f16 or f32");
  problem([&] { files_.add("embed.weight", "I32", {256, 128}, 256 * 128 * 4); },
          "embed.weight: I32 in the file");
  problem([&] { files_.at("layers.2.attn.wq_b.scale").shape = {2, 2}; },
          "layers.2.attn.wq_b.scale: [2, 2] ue8m0 in the file, a f8_e4m3 weight [512, 128] implies "
          "[4, 1]");
  problem([&] { files_.at("layers.2.attn.wq_b.scale").dtype = "I8"; },
          "layers.2.attn.wq_b.scale: I8 in the file, wanted F8_E8M0 or F32");
  problem([&] { files_.add("layers.2.attn.wq_b.weight", "BF16", {512, 128}, 512 * 128 * 2); },
          "layers.2.attn.wq_b.scale: in the file, but layers.2.attn.wq_b.weight is bf16");
  problem([&] { files_.add("model.norm.weight", "BF16", {128}, 256); },
          "are the same tensor, norm.weight");
  problem(
      [&] {
        auto* ids =
            reinterpret_cast<std::int64_t*>(files_.at("layers.1.ffn.gate.tid2eid").data.data());
        ids[7] = 8;
      },
      "layers.1.ffn.gate.tid2eid: row 3 column 1 is 8, wanted an expert 0 to 7");
  problem(
      [&] {
        auto* ids =
            reinterpret_cast<std::int64_t*>(files_.at("layers.1.ffn.gate.tid2eid").data.data());
        ids[0] = -1;
      },
      "row 0 column 0 is -1");
  problem(
      [&] {
        auto* ids =
            reinterpret_cast<std::int64_t*>(files_.at("layers.1.ffn.gate.tid2eid").data.data());
        ids[1] = ids[0];
      },
      "layers.1.ffn.gate.tid2eid: row 0 names expert 0 twice");
  problem([&] { files_.at("layers.2.attn.wq_b.weight").data[128 + 5] = '\x7f'; },
          "layers.2.attn.wq_b.weight: row 1 column 5 is NaN or infinite");
  problem([&] { files_.at("layers.2.attn.wq_b.weight").data[128 + 5] = '\xff'; },
          "layers.2.attn.wq_b.weight: row 1 column 5 is NaN");
  problem([&] { files_.at("layers.2.ffn.experts.3.w1.scale").data[4 * 9 + 2] = '\xff'; },
          "layers.2.ffn.experts.3.w1.scale: row 9 column 2 is NaN");
  problem(
      [&] { files_.at("norm.weight").data[3] = '\x7f', files_.at("norm.weight").data[2] = '\x80'; },
      "norm.weight: row 0 column 1 is NaN or infinite");
}

TEST_F(Binding, FiniteScanIsAskedFor) {
  files_.at("layers.2.attn.wq_b.weight").data[0] = '\x7f';
  EXPECT_NO_THROW((void)bind());
  EXPECT_ERROR(bind({.check_finite = true}), ErrorCode::corrupt_data, "row 0 column 0 is NaN");
}

TEST_F(Binding, ListsTenProblemsAndCountsTheRest) {
  for (auto it = files_.tensors.begin(); it != files_.tensors.end();) {
    it = it->first.starts_with("layers.3.") && it->first.ends_with(".weight")
             ? files_.tensors.erase(it)
             : std::next(it);
  }
  const auto thrown = test::thrown_by([&] { (void)bind(); });
  ASSERT_TRUE(thrown);
  EXPECT_EQ(std::count(thrown->message.begin(), thrown->message.end(), '\n'), 11);
  EXPECT_THAT(thrown->message, HasSubstr("ckpt does not fit its config"));
  // 7 of attention, 3 of its compressor, 2 norms, the gate, 3 shared and 24 routed matrices.
  EXPECT_THAT(thrown->message, HasSubstr("40 problems"));
  EXPECT_THAT(thrown->message, HasSubstr("and 30 more"));
}

TEST_F(Binding, WarnsOfWhatItLeavesOut) {
  files_.add("vision.patch.weight", "F32", {1}, 4);
  files_.add("mtp.1.enorm.weight", "BF16", {128}, 256);
  EXPECT_THAT(bind().warnings(),
              ElementsAre("ckpt: 1 mtp.* tensors left out; the config has 1 MTP blocks",
                          "ckpt: vision.patch.weight is no tensor that the config implies; left "
                          "out"));
  Config without_mtp = config_;
  without_mtp.num_nextn_predict_layers = 0;
  without_mtp.finalize();
  files_.tensors.erase("vision.patch.weight");
  EXPECT_THAT(BoundWeights::bind(files_.checkpoint(), without_mtp).warnings(),
              ElementsAre(HasSubstr("the config has 0 MTP blocks")));
}

TEST_F(Binding, SaysWhatItCopies) {
  files_.misaligned = true;
  const auto warnings = bind().warnings();
  ASSERT_EQ(warnings.size(), 2u);
  EXPECT_THAT(warnings[0], HasSubstr("were copied to memory"));
}

TEST_F(Binding, AsksMustFit) {
  const BoundWeights w = bind();
  EXPECT_ERROR(w.linear("layers.9.attn.wq_a.weight"), ErrorCode::not_found, "no weight of that");
  EXPECT_ERROR(w.linear("norm.weight"), ErrorCode::invalid_argument, "no matrix to multiply with");
  EXPECT_ERROR(w.plain("layers.0.attn.wq_a.weight"), ErrorCode::invalid_argument,
               "stored as f8_e4m3 with scales");
  std::size_t stored = 0;
  for (const auto& [name, t] : files_.tensors) stored += t.data.size();
  // Two tables of 256 x 2 ids shrink from i64 to i32.
  EXPECT_EQ(w.nbytes(), stored - 2 * 256 * 2 * 4);
}

TEST(WeightLayout, Fp4NeedsWholeBlocks) {
  Config c = load("official-tiny");
  c.moe_intermediate_size = 100;
  c.finalize();
  EXPECT_ERROR(stored_tensors(c, WeightFormat::published), ErrorCode::invalid_argument,
               "has 100 columns, and FP4 is stored in blocks of 32");
  EXPECT_NO_THROW((void)stored_tensors(c, WeightFormat::fp8));
}

}  // namespace
}  // namespace hadal::model
