// A sequence that continues from saved bytes, shared pages or a replay yields the logits of one
// that was never interrupted: byte for byte, in both numerics, with the draft block's rows.
#include <cstring>
#include <map>
#include <random>

#include "cache/disk_store.h"
#include "cache/prefix_cache.h"
#include "support/fault_file_system.h"
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

class RestartTest : public testing::TestWithParam<Case> {
 protected:
  RestartTest() : model_(loaded(GetParam().directory)), t_(GetParam().numerics) {
    make_ids(200, 17);
  }

  [[nodiscard]] std::unique_ptr<cache::PagedKv> make_kv(std::int64_t rollback = 0) const {
    return std::make_unique<cache::PagedKv>(
        model_.config,
        cache::PagedKvOptions{
            .numerics = GetParam().numerics, .rollback_tokens = rollback, .page_tokens = 32});
  }

  // Runs ids_[begin, end), the draft block too, and returns the logits of both for every position
  // (the draft block's up to end - 1: it needs the next token).
  std::vector<float> run(cache::PagedKv& kv, std::int64_t slot, std::int64_t begin,
                         std::int64_t end) {
    if (begin == end) return {};
    const auto ids = [&](std::int64_t from, std::int64_t to) {
      return std::span(ids_).subspan(static_cast<std::size_t>(from),
                                     static_cast<std::size_t>(to - from));
    };
    std::vector<std::int64_t> rows(static_cast<std::size_t>(end - begin));
    std::iota(rows.begin(), rows.end(), 0);
    model::TokenBatch batch;
    batch.add(ids(begin, end), begin, slot);
    const Tensor streams = model_.model.forward(t_.ctx, batch, kv);
    std::vector<float> out = values(model_.model.logits(t_.ctx, streams, rows));
    if (model_.model.n_mtp() > 0) {
      const Tensor drafted =
          model_.model.mtp_forward(t_.ctx, 0, batch, kv, streams, ids(begin + 1, end + 1));
      const std::vector<float> more = values(model_.model.mtp_logits(t_.ctx, 0, drafted, rows));
      out.insert(out.end(), more.begin(), more.end());
    }
    return out;
  }

  void make_ids(std::int64_t n, std::uint32_t seed) {
    std::mt19937 rng(seed);
    ids_.resize(static_cast<std::size_t>(n));
    for (TokenId& id : ids_) {
      id = static_cast<TokenId>(rng() % static_cast<std::uint32_t>(model_.config.vocab_size));
    }
  }

  const LoadedModel& model_;
  TestContext t_;
  std::vector<TokenId> ids_;
};

TEST_P(RestartTest, ContinuesFromAnyPositionAsIfNothingHadHappened) {
  const std::int64_t end = 190;
  for (const std::int64_t p :
       {1, 2, 3, 4, 5, 7, 8, 15, 31, 32, 33, 63, 64, 65, 96, 101, 127, 128}) {
    auto kv = make_kv(/*rollback=*/3);
    const std::int64_t slot = kv->open();
    (void)run(*kv, slot, 0, p);
    const std::vector<std::byte> state = kv->save_state(slot, p);
    EXPECT_EQ(state.size(), kv->saved_state_bytes(p));
    // Pages that are not full are copied, as a preempted sequence's would be.
    auto other = make_kv(/*rollback=*/0);
    const std::int64_t fresh = other->open();
    ASSERT_TRUE(other->reserve(fresh, p));
    for (std::size_t i = 0; i < kv->pages(slot).size(); ++i) {
      std::memcpy(other->pages(fresh)[i]->bytes(), kv->pages(slot)[i]->bytes(), kv->page_bytes());
    }
    other->restore_state(fresh, p, state);
    EXPECT_EQ(other->save_state(fresh, p), state);
    ASSERT_EQ(run(*other, fresh, p, end), run(*kv, slot, p, end)) << "at " << p;
  }
}

TEST_P(RestartTest, SharedPagesAndASnapshotAreAllItTakes) {
  auto kv = make_kv(2);
  const std::int64_t page = kv->page_tokens(), p = 3 * page;
  const std::int64_t slot = kv->open();
  (void)run(*kv, slot, 0, p);
  const std::vector<std::byte> state = kv->save_state(slot, p);
  const std::vector<float> want = run(*kv, slot, p, 190);
  const std::int64_t used = kv->n_pages_used();
  const std::int64_t fresh = kv->open();
  kv->adopt(fresh, kv->pages(slot).first(3));
  EXPECT_EQ(kv->n_pages_used(), used);
  kv->restore_state(fresh, p, state);
  ASSERT_EQ(run(*kv, fresh, p, 190), want);
}

// A saved position may lie before the newest one, as far as the rings reach.
TEST_P(RestartTest, SavesThePositionBeforeRejectedTokens) {
  auto kv = make_kv(5);
  const std::int64_t slot = kv->open(), p = kv->page_tokens() * 2;
  (void)run(*kv, slot, 0, p);
  const std::vector<std::byte> want = kv->save_state(slot, p);
  (void)run(*kv, slot, p, p + 5);
  EXPECT_EQ(kv->save_state(slot, p), want);
}

// Frozen pages: running their tokens again, window rows missing, must not write into them.
TEST_P(RestartTest, AReplayOverSharedPagesNeverWritesThem) {
  auto kv = make_kv();
  const std::int64_t page = kv->page_tokens(), slot = kv->open();
  (void)run(*kv, slot, 0, 5 * page);
  std::vector<std::vector<std::byte>> before;
  for (const cache::PageRef& shared : kv->pages(slot)) {
    before.emplace_back(shared->bytes(), shared->bytes() + shared->nbytes());
  }
  const std::int64_t fresh = kv->open();
  kv->adopt(fresh, kv->pages(slot));
  (void)run(*kv, fresh, 2 * page, 5 * page);  // from an empty state: rows are not exact at once
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(std::equal(before[i].begin(), before[i].end(), kv->pages(slot)[i]->bytes())) << i;
  }
}

