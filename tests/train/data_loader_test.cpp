// Batches are the same however a run was cut into pieces, and hold every target of an epoch once.
#include "train/data_loader.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "core/error.h"
#include "data_fixture.h"

namespace hadal::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using train::Batch;
using train::BatchShape;
using train::DataLoader;
using train::MicroBatch;

class Loader : public ::testing::Test {
 protected:
  void SetUp() override {
    std::mt19937 random(11);
    std::vector<int> lengths;
    for (int d = 0; d < 60; ++d) lengths.push_back(1 + static_cast<int>(random() % 50));
    lengths.push_back(300);
    documents_ = numbered_documents(lengths, 5000);
    for (std::size_t d = 0; d < documents_.size(); d += 5) {
      for (std::size_t t = 0; t < documents_[d].tokens.size(); ++t) {
        documents_[d].loss.push_back(t % 16 > 10);
      }
    }
    write_data(scratch_.path(), documents_, {.vocab_size = 5000, .documents_per_shard = 13});
    data_.emplace(train::DataSet::open(scratch_.path()));
  }
  [[nodiscard]] const train::DocumentSet& set() const { return data_->split("train"); }

  // (document, token) of every target of the samples.
  void add_targets(const Batch& batch, std::multiset<std::pair<std::int64_t, std::int64_t>>& seen) {
    for (const auto& sample : batch.samples) {
      for (const auto& piece : sample.pieces) {
        for (std::int64_t t = piece.begin + 1; t <= piece.begin + piece.n_tokens; ++t) {
          if (set().has_loss(piece.document, t)) seen.emplace(piece.document, t);
        }
      }
    }
  }
  void expect_every_target(const std::multiset<std::pair<std::int64_t, std::int64_t>>& seen,
                           std::size_t times) {
    std::multiset<std::pair<std::int64_t, std::int64_t>> wanted;
    for (std::int64_t d = 0; d < set().n_documents(); ++d) {
      for (std::int64_t t = 1; t < set().n_tokens(d); ++t) {
        if (!set().has_loss(d, t)) continue;
        for (std::size_t i = 0; i < times; ++i) wanted.emplace(d, t);
      }
    }
    EXPECT_EQ(seen, wanted);
  }

  const ScratchDirectory scratch_{"data"};
  std::vector<train::TokenDocument> documents_;
  std::optional<train::DataSet> data_;
};

bool same(const Batch& a, const Batch& b) {
  if (a.samples.size() != b.samples.size() || a.epoch != b.epoch || a.n_targets != b.n_targets) {
    return false;
  }
  return std::ranges::equal(a.samples, b.samples, {}, &train::Sample::pieces,
                            &train::Sample::pieces);
}

TEST_F(Loader, AnEpochHoldsEveryTargetOnce) {
  for (const bool shuffle : {true, false}) {
    for (const std::int64_t window : {7, 1000}) {
      DataLoader loader(
          set(), {.seed = 3, .shuffle = shuffle, .max_epochs = 2, .window_documents = window});
      std::multiset<std::pair<std::int64_t, std::int64_t>> seen;
      std::int64_t n_targets = 0;
      for (;;) {
        const Batch batch = loader.next({.sequence_length = 32, .batch_tokens = 128});
        if (batch.samples.empty()) break;
        add_targets(batch, seen);
        n_targets += batch.n_targets;
      }
      expect_every_target(seen, 2);
      EXPECT_EQ(n_targets, std::ssize(seen));
      EXPECT_EQ(loader.state().n_targets, n_targets);
    }
  }
}

TEST_F(Loader, NoRowIsLongerThanAsked) {
  DataLoader loader(set(), {.seed = 1, .alignment = 4});
  for (int step = 0; step < 30; ++step) {
    const Batch batch = loader.next({.sequence_length = 32, .batch_tokens = 96});
    ASSERT_EQ(batch.samples.size(), 3U);
    for (const auto& sample : batch.samples) {
      EXPECT_LE(loader.load(std::span(&sample, 1)).tokens.n_tokens(), 32);
      EXPECT_GT(sample.n_targets, 0);
    }
  }
}

