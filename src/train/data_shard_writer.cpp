#include "train/data_shard_writer.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>

#include "core/digest.h"
#include "core/error.h"
#include "train/data_shard_format.h"

namespace hadal::train {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::array<std::byte, 8> kZeros{};

std::uint64_t round_up_8(std::uint64_t n) {
  return (n + 7) / 8 * 8;
}

std::span<const std::byte> padding_of(std::uint64_t nbytes) {
  return std::span(kZeros).first(round_up_8(nbytes) - nbytes);
}

std::array<std::byte, 16> first_half(std::string_view sha256) {
  std::array<std::byte, 16> out{};
  HADAL_CHECK(sha256.size() == 64);
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<std::byte>(std::stoi(std::string(sha256.substr(2 * i, 2)), nullptr, 16));
  }
  return out;
}

}  // namespace

FileDigest write_atomically(FileSystem& fs, const Path& directory, const std::string& name,
                            std::span<const std::span<const std::byte>> parts) {
  const Path path = directory / name;
  const Path temporary = path.string() + ".tmp";
  FileDigest digest{.file = name, .nbytes = 0, .sha256 = {}};
  Sha256 sha;
  try {
    const auto file = fs.create(temporary);
    for (const auto part : parts) {
      file->append(part);
      sha.update(part);
      digest.nbytes += part.size();
    }
    file->sync();
    file->close();
    fs.rename(temporary, path);
  } catch (const Error&) {
    try {
      fs.remove(temporary);   // it holds disk space that is wanted
    } catch (const Error&) {  // NOLINT(bugprone-empty-catch): the first error says what happened
    }
    throw;
  }
  digest.sha256 = to_hex(sha.finish());
  return digest;
}

FileDigest write_atomically(FileSystem& fs, const Path& directory, const std::string& name,
                            std::string_view text) {
  const std::span<const std::byte> part = std::as_bytes(std::span(text));
  return write_atomically(fs, directory, name, std::span(&part, 1));
}

ShardBuilder::ShardBuilder(std::int64_t vocab_size, std::string_view tokenizer_sha256)
    : vocab_size_(vocab_size), tokenizer_(first_half(tokenizer_sha256)) {}

void ShardBuilder::add(const TokenDocument& document) {
  HADAL_CHECK(!document.tokens.empty());
  HADAL_CHECK(document.loss.empty() || document.loss.size() == document.tokens.size());
  const std::size_t begin = tokens_.size();
  tokens_.insert(tokens_.end(), document.tokens.begin(), document.tokens.end());
  loss_mask_.resize((tokens_.size() + 7) / 8);
  for (std::size_t i = 0; i < document.tokens.size(); ++i) {
    HADAL_CHECK(document.tokens[i] >= 0 && document.tokens[i] < vocab_size_);
    if (!document.loss.empty() && !document.loss[i]) continue;
    loss_mask_[(begin + i) / 8] |= static_cast<std::uint8_t>(1U << ((begin + i) % 8));
    ++counts_.n_loss_tokens;
  }
  document_ends_.push_back(tokens_.size());
  document_flags_.push_back(document.flags);
  counts_.n_documents += 1;
  counts_.n_tokens += std::ssize(document.tokens);
  counts_.text_bytes += document.text_bytes;
  counts_.n_chat_documents += (document.flags & kChatDocument) != 0 ? 1 : 0;
  counts_.n_fim_documents += (document.flags & kFimDocument) != 0 ? 1 : 0;
}

ShardInfo ShardBuilder::write(FileSystem& fs, const Path& directory, const std::string& name) {
  ShardHeader header;
  header.n_tokens = tokens_.size();
  header.n_documents = document_ends_.size();
  header.vocab_size = static_cast<std::uint32_t>(vocab_size_);
  header.token_bytes = vocab_size_ <= 65536 ? 2 : 4;
  header.flags = counts_.n_loss_tokens < counts_.n_tokens ? kShardHasLossMask : 0;
  header.tokenizer = tokenizer_;
  header.crc = header_crc(header);

  std::vector<std::uint16_t> narrow;
  if (header.token_bytes == 2) narrow.assign(tokens_.begin(), tokens_.end());
  const auto tokens = header.token_bytes == 2 ? std::as_bytes(std::span(narrow))
                                              : std::as_bytes(std::span(tokens_));
  const auto flags = std::as_bytes(std::span(document_flags_));
  std::vector<std::span<const std::byte>> parts = {
      std::as_bytes(std::span(&header, 1)),     tokens, padding_of(tokens.size()),
      std::as_bytes(std::span(document_ends_)), flags,  padding_of(flags.size())};
  if (header.flags != 0) {
    const auto mask = std::as_bytes(std::span(loss_mask_));
    parts.push_back(mask);
    parts.push_back(padding_of(mask.size()));
  }
  ShardInfo info{.digest = write_atomically(fs, directory, name, parts), .counts = counts_};
  HADAL_CHECK(info.digest.nbytes == ShardLayout(header).end);
  clear();
  return info;
}

void ShardBuilder::clear() {
  tokens_.clear();
  document_ends_.clear();
  document_flags_.clear();
  loss_mask_.clear();
  counts_ = {};
}

}  // namespace hadal::train
