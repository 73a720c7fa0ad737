#include "io/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

namespace hadal::io {

namespace {

struct NamedDType {
  const char* name;
  DType dtype;
};
// The first row of a dtype is the name it is written under.
constexpr std::array<NamedDType, 15> kDTypeNames = {{{"F64", DType::f64},
                                                     {"F32", DType::f32},
                                                     {"F16", DType::f16},
                                                     {"BF16", DType::bf16},
                                                     {"F8_E4M3", DType::f8_e4m3},
                                                     {"F8_E4M3FN", DType::f8_e4m3},
                                                     {"F8_E8M0", DType::ue8m0},
                                                     {"F8_E8M0FNU", DType::ue8m0},
                                                     {"F4", DType::f4_e2m1},
                                                     {"I64", DType::i64},
                                                     {"I32", DType::i32},
                                                     {"I8", DType::i8},
                                                     {"U8", DType::u8},
                                                     {"BOOL", DType::u8},
                                                     {"F4_E2M1", DType::f4_e2m1}}};

using Json = nlohmann::ordered_json;

// Walks the header once, without building a document: what a hostile header can make it allocate
// is proportional to the header itself, and nesting costs a counter, not stack.
class HeaderHandler : public nlohmann::json_sax<Json> {
 public:
  HeaderHandler(std::size_t data_begin, std::size_t data_size, const std::string& file_name)
      : data_begin_(data_begin), data_size_(data_size), file_(file_name) {}

  SafetensorsHeader take() { return std::move(header_); }

