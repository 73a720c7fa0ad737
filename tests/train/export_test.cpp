#include "train/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/byte_alphabet.h"
#include "io/tokenizer.h"
#include "support/context.h"
#include "support/failing_file_system.h"
#include "support/model_fixture.h"
#include "train/initialise.h"
#include "train/small_config.h"
#include "train/working_weights.h"

namespace hadal::train {
namespace {

using model::WeightFormat;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

void ignore(const std::string&) {}

// The 256 bytes and the control tokens that a prompt needs.
std::string tokenizer_json() {
  nlohmann::json vocab;
  for (int id = 0; id < 256; ++id) {
    vocab[io::spelling_of_byte(static_cast<unsigned char>(id))] = id;
  }
  nlohmann::json added = nlohmann::json::array();
  int id = 256;
  for (const char* content : {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"}) {
    added.push_back({{"id", id++},
                     {"content", content},
                     {"special", true},
                     {"normalized", false},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false}});
  }
  return nlohmann::json{
      {"version", "1.0"},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}}
      .dump();
}

// A run's directory with checkpoints of steps 10 and 20, and its tokenizer.
class Export : public ::testing::Test {
 protected:
  Export() {
    model::Config config = model::load_config(HADAL_TEST_DATA_DIR "/golden/official-tiny");
    config.vocab_size = 264;
    store_ = std::make_unique<ParameterStore>(config);
    for (const std::int64_t step : {10, 20}) {
      initialise(pool_, *store_, static_cast<std::uint64_t>(step));
      save(step);
    }
    test::write_text(run() / "tokenizer.json", tokenizer_json());
  }
  void save(std::int64_t step) {
    CheckpointState state;
    state.trainer.progress.step = step;
    state.model = store_->config();
    for (const Parameter& p : store_->parameters()) {
      state.trainer.tensors.push_back({p.info.name, p.value});
    }
    state.trainer.tensors.push_back({"adamw.steps", Tensor::zeros({1}, DType::i64)});
    save_checkpoint(FileSystem::real(), checkpoints(), state);
  }
  [[nodiscard]] Path run() const { return scratch_.path(); }
  [[nodiscard]] Path checkpoints() const { return run() / "checkpoints"; }
  [[nodiscard]] Path out() const { return scratch_ / "model"; }
  [[nodiscard]] SavedCheckpoint newest() const {
    return find_checkpoint(FileSystem::real(), run(), std::nullopt, ignore);
  }
  ExportReport export_to(const Path& to, const ExportOptions& options) {
    return export_checkpoint(FileSystem::real(), pool_, newest(), to, options);
  }
  std::string refusal(const ExportOptions& options, ErrorCode code) {
    try {
      static_cast<void>(export_to(out(), options));
    } catch (const Error& e) {
      EXPECT_EQ(e.code, code) << e.what();
      EXPECT_FALSE(std::filesystem::exists(out()));
      EXPECT_FALSE(std::filesystem::exists(out().string() + ".partial"));
      return e.what();
    }
    ADD_FAILURE() << "it was exported";
    return {};
  }

