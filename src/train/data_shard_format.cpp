#include "train/data_shard_format.h"

#include "core/digest.h"

namespace hadal::train {
namespace {

std::uint64_t round_up_8(std::uint64_t n) {
  return (n + 7) / 8 * 8;
}

}  // namespace

ShardLayout::ShardLayout(const ShardHeader& header)
    : document_ends(tokens + round_up_8(header.n_tokens * header.token_bytes)),
      document_flags(document_ends + 8 * header.n_documents),
      loss_mask(document_flags + round_up_8(header.n_documents)),
      end(loss_mask +
          ((header.flags & kShardHasLossMask) != 0 ? round_up_8((header.n_tokens + 7) / 8) : 0)) {}

std::uint32_t header_crc(const ShardHeader& header) {
  ShardHeader plain = header;
  plain.crc = 0;
  const auto bytes = std::as_bytes(std::span(&plain, 1));
  constexpr std::size_t kCrcOffset = offsetof(ShardHeader, crc);
  return crc32c(bytes.subspan(kCrcOffset + sizeof plain.crc), crc32c(bytes.first(kCrcOffset)));
}

}  // namespace hadal::train
