// A checkpoint held against the layout of its config.
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <unordered_set>
#include <utility>

#include "core/error.h"
#include "model/finite_scan.h"
#include "model/weight_layout.h"
#include "model/weight_names.h"
#include "model/weights.h"

namespace hadal::model {

namespace {

constexpr std::size_t kMaxListed = 10;

// What a file calls a tensor, by its official name.
struct FileNames {
  std::unordered_map<std::string, std::string> plain;
  std::unordered_map<std::string, std::string> gate_up, down;  // by "layers.N.ffn.experts"
};

class Binder {
 public:
  Binder(const io::Checkpoint& checkpoint, const Config& config, const BindOptions& options)
      : checkpoint_(checkpoint), config_(config), options_(options) {
    for (std::string& file_name : checkpoint.names()) {
      CanonicalName canonical = canonical_name(file_name);
      auto& names = canonical.fused == FusedExperts::gate_up ? names_.gate_up
                    : canonical.fused == FusedExperts::down  ? names_.down
                                                             : names_.plain;
      const auto [it, is_new] = names.emplace(std::move(canonical.name), file_name);
      if (!is_new) {
        problem("{} and {} in the file are the same tensor, {}", it->second, file_name, it->first);
      }
    }
  }

  // Empty when there was a problem, which is then noted.
  std::optional<QuantTensor> bind(const ExpectedWeight& w) {
    std::optional<QuantTensor> bound;
    if (const auto it = names_.plain.find(w.name); it != names_.plain.end()) {
      used_.emplace(it->second);
      bound = from_file(w, it->second);
    } else if (w.role == WeightRole::expert) {
      bound = from_fused(w);
    } else {
      problem("{}: missing", w.name);
    }
    if (bound && w.role == WeightRole::token_table) bound = checked_table(w, bound->data);
    if (bound && options_.check_finite) check_finite(w, *bound);
    return bound;
  }

  std::vector<std::string> warnings() const {
    std::vector<std::string> extra, out;
    std::size_t n_mtp = 0;
    for (const std::string& name : checkpoint_.names()) {
      if (used_.contains(name)) continue;
      const std::string official = canonical_name(name).name;
      if (official.starts_with("mtp.") && is_mtp_beyond(official)) {
        ++n_mtp;
      } else {
        extra.push_back(name);
      }
    }
    if (n_copied_ > 0) {
      out.push_back(
          fmt::format("{}: {} tensors ({} bytes) lie at odd addresses of their file and "
                      "were copied to memory",
                      checkpoint_.name(), n_copied_, copied_bytes_));
    }
    if (n_mtp > 0) {
      out.push_back(fmt::format("{}: {} mtp.* tensors left out; the config has {} MTP blocks",
                                checkpoint_.name(), n_mtp, config_.num_nextn_predict_layers));
    }
    for (std::size_t i = 0; i < std::min(extra.size(), kMaxListed); ++i) {
      out.push_back(fmt::format("{}: {} is no tensor that the config implies; left out",
                                checkpoint_.name(), extra[i]));
    }
    if (extra.size() > kMaxListed) {
      out.push_back(fmt::format("{}: {} more such tensors left out", checkpoint_.name(),
                                extra.size() - kMaxListed));
    }
    return out;
  }

  void throw_if_problems() const {
    if (n_problems_ == 0) return;
    std::string message =
        fmt::format("{} does not fit its config, {}: {} problem{}", checkpoint_.name(),
                    config_.source, n_problems_, n_problems_ == 1 ? "" : "s");
    for (const std::string& p : problems_) message += "\n  " + p;
    if (n_problems_ > problems_.size()) {
      message += fmt::format("\n  and {} more", n_problems_ - problems_.size());
    }
    throw Error(ErrorCode::corrupt_data, message);
  }

 private:
  template <class... Args>
  void problem(fmt::format_string<Args...> format, Args&&... args) {
    if (problems_.size() < kMaxListed) {
      problems_.push_back(fmt::format(format, std::forward<Args>(args)...));
    }
    ++n_problems_;
  }

  Tensor tensor(const std::string& file_name) {
    if (!checkpoint_.is_aligned(file_name)) {
      ++n_copied_;
      copied_bytes_ += checkpoint_.find(file_name)->nbytes;
    }
    return checkpoint_.tensor(file_name);
  }

