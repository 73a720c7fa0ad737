#include "train/data_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/digest.h"
#include "core/error.h"
#include "train/data_shard_format.h"

namespace hadal::train {
namespace {

template <class... Args>
[[noreturn]] void corrupt(const Path& path, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorCode::corrupt_data,
              fmt::format("{}: {}; restore the file, or build the data again with `hadal data "
                          "build`",
                          path.string(), fmt::format(format, std::forward<Args>(args)...)));
}

std::shared_ptr<MappedFile> open_checked(const Path& directory, const FileDigest& digest,
                                         VerifyData verify) {
  const Path path = directory / digest.file;
  auto file = MappedFile::open(path);
  const auto nbytes = file->bytes().size();
  if (nbytes != digest.nbytes) {
    corrupt(path, "has {} bytes, {} says {}: it was {}", nbytes, kManifestName, digest.nbytes,
            nbytes < digest.nbytes ? "cut off" : "changed");
  }
  if (verify == VerifyData::checksums && to_hex(sha256(file->bytes())) != digest.sha256) {
    corrupt(path, "its SHA-256 is not the one in {}: the file was changed or damaged",
            kManifestName);
  }
  return file;
}

template <class T>
std::span<const T> section(std::span<const std::byte> bytes, std::uint64_t offset,
                           std::uint64_t n) {
  // Sections begin at multiples of 8 in a file mapped at a page.
  return {reinterpret_cast<const T*>(bytes.data() + offset), static_cast<std::size_t>(n)};
}

}  // namespace

TokenShard::TokenShard(const Path& directory, const ShardInfo& info, const DataManifest& manifest,
                       VerifyData verify)
    : file_(open_checked(directory, info.digest, verify)), vocab_size_(manifest.vocab_size) {
  const Path& path = file_->path();
  const auto bytes = file_->bytes();
  ShardHeader header;
  if (bytes.size() < sizeof header) corrupt(path, "is too short for a header");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != kShardMagic) corrupt(path, "does not begin as a token shard does");
  if (header.version != kShardVersion) {
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: is of version {}; this hadal reads version {}", path.string(),
                            header.version, kShardVersion));
  }
  if (header.crc != header_crc(header)) corrupt(path, "the checksum of its header is wrong");
  if (header.token_bytes != static_cast<std::uint32_t>(manifest.token_bytes()) ||
      header.vocab_size != manifest.vocab_size ||
      header.n_tokens != static_cast<std::uint64_t>(info.counts.n_tokens) ||
      header.n_documents != static_cast<std::uint64_t>(info.counts.n_documents)) {
    corrupt(path, "has {} tokens of {} in {} documents, {} says {} of {} in {}", header.n_tokens,
            header.vocab_size, header.n_documents, kManifestName, info.counts.n_tokens,
            manifest.vocab_size, info.counts.n_documents);
  }
  if (to_hex(header.tokenizer) != manifest.tokenizer.sha256.substr(0, 32)) {
    corrupt(path, "was made with another tokenizer than {} names", kManifestName);
  }
  const ShardLayout layout(header);
  if (layout.end != bytes.size()) {
    corrupt(path, "has {} bytes, its header wants {}", bytes.size(), layout.end);
  }
  if (header.token_bytes == 2) {
    narrow_ = section<std::uint16_t>(bytes, layout.tokens, header.n_tokens);
  } else {
    wide_ = section<std::uint32_t>(bytes, layout.tokens, header.n_tokens);
  }
  document_ends_ = section<std::uint64_t>(bytes, layout.document_ends, header.n_documents);
  document_flags_ = section<std::uint8_t>(bytes, layout.document_flags, header.n_documents);
  if ((header.flags & kShardHasLossMask) != 0) {
    loss_mask_ = section<std::uint8_t>(bytes, layout.loss_mask, (header.n_tokens + 7) / 8);
  }
  std::uint64_t before = 0;
  for (const std::uint64_t end : document_ends_) {
    if (end <= before) corrupt(path, "the ends of its documents are out of order");
    before = end;
  }
  if (before != header.n_tokens) corrupt(path, "its documents do not hold all of its tokens");
}

void TokenShard::copy(std::int64_t begin, std::span<TokenId> into) const {
  const auto from = static_cast<std::size_t>(begin);
  std::uint32_t largest = 0;
  const auto take = [&](const auto tokens) {
    for (std::size_t i = 0; i < into.size(); ++i) {
      largest = std::max<std::uint32_t>(largest, tokens[from + i]);
      into[i] = static_cast<TokenId>(tokens[from + i]);
    }
  };
  narrow_.empty() ? take(wide_) : take(narrow_);
  if (largest >= vocab_size_) {
    corrupt(file_->path(), "token {} at {} or behind is none of a vocabulary of {}", largest, begin,
            vocab_size_);
  }
}

bool TokenShard::has_loss(std::int64_t token) const {
  if (loss_mask_.empty()) return true;
  return (loss_mask_[static_cast<std::size_t>(token / 8)] >> (token % 8) & 1) != 0;
}

