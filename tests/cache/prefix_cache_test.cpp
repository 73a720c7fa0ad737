#include "cache/prefix_cache.h"

#include <gmock/gmock.h>

#include "cache/fake_text.h"

namespace hadal::cache {
namespace {

using test::expect_true_to;
using test::remember;
using test::run_text;
using test::snapshot_of;
using test::Text;
using test::text_of;

constexpr std::int64_t kPage = 32;

class PrefixCacheTest : public testing::Test {
 protected:
  PrefixCacheTest() : kv_(test::tiny_config(), {.page_tokens = kPage}) {}
  [[nodiscard]] PrefixCache make_cache(PrefixCacheOptions options = {}) {
    options.now = [this] { return now_; };
    return {kv_, options};
  }
  PagedKv kv_;
  double now_ = 0;
};

TEST_F(PrefixCacheTest, FindsTheLongestPrefixThatHasASnapshot) {
  PrefixCache cache = make_cache();
  const Text text = text_of(10 * kPage + 5);
  remember(kv_, cache, text, {2 * kPage, 6 * kPage});
  EXPECT_EQ(cache.n_pages(), 10);
  EXPECT_EQ(kv_.n_pages_used(), 10);
  const PrefixCache::Hit hit = cache.find("someone", text);
  EXPECT_EQ(hit.position, 6 * kPage);
  EXPECT_EQ(hit.replay_from, 6 * kPage);
  EXPECT_EQ(hit.shared_tokens, 10 * kPage);
  expect_true_to(kv_, hit, text);

  Text other = text;
  other[5 * kPage + 3] += 1;  // shares five pages, with the snapshot behind the second
  const PrefixCache::Hit shorter = cache.find("someone", other);
  EXPECT_EQ(shorter.position, 2 * kPage);
  EXPECT_EQ(shorter.shared_tokens, 5 * kPage);
  other[0] += 1;
  EXPECT_EQ(cache.find("someone", other).position, 0);
  EXPECT_EQ(cache.find("someone", {}).position, 0);
}

TEST_F(PrefixCacheTest, LeavesATokenToRun) {
  PrefixCache cache = make_cache();
  const Text text = text_of(4 * kPage);
  remember(kv_, cache, text, {3 * kPage, 4 * kPage});
  EXPECT_EQ(cache.find("someone", text).position, 3 * kPage);
  Text longer = text;
  longer.push_back(1);
  EXPECT_EQ(cache.find("someone", longer).position, 4 * kPage);
}

TEST_F(PrefixCacheTest, OtherDomainsShareNothing) {
  PrefixCache cache = make_cache();
  const Text text = text_of(4 * kPage + 1);
  remember(kv_, cache, text, {4 * kPage}, "alice");
  EXPECT_EQ(cache.find("alice", text).position, 4 * kPage);
  const PrefixCache::Hit hit = cache.find("bob", text);
  EXPECT_EQ(hit.position, 0);
  EXPECT_EQ(hit.shared_tokens, 0);
  remember(kv_, cache, text, {4 * kPage}, "bob");
  EXPECT_EQ(cache.n_pages(), 8);
}

TEST_F(PrefixCacheTest, EqualPagesAreKeptOnce) {
  PrefixCache cache = make_cache();
  const Text text = text_of(6 * kPage);
  const std::int64_t a = run_text(kv_, text), b = run_text(kv_, text);
  EXPECT_EQ(kv_.n_pages_used(), 12);
  cache.insert("", text, a);
  cache.insert("", text, b);
  EXPECT_EQ(kv_.n_pages_used(), 6);
  EXPECT_EQ(kv_.pages(a)[5], kv_.pages(b)[5]);
  EXPECT_EQ(kv_.frozen(b), 6 * kPage);
}

TEST_F(PrefixCacheTest, AContinuedTextAddsOnlyItsNewPages) {
  PrefixCache cache = make_cache();
  const Text text = text_of(8 * kPage + 1);
  remember(kv_, cache, Text(text.begin(), text.begin() + 4 * kPage), {4 * kPage});
  const PrefixCache::Hit hit = cache.find("someone", text);
  const std::int64_t slot = kv_.open();
  kv_.adopt(slot, hit.pages);
  ASSERT_TRUE(kv_.reserve(slot, 8 * kPage));
  cache.insert("someone", test::first_of(text, 8 * kPage), slot);
  kv_.close(slot);
  EXPECT_EQ(cache.n_pages(), 8);
  EXPECT_EQ(kv_.n_pages_used(), 8);
  EXPECT_EQ(cache.find("someone", text).shared_tokens, 8 * kPage);
}

TEST_F(PrefixCacheTest, EvictionSparesWhatAdmissionNeeds) {
  PrefixCache cache = make_cache();
  const Text a = text_of(4 * kPage + 1, 1), b = text_of(4 * kPage + 1, 2);
  remember(kv_, cache, a, {4 * kPage});
  remember(kv_, cache, b, {4 * kPage});
  const PrefixCache::Hit hit = cache.find("someone", a);
  EXPECT_EQ(cache.evict(100), 4);
  EXPECT_EQ(cache.n_pages(), 4);
  expect_true_to(kv_, hit, a);
  EXPECT_EQ(cache.find("someone", a).position, 4 * kPage);
  EXPECT_EQ(cache.find("someone", b).position, 0);
}

TEST_F(PrefixCacheTest, PagesInUseAreNotEvicted) {
  PrefixCache cache = make_cache();
  const Text text = text_of(4 * kPage);
  const std::int64_t slot = run_text(kv_, text);
  cache.insert("", text, slot);
  EXPECT_EQ(cache.evict(1), 0);  // it would give nothing back
  EXPECT_EQ(cache.n_pages(), 4);
  kv_.close(slot);
  EXPECT_EQ(cache.evict(1), 1);
  EXPECT_EQ(kv_.n_pages_used(), 3);
}

TEST_F(PrefixCacheTest, TheLongestUnusedLeavesGoFirst) {
  PrefixCache cache = make_cache();
  const Text a = text_of(4 * kPage + 1, 1), b = text_of(4 * kPage + 1, 2);
  Text fork = a;  // shares two pages with a
  fork[2 * kPage] += 1;
  remember(kv_, cache, a, {2 * kPage, 4 * kPage});
  remember(kv_, cache, fork, {4 * kPage});
  remember(kv_, cache, b, {4 * kPage});
  EXPECT_EQ(cache.n_pages(), 10);
  (void)cache.find("someone", a);
  // fork's own two pages, then b's from its end; what a and fork share is a's.
  EXPECT_EQ(cache.evict(3), 3);
  EXPECT_EQ(cache.find("someone", fork).position, 2 * kPage);
  EXPECT_EQ(cache.find("someone", b).shared_tokens, 3 * kPage);
  EXPECT_EQ(cache.find("someone", a).position, 4 * kPage);
  EXPECT_EQ(cache.evict(100), 7);
  EXPECT_EQ(kv_.n_pages_used(), 0);
  EXPECT_EQ(cache.snapshot_bytes(), 0U);
}

TEST_F(PrefixCacheTest, ASnapshotTooManyLeavesItsPages) {
  const std::size_t size = kv_.saved_state_bytes(4 * kPage);
  PrefixCache cache = make_cache({.snapshot_bytes = 2 * size});
  for (int i = 1; i <= 3; ++i) remember(kv_, cache, text_of(4 * kPage + 1, i), {4 * kPage});
  EXPECT_EQ(cache.snapshot_bytes(), 2 * size);
  EXPECT_EQ(cache.n_pages(), 12);
  const PrefixCache::Hit hit = cache.find("someone", text_of(4 * kPage + 1, 1));
  EXPECT_EQ(hit.position, 0);
  EXPECT_EQ(hit.shared_tokens, 4 * kPage);
  EXPECT_EQ(cache.statistics().evicted_snapshots, 1U);
}

TEST_F(PrefixCacheTest, SnapshotsGrowOldAndPagesDoNot) {
  PrefixCache cache = make_cache({.snapshot_seconds = 60});
  const Text text = text_of(4 * kPage + 1);
  remember(kv_, cache, text, {4 * kPage});
  now_ = 59;
  EXPECT_EQ(cache.find("someone", text).position, 4 * kPage);  // used: young again
  now_ = 118;
  EXPECT_EQ(cache.find("someone", text).position, 4 * kPage);
  now_ = 179;
  EXPECT_EQ(cache.find("someone", text).position, 0);
  EXPECT_EQ(cache.n_pages(), 4);
}

// Twenty pages, of which pins may take eight.
class PreambleTest : public PrefixCacheTest {
 protected:
  static constexpr std::int64_t kPreamble = 4 * kPage;
  PreambleTest()
      : small_(test::tiny_config(),
               {.page_tokens = kPage, .page_budget_bytes = 20 * kv_.page_bytes()}),
        cache_(small_,
               {.snapshot_seconds = 60, .pinned_share = 0.4, .now = [this] { return now_; }}) {}