  bool is_mtp_beyond(std::string_view official) const {
    std::int64_t index = 0;
    for (const char ch : official.substr(4)) {
      if (ch < '0' || ch > '9' || index > 1'000'000) break;
      index = index * 10 + (ch - '0');
    }
    return index >= config_.num_nextn_predict_layers;
  }

  bool shape_fits(const ExpectedWeight& w, const io::SafetensorsEntry& entry, const Shape& wanted) {
    if (entry.shape == wanted) return true;
    problem("{}: {} {} in the file, config.json implies {}", w.name, to_string(entry.shape),
            to_string(entry.dtype), to_string(wanted));
    return false;
  }

  static const char* wanted_dtypes(WeightRole role) {
    switch (role) {
      case WeightRole::linear:
        return "f8_e4m3, bf16, f16 or f32";
      case WeightRole::expert:
        return "packed FP4 (I8), f8_e4m3, bf16, f16 or f32";
      case WeightRole::matrix:
      case WeightRole::norm:
      case WeightRole::f32_only:
        return "bf16, f16 or f32";
      case WeightRole::token_table:
        return "i64 or i32";
    }
    return "";
  }

  std::optional<QuantTensor> from_file(const ExpectedWeight& w, const std::string& file_name) {
    const io::SafetensorsEntry& entry = *checkpoint_.find(file_name);
    const bool quantisable = w.role == WeightRole::linear || w.role == WeightRole::expert;
    switch (entry.dtype) {
      case DType::i8:
      case DType::u8:
      case DType::f4_e2m1:
        if (w.role == WeightRole::expert) return packed_fp4(w, entry);
        break;
      case DType::f8_e4m3:
        if (!quantisable) break;
        if (!shape_fits(w, entry, w.shape)) return std::nullopt;
        return with_scale(w, tensor(file_name), kFp8Block);
      case DType::f32:
      case DType::bf16:
      case DType::f16:
        if (w.role == WeightRole::token_table) break;
        if (!shape_fits(w, entry, w.shape)) return std::nullopt;
        if (quantisable) refuse_scale(w, entry.dtype);
        return QuantTensor{widened(w.role, tensor(file_name)), {}, {}};
      case DType::i64:
      case DType::i32:
        if (w.role != WeightRole::token_table) break;
        if (!shape_fits(w, entry, w.shape)) return std::nullopt;
        return QuantTensor{tensor(file_name), {}, {}};
      default:
        break;
    }
    problem("{}: {} in the file, wanted {}", w.name, entry.dtype_name, wanted_dtypes(w.role));
    return std::nullopt;
  }

  // Two E2M1 values a byte along the input axis, under an integer type or as F4.
  std::optional<QuantTensor> packed_fp4(const ExpectedWeight& w,
                                        const io::SafetensorsEntry& entry) {
    if (w.shape[1] % 2 != 0) {
      problem("{}: packed FP4 in the file, but config.json implies an odd number of columns, {}",
              w.name, to_string(w.shape));
      return std::nullopt;
    }
    const bool packed = entry.dtype != DType::f4_e2m1;
    if (!shape_fits(w, entry, packed ? Shape{w.shape[0], w.shape[1] / 2} : w.shape)) {
      return std::nullopt;
    }
    const Tensor data = tensor(entry.name).reinterpret(w.shape, DType::f4_e2m1);
    return with_scale(w, data, kFp4Block);
  }

  std::optional<QuantTensor> with_scale(const ExpectedWeight& w, Tensor data, QuantBlock block) {
    const std::string name = scale_name(w.name);
    const auto it = names_.plain.find(name);
    if (it == names_.plain.end()) {
      problem("{}: missing; {} is {} and needs it", name, w.name, to_string(data.dtype()));
      return std::nullopt;
    }
    used_.emplace(it->second);
    const io::SafetensorsEntry& entry = *checkpoint_.find(it->second);
    const Shape wanted = scale_shape(w.shape, block);
    if (entry.shape != wanted) {
      problem("{}: {} {} in the file, a {} weight {} implies {}", name, to_string(entry.shape),
              to_string(entry.dtype), to_string(data.dtype()), to_string(w.shape),
              to_string(wanted));
      return std::nullopt;
    }
    Tensor scale = tensor(it->second);
    switch (entry.dtype) {
      case DType::u8:  // E8M0 bytes from a writer without a name for the type
        scale = scale.reinterpret(wanted, DType::ue8m0);
        break;
      case DType::ue8m0:
      case DType::f32:
        break;
      default:
        problem("{}: {} in the file, wanted F8_E8M0 or F32", name, entry.dtype_name);
        return std::nullopt;
    }
    return QuantTensor{std::move(data), std::move(scale), block};
  }

