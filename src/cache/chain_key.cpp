#include "cache/chain_key.h"

#include <algorithm>
#include <cstdint>

#include "core/digest.h"

namespace hadal::cache {

namespace {

ChainKey shorten(const Sha256Digest& digest) {
  ChainKey key;
  std::copy_n(digest.begin(), key.bytes.size(), key.bytes.begin());
  return key;
}

}  // namespace

std::string to_string(const ChainKey& key) {
  return to_hex(key.bytes);
}

ChainHasher::ChainHasher(const Secret& secret, std::string_view model)
    : secret_(secret), model_(model) {}

ChainKey ChainHasher::root(std::string_view domain) const {
  // The length between the two, so that they cannot be cut in another place.
  const std::uint64_t length = model_.size();
  Sha256 hash;
  hash.update(secret_);
  hash.update("root");
  hash.update(std::as_bytes(std::span(&length, 1)));
  hash.update(model_);
  hash.update(domain);
  return shorten(hash.finish());
}

ChainKey ChainHasher::next(const ChainKey& parent, std::span<const TokenId> page) const {
  Sha256 hash;
  hash.update(secret_);
  hash.update("page");
  hash.update(parent.bytes);
  hash.update(std::as_bytes(page));
  return shorten(hash.finish());
}

ChainHasher::Secret ChainHasher::random_secret() {
  Secret secret;
  random_bytes(secret);
  return secret;
}

}  // namespace hadal::cache