  bool null() override { return scalar("null"); }
  bool boolean(bool value) override { return scalar(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override {
    return scalar(fmt::format("the negative number {}", value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return scalar(fmt::format("the fraction {}", text));
  }
  bool binary(binary_t&) override { return scalar("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (where_ == Where::list) {
      numbers_.push_back(value);
      return true;
    }
    return scalar(fmt::format("the number {}", value));
  }

  bool string(string_t& value) override {
    if (where_ == Where::metadata) {
      header_.metadata[key_] = value;
      return true;
    }
    if (where_ == Where::entry && key_ == "dtype") {
      dtype_name_ = value;
      return true;
    }
    return scalar(fmt::format("the text \"{}\"", shortened(value)));
  }

  bool start_object(std::size_t) override {
    switch (where_) {
      case Where::outside:
        where_ = Where::root;
        return true;
      case Where::root:
        where_ = key_ == "__metadata__" ? Where::metadata : Where::entry;
        keys_.clear();
        dtype_name_.reset();
        shape_.reset();
        offsets_.reset();
        return true;
      default:
        return nested("an object");
    }
  }

  bool start_array(std::size_t) override {
    if (where_ == Where::entry && (key_ == "shape" || key_ == "data_offsets")) {
      where_ = Where::list;
      numbers_.clear();
      return true;
    }
    return nested("a list");
  }

  bool key(string_t& value) override {
    if (where_ == Where::skipped) return true;
    if (where_ == Where::root) {
      if (!names_.insert(value).second) {
        fail("the tensor \"{}\" appears twice in the header", shortened(value));
      }
      tensor_ = value;
    } else if (!keys_.insert(value).second) {
      fail("{}: the key \"{}\" appears twice", shortened(tensor_), shortened(value));
    }
    key_ = value;
    return true;
  }

  bool end_object() override {
    switch (where_) {
      case Where::skipped:
        return leave_skipped();
      case Where::entry:
        finish_entry();
        where_ = Where::root;
        return true;
      case Where::metadata:
        where_ = Where::root;
        return true;
      default:
        where_ = Where::outside;
        return true;
    }
  }

  bool end_array() override {
    if (where_ == Where::skipped) return leave_skipped();
    (key_ == "shape" ? shape_ : offsets_) = numbers_;
    where_ = Where::entry;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    fail("the header is not valid JSON (at byte {} of it); the file is damaged or not safetensors",
         position);
  }

 private:
  enum class Where { outside, root, metadata, entry, list, skipped };

  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: {}", file_, fmt::format(format, std::forward<Args>(args)...)));
  }

  static std::string shortened(const std::string& text) {
    return text.size() <= 120 ? text : text.substr(0, 117) + "...";
  }

  // A value where it does not belong. Unknown keys of an entry are ignored, as the format's own
  // reader does.
  bool scalar(std::string_view found) const {
    switch (where_) {
      case Where::outside:
        fail("the header is {}, wanted a JSON object of tensors", found);
      case Where::root:
        fail("{}: {} in the header, wanted an object with dtype, shape and data_offsets",
             shortened(tensor_), found);
      case Where::metadata:
        fail("__metadata__.{} is {}, wanted text", shortened(key_), found);
      case Where::list:
        fail("{}: {} holds {}, wanted non-negative integers", shortened(tensor_), key_, found);
      case Where::entry:
        refuse_known_key(found);
        return true;
      case Where::skipped:
        return true;
    }
    return true;
  }

  bool nested(std::string_view found) {
    if (where_ == Where::skipped) {
      ++skipped_depth_;
      return true;
    }
    if (where_ != Where::entry) return scalar(found);
    refuse_known_key(found);
    where_ = Where::skipped;
    skipped_depth_ = 1;
    return true;
  }

  bool leave_skipped() {
    if (--skipped_depth_ == 0) where_ = Where::entry;
    return true;
  }

  void refuse_known_key(std::string_view found) const {
    if (key_ == "dtype") fail("{}: dtype is {}, wanted text", shortened(tensor_), found);
    if (key_ == "shape" || key_ == "data_offsets") {
      fail("{}: {} is {}, wanted a list of integers", shortened(tensor_), key_, found);
    }
  }

  void finish_entry() {
    const std::string tensor = shortened(tensor_);
    for (const auto& [present, key] :
         {std::pair{dtype_name_.has_value(), "dtype"}, std::pair{shape_.has_value(), "shape"},
          std::pair{offsets_.has_value(), "data_offsets"}}) {
      if (!present) fail("{}: the header has no {} for it", tensor, key);
    }
    const auto dtype = safetensors_dtype(*dtype_name_);
    if (!dtype) {
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: {}: the dtype is \"{}\"; hadal reads F64 F32 F16 BF16 F8_E4M3 "
                              "F8_E8M0 F4 I64 I32 I8 U8 BOOL",
                              file_, tensor, shortened(*dtype_name_)));
    }
    if (shape_->size() > Shape::kMaxRank) {
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: {}: rank {}; hadal handles up to {}", file_, tensor,
                              shape_->size(), Shape::kMaxRank));
    }
    std::array<std::int64_t, Shape::kMaxRank> dims{};
    std::int64_t nonzero = 1;  // the product without zeros, so that no order of factors overflows
    bool empty = false, overflow = false;
    for (std::size_t i = 0; i < shape_->size(); ++i) {
      const std::uint64_t d = (*shape_)[i];
      overflow |= d > static_cast<std::uint64_t>(INT64_MAX);
      dims[i] = static_cast<std::int64_t>(d);
      empty |= d == 0;
      if (d != 0 && !overflow) overflow |= __builtin_mul_overflow(nonzero, dims[i], &nonzero);
    }
    std::int64_t n_bits = 0;
    overflow = overflow || __builtin_mul_overflow(nonzero, std::int64_t{bits(*dtype)}, &n_bits);
    if (overflow) fail("{}: the shape has more elements than any file could hold", tensor);
    if (empty) n_bits = 0;
    const Shape shape(std::span<const std::int64_t>(dims.data(), shape_->size()));
    if (n_bits % 8 != 0) {
      fail("{}: {} {} does not fill whole bytes", tensor, to_string(shape), *dtype_name_);
    }
    const auto wanted = static_cast<std::uint64_t>(n_bits) / 8;

