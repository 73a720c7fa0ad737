// Any bytes as a journal's segment, and as each record's payload: refused with a sentence, or read;
// what was read once is read again the same after recovery has cut its end.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "core/digest.h"
#include "core/error.h"
#include "journal/recovery.h"
#include "journal/segment.h"
#include "support/fault_file_system.h"

namespace {

using namespace hadal;
using namespace hadal::journal;

// Checksums would stop every mutation at the door: they are made right again, record by record, as
// far as lengths lead.
void mend(std::string& file) {
  if (file.size() < kSegmentHeaderBytes) return;
  SegmentHeader header;
  std::memcpy(&header.first_lsn, file.data() + 24, 8);
  std::memcpy(header.log.data(), file.data() + 32, 16);
  header.number = 1;
  const auto head = encode(header);
  std::memcpy(file.data(), head.data(), head.size());
  std::uint32_t seed = 0;
  std::memcpy(&seed, header.log.data(), 4);
  seed ^= 1;
  Lsn lsn = header.first_lsn;
  for (std::size_t at = kSegmentHeaderBytes; at + kRecordHeaderBytes <= file.size();) {
    std::uint32_t len = 0;
    std::memcpy(&len, file.data() + at + 4, 4);
    const std::size_t padded = (std::size_t{len} + 7) / 8 * 8;
    if (padded > file.size() - at - kRecordHeaderBytes) break;
    std::memcpy(file.data() + at + 16, &lsn, 8);
    ++lsn;
    std::memset(file.data() + at + kRecordHeaderBytes + len, 0, padded - len);
    const std::uint32_t crc =
        crc32c(std::as_bytes(std::span(file)).subspan(at + 4, kRecordHeaderBytes - 4 + len), seed);
    std::memcpy(file.data() + at, &crc, 4);
    at += kRecordHeaderBytes + padded;
  }
}

template <class Decode>
void decode_any(std::span<const std::byte> bytes, Decode decode) {
  try {
    const auto record = decode(bytes);
    // One spelling: what was decoded says the same again.
    HADAL_CHECK(decode(encode(record)) == record);
  } catch (const Error& error) {
    if (std::strstr(error.what(), "payload is malformed") == nullptr) throw;
  }
}

bool has_nan(std::span<const std::byte> bytes) {
  try {
    for (const TokenEntry& entry : decode_step(bytes).tokens) {
      if (entry.logprob && *entry.logprob != *entry.logprob) return true;
      for (const TopEntry& top : entry.top) {
        if (top.logprob != top.logprob) return true;
      }
    }
  } catch (const Error&) {
    return false;
  }
  return false;
}

void recover_any(const std::string& file) {
  hadal::test::FaultFileSystem fs;
  fs.create_directories("j");
  fs.set_content(Path("j") / segment_name(1), file);
  std::uint64_t n_tokens = 0;
  try {
    Recovery first = recover(fs, "j");
    for (const auto& [local, stream] : first.streams) n_tokens += stream.n_tokens;
    first.lock.reset();
    const Recovery second = recover(fs, "j");
    std::uint64_t again = 0;
    for (const auto& [local, stream] : second.streams) again += stream.n_tokens;
    HADAL_CHECK(again == n_tokens && second.torn_bytes == 0);
  } catch (const Error& error) {
    if (error.code != ErrorCode::corrupt_data) throw;
    const Recovery repaired = recover(fs, "j", {.repair = true});
    HADAL_CHECK(!repaired.notes.empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  decode_any(bytes, decode_open);
  decode_any(bytes, decode_snap);
  decode_any(bytes, decode_close);
  decode_any(bytes, decode_cancel);
  decode_any(bytes, decode_table);
  if (!has_nan(bytes)) decode_any(bytes, decode_step);  // a NaN equals nothing
  std::string file(reinterpret_cast<const char*>(data), size);
  recover_any(file);
  mend(file);
  recover_any(file);
  return 0;
}
