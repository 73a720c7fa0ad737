#include "model/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "core/error.h"

namespace hadal::model {

namespace {

const char* role_name(WeightRole role) {
  switch (role) {
    case WeightRole::linear:
      return "linear";
    case WeightRole::expert:
      return "expert";
    case WeightRole::matrix:
      return "matrix";
    case WeightRole::norm:
      return "norm";
    case WeightRole::f32_only:
      return "parameter";
    case WeightRole::token_table:
      return "token table";
  }
  return "?";
}

const char* short_name(DType dtype) {
  switch (dtype) {
    case DType::f8_e4m3:
      return "fp8";
    case DType::f4_e2m1:
      return "fp4";
    default:
      return to_string(dtype);
  }
}

// One tensor of the plan: where it comes from and as what it is written.
struct Item {
  const ExpectedWeight* weight;
  QuantTensor source;
  DType target;
  [[nodiscard]] bool kept() const { return source.data.dtype() == target; }
};

DType target_dtype(const ExpectedWeight& w, const QuantTensor& source, WeightFormat format,
                   std::int64_t& n_not_fp4) {
  const DType stored = source.data.dtype();
  const bool plain = format == WeightFormat::bf16 || format == WeightFormat::f32;
  const DType plain_dtype = format == WeightFormat::f32 ? DType::f32 : DType::bf16;
  switch (w.role) {
    case WeightRole::linear:
      return plain ? plain_dtype : DType::f8_e4m3;
    case WeightRole::expert:
      if (plain) return plain_dtype;
      if (format == WeightFormat::fp8) return DType::f8_e4m3;
      if (w.shape[1] % kFp4Block.cols == 0) return DType::f4_e2m1;
      ++n_not_fp4;
      return DType::bf16;
    case WeightRole::matrix:
    case WeightRole::norm:
      return plain ? plain_dtype : stored;
    case WeightRole::f32_only:
      return DType::f32;
    case WeightRole::token_table:
      return DType::i64;
  }
  return stored;
}

// One tensor as it will be written, and how far that is from what was read.
struct Converted {
  QuantTensor weight;
  double square_error = 0, square_norm = 0;
};

// Rows [begin, end), a whole number of blocks, of one weight.
QuantTensor convert_rows(const QuantTensor& source, std::int64_t begin, std::int64_t end,
                         DType target, std::vector<float>& values) {
  const std::int64_t rows = end - begin, cols = source.cols();
  const bool wanted_as_f32 = source.scale || target == DType::f32 || target == DType::bf16;
  TensorView w = source.data.view().slice(begin, end);
  if (wanted_as_f32) {
    dequantize_rows(source, begin, end, values.data());
    w = TensorView(reinterpret_cast<std::byte*>(values.data()), {rows, cols}, DType::f32);
  }
  switch (target) {
    case DType::f4_e2m1:
      return quantize_fp4(w);
    case DType::f8_e4m3:
      return quantize_fp8(w);
    case DType::bf16: {
      QuantTensor out{Tensor::empty({rows, cols}, DType::bf16), {}, {}};
      for (std::int64_t i = 0; i < rows * cols; ++i) {
        out.data.data<bf16>()[i] = to_bf16(values[static_cast<std::size_t>(i)]);
      }
      return out;
    }
    default: {
      HADAL_CHECK(target == DType::f32);
      QuantTensor out{Tensor::empty({rows, cols}, DType::f32), {}, {}};
      std::copy_n(values.data(), rows * cols, out.data.data<float>());
      return out;
    }
  }
}

bool is_scaled(DType dtype) {
  return dtype == DType::f4_e2m1 || dtype == DType::f8_e4m3;
}
QuantBlock block_of(DType dtype) {
  return dtype == DType::f4_e2m1 ? kFp4Block : kFp8Block;
}

// A matrix (or a vector, taken as one row).
Converted convert(ThreadPool& pool, const Item& item) {
  const Shape shape = item.source.data.shape();
  QuantTensor source = item.source;
  if (shape.rank() == 1) source.data = source.data.reshape({1, shape.numel()});
  const std::int64_t rows = source.rows(), cols = source.cols();
  const Shape matrix{rows, cols};
  const QuantBlock block = block_of(item.target);
  Converted out{.weight = {Tensor::empty(matrix, item.target), {}, block}};
  if (is_scaled(item.target)) {
    out.weight.scale = Tensor::empty(scale_shape(matrix, block), DType::ue8m0);
  }

  const std::int64_t step = kFp8Block.rows, n_steps = (rows + step - 1) / step;
  std::vector<double> square_error(static_cast<std::size_t>(n_steps)),
      square_norm(static_cast<std::size_t>(n_steps));
  pool.parallel_for(n_steps, 1, [&](std::int64_t first, std::int64_t last) {
    std::vector<float> values(static_cast<std::size_t>(step * cols)), back(values.size());
    for (std::int64_t s = first; s < last; ++s) {
      const std::int64_t begin = s * step, end = std::min(rows, begin + step);
      const QuantTensor part = convert_rows(source, begin, end, item.target, values);
      std::memcpy(out.weight.data.view().slice(begin, end).bytes(), part.data.bytes(),
                  part.data.nbytes());
      if (part.scale) {
        const std::int64_t at = begin / block.rows;
        std::memcpy(out.weight.scale.view().slice(at, at + part.scale.dim(0)).bytes(),
                    part.scale.bytes(), part.scale.nbytes());
      }
      dequantize_rows(source, begin, end, values.data());
      dequantize_rows(part, 0, end - begin, back.data());
      double error = 0, norm = 0;
      for (std::int64_t r = 0; r < end - begin; ++r) {  // f32 within a row, f64 over rows
        float row_error = 0, row_norm = 0;
        for (std::int64_t c = 0; c < cols; ++c) {
          const float x = values[static_cast<std::size_t>(r * cols + c)];
          const float d = back[static_cast<std::size_t>(r * cols + c)] - x;
          row_error += d * d;
          row_norm += x * x;
        }
        error += static_cast<double>(row_error);
        norm += static_cast<double>(row_norm);
      }
      square_error[static_cast<std::size_t>(s)] = error;
      square_norm[static_cast<std::size_t>(s)] = norm;
    }
  });
  for (std::int64_t s = 0; s < n_steps; ++s) {
    out.square_error += square_error[static_cast<std::size_t>(s)];
    out.square_norm += square_norm[static_cast<std::size_t>(s)];
  }
  out.weight.data = out.weight.data.reshape(shape);
  return out;
}

// A weight without scale. tid2eid, which is bound as i32, as the i64 that files have.
QuantTensor plain_source(const BoundWeights& weights, const ExpectedWeight& w) {
  const Tensor& bound = weights.plain(w.name);
  if (w.role != WeightRole::token_table) return {bound, {}, {}};
  Tensor wide = Tensor::empty(bound.shape(), DType::i64);
  std::copy_n(bound.data<const std::int32_t>(), bound.numel(), wide.data<std::int64_t>());
  return {std::move(wide), {}, {}};
}

Config converted_config(Config config, const std::vector<Item>& items, WeightFormat format) {
  config.quantization_config.reset();
  config.expert_dtype = ExpertDType::unstated;
  if (format == WeightFormat::published || format == WeightFormat::fp8) {
    config.quantization_config = QuantizationConfig{};
    const bool any_fp4 = std::any_of(items.begin(), items.end(),
                                     [](const Item& i) { return i.target == DType::f4_e2m1; });
    const bool any_fp8_expert = std::any_of(items.begin(), items.end(), [](const Item& i) {
      return i.weight->role == WeightRole::expert && i.target == DType::f8_e4m3;
    });
    config.expert_dtype = any_fp4          ? ExpertDType::fp4
                          : any_fp8_expert ? ExpertDType::fp8
                                           : ExpertDType::bf16;
  }
  return config;
}

// Everything a user of the directory needs besides weights and config.
constexpr std::array kCopied = {"tokenizer.json", "tokenizer_config.json",
                                "special_tokens_map.json", "generation_config.json"};

bool same_directory(const Path& a, const Path& b) {
  std::error_code error;
  return std::filesystem::equivalent(a, b, error) && !error;
}

// Sums up by kind, in order of first appearance.
class Report {
 public:
  void add(const Item& item, const QuantTensor& written, double square_error, double square_norm) {
    const std::string what = fmt::format("{} {}{}", role_name(item.weight->role),
                                         short_name(item.target), item.kept() ? ", kept" : "");
    auto it =
        std::find_if(sums_.begin(), sums_.end(), [&](const Sum& s) { return s.kind.what == what; });
    if (it == sums_.end()) it = sums_.insert(sums_.end(), Sum{});
    it->kind.what = what;
    it->kind.n_tensors += 1;
    it->kind.bytes_before += item.source.nbytes();
    it->kind.bytes_after += written.nbytes();
    it->square_error += square_error;
    it->square_norm += square_norm;
  }
  ConversionReport finish() {
    ConversionReport report;
    for (Sum& sum : sums_) {
      if (sum.square_norm > 0)
        sum.kind.relative_error = std::sqrt(sum.square_error / sum.square_norm);
      report.bytes_before += sum.kind.bytes_before;
      report.bytes_after += sum.kind.bytes_after;
      report.kinds.push_back(std::move(sum.kind));
    }
    return report;
  }

