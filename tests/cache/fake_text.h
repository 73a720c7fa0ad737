// Sequences whose pages and states are made up, each byte telling which text it belongs to.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "cache/paged_kv.h"
#include "cache/prefix_cache.h"
#include "core/digest.h"

namespace hadal::cache::test {

using Text = std::vector<TokenId>;

inline Text text_of(std::size_t n, TokenId first = 0) {
  Text text(n);
  for (std::size_t i = 0; i < n; ++i) text[i] = first + static_cast<TokenId>(i % 97);
  return text;
}

inline std::span<const TokenId> first_of(const Text& text, std::int64_t n) {
  return std::span(text).first(static_cast<std::size_t>(n));
}

inline model::Config tiny_config() {
  return model::load_config(HADAL_TEST_DATA_DIR "/golden/official-tiny/config.json");
}

// What history of `text` there would be: a function of the text and nothing else.
inline void paint(std::span<std::byte> into, std::span<const TokenId> text, std::uint32_t what) {
  std::uint32_t x = crc32c(std::as_bytes(text), what) | 1;
  for (std::byte& b : into) {
    x ^= x << 13, x ^= x >> 17, x ^= x << 5;
    b = static_cast<std::byte>(x);
  }
}

inline std::vector<std::byte> painted(std::size_t n, std::span<const TokenId> text,
                                      std::uint32_t what) {
  std::vector<std::byte> bytes(n);
  paint(bytes, text, what);
  return bytes;
}

// A slot that stands at the end of `text`.
inline std::int64_t run_text(PagedKv& kv, const Text& text) {
  const std::int64_t slot = kv.open(), page = kv.page_tokens();
  EXPECT_TRUE(kv.reserve(slot, static_cast<std::int64_t>(text.size())));
  for (std::int64_t i = 0; (i + 1) * page <= static_cast<std::int64_t>(text.size()); ++i) {
    const PageRef& p = kv.pages(slot)[static_cast<std::size_t>(i)];
    paint({p->bytes(), p->nbytes()}, first_of(text, (i + 1) * page), 1);
  }
  return slot;
}

inline std::shared_ptr<const Snapshot> snapshot_of(const PagedKv& kv, const Text& text,
                                                   std::int64_t position) {
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->position = position;
  snapshot->state = painted(kv.saved_state_bytes(position), first_of(text, position), 2);
  return snapshot;
}

// Runs a text and remembers it, with snapshots at these positions.
inline void remember(PagedKv& kv, PrefixCache& cache, const Text& text,
                     const std::vector<std::int64_t>& snapshots,
                     const std::string& domain = "someone") {
  const std::int64_t slot = run_text(kv, text);
  for (const std::int64_t p : snapshots) {
    cache.insert_snapshot(domain, text, slot, snapshot_of(kv, text, p));
  }
  cache.insert(domain, text, slot);
  kv.close(slot);
}

// Every byte of a hit is that of `text`.
inline void expect_true_to(const PagedKv& kv, const PrefixCache::Hit& hit, const Text& text) {
  const std::int64_t page = kv.page_tokens();
  ASSERT_EQ(static_cast<std::int64_t>(hit.pages.size()) * page, hit.position);
  ASSERT_LT(hit.position, static_cast<std::int64_t>(text.size()));
  for (std::size_t i = 0; i < hit.pages.size(); ++i) {
    const PageRef& p = hit.pages[i];
    const auto want =
        painted(p->nbytes(), first_of(text, (static_cast<std::int64_t>(i) + 1) * page), 1);
    ASSERT_EQ(std::memcmp(p->bytes(), want.data(), want.size()), 0) << "page " << i;
  }
  if (hit.snapshot != nullptr) {
    ASSERT_EQ(hit.snapshot->position, hit.position);
    ASSERT_EQ(hit.snapshot->state, snapshot_of(kv, text, hit.position)->state);
  }
}

}  // namespace hadal::cache::test
