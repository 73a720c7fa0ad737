// Little-endian fields in and out of a record's payload.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hadal::journal {

static_assert(std::endian::native == std::endian::little, "fields are copied as they lie");

using Bytes = std::vector<std::byte>;

class PayloadWriter {
 public:
  template <class T>
    requires std::integral<T> || std::floating_point<T>
  void put(T value) {
    raw(std::as_bytes(std::span(&value, 1)));
  }
  void raw(std::span<const std::byte> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  // u32 length, then the bytes.
  void text(std::string_view value) {
    put(static_cast<std::uint32_t>(value.size()));
    raw(std::as_bytes(std::span(value)));
  }
  [[nodiscard]] Bytes take() { return std::move(bytes_); }

 private:
  Bytes bytes_;
};

// Reading past the end gives zeros and spoils the whole: ask done() at the end.
class PayloadReader {
 public:
  explicit PayloadReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <class T>
    requires std::integral<T> || std::floating_point<T>
  [[nodiscard]] T get() {
    T value{};
    const auto field = raw(sizeof(T));
    if (ok_) std::memcpy(&value, field.data(), sizeof(T));
    return value;
  }
  [[nodiscard]] std::span<const std::byte> raw(std::size_t n) {
    if (n > bytes_.size()) {
      ok_ = false;
      bytes_ = {};
      return {};
    }
    const auto field = bytes_.first(n);
    bytes_ = bytes_.subspan(n);
    return field;
  }
  template <std::size_t N>
  void raw_into(std::array<std::byte, N>& into) {
    const auto field = raw(N);
    if (ok_) std::memcpy(into.data(), field.data(), N);
  }
  [[nodiscard]] std::string text() {
    const auto n = get<std::uint32_t>();
    const auto field = raw(n);
    return {reinterpret_cast<const char*>(field.data()), field.size()};
  }
  [[nodiscard]] std::size_t remaining() const { return bytes_.size(); }
  [[nodiscard]] bool ok() const { return ok_; }
  // Everything was there, and nothing is left over.
  [[nodiscard]] bool done() const { return ok_ && bytes_.empty(); }
  void fail() { ok_ = false; }

 private:
  std::span<const std::byte> bytes_;
  bool ok_ = true;
};

}  // namespace hadal::journal
