#include "cache/kv_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/error.h"

namespace hadal::cache {

namespace {

static_assert(std::endian::native == std::endian::little, "the format is little endian");

constexpr std::array<char, 8> kMagic = {'H', 'A', 'D', 'A', 'L', 'K', 'V', '\0'};
constexpr std::uint32_t kVersion = 1;
constexpr std::uint64_t kChunk = 64 * 1024;  // of the body, one CRC each
constexpr std::uint64_t kHeaderUnit = 4096;  // headers are whole blocks of a disk
constexpr std::uint64_t kMaxItems = 4096;    // far more than any writer puts into a file
constexpr std::uint64_t kMaxItemBytes = 1ULL << 36;
constexpr std::uint64_t kMaxPageTokens = 1ULL << 24;

// The first 128 bytes; keys and CRCs follow.
struct Fixed {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::uint32_t header_crc;  // of the whole header, this field zero
  std::uint32_t kind;
  std::uint32_t n_items;
  std::uint64_t created_ms;
  std::uint64_t position;
  std::uint64_t page_tokens;
  std::uint64_t item_bytes;
  std::uint64_t body_bytes;
  std::array<std::byte, 32> model;
  std::array<std::byte, 16> parent;
  std::array<std::byte, 16> reserved;  // zero
};
static_assert(sizeof(Fixed) == 128 && std::is_trivially_copyable_v<Fixed>);

[[nodiscard]] std::uint64_t round_up(std::uint64_t n, std::uint64_t unit) {
  return (n + unit - 1) / unit * unit;
}

[[nodiscard]] std::uint64_t n_chunks(std::uint64_t body_bytes) {
  return (body_bytes + kChunk - 1) / kChunk;
}

[[noreturn]] void refuse(const std::string& name, const std::string& reason) {
  throw Error(ErrorCode::corrupt_data,
              fmt::format("{}: {}; the KV file is not used", name, reason));
}

[[nodiscard]] std::span<const std::byte> view(const std::vector<std::byte>& bytes) {
  return bytes;
}

// CRC of every chunk of bytes that come in pieces.
class ChunkCrcs {
 public:
  void add(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const std::size_t n = std::min<std::size_t>(bytes.size(), kChunk - filled_);
      crc_ = crc32c(bytes.first(n), crc_);
      filled_ += n;
      bytes = bytes.subspan(n);
      if (filled_ == kChunk) close();
    }
  }
  [[nodiscard]] std::vector<std::uint32_t> finish() {
    if (filled_ > 0) close();
    return std::move(crcs_);
  }

