// Any bytes as a safetensors file: refused with an Error, or every tensor lies inside them.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace hadal;
  // A copy of exactly this size, so that a sanitizer sees a read past the end.
  auto memory = std::make_shared<std::vector<std::byte>>(size);
  if (size > 0) std::memcpy(memory->data(), data, size);
  try {
    const auto file = io::SafetensorsFile::parse(std::shared_ptr<std::byte>(memory, memory->data()),
                                                 size, "fuzz");
    unsigned sum = 0;
    std::size_t total = 0;
    for (const io::SafetensorsEntry& entry : file.entries()) {
      const Tensor t = file.tensor(entry);
      HADAL_CHECK(t.nbytes() == entry.nbytes && t.shape() == entry.shape);
      for (std::size_t i = 0; i < t.nbytes(); ++i) sum += std::to_integer<unsigned>(t.bytes()[i]);
      total += entry.nbytes;
      HADAL_CHECK(file.find(entry.name) == &entry);
    }
    HADAL_CHECK(total < size);
    volatile unsigned keep = sum;
    (void)keep;
  } catch (const Error& e) {
    // A sentence, never a broken invariant of our own.
    if (std::strstr(e.what(), "fuzz:") == nullptr) throw;
  }
  return 0;
}
