// safetensors files in memory, well-formed and otherwise, and what reading them says.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/safetensors.h"

namespace hadal::test {

struct RawTensor {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::string data;
};

inline std::string with_header(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + header + data;
}

inline std::string safetensors_bytes(const std::vector<RawTensor>& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const RawTensor& t : tensors) {
    header[t.name] = {{"dtype", t.dtype},
                      {"shape", t.shape},
                      {"data_offsets", {data.size(), data.size() + t.data.size()}}};
    data += t.data;
  }
  std::string text = header.dump();
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');  // data aligned, as writers leave it
  return with_header(text, data);
}

inline io::SafetensorsFile parse_bytes(const std::string& bytes, std::string name = "test.st") {
  // Exactly as large as the bytes, so that a sanitizer sees a read beyond them.
  auto memory = std::make_shared<std::vector<std::byte>>(bytes.size());
  if (!bytes.empty()) std::memcpy(memory->data(), bytes.data(), bytes.size());
  std::shared_ptr<std::byte> storage(memory, memory->data());
  return io::SafetensorsFile::parse(std::move(storage), bytes.size(), std::move(name));
}

// The Error that `action` throws, or nothing.
struct Thrown {
  ErrorCode code;
  std::string message;
};
inline std::optional<Thrown> thrown_by(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return Thrown{e.code, e.what()};
  }
  return std::nullopt;
}

}  // namespace hadal::test

// `action` throws Error `wanted_code` whose message has `wanted_text` in it.
#define EXPECT_ERROR(action, wanted_code, wanted_text)                                  \
  do {                                                                                  \
    const auto thrown = ::hadal::test::thrown_by([&] { (void)(action); });              \
    ASSERT_TRUE(thrown.has_value()) << "nothing was thrown; wanted: " << (wanted_text); \
    EXPECT_EQ(to_string(thrown->code), std::string(to_string(wanted_code)));            \
    EXPECT_THAT(thrown->message, ::testing::HasSubstr(wanted_text));                    \
  } while (false)