 private:
  struct Sum {
    ConvertedKind kind;
    double square_error = 0, square_norm = 0;
  };
  std::vector<Sum> sums_;
};

}  // namespace

const char* to_string(WeightFormat format) {
  switch (format) {
    case WeightFormat::published:
      return "published";
    case WeightFormat::fp8:
      return "fp8";
    case WeightFormat::bf16:
      return "bf16";
    case WeightFormat::f32:
      return "f32";
  }
  return "?";
}

ConversionReport convert_checkpoint(FileSystem& fs, ThreadPool& pool, const Path& from,
                                    const Path& to, const ConvertOptions& options,
                                    const ConvertProgress& progress) {
  if (same_directory(from, to)) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} would replace itself; choose another directory to write to",
                            from.string()));
  }
  const Config config = load_config(from);
  const BoundWeights weights =
      BoundWeights::bind(io::Checkpoint::open(from), config, {.check_finite = true});
  const std::vector<ExpectedWeight> expected = expected_weights(config);

  std::vector<Item> items;
  std::vector<io::TensorDecl> decls;
  std::unordered_map<std::string, std::size_t> item_of;  // by the name of the weight, and its scale
  std::int64_t n_not_fp4 = 0;
  for (const ExpectedWeight& w : expected) {
    const bool scaled = w.role == WeightRole::linear || w.role == WeightRole::expert;
    Item item{&w, scaled ? weights.linear(w.name) : plain_source(weights, w), DType::f32};
    item.target = target_dtype(w, item.source, options.format, n_not_fp4);
    decls.push_back({w.name, item.target, w.shape, {}});
    item_of.emplace(w.name, items.size());
    if (scaled && (item.kept() ? static_cast<bool>(item.source.scale) : is_scaled(item.target))) {
      decls.push_back({scale_name(w.name),
                       item.kept() ? item.source.scale.dtype() : DType::ue8m0,
                       scale_shape(w.shape, block_of(item.target)),
                       {}});
      item_of.emplace(decls.back().name, items.size());
    }
    items.push_back(std::move(item));
  }

  io::CheckpointWriter writer(fs, to, std::move(decls), options.output);
  Report report;
  std::size_t done = 0;
  Tensor scale;  // of the weight before it in the file
  for (const io::TensorDecl& decl : writer.order()) {
    if (progress) progress(done, writer.total_bytes());
    const Item& item = items[item_of.at(decl.name)];
    const bool is_weight = decl.name == item.weight->name;
    if (item.kept()) {
      writer.write(decl.name, is_weight ? item.source.data : item.source.scale);
      if (is_weight) report.add(item, item.source, 0, 0);
    } else if (is_weight) {
      const Converted converted = convert(pool, item);
      writer.write(decl.name, converted.weight.data);
      report.add(item, converted.weight, converted.square_error, converted.square_norm);
      scale = converted.weight.scale;
    } else {
      writer.write(decl.name, scale);
    }
    done += nbytes(decl.shape, decl.dtype);
  }
  writer.write_file("config.json", to_json(converted_config(config, items, options.format)));
  for (const char* name : kCopied) {
    if (!std::filesystem::exists(from / name)) continue;
    writer.write_file(name, MappedFile::open(from / name)->bytes());
  }
  if (progress) progress(done, writer.total_bytes());
  writer.finish();

  ConversionReport result = report.finish();
  result.n_shards = writer.n_shards();
  if (n_not_fp4 > 0) {
    result.notes.push_back(
        fmt::format("{} expert tensors have a number of columns that is no multiple of {}, which "
                    "FP4 cannot hold; they are stored as bf16",
                    n_not_fp4, kFp4Block.cols));
  }
  result.notes.insert(result.notes.end(), weights.warnings().begin(), weights.warnings().end());
  return result;
}

}  // namespace hadal::model
