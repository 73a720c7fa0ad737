#include "journal/segment.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/digest.h"
#include "journal/payload.h"

namespace hadal::journal {

namespace {

constexpr std::string_view kMagic{"DSV4WAL\0", 8};
constexpr std::uint64_t kAlignment = 8;

std::uint64_t padded(std::uint64_t n) {
  return (n + kAlignment - 1) / kAlignment * kAlignment;
}

template <class T>
T load(std::span<const std::byte> bytes, std::size_t offset) {
  T value{};
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

std::uint32_t header_crc(std::span<const std::byte> bytes) {
  return crc32c(bytes.subspan(16, 48), crc32c(bytes.first(12)));
}

std::uint32_t record_seed(const SegmentHeader& header) {
  return load<std::uint32_t>(header.log, 0) ^ static_cast<std::uint32_t>(header.number);
}

bool all_zero(std::span<const std::byte> bytes) {
  // Equal to itself moved by one, and the first is zero.
  return bytes.empty() || (bytes[0] == std::byte{0} &&
                           std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

}  // namespace

std::array<std::byte, kSegmentHeaderBytes> encode(const SegmentHeader& header) {
  PayloadWriter out;
  out.raw(std::as_bytes(std::span(kMagic)));
  out.put(kFormatVersion);
  out.put(std::uint32_t{0});  // the checksum, below
  out.put(header.number);
  out.put(header.first_lsn);
  out.raw(header.log);
  out.put(header.created_ns);
  out.put(std::uint32_t{0});  // flags
  out.put(std::uint32_t{0});
  const Bytes bytes = out.take();
  std::array<std::byte, kSegmentHeaderBytes> result{};
  std::copy(bytes.begin(), bytes.end(), result.begin());
  const std::uint32_t crc = header_crc(result);
  std::memcpy(result.data() + 12, &crc, sizeof crc);
  return result;
}

HeaderOrReason decode_header(std::span<const std::byte> bytes) {
  if (bytes.size() < kSegmentHeaderBytes) {
    return {{},
            fmt::format("its header is cut off after {} of {} bytes", bytes.size(),
                        kSegmentHeaderBytes)};
  }
  bytes = bytes.first(kSegmentHeaderBytes);
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return {{}, "it does not begin as a journal segment does"};
  }
  if (load<std::uint32_t>(bytes, 12) != header_crc(bytes)) {
    return {{}, "its header's checksum does not match"};
  }
  if (const auto version = load<std::uint32_t>(bytes, 8); version != kFormatVersion) {
    return {{},
            fmt::format("it has format version {}; this program reads version {}", version,
                        kFormatVersion)};
  }
  SegmentHeader header;
  header.number = load<std::uint64_t>(bytes, 16);
  header.first_lsn = load<std::uint64_t>(bytes, 24);
  std::memcpy(header.log.data(), bytes.data() + 32, header.log.size());
  header.created_ns = load<std::uint64_t>(bytes, 48);
  return {header, {}};
}

std::string segment_name(std::uint64_t number) {
  return fmt::format("{:020}.seg", number);
}

std::optional<std::uint64_t> segment_number(const std::string& name) {
  if (name.size() != 24 || !name.ends_with(".seg")) return std::nullopt;
  std::uint64_t number = 0;
  for (const char c : name.substr(0, 20)) {
    if (c < '0' || c > '9') return std::nullopt;
    number = number * 10 + static_cast<std::uint64_t>(c - '0');
  }
  if (segment_name(number) != name) return std::nullopt;  // beyond 64 bits
  return number;
}

void append_record(std::vector<std::byte>& out, const SegmentHeader& header, RecordType type,
                   std::uint8_t flags, Lsn lsn, std::span<const std::byte> payload) {
  const std::size_t begin = out.size();
  out.resize(begin + kRecordHeaderBytes + padded(payload.size()));
  std::byte* at = out.data() + begin;
  const auto len = static_cast<std::uint32_t>(payload.size());
  std::memcpy(at + 4, &len, sizeof len);
  at[8] = static_cast<std::byte>(type);
  at[9] = static_cast<std::byte>(flags);
  std::memcpy(at + 16, &lsn, sizeof lsn);
  if (!payload.empty()) std::memcpy(at + kRecordHeaderBytes, payload.data(), payload.size());
  const std::uint32_t crc =
      crc32c(std::span<const std::byte>(at + 4, kRecordHeaderBytes - 4 + len), record_seed(header));
  std::memcpy(at, &crc, sizeof crc);
}

SegmentScanner::SegmentScanner(const SegmentHeader& header, std::span<const std::byte> bytes,
                               std::uint64_t offset, Lsn next_lsn)
    : seed_(record_seed(header)),
      bytes_(bytes),
      base_(offset),
      offset_(offset),
      next_lsn_(next_lsn) {}

std::optional<RecordView> SegmentScanner::record_at(std::uint64_t offset, bool any_later_lsn) {
  const auto bytes = from(offset);
  if (bytes.size() < kRecordHeaderBytes) {
    reason_ = fmt::format("{} bytes are left, too few for a record", bytes.size());
    return std::nullopt;
  }
  RecordView record;
  const auto len = load<std::uint32_t>(bytes, 4);
  if (padded(len) > bytes.size() - kRecordHeaderBytes) {
    reason_ = fmt::format("a record of {} bytes does not fit into the {} that are left", len,
                          bytes.size() - kRecordHeaderBytes);
    return std::nullopt;
  }
  if (load<std::uint32_t>(bytes, 0) !=
      crc32c(bytes.subspan(4, kRecordHeaderBytes - 4 + len), seed_)) {
    reason_ = "the record's checksum does not match";
    return std::nullopt;
  }
  const auto padding = bytes.subspan(kRecordHeaderBytes + len, padded(len) - len);
  if (!all_zero(padding)) {
    reason_ = "the record's padding is not zero";
    return std::nullopt;
  }
  record.type = static_cast<RecordType>(bytes[8]);
  record.flags = std::to_integer<std::uint8_t>(bytes[9]);
  record.lsn = load<std::uint64_t>(bytes, 16);
  record.begin = offset;
  record.end = offset + kRecordHeaderBytes + padded(len);
  record.payload = bytes.subspan(kRecordHeaderBytes, len);
  if (record.lsn != next_lsn_ && !(any_later_lsn && record.lsn > next_lsn_)) {
    reason_ = fmt::format("the record is number {} where {} was due", record.lsn, next_lsn_);
    return std::nullopt;
  }
  return record;
}

std::optional<RecordView> SegmentScanner::next() {
  const auto record = record_at(offset_, false);
  if (!record) {
    tail_ = all_zero(from(offset_)) ? Tail::clean : Tail::torn;
    return std::nullopt;
  }
  offset_ = record->end;
  next_lsn_ = record->lsn + 1;
  return record;
}

bool SegmentScanner::skip_damage() {
  for (std::uint64_t at = offset_ + kAlignment; at + kRecordHeaderBytes <= base_ + bytes_.size();
       at += kAlignment) {
    if (const auto record = record_at(at, true)) {
      offset_ = at;
      next_lsn_ = record->lsn;
      return true;
    }
  }
  return false;
}

}  // namespace hadal::journal
