// hadal export: from a run's directory to a model that the other subcommands take.
#include <nlohmann/json.hpp>

#include "command.h"
#include "io/tokenizer.h"
#include "train/checkpoint.h"
#include "train/initialise.h"

namespace hadal::test {
namespace {

using testing::HasSubstr;

// A run as hadal train leaves it, as far as hadal export looks.
class ExportCommand : public testing::Test {
 protected:
  ExportCommand() {
    model::Config config = model::load_config(kTiny);
    config.vocab_size = model::load_config(kBootstrap).vocab_size;
    ThreadPool pool(2);
    const train::ParameterStore store(config);
    train::initialise(pool, store, 1);
    train::CheckpointState state;
    state.model = config;
    for (const train::Parameter& p : store.parameters()) {
      state.trainer.tensors.push_back({p.info.name, p.value});
    }
    for (const std::int64_t step : {7, 12}) {
      state.trainer.progress.step = step;
      train::save_checkpoint(FileSystem::real(), scratch_ / "run/checkpoints", state);
    }
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
      std::filesystem::copy_file(Path(kBootstrap) / name, scratch_ / "run" / name);
    }
  }
  ScratchDirectory scratch_;
  const std::string run_ = (scratch_ / "run").string(), out_ = (scratch_ / "model").string();
};

TEST_F(ExportCommand, MakesAModelThatAnswers) {
  const CommandResult r = hadal_command({"export", run_, out_});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, HasSubstr(out_ + ": step 12 of " + run_ +
                               "/checkpoints/step-00000012, format published"));
  EXPECT_EQ(r.err, "");
  const CommandResult inspected = hadal_command({"inspect", out_});
  EXPECT_EQ(inspected.status, 0) << inspected.err;
  const CommandResult answer =
      hadal_command({"generate", "-m", out_, "-p", "Hello there", "-n", "3"});
  EXPECT_EQ(answer.status, 0) << answer.err;
}

TEST_F(ExportCommand, TakesAStepAndAFormat) {
  const CommandResult r = hadal_command(
      {"export", run_, out_, "--step", "7", "--format", "bf16", "--shard-size", "1MB"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, HasSubstr("step 7 of"));
  EXPECT_THAT(r.out, HasSubstr("format bf16"));
  const auto config = nlohmann::json::parse(read_text(Path(out_) / "config.json"));
  EXPECT_FALSE(config.contains("quantization_config"));
  expect_refusal(hadal_command({"export", run_, out_}), "--force to replace it");
  EXPECT_EQ(hadal_command({"export", run_, out_, "--force"}).status, 0);
}

TEST_F(ExportCommand, SkipsADamagedCheckpointAndSaysSo) {
  write_text(scratch_ / "run/checkpoints/step-00000012/state.json", "{}");
  const CommandResult r = hadal_command({"export", run_, out_});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, HasSubstr("step 7 of"));
  EXPECT_THAT(r.err, HasSubstr("step-00000012/state.json"));
}

TEST_F(ExportCommand, RefusesWithASentence) {
  expect_refusal(hadal_command({"export", (scratch_ / "none").string(), out_}),
                 "neither a training run with checkpoints nor a checkpoint");
  expect_refusal(hadal_command({"export", run_, out_, "--step", "8"}),
                 "has no checkpoint of step 8; there is: 7, 12");
  expect_refusal(hadal_command({"export", run_, out_, "--tokenizer", scratch_.path().string()}),
                 "tokenizer.json is missing");
  expect_usage_error(hadal_command({"export", run_, out_, "--format", "q4"}), "--format");
  expect_usage_error(hadal_command({"export", run_}), "OUT");
  EXPECT_FALSE(std::filesystem::exists(out_));
}

}  // namespace
}  // namespace hadal::test