TEST_F(Loader, EpochsAndSeedsDifferInOrder) {
  const auto documents_of = [&](std::uint64_t seed, int skip) {
    DataLoader loader(set(), {.seed = seed});
    for (int i = 0; i < skip; ++i) (void)loader.next({32, 32});
    std::vector<std::int64_t> out;
    for (int i = 0; i < 10; ++i) {
      const Batch batch = loader.next({32, 32});
      for (const auto& piece : batch.samples[0].pieces) out.push_back(piece.document);
    }
    return out;
  };
  EXPECT_EQ(documents_of(1, 0), documents_of(1, 0));
  EXPECT_NE(documents_of(1, 0), documents_of(2, 0));
  DataLoader loader(set(), {.seed = 1});
  int n = 0;
  while (loader.next({32, 32}).epoch == 0) ++n;
  EXPECT_NE(documents_of(1, 0), documents_of(1, n));
}

// Stages of another length and batch in the middle of windows and epochs.
BatchShape shape_of(int step) {
  if (step < 9) return {16, 64};
  if (step < 20) return {32, 64};
  if (step < 23) return {8, 64};
  return {64, 256};
}

TEST_F(Loader, GoesOnAtAnyStepAsIfItHadNotStopped) {
  const train::LoaderOptions options{.seed = 5, .alignment = 4, .window_documents = 25};
  std::vector<Batch> batches;
  std::vector<train::LoaderState> states;
  DataLoader whole(set(), options);
  for (int step = 0; step < 60; ++step) {
    states.push_back(whole.state());
    batches.push_back(whole.next(shape_of(step)));
  }
  EXPECT_GT(batches.back().epoch, 1);
  for (int stop = 0; stop < 60; ++stop) {
    DataLoader loader(set(), options);
    const auto& state = states[static_cast<std::size_t>(stop)];
    const std::string json = to_json(state);
    EXPECT_LT(json.size(), 1000U);
    const train::LoaderState read = train::parse_loader_state(json, "state");
    EXPECT_EQ(read, state);
    loader.restore(read);
    for (int step = stop; step < std::min(stop + 12, 60); ++step) {
      ASSERT_TRUE(same(loader.next(shape_of(step)), batches[static_cast<std::size_t>(step)]))
          << "stopped before " << stop << ", step " << step;
    }
  }
}

TEST_F(Loader, AChangeOfLengthLosesAndRepeatsNothing) {
  DataLoader loader(set(), {.seed = 5, .max_epochs = 1, .window_documents = 25});
  std::multiset<std::pair<std::int64_t, std::int64_t>> seen;
  for (int step = 0;; ++step) {
    const Batch batch = loader.next(shape_of(step * 3));
    if (batch.samples.empty()) break;
    add_targets(batch, seen);
  }
  expect_every_target(seen, 1);
}

TEST_F(Loader, RanksTakeDisjointPartsOfTheSameBatch) {
  DataLoader loader(set(), {.seed = 5});
  const Batch batch = loader.next({16, 16 * 7});
  for (const std::int64_t n_ranks : {1, 2, 3, 7, 9}) {
    std::vector<const train::Sample*> all;
    std::size_t least = 100, most = 0;
    for (std::int64_t r = 0; r < n_ranks; ++r) {
      const auto part = batch.part({.index = r, .n = n_ranks});
      for (const auto& sample : part) all.push_back(&sample);
      least = std::min(least, part.size());
      most = std::max(most, part.size());
    }
    ASSERT_EQ(all.size(), 7U);
    for (std::size_t i = 0; i < 7; ++i) EXPECT_EQ(all[i], &batch.samples[i]);
    EXPECT_LE(most - least, 1U);
  }
}