 private:
  void close() {
    crcs_.push_back(crc_);
    crc_ = 0;
    filled_ = 0;
  }
  std::vector<std::uint32_t> crcs_;
  std::uint32_t crc_ = 0;
  std::size_t filled_ = 0;
};

std::vector<std::byte> encode_header(const KvFileHeader& h) {
  std::vector<std::byte> bytes(h.header_bytes());
  Fixed fixed{.magic = kMagic,
              .version = kVersion,
              .header_crc = 0,
              .kind = static_cast<std::uint32_t>(h.kind),
              .n_items = static_cast<std::uint32_t>(h.n_items()),
              .created_ms = h.created_ms,
              .position = static_cast<std::uint64_t>(h.position),
              .page_tokens = static_cast<std::uint64_t>(h.page_tokens),
              .item_bytes = h.item_bytes,
              .body_bytes = h.body_bytes(),
              .model = h.model,
              .parent = h.parent.bytes,
              .reserved = {}};
  std::byte* at = bytes.data() + sizeof fixed;
  std::memcpy(bytes.data(), &fixed, sizeof fixed);
  for (const ChainKey& key : h.keys) {
    std::memcpy(at, key.bytes.data(), key.bytes.size());
    at += key.bytes.size();
  }
  if (!h.body_crcs.empty()) std::memcpy(at, h.body_crcs.data(), h.body_crcs.size() * 4);
  fixed.header_crc = crc32c(view(bytes));
  std::memcpy(bytes.data(), &fixed, sizeof fixed);
  return bytes;
}

void read_exactly(const ReadableFile& file, const std::string& name, std::uint64_t offset,
                  std::span<std::byte> into) {
  const std::size_t n = file.read(offset, into);
  if (n != into.size()) {
    refuse(name,
           fmt::format("it ends at byte {}, wanted {} at least", offset + n, offset + into.size()));
  }
}

// Hands body bytes [begin, end) to `sink(offset, bytes)`, piece by piece, each out of a chunk that
// was checked.
template <class Sink>
void read_body(const ReadableFile& file, const KvFileHeader& h, const std::string& name,
               std::uint64_t begin, std::uint64_t end, const Sink& sink) {
  std::vector<std::byte> chunk(kChunk);
  for (std::uint64_t at = begin / kChunk * kChunk; at < end; at += kChunk) {
    const std::span<std::byte> bytes =
        std::span(chunk).first(std::min(kChunk, h.body_bytes() - at));
    read_exactly(file, name, h.header_bytes() + at, bytes);
    if (crc32c(bytes) != h.body_crcs.at(at / kChunk)) {
      refuse(name,
             fmt::format("the checksum of body bytes {} to {} is wrong", at, at + bytes.size()));
    }
    const std::uint64_t from = std::max(at, begin), to = std::min(at + bytes.size(), end);
    sink(from, std::span<const std::byte>(bytes).subspan(from - at, to - from));
  }
}

}  // namespace

std::uint64_t KvFileHeader::token_bytes() const {
  return round_up(n_items() * static_cast<std::uint64_t>(page_tokens) * sizeof(TokenId), 64);
}

std::uint64_t KvFileHeader::header_bytes() const {
  return round_up(sizeof(Fixed) + n_items() * sizeof(ChainKey) + n_chunks(body_bytes()) * 4,
                  kHeaderUnit);
}

void write_kv_file(FileSystem& fs, const Path& path, KvFileHeader header,
                   std::span<const TokenId> tokens,
                   std::span<const std::span<const std::byte>> items) {
  HADAL_CHECK(items.size() == header.n_items() && !items.empty());
  HADAL_CHECK(tokens.size() == items.size() * static_cast<std::size_t>(header.page_tokens));
  std::vector<std::byte> token_block(header.token_bytes());
  std::memcpy(token_block.data(), tokens.data(), tokens.size_bytes());
  ChunkCrcs crcs;
  crcs.add(token_block);
  for (const std::span<const std::byte> item : items) {
    HADAL_CHECK(item.size() == header.item_bytes);
    crcs.add(item);
  }
  header.body_crcs = crcs.finish();
  const std::unique_ptr<WritableFile> file = fs.create(path);
  file->append(view(encode_header(header)));
  file->append(view(token_block));
  for (const std::span<const std::byte> item : items) file->append(item);
  file->sync_data();
  file->close();
}

