#include "cache/paged_kv.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "model/accounting.h"
#include "model/kv_format.h"
#include "support/safetensors_bytes.h"

namespace hadal::cache {
namespace {

model::Config config_of(const char* name) {
  return model::load_config(std::string(HADAL_SOURCE_DIR "/configs/") + name);
}

model::Config tiny_config() {
  return model::load_config(HADAL_TEST_DATA_DIR "/golden/official-tiny/config.json");
}

// What a slot really allocates for n tokens, every layer grown.
PagedKv::Bytes allocated(const model::Config& config, Numerics numerics, std::int64_t n) {
  PagedKv kv(config, {.numerics = numerics});
  const std::int64_t slot = kv.open();
  for (std::size_t layer = 0; layer < config.layers.size(); ++layer) {
    (void)kv.history(static_cast<std::int64_t>(layer), slot, n);
  }
  return kv.bytes(slot);
}

TEST(PagedKv, ReleasedModelsTakeThePublishedBytes) {
  for (const char* name : {"deepseek-v4-flash.json", "deepseek-v4-pro.json"}) {
    const model::Config config = config_of(name);
    const auto formats = model::KvFormat::of(config, Numerics::official);
    EXPECT_EQ(formats.entry.row_bytes(), 584);  // 448 E4M3, 64 BF16, 7 scales and a pad byte
    EXPECT_EQ(formats.index.row_bytes(), 68);   // 128 E2M1, 4 scales
    const std::int64_t n = 65536;
    const PagedKv::Bytes bytes = allocated(config, Numerics::official, n);
    const std::int64_t csa = config.count(model::LayerKind::csa);
    const std::int64_t hca = config.count(model::LayerKind::hca);
    EXPECT_EQ(bytes.entries, static_cast<std::size_t>(n / 4 * csa * 584 + n / 128 * hca * 584));
    EXPECT_EQ(bytes.index_keys, static_cast<std::size_t>(n / 4 * csa * 68));
    EXPECT_EQ(bytes.window, 128U * 584U * config.layers.size());  // the MTP block has a ring, too
  }
}

// The reference's compressor state: 12,206,080 bytes for Flash, 18,710,528 for Pro.
TEST(PagedKv, TailsTakeTheReferencesBytes) {
  EXPECT_EQ(allocated(config_of("deepseek-v4-flash.json"), Numerics::official, 0).tails, 12206080U);
  EXPECT_EQ(allocated(config_of("deepseek-v4-pro.json"), Numerics::official, 0).tails, 18710528U);
}

// At a page boundary a restart costs windows and 4 rows a CSA layer, not 15 MB; and of those rows
// half: only one series of the previous window is read again.  Source: serving.md §5.2.
TEST(PagedKv, AStateAtAPageBoundaryIsSmall) {
  const model::Config config = config_of("deepseek-v4-flash.json");
  PagedKv kv(config, {});
  EXPECT_EQ(kv.page_tokens(), 128);
  const std::size_t windows = config.layers.size() * 128 * 584;
  const std::size_t csa_rows = 21U * 4 * 2 * (512 + 128) * 4;
  EXPECT_EQ(kv.saved_state_bytes(1280), windows + csa_rows);
  EXPECT_LT(kv.saved_state_bytes(1280), 4'100'000U);
  EXPECT_GT(kv.saved_state_bytes(1280 + 127), 12'000'000U);
  EXPECT_LE(kv.page_bytes(), 455'000U);  // about 3.5 KB a token
}

TEST(PagedKv, SlotsComeAndGo) {
  PagedKv kv(tiny_config(), {});
  const std::int64_t a = kv.open(), b = kv.open();
  EXPECT_NE(a, b);
  kv.close(a);
  EXPECT_EQ(kv.open(), a);
  EXPECT_THROW((void)kv.history(0, 99, 1), std::exception);
  kv.close(b);
  EXPECT_THROW((void)kv.history(0, b, 1), std::exception);
  EXPECT_EQ(kv.state_bytes_held(), 2 * kv.state_bytes());
}

TEST(PagedKv, GrowsWithoutMovingWhatIsThere) {
  PagedKv kv(tiny_config(), {.page_tokens = 64});
  const std::int64_t slot = kv.open();
  const model::LayerHistory before = kv.history(2, slot, 60);
  std::byte* row = before.entries.data(3);
  std::byte* key = before.index_keys.scale(7);
  const model::LayerHistory after = kv.history(2, slot, 900);
  EXPECT_EQ(after.entries.data(3), row);
  EXPECT_EQ(after.index_keys.scale(7), key);
  EXPECT_EQ(after.entries.rows_per_page, 16);
  EXPECT_NE(after.entries.data(224), nullptr);
}

TEST(PagedKv, NoBlockOverlapsAnother) {
  const model::Config config = tiny_config();
  PagedKv kv(config, {.rollback_tokens = 3, .page_tokens = 64});
  const std::int64_t slot = kv.open();
  std::vector<std::pair<std::byte*, std::byte*>> blocks;
  const auto add = [&](std::byte* begin, std::int64_t n) { blocks.emplace_back(begin, begin + n); };
  for (std::int64_t i = 0; i < kv.n_layers(); ++i) {
    const model::LayerHistory h = kv.history(i, slot, 128);
    add(h.window.pages[0], h.ring_rows * h.window.format.row_bytes());
    for (std::byte* page : h.entries.pages) {
      add(page, h.entries.rows_per_page * h.entries.format.row_bytes());
    }
    for (std::byte* page : h.index_keys.pages) {
      add(page, h.index_keys.rows_per_page * h.index_keys.format.row_bytes());
    }
    for (const CompressorTail& tail : {h.tail, h.index_tail}) {
      if (!tail.kv) continue;
      add(tail.kv.bytes(), static_cast<std::int64_t>(tail.kv.nbytes()));
      add(tail.gate.bytes(), static_cast<std::int64_t>(tail.gate.nbytes()));
    }
  }
  std::sort(blocks.begin(), blocks.end());
  for (std::size_t i = 1; i < blocks.size(); ++i) {
    EXPECT_LE(blocks[i - 1].second, blocks[i].first) << i;
    // Every byte is ours: a sanitizer watches.
    std::memset(blocks[i].first, 1, static_cast<std::size_t>(blocks[i].second - blocks[i].first));
  }
}

TEST(PagedKv, SpentBudgetChangesNothing) {
  const model::Config config = tiny_config();
  const std::size_t page = PagedKv(config, {.page_tokens = 64}).page_bytes();
  PagedKv kv(config, {.page_tokens = 64, .page_budget_bytes = 4 * page + page / 2});
  EXPECT_EQ(kv.n_pages_total(), 4);
  const std::int64_t a = kv.open(), b = kv.open();
  EXPECT_TRUE(kv.reserve(a, 129));
  EXPECT_EQ(kv.n_pages_used(), 3);
  EXPECT_FALSE(kv.reserve(b, 65));
  EXPECT_EQ(kv.pages(b).size(), 0U);
  EXPECT_EQ(kv.n_pages_free(), 1);
  EXPECT_ERROR(kv.history(2, b, 65), ErrorCode::out_of_memory, "2 KV pages; it has 0, and 1 of 4");
  EXPECT_TRUE(kv.reserve(b, 64));
  kv.close(a);
  EXPECT_EQ(kv.n_pages_free(), 3);
  EXPECT_TRUE(kv.reserve(b, 256));
  EXPECT_EQ(kv.page_bytes_held(), 4 * page);
}

TEST(PagedKv, ClosedPagesAreReusedWithoutAllocating) {
  PagedKv kv(tiny_config(), {.page_tokens = 64});
  std::int64_t slot = kv.open();
  ASSERT_TRUE(kv.reserve(slot, 640));
  std::vector<const std::byte*> before, after;
  for (const PageRef& page : kv.pages(slot)) before.push_back(page->bytes());
  kv.close(slot);
  EXPECT_EQ(kv.n_pages_used(), 0);
  slot = kv.open();
  ASSERT_TRUE(kv.reserve(slot, 640));
  for (const PageRef& page : kv.pages(slot)) after.push_back(page->bytes());
  EXPECT_THAT(after, testing::UnorderedElementsAreArray(before));
}

TEST(PagedKv, NothingOfTheUserBeforeIsLeftInAState) {
  PagedKv kv(tiny_config(), {});
  std::int64_t slot = kv.open();
  model::LayerHistory h = kv.history(2, slot, 1);
  std::byte* window = h.window.data(0);
  *window = std::byte{42};
  *h.tail.gate.bytes() = std::byte{42};
  kv.close(slot);
  slot = kv.open();
  h = kv.history(2, slot, 1);
  ASSERT_EQ(h.window.data(0), window);
  EXPECT_EQ(*window, std::byte{0});
  EXPECT_EQ(*h.tail.gate.bytes(), std::byte{0});
}

TEST(PagedKv, SharedPagesOutliveTheirSequenceAndTheCache) {
  PageRef kept;
  {
    PagedKv kv(tiny_config(), {.page_tokens = 64});
    const std::int64_t a = kv.open(), b = kv.open();
    ASSERT_TRUE(kv.reserve(a, 128));
    kept = kv.pages(a)[0];
    kept->bytes()[5] = std::byte{7};
    kv.adopt(b, kv.pages(a).first(1));
    EXPECT_EQ(kv.n_pages_used(), 2);
    EXPECT_EQ(kv.frozen(b), 64);
    EXPECT_EQ(kv.history(2, b, 64).frozen_entries, 16);
    kv.close(a);
    EXPECT_EQ(kv.n_pages_used(), 1);
    EXPECT_EQ(kv.history(2, b, 64).entries.data(0), kept->bytes());
  }
  EXPECT_EQ(kept->bytes()[5], std::byte{7});
}

TEST(PagedKv, AReplacedPageGivesItsMemoryBack) {
  PagedKv kv(tiny_config(), {.page_tokens = 64});
  const std::int64_t a = kv.open(), b = kv.open();
  ASSERT_TRUE(kv.reserve(a, 128));
  ASSERT_TRUE(kv.reserve(b, 128));
  EXPECT_EQ(kv.n_pages_used(), 4);
  kv.replace_page(b, 1, kv.pages(a)[1]);
  EXPECT_EQ(kv.n_pages_used(), 3);
  EXPECT_EQ(kv.history(2, b, 128).entries.data(16), kv.history(2, a, 128).entries.data(16));
  EXPECT_NE(kv.history(2, b, 128).entries.data(0), kv.history(2, a, 128).entries.data(0));
}

TEST(PagedKv, PagesMayBeDroppedOnAnyThread) {
  PagedKv kv(tiny_config(), {.page_tokens = 64});
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    std::vector<PageRef> pages;
    for (int k = 0; k < 50; ++k) pages.push_back(kv.new_page());
    threads.emplace_back([pages = std::move(pages)]() mutable {
      while (!pages.empty()) pages.pop_back();
    });
  }
  for (int k = 0; k < 200; ++k) (void)kv.new_page();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(kv.n_pages_used(), 0);
}

TEST(PagedKv, AStateOfAnotherSizeIsRefused) {
  PagedKv kv(tiny_config(), {});
  const std::int64_t slot = kv.open();
  std::vector<std::byte> state = kv.save_state(slot, 100);
  EXPECT_ERROR(kv.restore_state(slot, 101, state), ErrorCode::corrupt_data, "at position 101");
  state.pop_back();
  EXPECT_ERROR(kv.restore_state(slot, 100, state), ErrorCode::corrupt_data, "cut off");
}

TEST(PagedKv, LayoutTellsModelsApart) {
  const model::Config config = tiny_config();
  const std::string layout = PagedKv(config, {}).layout();
  EXPECT_EQ(PagedKv(config, {.rollback_tokens = 5}).layout(), layout);
  EXPECT_NE(PagedKv(config, {.numerics = Numerics::fp32}).layout(), layout);
  EXPECT_NE(PagedKv(config, {.page_tokens = 256}).layout(), layout);
  EXPECT_NE(PagedKv(config_of("deepseek-v4-flash.json"), {}).layout(), layout);
}

}  // namespace
}  // namespace hadal::cache
