// Any bytes as a file of the KV cache: refused with an Error, or everything that the header
// promises can be read and lies inside them.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cache/kv_file.h"
#include "core/error.h"

namespace {

class Bytes final : public hadal::ReadableFile {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : bytes_(size) {
    if (size > 0) std::memcpy(bytes_.data(), data, size);
  }
  [[nodiscard]] std::size_t read(std::uint64_t offset, std::span<std::byte> into) const override {
    if (offset >= bytes_.size()) return 0;
    const std::size_t n = std::min<std::size_t>(into.size(), bytes_.size() - offset);
    if (n > 0) std::memcpy(into.data(), bytes_.data() + offset, n);
    return n;
  }
  [[nodiscard]] std::uint64_t size() const override { return bytes_.size(); }
  [[nodiscard]] std::vector<std::byte>& content() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

void read_all(const Bytes& file) {
  using namespace hadal;
  try {
    const cache::KvFileHeader header = cache::read_kv_header(file, "fuzz");
    HADAL_CHECK(header.file_bytes() == file.size());
    HADAL_CHECK(header.body_crcs.size() == (header.body_bytes() + 65535) / 65536);
    const std::vector<TokenId> tokens = cache::read_kv_tokens(file, header, "fuzz");
    HADAL_CHECK(tokens.size() == header.n_items() * static_cast<std::size_t>(header.page_tokens));
    for (std::uint64_t i = 0; i < header.n_items(); ++i) {
      std::vector<std::byte> item(header.item_bytes);
      const std::span<std::byte> into(item);
      cache::read_kv_items(file, header, "fuzz", i, {&into, 1});
    }
  } catch (const Error& e) {
    // A sentence, never a broken invariant of our own.
    if (std::strstr(e.what(), "fuzz:") == nullptr) throw;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes file(data, size);
  read_all(file);
  // Mutations seldom hit a checksum. Repair the header's, so that what it says is believed.
  if (size < 4096) return 0;
  std::vector<std::byte>& bytes = file.content();
  std::uint32_t crc = 0;
  std::memcpy(bytes.data() + 12, &crc, 4);
  crc = hadal::crc32c(std::span<const std::byte>(bytes).first(4096));
  std::memcpy(bytes.data() + 12, &crc, 4);
  read_all(file);
  return 0;
}