KvFileHeader read_kv_header(const ReadableFile& file, const std::string& name) {
  std::vector<std::byte> bytes(kHeaderUnit);
  const std::uint64_t file_size = file.size();
  if (file_size < kHeaderUnit) {
    refuse(name, fmt::format("it has {} bytes, less than a header", file_size));
  }
  read_exactly(file, name, 0, bytes);
  Fixed fixed;
  std::memcpy(&fixed, bytes.data(), sizeof fixed);
  if (fixed.magic != kMagic) refuse(name, "it does not begin as a KV file does");
  if (fixed.version != kVersion) {
    refuse(name, fmt::format("it has version {}, wanted {}", fixed.version, kVersion));
  }
  KvFileHeader h;
  h.kind = static_cast<KvFileKind>(fixed.kind);
  if (h.kind != KvFileKind::pages && h.kind != KvFileKind::snapshot) {
    refuse(name, fmt::format("it is of an unknown kind, {}", fixed.kind));
  }
  // Bounds first: the sizes below must not wrap.
  const std::uint64_t max_items = h.kind == KvFileKind::pages ? kMaxItems : 1;
  if (fixed.n_items == 0 || fixed.n_items > max_items || fixed.item_bytes > kMaxItemBytes ||
      fixed.page_tokens == 0 || fixed.page_tokens > kMaxPageTokens ||
      fixed.position > (std::uint64_t{1} << 62)) {
    refuse(name, fmt::format("its sizes cannot be: {} items of {} bytes, {} tokens a page",
                             fixed.n_items, fixed.item_bytes, fixed.page_tokens));
  }
  h.model = fixed.model;
  h.created_ms = fixed.created_ms;
  h.position = static_cast<std::int64_t>(fixed.position);
  h.page_tokens = static_cast<std::int64_t>(fixed.page_tokens);
  h.item_bytes = fixed.item_bytes;
  h.parent.bytes = fixed.parent;
  h.keys.resize(fixed.n_items);
  if (h.body_bytes() != fixed.body_bytes || h.file_bytes() != file_size) {
    refuse(name, fmt::format("it has {} bytes, its header implies {}", file_size, h.file_bytes()));
  }
  const std::uint64_t header_bytes = h.header_bytes();
  if (header_bytes > kHeaderUnit) {
    bytes.resize(header_bytes);
    read_exactly(file, name, kHeaderUnit, std::span(bytes).subspan(kHeaderUnit));
  }
  const std::uint32_t wanted = fixed.header_crc;
  fixed.header_crc = 0;
  std::memcpy(bytes.data(), &fixed, sizeof fixed);
  if (crc32c(view(bytes)) != wanted) refuse(name, "the checksum of its header is wrong");
  const std::byte* at = bytes.data() + sizeof fixed;
  for (ChainKey& key : h.keys) {
    std::memcpy(key.bytes.data(), at, key.bytes.size());
    at += key.bytes.size();
  }
  h.body_crcs.resize(n_chunks(h.body_bytes()));
  std::memcpy(h.body_crcs.data(), at, h.body_crcs.size() * 4);
  return h;
}

std::vector<TokenId> read_kv_tokens(const ReadableFile& file, const KvFileHeader& header,
                                    const std::string& name) {
  std::vector<TokenId> tokens(header.n_items() * static_cast<std::size_t>(header.page_tokens));
  const std::span<std::byte> out = std::as_writable_bytes(std::span(tokens));
  read_body(file, header, name, 0, out.size(),
            [&](std::uint64_t offset, std::span<const std::byte> bytes) {
              std::memcpy(out.data() + offset, bytes.data(), bytes.size());
            });
  return tokens;
}

void read_kv_items(const ReadableFile& file, const KvFileHeader& header, const std::string& name,
                   std::uint64_t first, std::span<const std::span<std::byte>> into) {
  HADAL_CHECK(first + into.size() <= header.n_items());
  for (const std::span<std::byte> item : into) HADAL_CHECK(item.size() == header.item_bytes);
  if (header.item_bytes == 0) return;
  const std::uint64_t begin = header.token_bytes() + first * header.item_bytes;
  read_body(file, header, name, begin, begin + into.size() * header.item_bytes,
            [&](std::uint64_t offset, std::span<const std::byte> bytes) {
              while (!bytes.empty()) {  // a chunk may end one item and begin others
                const std::uint64_t index = (offset - begin) / header.item_bytes;
                const std::uint64_t within = (offset - begin) % header.item_bytes;
                const std::size_t n =
                    std::min<std::size_t>(bytes.size(), header.item_bytes - within);
                std::memcpy(into[index].data() + within, bytes.data(), n);
                bytes = bytes.subspan(n);
                offset += n;
              }
            });
}

}  // namespace hadal::cache
