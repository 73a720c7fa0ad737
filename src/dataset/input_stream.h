// The bytes of a source file, unpacked, from front to end.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "dataset/source_files.h"

namespace hadal::dataset {

// By one thread. Throws Error io or not_found, and corrupt_data for a file that is no zstd stream
// or ends inside one; each names the file.
class InputStream {
 public:
  virtual ~InputStream() = default;
  // Fills `into` with what comes next; less than asked only at the end.
  [[nodiscard]] virtual std::size_t read(std::span<char> into) = 0;
  // Bytes of the file itself that were read so far, for a progress bar.
  [[nodiscard]] virtual std::uint64_t n_file_bytes() const = 0;
};

// Begins `skip` bytes (unpacked) behind the beginning.
[[nodiscard]] std::unique_ptr<InputStream> open_input(const SourceFile& source, std::uint64_t skip);

}  // namespace hadal::dataset