TEST_F(Loader, GivesTheModelTokensTargetsAndSequences) {
  const ScratchDirectory scratch("small");
  auto documents = numbered_documents({6, 4, 12});
  documents[1].loss = {false, false, true, true};
  write_data(scratch.path(), documents);
  const auto data = train::DataSet::open(scratch.path());
  DataLoader loader(data.split("train"),
                    {.shuffle = false, .alignment = 4, .max_epochs = 1, .pad_token = 999});
  // Document 2 is cut into 8 + 3 inputs; 5 (padded to 8) has a row of its own, 3 + 1 and 3 share
  // one.
  const Batch batch = loader.next({8, 32});
  ASSERT_EQ(batch.samples.size(), 3U);
  EXPECT_EQ(batch.n_inputs, 8 + 5 + 3 + 3);
  EXPECT_EQ(batch.n_targets, 8 + 5 + 2 + 3);
  const MicroBatch micro = loader.load(batch.samples);
  EXPECT_THAT(micro.tokens.token_ids, ElementsAre(200, 201, 202, 203, 204, 205, 206, 207,  //
                                                  0, 1, 2, 3, 4,                           //
                                                  100, 101, 102, 999, 208, 209, 210));
  EXPECT_THAT(micro.targets, ElementsAre(201, 202, 203, 204, 205, 206, 207, 208,  //
                                         1, 2, 3, 4, 5,                           //
                                         -1, 102, 103, -1, 209, 210, 211));
  EXPECT_THAT(micro.tokens.positions,
              ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2));
  ASSERT_EQ(micro.tokens.sequences.size(), 4U);
  for (std::size_t s = 0; s < 4; ++s) {
    EXPECT_EQ(micro.tokens.sequences[s].slot, static_cast<std::int64_t>(s));
    EXPECT_EQ(micro.tokens.sequences[s].start, 0);
  }
  EXPECT_EQ(micro.tokens.sequences[2].begin, 13);
  EXPECT_EQ(micro.tokens.sequences[2].end, 17);
  EXPECT_THAT(micro.n_padding, ElementsAre(0, 0, 1, 0));
  EXPECT_EQ(micro.n_targets, batch.n_targets);
}

TEST_F(Loader, PiecesWithoutATargetAreLeftOut) {
  const ScratchDirectory scratch("masked");
  auto documents = numbered_documents({33});
  documents[0].loss.assign(33, false);
  documents[0].loss[20] = true;
  write_data(scratch.path(), documents);
  const auto data = train::DataSet::open(scratch.path());
  DataLoader loader(data.split("train"), {.max_epochs = 1});
  const Batch batch = loader.next({8, 64});
  ASSERT_EQ(batch.samples.size(), 1U);  // of four
  EXPECT_THAT(batch.samples[0].pieces, ElementsAre(train::Piece{0, 16, 8}));
  EXPECT_TRUE(loader.next({8, 64}).samples.empty());
}

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::invalid_argument) << error.what();
    return error.what();
  }
  return "nothing was thrown";
}

TEST_F(Loader, RefusesShapesThatCannotBe) {
  DataLoader loader(set(), {.alignment = 4});
  EXPECT_THAT(refusal([&] { (void)loader.next({30, 60}); }), HasSubstr("alignment 4"));
  EXPECT_THAT(refusal([&] { (void)loader.next({32, 80}); }), HasSubstr("no multiple"));
  EXPECT_THAT(refusal([&] { (void)loader.next({32, 0}); }), HasSubstr("no multiple"));
  EXPECT_THAT(refusal([&] { const DataLoader bad(set(), {.alignment = 0}); }),
              HasSubstr("positive"));
}

TEST_F(Loader, RefusesDataWithNothingToLearn) {
  const ScratchDirectory scratch("masked");
  auto documents = numbered_documents({1, 1, 9});
  documents[2].loss.assign(9, false);
  documents[2].loss[0] = true;  // is nobody's target
  write_data(scratch.path(), documents);
  const auto data = train::DataSet::open(scratch.path());
  EXPECT_THAT(refusal([&] { const DataLoader loader(data.split("train"), {}); }),
              HasSubstr("no token to predict"));
}

TEST_F(Loader, RefusesTheStateOfAnotherRun) {
  DataLoader loader(set(), {.seed = 1});
  (void)loader.next({16, 64});
  const train::LoaderState state = loader.state();
  DataLoader other(set(), {.seed = 2});
  EXPECT_THAT(refusal([&] { other.restore(state); }), HasSubstr("seed 1, this run 2"));
  train::LoaderState bad = state;
  bad.n_tokens += 1;
  EXPECT_THAT(refusal([&] { loader.restore(bad); }), HasSubstr("tokens"));
  bad = state;
  bad.windows.back().n_rows_taken = 100000;
  EXPECT_THAT(refusal([&] { loader.restore(bad); }), HasSubstr("taken 100000 rows"));
  bad = state;
  bad.windows.back().end = 1000;
  EXPECT_THAT(refusal([&] { loader.restore(bad); }), HasSubstr("no window of this data"));
  try {
    (void)train::parse_loader_state("{\"version\": 1, \"seed\": \"x\"}", "ckpt/loader.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("ckpt/loader.json"));
  }
}

}  // namespace
}  // namespace hadal::test
