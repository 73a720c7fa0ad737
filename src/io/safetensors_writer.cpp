#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "io/safetensors.h"
#include "io/safetensors_header.h"

namespace hadal::io {

namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::invalid_argument, message);
}

// Logical shape -> the shape a header states.
std::vector<std::int64_t> stored_shape(const TensorDecl& decl, std::string_view dtype_name) {
  std::vector<std::int64_t> dims(decl.shape.dims().begin(), decl.shape.dims().end());
  for (const std::int64_t d : dims) {
    if (d < 0)
      refuse(fmt::format("{}: the shape {} is negative", decl.name, to_string(decl.shape)));
  }
  const auto dtype = safetensors_dtype(dtype_name);
  const bool packed_bytes = decl.dtype == DType::f4_e2m1 && dtype != DType::f4_e2m1;
  if (!dtype || (packed_bytes ? dtype != DType::i8 && dtype != DType::u8 : dtype != decl.dtype)) {
    refuse(fmt::format("{}: {} cannot be written as \"{}\"", decl.name, to_string(decl.dtype),
                       dtype_name));
  }
  if (decl.dtype == DType::f4_e2m1) {
    if (dims.empty() || dims.back() % 2 != 0) {
      refuse(fmt::format("{}: f4_e2m1 {} has no even number of columns to pack", decl.name,
                         to_string(decl.shape)));
    }
    if (packed_bytes) dims.back() /= 2;
  }
  return dims;
}

}  // namespace

std::vector<TensorDecl> aligned_order(std::vector<TensorDecl> decls) {
  std::stable_sort(decls.begin(), decls.end(), [](const TensorDecl& a, const TensorDecl& b) {
    return bits(a.dtype) > bits(b.dtype);
  });
  return decls;
}

SafetensorsWriter::SafetensorsWriter(FileSystem& fs, Path path, std::vector<TensorDecl> decls,
                                     const std::map<std::string, std::string>& metadata,
                                     Sha256* digest)
    : fs_(fs), path_(std::move(path)), decls_(std::move(decls)), digest_(digest) {
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::unordered_set<std::string> names;
  std::size_t offset = 0;
  for (const TensorDecl& decl : decls_) {
    if (decl.name == "__metadata__" || !names.insert(decl.name).second) {
      refuse(fmt::format("{}: the tensor name \"{}\" is {}", path_.string(), decl.name,
                         decl.name == "__metadata__" ? "reserved" : "declared twice"));
    }
    const std::string dtype_name =
        decl.dtype_name.empty() ? safetensors_dtype_name(decl.dtype) : decl.dtype_name;
    const auto dims = stored_shape(decl, dtype_name);
    const std::size_t end = offset + nbytes(decl.shape, decl.dtype);
    // Appended, not assigned by key: ordered_json searches its keys one by one.
    header.get_ref<Json::object_t&>().emplace_back(
        decl.name, Json{{"dtype", dtype_name}, {"shape", dims}, {"data_offsets", {offset, end}}});
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::type_error&) {  // dump refuses what is not UTF-8
    refuse(fmt::format("{}: a tensor name or metadata text is not UTF-8", path_.string()));
  }
  // Spaces behind the JSON put the data at a multiple of 64.
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');

  std::array<std::byte, 8> length{};
  const std::uint64_t size = text.size();
  std::memcpy(length.data(), &size, length.size());
  file_ = fs_.create(path_.string() + ".partial");
  append(length);
  append(std::as_bytes(std::span(text)));
}

void SafetensorsWriter::append(std::span<const std::byte> bytes) {
  file_->append(bytes);
  if (digest_ != nullptr) digest_->update(bytes);
}

void SafetensorsWriter::write(std::string_view name, std::span<const std::byte> bytes) {
  const auto size_of = [&](std::size_t i) { return nbytes(decls_[i].shape, decls_[i].dtype); };
  // Tensors without bytes need no write.
  while (current_ < decls_.size() && written_ == size_of(current_) &&
         (decls_[current_].name != name || !bytes.empty())) {
    ++current_;
    written_ = 0;
  }
  if (current_ == decls_.size() || decls_[current_].name != name) {
    refuse(fmt::format("{}: data for {}, but {} is due", path_.string(), name,
                       current_ == decls_.size() ? "nothing" : decls_[current_].name));
  }
  if (bytes.size() > size_of(current_) - written_) {
    refuse(fmt::format("{}: {} bytes for {}, which has room for {}", path_.string(), bytes.size(),
                       name, size_of(current_) - written_));
  }
  append(bytes);
  written_ += bytes.size();
}

void SafetensorsWriter::write(std::string_view name, const TensorView& tensor) {
  const auto decl = std::find_if(decls_.begin() + static_cast<std::ptrdiff_t>(current_),
                                 decls_.end(), [&](const auto& d) { return d.name == name; });
  if (decl != decls_.end() &&
      (decl->dtype != tensor.dtype() || decl->shape.numel() != tensor.numel())) {
    refuse(fmt::format("{}: {} was declared {} {} and comes as {} {}", path_.string(), name,
                       to_string(decl->shape), to_string(decl->dtype), to_string(tensor.shape()),
                       to_string(tensor.dtype())));
  }
  write(name, std::span<const std::byte>(tensor.bytes(), tensor.nbytes()));
}

void SafetensorsWriter::finish() {
  while (current_ < decls_.size() &&
         written_ == nbytes(decls_[current_].shape, decls_[current_].dtype)) {
    ++current_;
    written_ = 0;
  }
  if (current_ != decls_.size()) {
    refuse(fmt::format("{}: {} has {} of {} bytes; every declared tensor must be written",
                       path_.string(), decls_[current_].name, written_,
                       nbytes(decls_[current_].shape, decls_[current_].dtype)));
  }
  file_->sync();
  file_->close();
  file_.reset();
  fs_.rename(path_.string() + ".partial", path_);
}

std::string index_json(const std::map<std::string, std::string>& weight_map,
                       std::size_t total_size) {
  Json map = Json::object();
  for (const auto& [name, shard] : weight_map) {
    map.get_ref<Json::object_t&>().emplace_back(name, shard);
  }
  return Json{{"metadata", {{"total_size", total_size}}}, {"weight_map", std::move(map)}}.dump(2) +
         "\n";
}

}  // namespace hadal::io
