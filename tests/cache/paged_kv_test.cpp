#include "cache/paged_kv.h"

#include <gtest/gtest.h>

#include "model/accounting.h"
#include "model/kv_format.h"

namespace hadal::cache {
namespace {

model::Config config_of(const char* name) {
  return model::load_config(std::string(HADAL_SOURCE_DIR "/configs/") + name);
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

TEST(PagedKv, SlotsComeAndGo) {
  const model::Config config =
      model::load_config(HADAL_TEST_DATA_DIR "/golden/official-tiny/config.json");
  PagedKv kv(config, {});
  const std::int64_t a = kv.open(), b = kv.open();
  EXPECT_NE(a, b);
  kv.close(a);
  EXPECT_EQ(kv.open(), a);
  EXPECT_THROW((void)kv.history(0, 99, 1), std::exception);
}

TEST(PagedKv, GrowsWithoutMovingWhatIsThere) {
  const model::Config config =
      model::load_config(HADAL_TEST_DATA_DIR "/golden/official-tiny/config.json");
  PagedKv kv(config, {.page_tokens = 64});
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

}  // namespace
}  // namespace hadal::cache
