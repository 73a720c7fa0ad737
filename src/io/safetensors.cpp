#include "io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "io/safetensors_header.h"

namespace hadal::io {

static_assert(std::endian::native == std::endian::little, "tensor data is mapped, not converted");

namespace {

// The sorted flavour: an index has a hundred thousand keys, and the ordered one looks each up by
// walking over those before it.
using Json = nlohmann::json;

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr const char* kIndexName = "model.safetensors.index.json";

// model.safetensors.index.json: tensor name -> shard's file name.
std::map<std::string, std::string> read_index(const Path& path) {
  const auto broken = [&](const std::string& what) {
    return Error(ErrorCode::corrupt_data, fmt::format("{}: {}", path.string(), what));
  };
  const std::string text = read_text(path);
  // Duplicates are looked for while parsing: a document keeps only one of them.
  std::set<std::string> seen;
  std::string section, duplicate;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event != Json::parse_event_t::key) return true;
    const auto& key = parsed.get_ref<const std::string&>();
    if (depth == 1) section = key;
    if (depth == 2 && section == "weight_map" && !seen.insert(key).second) duplicate = key;
    return true;
  };
  const Json index = Json::parse(text, watch, /*allow_exceptions=*/false);
  if (index.is_discarded()) throw broken("the index is not valid JSON");
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw broken("the index has no \"weight_map\" object (tensor name to shard file)");
  }
  std::map<std::string, std::string> weight_map;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string()) {
      throw broken(
          fmt::format("weight_map.{} is {}, wanted a shard's file name", name, shard.type_name()));
    }
    const auto& file = shard.get_ref<const std::string&>();
    // A shard lies beside its index; anything else would let an index read other files.
    if (file.empty() || file == "." || file == ".." ||
        file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      throw broken(
          fmt::format("weight_map.{} is \"{}\", wanted the plain name of a file beside the "
                      "index",
                      name, file));
    }
    weight_map.emplace(name, file);
  }
  if (!duplicate.empty()) throw broken(fmt::format("weight_map names {} twice", duplicate));
  if (weight_map.empty()) throw broken("weight_map is empty");
  return weight_map;
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const Path& path) {
  const auto mapped = MappedFile::open(path);
  const auto bytes = mapped->bytes();
  // The mapping is read-only; Tensor has no const form, and nobody writes to weights.
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast)
  std::shared_ptr<std::byte> storage(mapped, const_cast<std::byte*>(bytes.data()));
  return parse(std::move(storage), bytes.size(), path.string());
}

SafetensorsFile SafetensorsFile::parse(std::shared_ptr<std::byte> storage, std::size_t size,
                                       std::string name) {
  constexpr std::size_t kPrefix = 8;
  if (size < kPrefix) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: {} bytes, too short for a safetensors file, which begins with an "
                            "8-byte header length",
                            name, size));
  }
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, storage.get(), kPrefix);
  if (header_bytes > kMaxHeaderBytes) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: the header claims {} bytes, the format allows {}; not a "
                            "safetensors file?",
                            name, header_bytes, kMaxHeaderBytes));
  }
  if (header_bytes > size - kPrefix) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: the header claims {} bytes, the file has {} after its length; it "
                            "is cut short or damaged",
                            name, header_bytes, size - kPrefix));
  }
  const std::string_view json(reinterpret_cast<const char*>(storage.get()) + kPrefix,
                              static_cast<std::size_t>(header_bytes));
  const std::size_t data_begin = kPrefix + json.size();
  SafetensorsHeader header = parse_safetensors_header(json, data_begin, size - data_begin, name);

  SafetensorsFile file;
  file.name_ = std::move(name);
  file.storage_ = std::move(storage);
  file.entries_ = std::move(header.entries);
  file.metadata_ = std::move(header.metadata);
  file.by_name_.reserve(file.entries_.size());
  for (std::size_t i = 0; i < file.entries_.size(); ++i) {
    file.by_name_.emplace(file.entries_[i].name, i);
  }
  return file;
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  return it == by_name_.end() ? nullptr : &entries_[it->second];
}

Tensor SafetensorsFile::tensor(const SafetensorsEntry& entry) const {
  std::byte* const data = storage_.get() + entry.offset;
  if (is_aligned(entry)) {
    return {std::shared_ptr<std::byte>(storage_, data), entry.shape, entry.dtype};
  }
  Tensor copy = Tensor::empty(entry.shape, entry.dtype);
  std::memcpy(copy.bytes(), data, entry.nbytes);
  return copy;
}

