// Typed access to one object of a JSON file, whose every complaint names the file, the key, what
// was found and what was wanted.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace hadal::io {

// A null counts as an absent key. `object` must outlive this.
class JsonSection {
 public:
  JsonSection(const nlohmann::json& object, std::string path, std::string source)
      : object_(object), path_(std::move(path)), source_(std::move(source)) {}

  // The getters return nothing for an absent key and throw Error corrupt_data for a wrong type.
  [[nodiscard]] bool has(const char* key) const { return get(key) != nullptr; }
  [[nodiscard]] std::optional<std::int64_t> integer(const char* key) const;
  [[nodiscard]] std::optional<double> number(const char* key) const;
  [[nodiscard]] std::optional<float> f32(const char* key) const;  // at most 1e30 in magnitude
  [[nodiscard]] std::optional<bool> boolean(const char* key) const;
  [[nodiscard]] std::optional<std::string> text(const char* key) const;
  [[nodiscard]] std::optional<std::vector<std::int64_t>> integers(const char* key) const;
  [[nodiscard]] std::optional<std::vector<std::string>> texts(const char* key) const;
  [[nodiscard]] std::optional<JsonSection> section(const char* key) const;

  // These throw corrupt_data for an absent key too.
  [[nodiscard]] std::int64_t required_integer(const char* key) const;
  [[nodiscard]] double required_number(const char* key) const;

  // For keys with one value that hadal implements: an absent key passes, another value throws
  // Error unsupported.
  void expect_text(const char* key, std::string_view wanted) const;
  void expect_bool(const char* key, bool wanted) const;
  void expect_integer(const char* key, std::int64_t wanted) const;

  [[nodiscard]] std::string path(std::string_view key) const;  // "rope_scaling.factor"
  [[noreturn]] void fail(ErrorCode code, const std::string& sentence) const;
  [[noreturn]] void missing(std::string_view key, std::string_view hint = {}) const;

 private:
  [[nodiscard]] const nlohmann::json* get(const char* key) const;
  [[nodiscard]] const nlohmann::json* list(const char* key) const;
  [[nodiscard]] std::int64_t integer_value(const nlohmann::json& v, const char* key) const;
  [[noreturn]] void wrong_type(const nlohmann::json& v, const char* key,
                               std::string_view wanted) const;

  const nlohmann::json& object_;
  std::string path_;  // "" at the top, "rope_scaling." below
  std::string source_;
};

}  // namespace hadal::io