std::int64_t TokenShard::count_loss(std::int64_t begin, std::int64_t end) const {
  if (loss_mask_.empty()) return end - begin;
  std::int64_t n = 0;
  for (; begin < end && begin % 8 != 0; ++begin) n += has_loss(begin) ? 1 : 0;
  for (; begin + 8 <= end; begin += 8) {
    n += std::popcount(loss_mask_[static_cast<std::size_t>(begin / 8)]);
  }
  for (; begin < end; ++begin) n += has_loss(begin) ? 1 : 0;
  return n;
}

void count_tokens(std::span<const std::byte> shard, std::span<std::uint64_t> frequencies) {
  ShardHeader header;
  const bool has_header = shard.size() >= sizeof header;
  if (has_header) std::memcpy(&header, shard.data(), sizeof header);
  if (!has_header || header.magic != kShardMagic || header.crc != header_crc(header) ||
      ShardLayout(header).end != shard.size()) {
    throw Error(ErrorCode::corrupt_data, "the bytes are no whole token shard");
  }
  for (std::uint64_t i = 0; i < header.n_tokens; ++i) {
    std::uint32_t id = 0;
    std::memcpy(&id, shard.data() + sizeof header + i * header.token_bytes, header.token_bytes);
    if (id >= frequencies.size()) {
      throw Error(ErrorCode::corrupt_data,
                  fmt::format("token {} is none of a vocabulary of {}", id, frequencies.size()));
    }
    ++frequencies[id];
  }
}

DocumentSet::Place DocumentSet::find(std::int64_t document) const {
  HADAL_CHECK(document >= 0 && document < counts_.n_documents);
  const auto next = std::ranges::upper_bound(first_document_, document);
  const auto index = static_cast<std::size_t>(next - first_document_.begin() - 1);
  const TokenShard& shard = *shards_[index];
  const std::int64_t inside = document - first_document_[index];
  return {&shard, shard.document_begin(inside), shard.document_end(inside)};
}

std::int64_t DocumentSet::n_tokens(std::int64_t document) const {
  const Place place = find(document);
  return place.end - place.begin;
}

std::uint8_t DocumentSet::flags(std::int64_t document) const {
  const auto next = std::ranges::upper_bound(first_document_, document);
  const auto index = static_cast<std::size_t>(next - first_document_.begin() - 1);
  return shards_[index]->flags(document - first_document_[index]);
}

void DocumentSet::copy_tokens(std::int64_t document, std::int64_t begin,
                              std::span<TokenId> into) const {
  const Place place = find(document);
  HADAL_CHECK(begin >= 0 && place.begin + begin + std::ssize(into) <= place.end);
  place.shard->copy(place.begin + begin, into);
}

bool DocumentSet::has_loss(std::int64_t document, std::int64_t token) const {
  const Place place = find(document);
  HADAL_CHECK(token >= 0 && place.begin + token < place.end);
  return place.shard->has_loss(place.begin + token);
}

std::int64_t DocumentSet::count_loss(std::int64_t document, std::int64_t begin,
                                     std::int64_t end) const {
  const Place place = find(document);
  HADAL_CHECK(begin >= 0 && begin <= end && place.begin + end <= place.end);
  return place.shard->count_loss(place.begin + begin, place.begin + end);
}

DataSet DataSet::open(const Path& directory, VerifyData verify) {
  DataSet data;
  data.directory_ = directory;
  data.manifest_ = load_manifest(directory);
  for (const SplitInfo& split : data.manifest_.splits) {
    DocumentSet documents;
    for (const ShardInfo& info : split.shards) {
      documents.first_document_.push_back(documents.counts_.n_documents);
      documents.shards_.push_back(
          std::make_shared<const TokenShard>(directory, info, data.manifest_, verify));
      documents.counts_ += info.counts;
    }
    data.splits_.push_back(std::move(documents));
  }
  return data;
}

bool DataSet::has_split(std::string_view name) const {
  return manifest_.find_split(name) != nullptr;
}

const DocumentSet& DataSet::split(std::string_view name) const {
  std::string names;
  for (std::size_t i = 0; i < splits_.size(); ++i) {
    if (manifest_.splits[i].name == name) return splits_[i];
    names += (i > 0 ? ", " : "") + manifest_.splits[i].name;
  }
  throw Error(ErrorCode::not_found,
              fmt::format("{} has no split \"{}\"; there is: {}", directory_.string(), name,
                          names.empty() ? "none" : names));
}

std::vector<std::uint64_t> DataSet::frequencies(std::string_view split) const {
  (void)this->split(split);  // for its sentence
  const FileDigest& digest = manifest_.find_split(split)->frequencies;
  const auto file = open_checked(directory_, digest, VerifyData::checksums);
  const auto n = static_cast<std::size_t>(manifest_.vocab_size);
  if (file->bytes().size() != n * sizeof(std::uint64_t)) {
    corrupt(file->path(), "has {} bytes, wanted 8 for each of {} tokens", file->bytes().size(), n);
  }
  std::vector<std::uint64_t> counts(n);
  std::memcpy(counts.data(), file->bytes().data(), file->bytes().size());
  return counts;
}

}  // namespace hadal::train
