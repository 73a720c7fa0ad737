#include "core/digest.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include <bit>
#include <cstring>

#include "core/error.h"

#if defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#endif

namespace hadal {

namespace {

static_assert(std::endian::native == std::endian::little);

// Eight tables: entry [k][b] is the CRC of byte b followed by k zero bytes.
constexpr std::array<std::array<std::uint32_t, 256>, 8> make_tables() {
  constexpr std::uint32_t kPolynomial = 0x82F63B78u;  // Castagnoli's, bits reversed
  std::array<std::array<std::uint32_t, 256>, 8> tables{};
  for (std::uint32_t b = 0; b < 256; ++b) {
    std::uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][b] = crc;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::size_t b = 0; b < 256; ++b) {
      const std::uint32_t before = tables[k - 1][b];
      tables[k][b] = (before >> 8) ^ tables[0][before & 0xff];
    }
  }
  return tables;
}
constexpr auto kTables = make_tables();

std::uint64_t load_u64(const std::byte* bytes) {
  std::uint64_t word = 0;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) std::uint32_t crc32c_hardware(std::span<const std::byte> bytes,
                                                                std::uint32_t before) {
  std::uint64_t crc = ~before;
  while (bytes.size() >= 8) {
    crc = __builtin_ia32_crc32di(crc, load_u64(bytes.data()));
    bytes = bytes.subspan(8);
  }
  auto low = static_cast<std::uint32_t>(crc);
  for (const std::byte b : bytes) {
    low = __builtin_ia32_crc32qi(low, std::to_integer<unsigned char>(b));
  }
  return ~low;
}
bool has_hardware() {
  return __builtin_cpu_supports("sse4.2") != 0;
}
#elif defined(__aarch64__)
__attribute__((target("+crc"))) std::uint32_t crc32c_hardware(std::span<const std::byte> bytes,
                                                              std::uint32_t before) {
  std::uint32_t crc = ~before;
  while (bytes.size() >= 8) {
    crc = __crc32cd(crc, load_u64(bytes.data()));
    bytes = bytes.subspan(8);
  }
  for (const std::byte b : bytes) crc = __crc32cb(crc, std::to_integer<std::uint8_t>(b));
  return ~crc;
}
bool has_hardware() {
  constexpr unsigned long kCrc32 = 1ul << 7;  // HWCAP_CRC32
  return (::getauxval(AT_HWCAP) & kCrc32) != 0;
}
#else
std::uint32_t crc32c_hardware(std::span<const std::byte> bytes, std::uint32_t before) {
  return crc32c_portable(bytes, before);
}
bool has_hardware() {
  return false;
}
#endif

void require(int openssl_result, const char* what) {
  if (openssl_result != 1) {
    throw Error(ErrorCode::io, std::string("the cryptographic library cannot ") + what +
                                   "; is its installation complete?");
  }
}

}  // namespace

std::uint32_t crc32c_portable(std::span<const std::byte> bytes, std::uint32_t before) {
  std::uint32_t crc = ~before;
  while (bytes.size() >= 8) {
    const std::uint64_t word = load_u64(bytes.data()) ^ crc;
    crc = 0;
    for (unsigned k = 0; k < 8; ++k) crc ^= kTables[7 - k][(word >> (8 * k)) & 0xff];
    bytes = bytes.subspan(8);
  }
  for (const std::byte b : bytes) {
    crc = (crc >> 8) ^ kTables[0][(crc ^ std::to_integer<std::uint32_t>(b)) & 0xff];
  }
  return ~crc;
}

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before) {
  static const bool kHardware = has_hardware();
  return kHardware ? crc32c_hardware(bytes, before) : crc32c_portable(bytes, before);
}

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  State() = default;
  ~State() { EVP_MD_CTX_free(context); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  require(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr), "compute SHA-256");
}
Sha256::~Sha256() = default;

void Sha256::update(std::span<const std::byte> bytes) {
  require(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()), "compute SHA-256");
}

Sha256Digest Sha256::finish() {
  Sha256Digest digest;
  require(
      EVP_DigestFinal_ex(state_->context, reinterpret_cast<unsigned char*>(digest.data()), nullptr),
      "compute SHA-256");
  return digest;
}

Sha256Digest sha256(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.finish();
}

Sha256Digest sha256(std::string_view text) {
  return sha256(std::as_bytes(std::span(text)));
}

std::string to_hex(std::span<const std::byte> bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  text.reserve(2 * bytes.size());
  for (const std::byte b : bytes) {
    text += kDigits[std::to_integer<unsigned>(b) >> 4];
    text += kDigits[std::to_integer<unsigned>(b) & 15];
  }
  return text;
}

bool constant_time_equal(std::string_view given, std::string_view expected) {
  // Digests have one length, and who can choose `given` cannot steer its digest byte by byte.
  const Sha256Digest a = sha256(given), b = sha256(expected);
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

void random_bytes(std::span<std::byte> into) {
  require(RAND_bytes(reinterpret_cast<unsigned char*>(into.data()), static_cast<int>(into.size())),
          "give random bytes");
}

}  // namespace hadal
