// hadal logits: what others verify the engine with, so its files are pinned down here.
#include "command.h"
#include "support/model_fixture.h"
#include "support/safetensors_bytes.h"

namespace hadal::test {
namespace {

constexpr std::int64_t kBatch = 2, kSeq = 61, kVocab = 256;

class Logits : public ::testing::Test {
 protected:
  Logits() {
    ids_ = Tensor::empty({kBatch, kSeq}, DType::i32);
    for (std::int64_t i = 0; i < ids_.numel(); ++i) {
      ids_.data<std::int32_t>()[i] = static_cast<std::int32_t>((i * i * 31 + i * 7 + 3) % kVocab);
    }
    write_input("in.safetensors", ids_);
  }
  void write_input(const std::string& name, const Tensor& ids, const char* tensor = "input_ids") {
    io::SafetensorsWriter writer(FileSystem::real(), scratch_ / name,
                                 {{tensor, ids.dtype(), ids.shape(), {}}});
    writer.write(tensor, ids);
    writer.finish();
  }
  CommandResult run(std::vector<std::string> more, const std::string& input = "in.safetensors") {
    std::vector<std::string> arguments = {
        "logits", "-m", kTiny, "--input", (scratch_ / input).string(), "--output", out().string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return hadal_command(arguments);
  }
  io::SafetensorsFile output(std::vector<std::string> more) {
    const CommandResult r = run(std::move(more));
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(r.out, "");
    EXPECT_EQ(r.err, "");
    return io::SafetensorsFile::open(out());
  }
  Path out() const { return scratch_ / "out.safetensors"; }

  ScratchDirectory scratch_{"files"};
  Tensor ids_;
};

bool same(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.bytes(), b.bytes(), a.nbytes()) == 0;
}

TEST_F(Logits, AreTheModels) {
  const LoadedModel loaded(kTiny);
  for (const Numerics numerics : {Numerics::official, Numerics::fp32}) {
    const Tensor logits = output({"--numerics", to_string(numerics)}).tensor("logits");
    ASSERT_EQ(logits.shape(), (Shape{kBatch, kSeq, kVocab}));
    ASSERT_EQ(logits.dtype(), DType::f32);
    for (std::int64_t b = 0; b < kBatch; ++b) {
      SequenceRun sequence(loaded, numerics);
      const std::vector<float> want = sequence.logits(ids_of(ids_, b));
      EXPECT_EQ(std::memcmp(logits.data<const float>() + b * kSeq * kVocab, want.data(),
                            want.size() * sizeof(float)),
                0)
          << to_string(numerics) << ", sequence " << b;
    }
  }
}

TEST_F(Logits, SayTheSameHoweverTheyAreComputed) {
  const std::vector<std::string> all = {"--hidden", "--mtp"};
  const io::SafetensorsFile first = output(all);
  ASSERT_EQ(first.entries().size(), 7u);
  for (std::int64_t l = 0; l < 5; ++l) {
    const auto* entry = first.find("hidden." + std::to_string(l));
    ASSERT_NE(entry, nullptr);
    EXPECT_EQ(entry->shape, (Shape{kBatch, kSeq, 4, 128}));
    EXPECT_EQ(entry->dtype, DType::f32);
  }
  EXPECT_EQ(first.find("mtp.logits")->shape, (Shape{kBatch, kSeq - 1, kVocab}));
  for (const std::vector<std::string>& how :
       {std::vector<std::string>{"--prefill", "0"},
        {"--prefill", "17"},
        {"--chunk", "9"},
        {"--packed"},
        {"--packed", "--prefill", "23", "--chunk", "5", "--threads", "1"}}) {
    std::vector<std::string> arguments = all;
    arguments.insert(arguments.end(), how.begin(), how.end());
    const io::SafetensorsFile other = output(arguments);
    for (const auto& entry : first.entries()) {
      EXPECT_TRUE(same(first.tensor(entry), other.tensor(entry.name)))
          << entry.name << " with " << how[0];
    }
  }
}

// hidden.<last> is what the head sees, and MTP row i belongs to tokens i and i + 1.
TEST_F(Logits, HiddenAndMtpRowsAreWhereTheyBelong) {
  const LoadedModel loaded(kTiny);
  const io::SafetensorsFile file = output({"--hidden", "--mtp"});
  const std::vector<TokenId> ids = ids_of(ids_, 1);
  SequenceRun run(loaded, Numerics::official);
  const Tensor streams = run.forward(ids);
  const std::vector<float> want = values(streams);
  EXPECT_EQ(std::memcmp(file.tensor("hidden.4").data<const float>() + want.size(), want.data(),
                        want.size() * sizeof(float)),
            0);
  model::TokenBatch batch;
  batch.add(std::span(ids).first(kSeq - 1), 0, run.slot());
  const Tensor drafted = loaded.model.mtp_forward(
      run.ctx(), 0, batch, run.kv(), streams.slice(0, kSeq - 1), std::span(ids).subspan(1));
  const std::int64_t last[] = {kSeq - 2};
  const std::vector<float> row = values(loaded.model.mtp_logits(run.ctx(), 0, drafted, last));
  const Tensor mtp = file.tensor("mtp.logits");
  EXPECT_EQ(std::memcmp(mtp.data<const float>() + mtp.numel() - kVocab, row.data(),
                        row.size() * sizeof(float)),
            0);
}

TEST_F(Logits, AcceptsI64) {
  const Tensor first = output({}).tensor("logits");
  Tensor wide = Tensor::empty({kBatch, kSeq}, DType::i64);
  for (std::int64_t i = 0; i < wide.numel(); ++i) {
    wide.data<std::int64_t>()[i] = ids_.data<std::int32_t>()[i];
  }
  write_input("wide.safetensors", wide);
  ASSERT_EQ(run({}, "wide.safetensors").status, 0);
  EXPECT_TRUE(same(first, io::SafetensorsFile::open(out()).tensor("logits")));
}

TEST_F(Logits, RefusesBadInput) {
  write_input("name.safetensors", ids_, "ids");
  expect_refusal(run({}, "name.safetensors"), "there is no tensor input_ids");
  write_input("flat.safetensors", ids_.reshape({kBatch * kSeq}));
  expect_refusal(run({}, "flat.safetensors"), "wanted [batch, seq] I32");
  write_input("empty.safetensors", Tensor::empty({2, 0}, DType::i32));
  expect_refusal(run({}, "empty.safetensors"), "holds no tokens");
  write_input("long.safetensors", Tensor::zeros({1, 1025}, DType::i32));
  expect_refusal(run({}, "long.safetensors"), "the model's context is 1024");
  Tensor outside = Tensor::zeros({1, 3}, DType::i32);
  outside.data<std::int32_t>()[2] = 256;
  write_input("outside.safetensors", outside);
  expect_refusal(run({}, "outside.safetensors"), "input_ids[0, 2] is 256, outside the vocabulary");
  expect_refusal(run({}, "missing.safetensors"), "missing.safetensors");
  EXPECT_FALSE(std::filesystem::exists(out()));
  EXPECT_FALSE(std::filesystem::exists(out().string() + ".partial"));

  const CommandResult plain =
      hadal_command({"logits", "-m", HADAL_TEST_DATA_DIR "/golden/hf-tiny", "-i",
                     (scratch_ / "in.safetensors").string(), "-o", out().string(), "--mtp"});
  expect_refusal(plain, "no MTP block");
  EXPECT_FALSE(std::filesystem::exists(out().string() + ".partial"));
  expect_refusal(hadal_command({"logits", "-m", HADAL_TEST_DATA_DIR "/golden/hf-tiny", "-i",
                                (scratch_ / "in.safetensors").string(), "-o", out().string()}),
                 "--numerics fp32");
}

TEST_F(Logits, UnwritableOutputIsSaid) {
  const CommandResult r =
      hadal_command({"logits", "-m", kTiny, "-i", (scratch_ / "in.safetensors").string(), "-o",
                     "/nowhere/out.safetensors"});
  expect_refusal(r, "/nowhere/out.safetensors");
}

}  // namespace
}  // namespace hadal::test