  test::ScratchDirectory scratch_;
  ThreadPool pool_{2};
  std::unique_ptr<ParameterStore> store_;
};

TEST_F(Export, MakesAModelOfEveryFormat) {
  for (const auto format :
       {WeightFormat::published, WeightFormat::fp8, WeightFormat::bf16, WeightFormat::f32}) {
    const Path to = scratch_ / model::to_string(format);
    std::size_t done = 0;
    const ExportReport report = export_checkpoint(
        FileSystem::real(), pool_, newest(), to,
        {.format = format, .output = {.shard_bytes = 500'000}, .tokenizer = run()},
        [&](std::size_t n, std::size_t total) {
          EXPECT_GE(n, done);
          EXPECT_LE(n, total);
          done = n;
        });
    EXPECT_THAT(report.notes, IsEmpty());
    EXPECT_EQ(report.n_lifted, 0);
    EXPECT_GT(report.n_shards, 1u);
    EXPECT_EQ(done, report.nbytes);
    const test::LoadedModel loaded(to.string());
    EXPECT_EQ(io::Checkpoint::open(to).total_bytes(), report.nbytes);
    // The newest checkpoint's weights, as WorkingWeights stores them.
    const model::BoundWeights bound = WorkingWeights(*store_, format, pool_).bind();
    const std::string name = "layers.1.ffn.experts.2.w1.weight";
    const QuantTensor &a = loaded.weights.linear(name), &b = bound.linear(name);
    ASSERT_EQ(a.data.dtype(), b.data.dtype());
    EXPECT_EQ(std::memcmp(a.data.bytes(), b.data.bytes(), a.data.nbytes()), 0);

    EXPECT_EQ(io::Tokenizer::load(to / "tokenizer.json").vocab_size(), 258);
    const auto tokenizer = nlohmann::json::parse(read_text(to / "tokenizer_config.json"));
    EXPECT_EQ(tokenizer["tokenizer_class"], "PreTrainedTokenizerFast");
    EXPECT_EQ(tokenizer["bos_token"], "<｜begin▁of▁sentence｜>");
    EXPECT_FALSE(tokenizer.contains("pad_token"));
    const auto generation = nlohmann::json::parse(read_text(to / "generation_config.json"));
    EXPECT_EQ(generation["eos_token_id"], 1);
  }
}

TEST_F(Export, FindsTheCheckpoint) {
  const auto step_of = [&](const Path& path, std::optional<std::int64_t> step = std::nullopt) {
    return find_checkpoint(FileSystem::real(), path, step, ignore).step();
  };
  EXPECT_EQ(step_of(run()), 20);
  EXPECT_EQ(step_of(run().string() + "/"), 20);
  EXPECT_EQ(step_of(checkpoints()), 20);
  EXPECT_EQ(step_of(run(), 10), 10);
  EXPECT_EQ(step_of(checkpoints() / "step-00000010"), 10);
  const auto refusal = [&](const Path& path, std::optional<std::int64_t> step) -> std::string {
    try {
      static_cast<void>(step_of(path, step));
    } catch (const Error& e) {
      EXPECT_EQ(e.code, ErrorCode::not_found);
      return e.what();
    }
    return "found";
  };
  EXPECT_THAT(refusal(run(), 15), HasSubstr("has no checkpoint of step 15; there is: 10, 20"));
  EXPECT_THAT(refusal(checkpoints() / "step-00000010", 20), HasSubstr("of step 10, not of 20"));
  EXPECT_THAT(refusal(scratch_ / "nothing", std::nullopt), HasSubstr("neither a training run"));

  // A damaged newest one: the one before, with a warning; asked for by number, an error.
  test::write_text(checkpoints() / "step-00000020" / "state.json", "{}");
  std::vector<std::string> warnings;
  EXPECT_EQ(find_checkpoint(FileSystem::real(), run(), std::nullopt,
                            [&](const std::string& s) { warnings.push_back(s); })
                .step(),
            10);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("step-00000020/state.json")));
  EXPECT_THROW((void)step_of(run(), 20), Error);
}

TEST_F(Export, KeepsTheTokenizersOwnConfig) {
  test::write_text(run() / "tokenizer_config.json", "{\"mine\": 1}");
  static_cast<void>(
      export_to(out(), {.format = WeightFormat::bf16, .output = {}, .tokenizer = run()}));
  EXPECT_EQ(read_text(out() / "tokenizer_config.json"), "{\"mine\": 1}");
  EXPECT_EQ(read_text(out() / "tokenizer.json"), tokenizer_json());
}

TEST_F(Export, WorksWithoutATokenizer) {
  const ExportReport report =
      export_to(out(), {.format = WeightFormat::bf16, .output = {}, .tokenizer = {}});
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("token ids, not text")));
  EXPECT_FALSE(std::filesystem::exists(out() / "tokenizer.json"));
}