  // A scale that nothing applies would change the model without a word.
  void refuse_scale(const ExpectedWeight& w, DType dtype) {
    const auto it = names_.plain.find(scale_name(w.name));
    if (it == names_.plain.end()) return;
    used_.emplace(it->second);
    problem("{}: in the file, but {} is {}, which has no scale", it->first, w.name,
            to_string(dtype));
  }

  // Experts fused along dim 0: w1 over w3 in one tensor, w2 in another.
  std::optional<QuantTensor> from_fused(const ExpectedWeight& w) {
    // "layers.3.ffn.experts.17.w1.weight"
    const std::string_view name = w.name;
    const std::size_t part_at = name.size() - std::string_view("w1.weight").size();
    const std::size_t expert_at = name.rfind('.', part_at - 2) + 1;
    const std::string prefix(name.substr(0, expert_at - 1));
    const char part = name[part_at + 1];
    std::int64_t expert = 0;
    for (const char ch : name.substr(expert_at, part_at - 1 - expert_at)) {
      expert = expert * 10 + (ch - '0');
    }

    const auto& names = part == '2' ? names_.down : names_.gate_up;
    const auto it = names.find(prefix);
    if (it == names.end()) {
      problem("{}: missing", w.name);
      return std::nullopt;
    }
    const io::SafetensorsEntry& entry = *checkpoint_.find(it->second);
    const std::int64_t halves = part == '2' ? 1 : 2, rows = w.shape[0];
    const bool first_use = used_.emplace(it->second).second;
    const Shape wanted{config_.n_routed_experts, halves * rows, w.shape[1]};
    const bool floating =
        entry.dtype == DType::f32 || entry.dtype == DType::bf16 || entry.dtype == DType::f16;
    if (entry.shape != wanted || !floating) {
      if (first_use) {  // one tensor, one problem, however many experts lie in it
        problem("{}: {} {} in the file, config.json implies {} in bf16, f16 or f32", it->second,
                to_string(entry.shape), to_string(entry.dtype), to_string(wanted));
      }
      return std::nullopt;
    }
    if (first_use) fused_[it->second] = widened(w.role, tensor(it->second));
    const std::int64_t begin = (expert * halves + (part == '3' ? 1 : 0)) * rows;
    const Tensor all =
        fused_.at(it->second).reshape({config_.n_routed_experts * halves * rows, w.shape[1]});
    return QuantTensor{all.slice(begin, begin + rows), {}, {}};
  }

  // f16 to f32 everywhere, bf16 to f32 where the model computes with f32 alone. Both are exact.
  static Tensor widened(WeightRole role, Tensor t) {
    const bool widen =
        t.dtype() == DType::f16 || (t.dtype() == DType::bf16 && role == WeightRole::f32_only);
    if (!widen) return t;
    Tensor out = Tensor::empty(t.shape(), DType::f32);
    const std::int64_t n = t.numel();
    auto* y = out.data<float>();
    if (t.dtype() == DType::bf16) {
      const auto* x = t.data<const bf16>();
      for (std::int64_t i = 0; i < n; ++i) y[i] = to_float(x[i]);
    } else {
      const auto* x = reinterpret_cast<const std::uint16_t*>(t.bytes());
      for (std::int64_t i = 0; i < n; ++i) y[i] = f16_to_float(x[i]);
    }
    return out;
  }

  // The reference's scatter silently loses a duplicate expert, so a row with one is refused.
  std::optional<QuantTensor> checked_table(const ExpectedWeight& w, const Tensor& table) {
    const std::int64_t rows = w.shape[0], cols = w.shape[1];
    Tensor out = Tensor::empty(w.shape, DType::i32);
    auto* ids = out.data<std::int32_t>();
    const bool wide = table.dtype() == DType::i64;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        const std::int64_t at = r * cols + c;
        const std::int64_t id =
            wide ? table.data<const std::int64_t>()[at] : table.data<const std::int32_t>()[at];
        if (id < 0 || id >= config_.n_routed_experts) {
          problem("{}: row {} column {} is {}, wanted an expert 0 to {}", w.name, r, c, id,
                  config_.n_routed_experts - 1);
          return std::nullopt;
        }
        ids[at] = static_cast<std::int32_t>(id);
        if (std::find(ids + r * cols, ids + at, ids[at]) != ids + at) {
          problem("{}: row {} names expert {} twice", w.name, r, id);
          return std::nullopt;
        }
      }
    }
    return QuantTensor{std::move(out), {}, {}};
  }

