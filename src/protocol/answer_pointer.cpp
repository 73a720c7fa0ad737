#include "protocol/answer_pointer.h"

#include "protocol/api_common.h"

namespace hadal::protocol {
namespace {

constexpr std::string_view kPrefix = "answer_";
constexpr std::size_t kMaxBytes = 64;

}  // namespace

std::string answer_pointer(const ResponseIdentity& identity, std::int32_t choice) {
  return derived_id(kPrefix, identity, "answer", choice, 0);
}

std::string answer_pointer_from(std::string_view signature) {
  const bool is_ours = signature.starts_with(kPrefix) && signature.size() <= kMaxBytes;
  return is_ours ? std::string(signature) : std::string();
}

}  // namespace hadal::protocol