bool SafetensorsFile::is_aligned(const SafetensorsEntry& entry) const {
  const auto alignment = static_cast<std::uintptr_t>(std::max(1, bits(entry.dtype) / 8));
  return reinterpret_cast<std::uintptr_t>(storage_.get() + entry.offset) % alignment == 0;
}

Tensor SafetensorsFile::tensor(std::string_view name) const {
  const SafetensorsEntry* entry = find(name);
  if (entry == nullptr) {
    throw Error(ErrorCode::not_found, fmt::format("{}: no tensor named {}", name_, name));
  }
  return tensor(*entry);
}

Checkpoint Checkpoint::open(const Path& path) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) {
    if (!fs::exists(path, ignored)) {
      throw Error(ErrorCode::not_found, fmt::format("{}: no such checkpoint", path.string()));
    }
    return from_files({SafetensorsFile::open(path)}, path.string());
  }
  if (!fs::exists(path / kIndexName, ignored)) {
    if (!fs::exists(path / "model.safetensors", ignored)) {
      throw Error(ErrorCode::not_found, fmt::format("{}: neither {} nor model.safetensors is there",
                                                    path.string(), kIndexName));
    }
    return from_files({SafetensorsFile::open(path / "model.safetensors")}, path.string());
  }

  const auto weight_map = read_index(path / kIndexName);
  Checkpoint checkpoint;
  checkpoint.name_ = path.string();
  std::map<std::string, std::size_t> shards;
  for (const auto& [name, shard] : weight_map) {
    const auto [it, is_new] = shards.emplace(shard, checkpoint.files_.size());
    if (is_new) {
      if (!fs::exists(path / shard, ignored)) {
        throw Error(ErrorCode::not_found,
                    fmt::format("{}: the shard {} is missing; {} places {} in it", path.string(),
                                shard, kIndexName, name));
      }
      checkpoint.files_.push_back(SafetensorsFile::open(path / shard));
    }
    const SafetensorsFile& file = checkpoint.files_[it->second];
    const SafetensorsEntry* entry = file.find(name);
    if (entry == nullptr) {
      throw Error(ErrorCode::corrupt_data,
                  fmt::format("{}: {} places {} in {}, which has no such tensor", path.string(),
                              kIndexName, name, shard));
    }
    checkpoint.by_name_.emplace(
        name, Place{it->second, static_cast<std::size_t>(entry - file.entries().data())});
  }
  return checkpoint;
}

Checkpoint Checkpoint::from_files(std::vector<SafetensorsFile> files, std::string name) {
  Checkpoint checkpoint;
  checkpoint.name_ = std::move(name);
  checkpoint.files_ = std::move(files);
  for (std::size_t f = 0; f < checkpoint.files_.size(); ++f) {
    const auto& entries = checkpoint.files_[f].entries();
    for (std::size_t e = 0; e < entries.size(); ++e) {
      const auto [it, is_new] = checkpoint.by_name_.emplace(entries[e].name, Place{f, e});
      if (!is_new) {
        throw Error(
            ErrorCode::corrupt_data,
            fmt::format("{}: {} is in both {} and {}", checkpoint.name_, entries[e].name,
                        checkpoint.files_[it->second.file].name(), checkpoint.files_[f].name()));
      }
    }
  }
  return checkpoint;
}

const SafetensorsEntry* Checkpoint::find(std::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  if (it == by_name_.end()) return nullptr;
  return &files_[it->second.file].entries()[it->second.entry];
}

const Checkpoint::Place& Checkpoint::place(std::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  if (it == by_name_.end()) {
    throw Error(ErrorCode::not_found, fmt::format("{}: no tensor named {}", name_, name));
  }
  return it->second;
}

Tensor Checkpoint::tensor(std::string_view name) const {
  const Place& at = place(name);
  return files_[at.file].tensor(files_[at.file].entries()[at.entry]);
}

bool Checkpoint::is_aligned(std::string_view name) const {
  const Place& at = place(name);
  return files_[at.file].is_aligned(files_[at.file].entries()[at.entry]);
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  names.reserve(by_name_.size());
  for (std::size_t f = 0; f < files_.size(); ++f) {
    for (const SafetensorsEntry& e : files_[f].entries()) {
      // With an index, a shard may hold tensors that the index does not give to it.
      const auto it = by_name_.find(e.name);
      if (it != by_name_.end() && it->second.file == f) names.push_back(e.name);
    }
  }
  return names;
}

std::size_t Checkpoint::total_bytes() const {
  std::size_t total = 0;
  for (const auto& [name, place] : by_name_) {
    total += files_[place.file].entries()[place.entry].nbytes;
  }
  return total;
}

}  // namespace hadal::io
