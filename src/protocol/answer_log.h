// A file of small records that may be lost but never misread: a cache's memory of itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/digest.h"
#include "core/file.h"

namespace hadal::protocol {

// On disk, little-endian:
//   header  "HDLANSW\1" | sha256 of the fingerprint, 16 bytes | crc32c u32 of the 24 before
//   record  "ANSW" | length u32 | crc32c u32 of the payload | payload[length]
// A record that fails its check is skipped: reading goes on at the next "ANSW". A file that begins
// otherwise, or with another fingerprint, is replaced. Records are written to the file at once and
// never synced: a killed process loses none, a power cut may lose the last. Not thread safe.
class AnswerLog {
 public:
  AnswerLog(FileSystem& file_system, Path path, std::string_view fingerprint);
  ~AnswerLog();

  // Every good record of the file, in order; then the file is open for append(). Returns how many
  // bytes were not understood.
  std::uint64_t open(const std::function<void(std::string_view payload)>& record);

  void append(std::string_view payload);
  // Replaces the file by these records; the old one stays until the new one is complete.
  void rewrite(
      const std::function<void(const std::function<void(std::string_view)>& put)>& records);
  [[nodiscard]] std::uint64_t nbytes() const { return nbytes_; }

  [[nodiscard]] static std::size_t record_bytes(std::size_t payload_bytes);

 private:
  FileSystem& file_system_;
  Path path_;
  std::string header_;
  std::unique_ptr<WritableFile> file_;
  std::uint64_t nbytes_ = 0;
};

}  // namespace hadal::protocol
