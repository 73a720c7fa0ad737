// The layout of a token shard; docs/formats/token_shards.md says it in prose.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace hadal::train {

inline constexpr std::array<char, 8> kShardMagic = {'H', 'A', 'D', 'A', 'L', 'T', 'O', 'K'};
inline constexpr std::uint32_t kShardVersion = 1;
inline constexpr std::uint32_t kShardHasLossMask = 1;  // flags

struct ShardHeader {
  std::array<char, 8> magic = kShardMagic;
  std::uint32_t version = kShardVersion;
  std::uint32_t crc = 0;  // CRC-32C of all other bytes of the header
  std::uint64_t n_tokens = 0;
  std::uint64_t n_documents = 0;
  std::uint32_t vocab_size = 0;
  std::uint32_t token_bytes = 2;  // 2 or 4
  std::uint32_t flags = 0;
  std::uint32_t reserved = 0;
  std::array<std::byte, 16> tokenizer{};  // the first half of tokenizer.json's SHA-256
};
static_assert(sizeof(ShardHeader) == 64);

// Of a document.
inline constexpr std::uint8_t kChatDocument = 1, kFimDocument = 2;

// Where the sections of a shard lie, in bytes; each begins at a multiple of 8.
struct ShardLayout {
  explicit ShardLayout(const ShardHeader& header);
  std::uint64_t tokens = sizeof(ShardHeader);
  std::uint64_t document_ends;   // u64 each: the number of the token behind the document's last
  std::uint64_t document_flags;  // u8 each
  std::uint64_t loss_mask;       // a bit a token, lowest bit first; nothing without the flag
  std::uint64_t end;             // of the file
};

[[nodiscard]] std::uint32_t header_crc(const ShardHeader& header);

}  // namespace hadal::train