// The window rows of a position depend on `sliding_window` positions a layer. Replaying that many
// tokens over valid pages, from an empty state, makes every row exact again.
// Source: DeepSeek-V4 §3.5.2, zero SWA caching.
TEST_P(RestartTest, AReplayOfWindowTimesLayersIsExact) {
  auto kv = make_kv();
  const std::int64_t page = kv->page_tokens();
  const std::int64_t replay = kv->sliding_window() * kv->n_layers();
  const std::int64_t q = (replay + 2 * page) / page * page, end = q + 40;
  make_ids(end + 1, 5);
  const std::int64_t slot = kv->open();
  for (std::int64_t p = 0; p < q; p += page) (void)run(*kv, slot, p, p + page);
  const std::vector<std::byte> want_state = kv->save_state(slot, q);
  const std::vector<float> want = run(*kv, slot, q, end);

  const std::int64_t begin = (q - replay) / page * page;
  ASSERT_GT(begin, 0);
  const std::int64_t fresh = kv->open();
  kv->adopt(fresh, kv->pages(slot).first(static_cast<std::size_t>(q / page)));
  for (std::int64_t p = begin; p < q; p += page) (void)run(*kv, fresh, p, p + page);
  EXPECT_TRUE(kv->save_state(fresh, q) == want_state);
  EXPECT_EQ(run(*kv, fresh, q, end), want);

  // One window less per layer is not enough; were it, this test would prove nothing.
  const std::int64_t hasty = kv->open();
  kv->adopt(hasty, kv->pages(slot).first(static_cast<std::size_t>(q / page)));
  (void)run(*kv, hasty, q - page, q);
  EXPECT_FALSE(kv->save_state(hasty, q) == want_state);
}

// Whatever is stored of windows, a prompt that another process has read continues as if this one
// had.
TEST_P(RestartTest, EveryStrategyOnDiskGivesTheSameLogits) {
  const cache::KvLayout layout(model_.config, GetParam().numerics, 32, 0);
  const std::int64_t page = layout.page_tokens;
  const std::int64_t replay = layout.window_rows * static_cast<std::int64_t>(layout.layers.size());
  const std::int64_t n = (replay + 4 * page) / page * page + 9;
  make_ids(n + 1, 23);
  const std::span<const TokenId> prompt = std::span(ids_).first(static_cast<std::size_t>(n));
  std::vector<float> want;
  {
    auto kv = make_kv();
    const std::int64_t slot = kv->open();
    (void)run(*kv, slot, 0, n - 9);
    want = run(*kv, slot, n - 9, n);
  }
  for (const auto strategy : {cache::WindowStrategy::full, cache::WindowStrategy::periodic,
                              cache::WindowStrategy::zero}) {
    SCOPED_TRACE(to_string(strategy));
    FaultFileSystem fs;
    const cache::DiskStoreOptions options{
        .fingerprint = GetParam().directory, .strategy = strategy, .min_free_bytes = 0};
    const std::int64_t interval = cache::snapshot_interval(strategy, page, 3 * page);
    {
      auto kv = make_kv();
      cache::DiskStore disk(fs, "/kv", layout, options);
      cache::PrefixCache prefixes(*kv, {.verify_rows = true}, &disk);
      const std::int64_t slot = kv->open();
      for (std::int64_t p = 0; p + page <= n; p += page) {
        (void)run(*kv, slot, p, p + page);
        if (interval > 0 && (p + page) % interval == 0) {
          prefixes.insert_snapshot("", prompt, p + page, slot);
        }
      }
      prefixes.insert("", prompt, slot);
      prefixes.flush();
    }
    fs.power_loss();
    auto kv = make_kv(/*rollback=*/2);
    cache::DiskStore disk(fs, "/kv", layout, options);
    cache::PrefixCache prefixes(
        *kv, {.replay = strategy == cache::WindowStrategy::zero, .verify_rows = true}, &disk);
    const cache::PrefixCache::Hit hit = prefixes.find("", prompt);
    const std::int64_t end = n / page * page;
    EXPECT_EQ(hit.position,
              strategy == cache::WindowStrategy::periodic ? end / interval * interval : end);
    EXPECT_EQ(hit.snapshot == nullptr, strategy == cache::WindowStrategy::zero);
    const std::int64_t slot = kv->open();
    kv->adopt(slot, hit.pages);
    if (hit.snapshot != nullptr) kv->restore_state(slot, hit.position, hit.snapshot->state);
    for (std::int64_t p = hit.replay_from; p < end; p += page) (void)run(*kv, slot, p, p + page);
    EXPECT_EQ(run(*kv, slot, n - 9, n), want);
    // What is kept of it later is as good as the first time.
    prefixes.insert_snapshot("", prompt, end, slot);
    EXPECT_EQ(prefixes.statistics().stale_rows, 0U);
    EXPECT_EQ(prefixes.find("", prompt).position, end);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, RestartTest,
    testing::Values(Case{HADAL_TEST_DATA_DIR "/golden/official-tiny", Numerics::official},
                    Case{HADAL_TEST_DATA_DIR "/golden/hf-tiny", Numerics::fp32}),
    [](const auto& param_info) { return std::string(to_string(param_info.param.numerics)); });

}  // namespace
}  // namespace hadal::test
