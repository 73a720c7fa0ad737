#include "protocol/answer_log.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <optional>

#include "core/error.h"

namespace hadal::protocol {
namespace {

static_assert(std::endian::native == std::endian::little, "records are copied as they lie");

constexpr std::string_view kFileMagic("HDLANSW\1", 8);
constexpr std::string_view kRecordMagic = "ANSW";
constexpr std::size_t kRecordHeader = 12;
// Longer than any answer; a length beyond it is damage.
constexpr std::uint32_t kMaxPayload = 64u << 20;

void put_u32(std::string& out, std::uint32_t value) {
  char bytes[4];
  std::memcpy(bytes, &value, 4);
  out.append(bytes, 4);
}
std::uint32_t get_u32(std::string_view bytes) {
  std::uint32_t value;
  std::memcpy(&value, bytes.data(), 4);
  return value;
}
std::uint32_t crc_of(std::string_view bytes) {
  return crc32c(std::as_bytes(std::span(bytes)));
}

std::string record_of(std::string_view payload) {
  HADAL_CHECK(payload.size() <= kMaxPayload);
  std::string record(kRecordMagic);
  put_u32(record, static_cast<std::uint32_t>(payload.size()));
  put_u32(record, crc_of(payload));
  return record.append(payload);
}

// The payload of the record that `bytes` begins with, if it is one and whole.
std::optional<std::string_view> whole_record(std::string_view bytes) {
  if (bytes.size() < kRecordHeader || !bytes.starts_with(kRecordMagic)) return std::nullopt;
  const std::uint32_t length = get_u32(bytes.substr(4));
  if (length > kMaxPayload || length > bytes.size() - kRecordHeader) return std::nullopt;
  const std::string_view payload = bytes.substr(kRecordHeader, length);
  if (crc_of(payload) != get_u32(bytes.substr(8))) return std::nullopt;
  return payload;
}

}  // namespace

AnswerLog::AnswerLog(FileSystem& file_system, Path path, std::string_view fingerprint)
    : file_system_(file_system), path_(std::move(path)), header_(kFileMagic) {
  const Sha256Digest digest = sha256(fingerprint);
  header_.append(reinterpret_cast<const char*>(digest.data()), 16);
  put_u32(header_, crc_of(header_));
}

AnswerLog::~AnswerLog() {
  try {
    if (file_) file_->close();
  } catch (const Error&) {
    // The records of a cache; whoever reads the file next skips what is not whole.
    file_.reset();
  }
}

std::size_t AnswerLog::record_bytes(std::size_t payload_bytes) {
  return kRecordHeader + payload_bytes;
}

std::uint64_t AnswerLog::open(const std::function<void(std::string_view)>& record) {
  if (!file_system_.exists(path_)) {
    rewrite([](const auto&) {});
    return 0;
  }
  const std::vector<std::byte> bytes = file_system_.read_all(path_);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!text.starts_with(header_)) {
    rewrite([](const auto&) {});
    return text.size();
  }
  std::uint64_t skipped = 0;
  for (std::size_t at = header_.size(); at < text.size();) {
    if (const auto payload = whole_record(text.substr(at))) {
      record(*payload);
      at += kRecordHeader + payload->size();
      continue;
    }
    const std::size_t next = std::min(text.find(kRecordMagic, at + 1), text.size());
    skipped += next - at;
    at = next;
  }
  file_ = file_system_.open_append(path_);
  nbytes_ = text.size();
  return skipped;
}

void AnswerLog::append(std::string_view payload) {
  HADAL_CHECK(file_ != nullptr);
  const std::string record = record_of(payload);
  file_->append(record);
  nbytes_ += record.size();
}

void AnswerLog::rewrite(
    const std::function<void(const std::function<void(std::string_view)>&)>& records) {
  const Path fresh = path_.string() + ".new";
  auto file = file_system_.create(fresh);
  std::uint64_t nbytes = header_.size();
  file->append(header_);
  records([&](std::string_view payload) {
    const std::string record = record_of(payload);
    file->append(record);
    nbytes += record.size();
  });
  file->sync();
  file_system_.rename(fresh, path_);
  if (file_) file_->close();
  file_ = std::move(file);
  nbytes_ = nbytes;
}

}  // namespace hadal::protocol
