// A token's logits do not depend on what else is in the batch, on how the prompt was cut, or on
// whether it was prefilled or decoded: byte for byte, in both numerics.
#include <random>

#include "support/model_fixture.h"

namespace hadal::test {
namespace {

struct Case {
  const char* directory;
  Numerics numerics;
};

const LoadedModel& loaded(const char* directory) {
  static std::map<std::string, std::unique_ptr<LoadedModel>> models;
  auto& slot = models[directory];
  if (!slot) slot = std::make_unique<LoadedModel>(directory);
  return *slot;
}

class InvarianceTest : public testing::TestWithParam<Case> {
 protected:
  [[nodiscard]] const LoadedModel& model() const { return loaded(GetParam().directory); }
  [[nodiscard]] std::vector<TokenId> text(std::size_t n, std::uint32_t seed) const {
    std::mt19937 rng(seed);
    std::vector<TokenId> ids(n);
    for (TokenId& id : ids) {
      id = static_cast<TokenId>(rng() % static_cast<std::uint32_t>(model().config.vocab_size));
    }
    return ids;
  }
  [[nodiscard]] std::vector<float> in_one_piece(std::span<const TokenId> ids) const {
    SequenceRun run(model(), GetParam().numerics);
    return run.logits(ids);
  }
};

TEST_P(InvarianceTest, ChunkedPrefillAndDecodeEqualOneShot) {
  // Past the window and past several compressed windows of every ratio.
  const std::vector<TokenId> ids = text(150, 1);
  const std::vector<float> want = in_one_piece(ids);
  for (const std::size_t chunk : {1, 2, 3, 5, 7, 31, 32, 33, 64, 149}) {
    SequenceRun run(model(), GetParam().numerics);
    std::vector<float> got;
    for (std::size_t i = 0; i < ids.size(); i += chunk) {
      const std::vector<float> part =
          run.logits(std::span(ids).subspan(i, std::min(chunk, ids.size() - i)));
      got.insert(got.end(), part.begin(), part.end());
    }
    ASSERT_EQ(got, want) << "chunks of " << chunk;
  }
}

TEST_P(InvarianceTest, EverySplitInTwo) {
  const std::vector<TokenId> ids = text(70, 2);
  const std::vector<float> want = in_one_piece(ids);
  for (std::size_t cut = 1; cut < ids.size(); ++cut) {
    SequenceRun run(model(), GetParam().numerics);
    std::vector<float> got = run.logits(std::span(ids).first(cut));
    const std::vector<float> rest = run.logits(std::span(ids).subspan(cut));
    got.insert(got.end(), rest.begin(), rest.end());
    ASSERT_EQ(got, want) << "cut at " << cut;
  }
}

TEST_P(InvarianceTest, AloneEqualsPackedWithOthers) {
  const std::size_t lengths[] = {1, 37, 90, 5};
  TestContext t(GetParam().numerics);
  cache::PagedKv kv(model().config, {.numerics = GetParam().numerics});
  model::TokenBatch batch;
  std::vector<float> want;
  for (std::uint32_t i = 0; i < 4; ++i) {
    const std::vector<TokenId> ids = text(lengths[i], 10 + i);
    const std::vector<float> alone = in_one_piece(ids);
    want.insert(want.end(), alone.begin(), alone.end());
    batch.add(ids, 0, kv.open());
  }
  const Tensor streams = model().model.forward(t.ctx, batch, kv);
  std::vector<std::int64_t> rows(static_cast<std::size_t>(batch.n_tokens()));
  std::iota(rows.begin(), rows.end(), 0);
  EXPECT_EQ(values(model().model.logits(t.ctx, streams, rows)), want);

  // And all of them one token further, together.
  model::TokenBatch next;
  std::vector<float> want_next;
  for (std::uint32_t i = 0; i < 4; ++i) {
    std::vector<TokenId> ids = text(lengths[i], 10 + i);
    ids.push_back(static_cast<TokenId>(i));
    const std::vector<float> alone = in_one_piece(ids);
    want_next.insert(want_next.end(), alone.end() - model().config.vocab_size, alone.end());
    next.add(std::span(ids).last(1), static_cast<std::int64_t>(lengths[i]), i);
  }
  const std::int64_t four[] = {0, 1, 2, 3};
  const Tensor stepped = model().model.forward(t.ctx, next, kv);
  EXPECT_EQ(values(model().model.logits(t.ctx, stepped, four)), want_next);
}

TEST_P(InvarianceTest, ThreadsDoNotMatter) {
  const std::vector<TokenId> ids = text(60, 3);
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 2, 5}) {
    TestContext t(GetParam().numerics, threads);
    cache::PagedKv kv(model().config, {.numerics = GetParam().numerics});
    model::TokenBatch batch;
    batch.add(ids, 0, kv.open());
    results.push_back(values(model().model.forward(t.ctx, batch, kv)));
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

// Rejected drafts: run ahead with wrong tokens, go back, and continue as if nothing had happened.
TEST_P(InvarianceTest, ForgottenTokensLeaveNoTrace) {
  const std::vector<TokenId> ids = text(140, 4), wrong = text(140, 5);
  const std::vector<float> want = in_one_piece(ids);
  const auto vocab = static_cast<std::size_t>(model().config.vocab_size);
  for (const std::size_t n_wrong : {1, 3, 7}) {
    SequenceRun run(model(), GetParam().numerics, /*rollback_tokens=*/7);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::size_t n = std::min(n_wrong, ids.size() - i);
      (void)run.forward(std::span(wrong).subspan(i, n));
      run.rewind(static_cast<std::int64_t>(i));
      const std::vector<float> got = run.logits(std::span(ids).subspan(i, 1));
      const std::vector<float> row(want.begin() + static_cast<std::ptrdiff_t>(i * vocab),
                                   want.begin() + static_cast<std::ptrdiff_t>((i + 1) * vocab));
      ASSERT_EQ(got, row) << "position " << i << " after " << n_wrong << " wrong tokens";
    }
  }
}

// Causality: a changed token changes nothing before it.
TEST_P(InvarianceTest, TheFutureDoesNotLeakBack) {
  std::vector<TokenId> ids = text(100, 6);
  const std::vector<float> want = in_one_piece(ids);
  const auto vocab = static_cast<std::ptrdiff_t>(model().config.vocab_size);
  for (const std::ptrdiff_t p : {3, 4, 31, 32, 63, 64, 99}) {
    std::vector<TokenId> changed = ids;
    changed[static_cast<std::size_t>(p)] = (changed[static_cast<std::size_t>(p)] + 1) % 200;
    const std::vector<float> got = in_one_piece(changed);
    EXPECT_TRUE(std::equal(want.begin(), want.begin() + p * vocab, got.begin())) << p;
    EXPECT_FALSE(std::equal(want.begin() + p * vocab, want.end(), got.begin() + p * vocab)) << p;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, InvarianceTest,
    testing::Values(Case{HADAL_TEST_DATA_DIR "/golden/official-tiny", Numerics::official},
                    Case{HADAL_TEST_DATA_DIR "/golden/hf-tiny", Numerics::fp32}),
    [](const auto& param_info) { return std::string(to_string(param_info.param.numerics)); });

}  // namespace
}  // namespace hadal::test