    if (offsets_->size() != 2) {
      fail("{}: data_offsets has {} numbers, wanted begin and end", tensor, offsets_->size());
    }
    const std::uint64_t begin = (*offsets_)[0], end = (*offsets_)[1];
    if (begin > end) fail("{}: data_offsets are reversed: [{}, {}]", tensor, begin, end);
    if (end - begin != wanted) {
      fail("{}: {} {} is {} bytes, but data_offsets [{}, {}] span {}", tensor, to_string(shape),
           *dtype_name_, wanted, begin, end, end - begin);
    }
    if (end > data_size_) {
      fail("{}: its data ends at byte {} of {}; the file is cut short or damaged", tensor,
           saturating_add(end, data_begin_), data_begin_ + data_size_);
    }
    header_.entries.push_back(
        {tensor_, *dtype, *dtype_name_, shape, data_begin_ + begin, end - begin});
  }

  static std::uint64_t saturating_add(std::uint64_t a, std::uint64_t b) {
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
  }

  const std::size_t data_begin_, data_size_;
  const std::string& file_;
  SafetensorsHeader header_;
  Where where_ = Where::outside;
  std::size_t skipped_depth_ = 0;
  std::string tensor_, key_;
  std::unordered_set<std::string> names_, keys_;  // of the root; of the object inside
  std::optional<std::string> dtype_name_;
  std::optional<std::vector<std::uint64_t>> shape_, offsets_;
  std::vector<std::uint64_t> numbers_;
};

// The format forbids overlaps and holes: bytes that two tensors claim, or none, mean that header
// and data were not written together.
void check_tiling(const std::vector<SafetensorsEntry>& entries, std::size_t data_begin,
                  std::size_t data_size, const std::string& file_name) {
  std::vector<const SafetensorsEntry*> sorted;
  sorted.reserve(entries.size());
  for (const SafetensorsEntry& e : entries) sorted.push_back(&e);
  std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) {
    return std::pair(a->offset, a->nbytes) < std::pair(b->offset, b->nbytes);
  });
  std::size_t end = data_begin;
  const SafetensorsEntry* before = nullptr;
  for (const SafetensorsEntry* e : sorted) {
    if (e->offset < end) {
      throw Error(ErrorCode::corrupt_data, fmt::format("{}: the data of {} and {} overlap",
                                                       file_name, before->name, e->name));
    }
    if (e->offset > end) {
      throw Error(ErrorCode::corrupt_data,
                  fmt::format("{}: {} bytes before {} belong to no tensor; safetensors files have "
                              "no holes",
                              file_name, e->offset - end, e->name));
    }
    end = e->offset + e->nbytes;
    before = e;
  }
  if (end != data_begin + data_size) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: {} bytes after the last tensor belong to none; header and data do "
                            "not match",
                            file_name, data_begin + data_size - end));
  }
}

}  // namespace

std::optional<DType> safetensors_dtype(std::string_view name) {
  for (const NamedDType& row : kDTypeNames) {
    if (name == row.name) return row.dtype;
  }
  return std::nullopt;
}

const char* safetensors_dtype_name(DType dtype) {
  if (dtype == DType::f4_e2m1) return "I8";  // as the published checkpoints pack it
  for (const NamedDType& row : kDTypeNames) {
    if (dtype == row.dtype) return row.name;
  }
  HADAL_CHECK(!"every dtype has a safetensors name");
  return "";
}

SafetensorsHeader parse_safetensors_header(std::string_view json, std::size_t data_begin,
                                           std::size_t data_size, const std::string& file_name) {
  HeaderHandler handler(data_begin, data_size, file_name);
  if (!Json::sax_parse(json.begin(), json.end(), &handler)) {
    throw Error(ErrorCode::corrupt_data, fmt::format("{}: the header cannot be read", file_name));
  }
  SafetensorsHeader header = handler.take();
  check_tiling(header.entries, data_begin, data_size, file_name);
  return header;
}

}  // namespace hadal::io