  // A request whose prompt is this preamble and a token.
  static Text prompt_of(TokenId which) { return text_of(kPreamble + 1, which); }
  std::int64_t request(TokenId which) {
    const Text text = prompt_of(which);
    cache_.note_preamble("", test::first_of(text, kPreamble + 1));
    const std::int64_t position = cache_.find("", text).position;
    if (position == kPreamble) return position;
    const std::int64_t slot = run_text(small_, text);
    cache_.insert_snapshot("", text, slot, snapshot_of(small_, text, kPreamble));
    small_.close(slot);
    return position;
  }
  std::int64_t known(TokenId which) { return cache_.find("", prompt_of(which)).position; }

  PagedKv small_;
  PrefixCache cache_;
};

TEST_F(PreambleTest, TheSecondRequestPinsIt) {
  request(1);
  EXPECT_EQ(cache_.statistics().pinned_pages, 0);
  EXPECT_EQ(request(1), kPreamble);
  request(2);
  const PrefixCache::Statistics s = cache_.statistics();
  EXPECT_EQ(s.pins, 1);
  EXPECT_EQ(s.pinned_pages, 4);
  EXPECT_EQ(s.pinned_bytes, 4 * small_.page_bytes() + small_.saved_state_bytes(kPreamble));
  now_ = 1000;
  EXPECT_EQ(cache_.evict(100), 4);
  EXPECT_EQ(known(1), kPreamble);
  EXPECT_EQ(known(2), 0);
  expect_true_to(small_, cache_.find("", prompt_of(1)), prompt_of(1));
  // Others' domains have theirs.
  cache_.note_preamble("bob", test::first_of(prompt_of(3), kPreamble));
  request(3);
  EXPECT_EQ(cache_.statistics().pins, 1);
}

// It came twice, and its pages were evicted in between: the third finds it.
TEST_F(PreambleTest, IsCountedAcrossEviction) {
  request(1);
  EXPECT_EQ(cache_.evict(100), 4);
  EXPECT_EQ(request(1), 0);
  EXPECT_EQ(cache_.evict(100), 0);
  EXPECT_EQ(request(1), kPreamble);
}

TEST_F(PreambleTest, TheBudgetHoldsTheNewest) {
  for (TokenId which = 1; which <= 40; ++which) {
    for (int i = 0; i < 2; ++i) request(which);
    EXPECT_LE(cache_.statistics().pinned_pages, 8);
    if (which > 2) request(1);  // stays in use
    cache_.evict(100);
  }
  EXPECT_EQ(cache_.statistics().pins, 2);
  EXPECT_EQ(cache_.n_pages(), 8);
  EXPECT_EQ(known(1), kPreamble);
  EXPECT_EQ(known(40), kPreamble);
}

TEST_F(PreambleTest, OneThatIsTooLargePushesNobodyOut) {
  for (int i = 0; i < 2; ++i) request(1);
  const Text large = text_of(9 * kPage + 1, 7);
  for (int i = 0; i < 2; ++i) cache_.note_preamble("", large);
  remember(small_, cache_, large, {9 * kPage}, "");
  EXPECT_EQ(cache_.statistics().pins, 1);
  EXPECT_EQ(cache_.statistics().pinned_pages, 4);
  EXPECT_EQ(cache_.evict(100), 9);
  EXPECT_EQ(known(1), kPreamble);
  cache_.note_preamble("", test::first_of(large, kPage - 1));  // less than a page: nothing to pin
  cache_.note_preamble("", {});
}

TEST_F(PreambleTest, SnapshotsHaveABudgetToo) {
  const std::size_t size = small_.saved_state_bytes(kPreamble);
  PrefixCache cache(small_, {.snapshot_bytes = 5 * size, .pinned_share = 0.4});
  for (TokenId which = 1; which <= 3; ++which) {
    const Text text = text_of(2 * kPage + 1, which);
    ASSERT_EQ(small_.saved_state_bytes(2 * kPage), size);
    for (int i = 0; i < 2; ++i) cache.note_preamble("", test::first_of(text, 2 * kPage));
    remember(small_, cache, text, {2 * kPage}, "");
  }
  EXPECT_EQ(cache.statistics().pins, 2);
  EXPECT_EQ(cache.statistics().pinned_pages, 4);
  EXPECT_EQ(cache.statistics().snapshots, 3);
}

TEST_F(PreambleTest, PinsAreReleasedWhenAllElseIsGone) {
  for (TokenId which = 1; which <= 2; ++which) {
    for (int i = 0; i < 2; ++i) request(which);
  }
  request(3);
  EXPECT_EQ(cache_.evict(4, PrefixCache::Pins::release), 4);  // the third's suffice
  EXPECT_EQ(cache_.statistics().pins, 2);
  const PrefixCache::Hit hit = cache_.find("", prompt_of(2));
  EXPECT_EQ(cache_.evict(1, PrefixCache::Pins::release), 1);
  EXPECT_EQ(cache_.statistics().pins, 1);
  EXPECT_EQ(known(1), 0);
  EXPECT_EQ(cache_.evict(100, PrefixCache::Pins::release), 3);  // what a hit holds, it holds
  expect_true_to(small_, hit, prompt_of(2));
}

TEST_F(PrefixCacheTest, StaleRowsNeverServeAHit) {
  const Text text = text_of(6 * kPage + 1);
  for (const int damage : {0, 1}) {
    PrefixCache cache = make_cache({.verify_rows = true});
    const std::int64_t slot = run_text(kv_, text);
    auto last = std::make_shared<Snapshot>(*snapshot_of(kv_, text, 6 * kPage));
    cache.insert_snapshot("", text, slot, snapshot_of(kv_, text, 2 * kPage));
    cache.insert_snapshot("", text, slot, last);
    ASSERT_EQ(cache.find("", text).position, 6 * kPage);
    if (damage == 0) {
      kv_.pages(slot)[3]->bytes()[100] ^= std::byte{1};  // somebody wrote into a shared page
    } else {
      last->state[7] ^= std::byte{1};
    }
    const PrefixCache::Hit hit = cache.find("", text);
    EXPECT_EQ(hit.position, 2 * kPage);
    expect_true_to(kv_, hit, text);
    EXPECT_EQ(cache.statistics().stale_rows, 1U);
    EXPECT_EQ(cache.n_pages(), damage == 0 ? 3 : 6);
    kv_.close(slot);
  }
}

// Behind a window a layer the rows are exact again, whatever came before.
TEST_F(PrefixCacheTest, AReplayStartsAWindowALayerBefore) {
  PrefixCache cache = make_cache({.replay = true});
  const std::int64_t needed = kv_.sliding_window() * kv_.n_layers();  // 48 * 6
  const Text text = text_of(static_cast<std::size_t>(needed) + 4 * kPage + 1);
  remember(kv_, cache, text, {2 * kPage});
  const std::int64_t end = (needed + 4 * kPage) / kPage * kPage;
  const PrefixCache::Hit hit = cache.find("someone", text);
  EXPECT_EQ(hit.position, end);
  EXPECT_EQ(hit.snapshot, nullptr);
  EXPECT_EQ(hit.replay_from, (end - needed) / kPage * kPage);
  expect_true_to(kv_, hit, text);

  // The snapshot is nearer here.
  const Text shorter(text.begin(), text.begin() + needed);
  EXPECT_EQ(cache.find("someone", shorter).position, 2 * kPage);
  EXPECT_NE(cache.find("someone", shorter).snapshot, nullptr);
}

}  // namespace
}  // namespace hadal::cache
