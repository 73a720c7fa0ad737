// The files of the disk cache, byte by byte: docs/formats/kv_cache.md.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cache/chain_key.h"
#include "core/digest.h"
#include "core/file.h"

namespace hadal::cache {

enum class KvFileKind : std::uint32_t {
  pages = 1,     // consecutive pages of one chain
  snapshot = 2,  // the state at the end of a page
};

// What a file says about itself. Its body is the token ids of its pages (of a snapshot: of the page
// it stands behind), padded to a multiple of 64 bytes, and then the pages or the state.
struct KvFileHeader {
  KvFileKind kind = KvFileKind::pages;
  Sha256Digest model{};  // of the fingerprint and layout texts
  std::uint64_t created_ms = 0;
  std::int64_t position = 0;  // where the first page begins; of a snapshot: where it stands
  std::int64_t page_tokens = 0;
  std::uint64_t item_bytes = 0;  // of a page, or of the state
  ChainKey parent;               // of what is before the first page
  std::vector<ChainKey> keys;    // of every page; of a snapshot: of the page it stands behind
  std::vector<std::uint32_t> body_crcs{};  // CRC32C of every 64 KiB of the body

  [[nodiscard]] std::uint64_t n_items() const { return keys.size(); }
  [[nodiscard]] std::uint64_t token_bytes() const;  // padded
  [[nodiscard]] std::uint64_t body_bytes() const { return token_bytes() + n_items() * item_bytes; }
  [[nodiscard]] std::uint64_t header_bytes() const;
  [[nodiscard]] std::uint64_t file_bytes() const { return header_bytes() + body_bytes(); }
};

// Creates `path`, whole and on stable storage, or throws Error io. `tokens` has page_tokens ids for
// every key, `items` item_bytes each. Fills in body_crcs.
void write_kv_file(FileSystem& fs, const Path& path, KvFileHeader header,
                   std::span<const TokenId> tokens,
                   std::span<const std::span<const std::byte>> items);

// Throws corrupt_data, `name` and the reason said, for anything that write_kv_file did not write.
// Reads the header alone; sizes are checked against the file's, so nothing that they ask for is
// larger than the file.
[[nodiscard]] KvFileHeader read_kv_header(const ReadableFile& file, const std::string& name);

// Reads of the body check every 64 KiB that they touch: corrupt_data.
[[nodiscard]] std::vector<TokenId> read_kv_tokens(const ReadableFile& file,
                                                  const KvFileHeader& header,
                                                  const std::string& name);
// Items first, first + 1, ... into as many buffers of item_bytes.
void read_kv_items(const ReadableFile& file, const KvFileHeader& header, const std::string& name,
                   std::uint64_t first, std::span<const std::span<std::byte>> into);

}  // namespace hadal::cache
