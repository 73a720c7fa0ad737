#include "train/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "core/error.h"
#include "io/safetensors.h"
#include "support/failing_file_system.h"
#include "support/fault_file_system.h"
#include "train/checkpoint_fixture.h"
#include "train/initialise.h"

namespace hadal::train {
namespace {

using test::holds_its_state;
using test::state_at;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

const Path kDirectory = "/run/checkpoints";

// Collects warnings.
struct Warnings {
  std::vector<std::string> sentences;
  Warn warn() {
    return [this](const std::string& s) { sentences.push_back(s); };
  }
};
Warn never() {
  return [](const std::string& s) { ADD_FAILURE() << s; };
}

std::string message_of(const std::function<void()>& action, ErrorCode code) {
  try {
    action();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, code) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

TEST(Checkpoint, ReturnsEveryBit) {
  test::FaultFileSystem fs;
  const CheckpointState saved = state_at(1200);
  const SaveReport report = save_checkpoint(fs, kDirectory, saved);
  EXPECT_EQ(report.directory, kDirectory / "step-00001200");
  const auto found = latest_checkpoint(fs, kDirectory, never());
  ASSERT_TRUE(found);
  EXPECT_EQ(found->step(), 1200);
  EXPECT_EQ(found->nbytes(), report.nbytes);
  const CheckpointState& state = found->state();
  EXPECT_EQ(state.trainer.progress, saved.trainer.progress);
  EXPECT_EQ(state.trainer.loader, saved.trainer.loader);
  EXPECT_EQ(state.trainer.spikes, saved.trainer.spikes);  // 5e-324, infinity and all
  EXPECT_EQ(state.trainer.anticipatory_steps, saved.trainer.anticipatory_steps);
  EXPECT_EQ(state.trainer.choices_ahead, saved.trainer.choices_ahead);
  EXPECT_EQ(state.trainer.in_warmup, saved.trainer.in_warmup);
  EXPECT_EQ(state.weight_format, saved.weight_format);
  EXPECT_EQ(state.identity, saved.identity);
  EXPECT_EQ(state.extra, saved.extra);
  EXPECT_TRUE(holds_its_state(*found));
}

TEST(Checkpoint, SplitsIntoFilesThatAnyoneCanRead) {
  const test::ScratchDirectory scratch;
  const CheckpointState state = state_at(5);
  const Path path =
      save_checkpoint(FileSystem::real(), scratch.path(), state, {.shard_bytes = 100}).directory;
  std::vector<std::string> names;
  for (const auto& entry : FileSystem::real().list(path)) names.push_back(entry.name);
  EXPECT_THAT(
      names, ElementsAre("config.json", "manifest.json", "state.json",
                         "tensors-00001-of-00003.safetensors", "tensors-00002-of-00003.safetensors",
                         "tensors-00003-of-00003.safetensors"));
  // A tensor larger than a file may be has its own: the first, and the last with nothing behind it.
  std::vector<std::string> in_order;
  for (int i = 1; i <= 3; ++i) {
    const auto file = io::SafetensorsFile::open(
        path / ("tensors-0000" + std::to_string(i) + "-of-00003.safetensors"));
    for (const auto& entry : file.entries()) {
      in_order.push_back(entry.name);
      const auto& t = state.trainer.tensors[in_order.size() - 1];
      EXPECT_EQ(t.name, entry.name);
      EXPECT_EQ(std::memcmp(file.tensor(entry).bytes(), t.tensor.bytes(), t.tensor.nbytes()), 0);
    }
  }
  EXPECT_THAT(in_order, SizeIs(state.trainer.tensors.size()));
  EXPECT_TRUE(holds_its_state(SavedCheckpoint::open(FileSystem::real(), path)));
}

TEST(Checkpoint, WritesTheSameBytesForTheSameState) {
  test::FaultFileSystem a, b;
  const Path path = save_checkpoint(a, kDirectory, state_at(7)).directory;
  save_checkpoint(b, kDirectory, state_at(7));
  for (const auto& entry : a.list(path)) {
    EXPECT_EQ(a.content(path / entry.name), b.content(path / entry.name)) << entry.name;
  }
}

TEST(Checkpoint, HashesWhatTheNextStepDependsOn) {
  const std::string hash = state_hash(state_at(3).trainer);
  EXPECT_EQ(hash.size(), 64u);
  EXPECT_EQ(hash, state_hash(state_at(3).trainer));
  const auto changed = [&](const std::function<void(TrainerState&)>& change) {
    TrainerState state = state_at(3).trainer;
    change(state);
    return state_hash(state);
  };
  EXPECT_NE(hash, changed([](auto& s) { s.tensors[2].tensor.bytes()[11] ^= std::byte{1}; }));
  EXPECT_NE(hash, changed([](auto& s) { s.tensors[4].name = "void"; }));
  EXPECT_NE(hash, changed([](auto& s) { std::swap(s.tensors[0], s.tensors[1]); }));
  EXPECT_NE(hash,
            changed([](auto& s) { s.tensors[0].tensor = s.tensors[0].tensor.reshape({5, 7}); }));
  EXPECT_NE(hash, changed([](auto& s) { ++s.loader.windows[0].n_rows_taken; }));
  EXPECT_NE(hash, changed([](auto& s) { s.spikes.log_losses[0] *= 1 + 1e-15; }));
  EXPECT_NE(hash, changed([](auto& s) { s.in_warmup = !s.in_warmup; }));
}

// --- which one is used ---

TEST(Checkpoint, LatestIsFoundByLooking) {
  test::FaultFileSystem fs;
  EXPECT_FALSE(latest_checkpoint(fs, kDirectory, never()));  // no directory
  EXPECT_THAT(checkpoint_steps(fs, kDirectory), IsEmpty());
  for (const std::int64_t step : {9, 100, 20}) save_checkpoint(fs, kDirectory, state_at(step));
  fs.create_directories(kDirectory / "step-00000400.partial");
  fs.create_directories(kDirectory / "step-500");
  fs.create_directories(kDirectory / "other");
  fs.set_content(kDirectory / "step-00000600", "a file");
  EXPECT_THAT(checkpoint_steps(fs, kDirectory), ElementsAre(9, 20, 100));
  EXPECT_EQ(latest_checkpoint(fs, kDirectory, never())->step(), 100);
  EXPECT_EQ(latest_checkpoint(fs, kDirectory, never(), 99)->step(), 20);
  EXPECT_FALSE(latest_checkpoint(fs, kDirectory, never(), 8));
}

TEST(Checkpoint, ADamagedOneIsSkippedAndNamed) {
  for (const std::string name :
       {"tensors-00001-of-00002.safetensors", "tensors-00002-of-00002.safetensors", "state.json",
        "config.json", "manifest.json"}) {
    for (const std::string damage : {"flip", "cut", "grow", "empty", "remove"}) {
      test::FaultFileSystem fs;
      const SaveOptions options{.shard_bytes = 200};
      save_checkpoint(fs, kDirectory, state_at(1), options);
      const Path file = save_checkpoint(fs, kDirectory, state_at(2), options).directory / name;
      std::string text = fs.content(file);
      if (damage == "flip") text[text.size() / 2] ^= 4;
      if (damage == "cut") text.resize(text.size() - 1 - text.size() / 3);
      if (damage == "grow") text += "}";
      if (damage == "empty") text.clear();
      fs.set_content(file, text);
      if (damage == "remove") {
        EXPECT_TRUE(fs.remove(file));
      }

      Warnings warnings;
      const auto found = latest_checkpoint(fs, kDirectory, warnings.warn());
      ASSERT_TRUE(found);
      EXPECT_EQ(found->step(), 1) << name << " " << damage;
      EXPECT_TRUE(holds_its_state(*found));
      ASSERT_THAT(warnings.sentences, SizeIs(1));
      EXPECT_THAT(warnings.sentences[0], HasSubstr("skipped"));
      // A flipped bit in the manifest may blame the file whose digest it changed.
      if (name != "manifest.json" || damage != "flip") {
        EXPECT_THAT(warnings.sentences[0], HasSubstr("step-00000002/" + name)) << damage;
      }
    }
  }
}

// Whatever bit of the manifest is wrong: either it is noticed, or what is loaded is right.
TEST(Checkpoint, NoBitOfTheManifestMisleads) {
  test::FaultFileSystem fs;
  const Path path = save_checkpoint(fs, kDirectory, state_at(2)).directory;
  const std::string manifest = fs.content(path / "manifest.json");
  int n_noticed = 0;
  for (std::size_t i = 0; i < manifest.size(); ++i) {
    std::string text = manifest;
    text[i] = static_cast<char>(text[i] ^ (1 << (i % 7)));
    fs.set_content(path / "manifest.json", text);
    try {
      EXPECT_TRUE(holds_its_state(SavedCheckpoint::open(fs, path))) << i;
    } catch (const Error&) {
      ++n_noticed;
    }
  }
  EXPECT_GT(n_noticed, static_cast<int>(manifest.size()) * 2 / 3);  // the rest is white space
}

TEST(Checkpoint, NoneWholeIsAnErrorNotANewBeginning) {
  test::FaultFileSystem fs;
  for (const int step : {1, 2}) {
    const Path path = save_checkpoint(fs, kDirectory, state_at(step)).directory;
    fs.set_content(path / "state.json", "{}");
  }
  Warnings warnings;
  const std::string message = message_of(
      [&] { (void)latest_checkpoint(fs, kDirectory, warnings.warn()); }, ErrorCode::corrupt_data);
  EXPECT_THAT(message, HasSubstr("none of 2 checkpoints is whole"));
  EXPECT_THAT(warnings.sentences, SizeIs(2));
}

TEST(Checkpoint, ANewerVersionIsNotPassedOver) {
  test::FaultFileSystem fs;
  save_checkpoint(fs, kDirectory, state_at(1));
  const Path file = save_checkpoint(fs, kDirectory, state_at(2)).directory / "manifest.json";
  std::string text = fs.content(file);
  text.replace(text.find("\"version\": 1"), 12, "\"version\": 2");
  fs.set_content(file, text);
  EXPECT_THAT(
      message_of([&] { (void)latest_checkpoint(fs, kDirectory, never()); }, ErrorCode::unsupported),
      HasSubstr("version is 2; this hadal reads version 1"));
}

// A directory renamed by hand is of the step that it was saved at.
TEST(Checkpoint, AStrangersStepIsRefused) {
  test::FaultFileSystem fs;
  fs.rename(save_checkpoint(fs, kDirectory, state_at(1)).directory, kDirectory / "step-00000009");
  Warnings warnings;
  EXPECT_THROW((void)latest_checkpoint(fs, kDirectory, warnings.warn()), Error);
  EXPECT_THAT(warnings.sentences, ElementsAre(HasSubstr("holds the checkpoint of step 1")));
}

// --- what it may be loaded into ---

TEST(Checkpoint, AnotherConfigIsRefusedWithTheDifference) {
  test::FaultFileSystem fs;
  const auto saved =
      SavedCheckpoint::open(fs, save_checkpoint(fs, kDirectory, state_at(1)).directory);
  EXPECT_NO_THROW(saved.expect_identity({{"model.hidden_size", "32"}, {"data.seed", "1"}}));
  const auto refusal = [&](const RunIdentity& identity) {
    return message_of([&] { saved.expect_identity(identity); }, ErrorCode::invalid_argument);
  };
  EXPECT_THAT(refusal({{"model.hidden_size", "64"}, {"data.seed", "1"}}),
              HasSubstr("model.hidden_size is 32 in the checkpoint and 64 in the config; go on"));
  EXPECT_THAT(refusal({{"model.hidden_size", "64"}}), HasSubstr("; so do data.seed"));
  EXPECT_THAT(
      refusal({{"model.hidden_size", "32"}, {"data.seed", "1"}, {"model.swiglu_limit", "10"}}),
      HasSubstr("model.swiglu_limit is absent in the checkpoint and 10 in the config"));
}

TEST(Checkpoint, IdentityIsWhatMayNotChange) {
  RunConfig config;
  config.model = test::small_config();
  const DataManifest data{.vocab_size = 90};
  const RunIdentity identity = run_identity(config, data);
  const auto key_of_change = [&](const std::function<void(RunConfig&)>& change) {
    RunConfig other = config;
    change(other);
    std::vector<std::string> keys;
    for (const auto& [key, value] : run_identity(other, data)) {
      if (!identity.contains(key) || identity.at(key) != value) keys.push_back(key);
    }
    return keys;
  };
  EXPECT_THAT(key_of_change([](auto& c) { c.model.hidden_size = 48; }),
              ElementsAre("model.hidden_size"));
  EXPECT_THAT(key_of_change([](auto& c) { c.model.compress_ratios[1] = 8; }),
              ElementsAre("model.compress_ratios"));
  EXPECT_THAT(key_of_change([](auto& c) { c.seed = 2; }), ElementsAre("data.seed"));
  EXPECT_THAT(key_of_change([](auto& c) { c.groups.split_heads = true; }),
              ElementsAre("muon.split_heads"));
  EXPECT_THAT(key_of_change([](auto& c) { c.model.expert_dtype = model::ExpertDType::fp4; }),
              IsEmpty());
  EXPECT_THAT(key_of_change([](auto& c) { c.schedule.lr.peak = 1; }), IsEmpty());
  EXPECT_NE(run_identity(config, {.vocab_size = 91}), identity);
}

TEST(Checkpoint, TensorsMustBeThoseOfTheRun) {
  test::FaultFileSystem fs;
  const CheckpointState state = state_at(1);
  const auto saved = SavedCheckpoint::open(fs, save_checkpoint(fs, kDirectory, state).directory);
  const auto refusal = [&](const std::function<void(std::vector<NamedTensor>&)>& change) {
    std::vector<NamedTensor> room = test::room_for(state);
    change(room);
    return message_of([&] { saved.read(room); }, ErrorCode::corrupt_data);
  };
  EXPECT_THAT(refusal([](auto& room) { room.pop_back(); }),
              HasSubstr("wq_b.weight:0-4 in tensors-00001-of-00001.safetensors is nothing that"));
  EXPECT_THAT(refusal([](auto& room) { room.push_back({"more", Tensor::zeros({1}, DType::f32)}); }),
              HasSubstr("more is missing (1 of 7 tensors are)"));
  EXPECT_THAT(refusal([](auto& room) { room[2].tensor = Tensor::zeros({4}, DType::f32); }),
              HasSubstr("layers.0.attn.sinks is f32 [3], this run has f32 [4]"));
  EXPECT_THAT(refusal([](auto& room) { room[2].tensor = Tensor::zeros({3}, DType::i32); }),
              HasSubstr("is f32 [3], this run has i32 [3]"));
}

TEST(Checkpoint, WeightsCanBeReadAlone) {
  test::FaultFileSystem fs;
  ThreadPool pool(1);
  const ParameterStore store(test::small_config()), other(test::small_config());
  initialise(pool, store, 1);
  CheckpointState state = state_at(1);
  state.trainer.tensors.clear();
  for (const Parameter& p : store.parameters()) {
    state.trainer.tensors.push_back({p.info.name, p.value});
  }
  state.trainer.tensors.push_back({"adamw.steps", Tensor::zeros({1}, DType::i64)});
  const auto saved = SavedCheckpoint::open(
      fs, save_checkpoint(fs, kDirectory, state, {.shard_bytes = 10'000}).directory);
  saved.read_weights(other);
  for (std::size_t i = 0; i < store.parameters().size(); ++i) {
    const Tensor &a = store.parameters()[i].value, &b = other.parameters()[i].value;
    EXPECT_EQ(std::memcmp(a.bytes(), b.bytes(), a.nbytes()), 0);
  }
}

// --- what is kept ---

TEST(Checkpoint, KeepsTheLastOnes) {
  test::FaultFileSystem fs;
  std::int64_t n_removed = 0;
  for (std::int64_t step = 1; step <= 9; ++step) {
    const SaveReport report =
        save_checkpoint(fs, kDirectory, state_at(step), {.keep = 2, .keep_every = 4});
    EXPECT_THAT(report.warnings, IsEmpty());
    n_removed += report.n_removed;
  }
  EXPECT_THAT(checkpoint_steps(fs, kDirectory), ElementsAre(4, 8, 9));
  EXPECT_EQ(n_removed, 6);
  save_checkpoint(fs, kDirectory, state_at(10), {.keep = 0});
  EXPECT_THAT(checkpoint_steps(fs, kDirectory), ElementsAre(4, 8, 9, 10));
  EXPECT_THAT(fs.list(kDirectory), SizeIs(4));
}

TEST(Checkpoint, OneOfTheSameStepIsReplaced) {
  test::FaultFileSystem fs;
  CheckpointState state = state_at(3);
  state.extra["path"] = "that was left";
  save_checkpoint(fs, kDirectory, state);
  save_checkpoint(fs, kDirectory, state_at(3));
  EXPECT_TRUE(holds_its_state(*latest_checkpoint(fs, kDirectory, never())));
  EXPECT_THAT(fs.list(kDirectory), SizeIs(1));
}

TEST(Checkpoint, ThoseOfAPathThatWasLeftCanBeTakenBack) {
  test::FaultFileSystem fs;
  for (const std::int64_t step : {10, 20, 30}) save_checkpoint(fs, kDirectory, state_at(step));
  EXPECT_EQ(remove_checkpoints_after(fs, kDirectory, 19), 2);
  EXPECT_THAT(checkpoint_steps(fs, kDirectory), ElementsAre(10));
  EXPECT_EQ(remove_checkpoints_after(fs, kDirectory, 19), 0);
}

TEST(Checkpoint, LeftoversOfAKilledRunGo) {
  test::FaultFileSystem fs;
  fs.create_directories(kDirectory / "step-00000001.partial");
  fs.set_content(kDirectory / "step-00000001.partial" / "tensors-00001-of-00002.safetensors", "x");
  save_checkpoint(fs, kDirectory, state_at(2));
  EXPECT_THAT(fs.list(kDirectory), SizeIs(1));
}

}  // namespace
}  // namespace hadal::train
