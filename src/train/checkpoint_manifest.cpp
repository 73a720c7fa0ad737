#include "train/checkpoint_manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/digest.h"
#include "core/error.h"
#include "io/json_section.h"

namespace hadal::train {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "hadal training checkpoint manifest";
constexpr std::int64_t kVersion = 1;

Json json_of(const FileDigest& digest) {
  return {{"file", digest.file}, {"bytes", digest.nbytes}, {"sha256", digest.sha256}};
}

FileDigest digest_of(const nlohmann::json& value, const std::string& key,
                     const std::string& source) {
  const io::JsonSection section(value, key + ".", source);
  const std::int64_t nbytes = section.required_integer("bytes");
  FileDigest digest{.file = section.text("file").value_or(""),
                    .nbytes = static_cast<std::uint64_t>(nbytes),
                    .sha256 = section.text("sha256").value_or("")};
  if (nbytes < 0 || digest.file.empty() || digest.file.find('/') != std::string::npos ||
      digest.sha256.size() != 64) {
    section.fail(ErrorCode::corrupt_data, fmt::format("{} describes no file beside it", key));
  }
  return digest;
}

// Calls `take` with all bytes of a file, piece by piece, then compares size and digest.
template <class Take>
void read_pieces(FileSystem& fs, const Path& directory, const FileDigest& wanted, Take&& take) {
  const Path path = directory / wanted.file;
  const auto file = fs.open_read(path);
  if (file->size() != wanted.nbytes) {
    throw Error(ErrorCode::corrupt_data, fmt::format("{} has {} bytes, its manifest says {}",
                                                     path.string(), file->size(), wanted.nbytes));
  }
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  std::vector<std::byte> piece(std::min<std::size_t>(kPiece, wanted.nbytes));
  Sha256 digest;
  for (std::uint64_t at = 0; at < wanted.nbytes;) {
    const std::size_t n = file->read(at, piece);
    if (n == 0) break;  // cut while it is read: the digest will tell
    digest.update(std::span(piece).first(n));
    take(at, std::span<const std::byte>(piece).first(n));
    at += n;
  }
  if (const std::string found = to_hex(digest.finish()); found != wanted.sha256) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{} is not what was saved: its SHA-256 is {}..., its manifest says "
                            "{}...",
                            path.string(), found.substr(0, 16), wanted.sha256.substr(0, 16)));
  }
}

}  // namespace

std::vector<FileDigest> CheckpointManifest::files() const {
  std::vector<FileDigest> all = tensors;
  all.push_back(state);
  all.push_back(model_config);
  return all;
}

std::string to_json(const CheckpointManifest& manifest) {
  Json root;
  root["format"] = kFormat;
  root["version"] = kVersion;
  root["step"] = manifest.step;
  root["state"] = json_of(manifest.state);
  root["config"] = json_of(manifest.model_config);
  root["tensors"] = Json::array();
  for (const FileDigest& digest : manifest.tensors) root["tensors"].push_back(json_of(digest));
  return root.dump(1) + "\n";
}

CheckpointManifest parse_checkpoint_manifest(std::string_view json, const std::string& source) {
  const auto root = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object() || root.value("format", nlohmann::json()) != kFormat) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: not the manifest of a training checkpoint (no JSON object with "
                            "\"format\": \"{}\")",
                            source, kFormat));
  }
  const io::JsonSection section(root, "", source);
  if (const std::int64_t version = section.required_integer("version"); version != kVersion) {
    section.fail(ErrorCode::unsupported,
                 fmt::format("version is {}; this hadal reads version {}", version, kVersion));
  }
  const auto file = [&](const char* key) {
    const auto value = root.find(key);
    if (value == root.end() || !value->is_object()) section.missing(key);
    return digest_of(*value, key, source);
  };
  CheckpointManifest manifest{.step = section.required_integer("step"),
                              .tensors = {},
                              .state = file("state"),
                              .model_config = file("config")};
  const auto tensors = root.find("tensors");
  if (tensors == root.end() || !tensors->is_array()) section.missing("tensors");
  for (std::size_t i = 0; i < tensors->size(); ++i) {
    const std::string key = fmt::format("tensors[{}]", i);
    if (!(*tensors)[i].is_object()) section.missing(key);
    manifest.tensors.push_back(digest_of((*tensors)[i], key, source));
  }
  return manifest;
}

std::vector<std::byte> read_verified(FileSystem& fs, const Path& directory,
                                     const FileDigest& digest) {
  std::vector<std::byte> bytes;
  read_pieces(fs, directory, digest, [&](std::uint64_t at, std::span<const std::byte> piece) {
    // Only now: the file has the size that the manifest claims.
    if (at == 0) bytes.resize(digest.nbytes);
    std::copy(piece.begin(), piece.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
  });
  return bytes;
}

void verify(FileSystem& fs, const Path& directory, const FileDigest& digest) {
  read_pieces(fs, directory, digest, [](std::uint64_t, std::span<const std::byte>) {});
}

}  // namespace hadal::train