  void check_finite(const ExpectedWeight& w, const QuantTensor& bound) {
    const auto check = [&](const std::string& name, const Tensor& t) {
      const auto at = first_non_finite(t);
      if (!at) return;
      const std::int64_t cols = t.shape().rank() < 2 ? t.numel() : t.dim(1);
      problem("{}: row {} column {} is NaN or infinite", name, *at / cols, *at % cols);
    };
    check(w.name, bound.data);
    if (bound.scale) check(scale_name(w.name), bound.scale);
  }

  const io::Checkpoint& checkpoint_;
  const Config& config_;
  const BindOptions& options_;
  FileNames names_;
  std::unordered_set<std::string> used_;           // file names
  std::unordered_map<std::string, Tensor> fused_;  // widened once for all experts in it
  std::vector<std::string> problems_;
  std::size_t n_problems_ = 0;
  std::size_t n_copied_ = 0, copied_bytes_ = 0;  // for their alignment
};

}  // namespace

BoundWeights BoundWeights::bind(const io::Checkpoint& checkpoint, const Config& config,
                                const BindOptions& options) {
  Binder binder(checkpoint, config, options);
  BoundWeights bound;
  for (const ExpectedWeight& w : expected_weights(config)) {
    auto weight = binder.bind(w);
    if (!weight) continue;
    bound.nbytes_ += weight->nbytes();
    bound.by_name_.emplace(w.name, Bound{std::move(*weight), w.role});
  }
  binder.throw_if_problems();
  bound.warnings_ = binder.warnings();
  return bound;
}

BoundWeights BoundWeights::from_memory(
    const Config& config, const std::function<QuantTensor(const ExpectedWeight&)>& provide) {
  BoundWeights bound;
  for (const ExpectedWeight& w : expected_weights(config)) {
    QuantTensor weight = provide(w);
    expect_shape(weight.data, w.shape, w.name);
    bound.nbytes_ += weight.nbytes();
    bound.by_name_.emplace(w.name, Bound{std::move(weight), w.role});
  }
  return bound;
}

BoundWeights BoundWeights::moved(const Config& config,
                                 const std::function<Tensor(const Tensor&)>& move) const {
  BoundWeights out;
  out.warnings_ = warnings_;
  for (const ExpectedWeight& w : expected_weights(config)) {
    const Bound& from = at(w.name);
    const bool small = from.role == WeightRole::norm || from.role == WeightRole::f32_only;
    QuantTensor to{move(small ? as_f32(from.weight.data) : from.weight.data),
                   from.weight.scale ? move(from.weight.scale) : Tensor(), from.weight.block};
    out.nbytes_ += to.nbytes();
    out.by_name_.emplace(w.name, Bound{std::move(to), from.role});
  }
  return out;
}

const BoundWeights::Bound& BoundWeights::at(std::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  if (it == by_name_.end()) {
    throw Error(ErrorCode::not_found,
                fmt::format("{}: this model has no weight of that name", name));
  }
  return it->second;
}

const QuantTensor& BoundWeights::linear(std::string_view name) const {
  const Bound& bound = at(name);
  if (bound.weight.data.shape().rank() != 2 || bound.role == WeightRole::token_table) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{}: {} is no matrix to multiply with", name,
                            to_string(bound.weight.data.shape())));
  }
  return bound.weight;
}

const Tensor& BoundWeights::plain(std::string_view name) const {
  const Bound& bound = at(name);
  if (bound.weight.scale) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{}: stored as {} with scales; ask for it as a linear", name,
                            to_string(bound.weight.data.dtype())));
  }
  return bound.weight.data;
}

bool BoundWeights::contains(std::string_view name) const {
  return by_name_.contains(std::string(name));
}

}  // namespace hadal::model