TEST_F(Export, RefusesATokenizerThatDoesNotFit) {
  EXPECT_THAT(refusal({.format = WeightFormat::bf16, .output = {}, .tokenizer = scratch_ / "none"},
                      ErrorCode::not_found),
              HasSubstr("none/tokenizer.json is missing"));
  test::write_text(run() / "tokenizer.json", "{");
  EXPECT_THAT(refusal({.format = WeightFormat::bf16, .output = {}, .tokenizer = run()},
                      ErrorCode::corrupt_data),
              HasSubstr("tokenizer.json: "));
  const Path bootstrap = HADAL_SOURCE_DIR "/models/hadal-bootstrap";
  EXPECT_THAT(refusal({.format = WeightFormat::bf16, .output = {}, .tokenizer = bootstrap},
                      ErrorCode::invalid_argument),
              HasSubstr("the model's vocab_size is 264; it belongs to another model"));
}

TEST_F(Export, RefusesWeightsThatComputeNothing) {
  store_->at("layers.2.attn.wkv.weight").value.data<float>()[7] = INFINITY;
  save(30);
  for (const auto format : {WeightFormat::published, WeightFormat::bf16, WeightFormat::f32}) {
    EXPECT_THAT(refusal({.format = format, .output = {}, .tokenizer = {}}, ErrorCode::corrupt_data),
                HasSubstr("layers.2.attn.wkv.weight: element 7 is inf"));
  }
}

TEST_F(Export, RefusesToOverwriteWhatItShouldNot) {
  std::filesystem::create_directory(out());
  test::write_text(out() / "thesis.txt", "x");
  for (const auto existing : {io::Existing::refuse, io::Existing::replace}) {
    EXPECT_THROW((void)export_to(out(), {.format = WeightFormat::bf16,
                                         .output = {.existing = existing},
                                         .tokenizer = {}}),
                 Error);
    EXPECT_EQ(read_text(out() / "thesis.txt"), "x");
  }
}

TEST_F(Export, SaysWhenTheFormatCannotHoldTheModel) {
  store_ = std::make_unique<ParameterStore>(test::small_config());
  initialise(pool_, *store_, 1);
  save(40);
  EXPECT_THAT(refusal({.format = WeightFormat::published, .output = {}, .tokenizer = {}},
                      ErrorCode::invalid_argument),
              HasSubstr("16 columns"));
  const ExportReport report =
      export_to(out(), {.format = WeightFormat::f32, .output = {}, .tokenizer = {}});
  EXPECT_THAT(report.notes[1], HasSubstr("run it with --numerics fp32"));
  test::LoadedModel loaded(out().string());
  test::SequenceRun sequence(loaded, Numerics::fp32);
  const std::vector<TokenId> ids{5, 6, 7};
  for (const float x : sequence.logits(ids)) EXPECT_TRUE(std::isfinite(x));
}

// A disk that fills up at any operation: nothing under the name, nothing beside it.
TEST_F(Export, LeavesNothingWhenTheDiskIsFull) {
  const SavedCheckpoint saved = newest();
  const ExportOptions options{
      .format = WeightFormat::published, .output = {.shard_bytes = 1'000'000}, .tokenizer = run()};
  test::FailingFileSystem counting;
  static_cast<void>(export_checkpoint(counting, pool_, saved, scratch_ / "counted", options));
  for (int i = 0; i < 12; ++i) {  // spread over the whole work, both ends included
    test::FailingFileSystem fs(counting.n_operations() * i / 12);
    EXPECT_THROW((void)export_checkpoint(fs, pool_, saved, out(), options), Error);
    EXPECT_FALSE(std::filesystem::exists(out()));
    EXPECT_FALSE(std::filesystem::exists(out().string() + ".partial"));
  }
}

}  // namespace
}  // namespace hadal::train
