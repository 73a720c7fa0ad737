#include "model/synthesize.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "core/rng.h"

namespace hadal::model {

namespace {

// Elements of a buffer. A prime, so that no row length divides it and rows differ.
constexpr std::int64_t kBufferElements = 2'097'143;

// Random bits of one purpose.
enum RngStream : std::uint32_t { fp8_codes, fp4_codes, bf16_values, f32_values, offsets };

// Bytes that tensors are cut from, from a random place on and around its end.
struct Buffer {
  std::vector<std::byte> bytes;
  std::size_t element_bytes;
};

template <class T>
Buffer buffer_of(std::int64_t n, const std::function<T()>& element) {
  Buffer buffer{std::vector<std::byte>(static_cast<std::size_t>(n) * sizeof(T)), sizeof(T)};
  for (std::int64_t i = 0; i < n; ++i) {
    const T value = element();
    std::memcpy(buffer.bytes.data() + static_cast<std::size_t>(i) * sizeof(T), &value, sizeof(T));
  }
  return buffer;
}

template <class T>
Buffer constant(T value) {
  return buffer_of<T>(4096, [value] { return value; });
}

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(),
                     [&](std::string_view e) { return name.ends_with(e); });
}

class WeightSource {
 public:
  WeightSource(double standard_deviation, std::uint64_t seed) : offsets_(seed, offsets) {
    const auto sigma = static_cast<float>(standard_deviation);
    // The scales that quantising such weights gives: the largest of 128x128 of them is about
    // 4 sigma, the largest of 32 about 2 sigma.
    const int fp8_exponent = e4m3_scale_exponent(4.0f * sigma);
    const int fp4_exponent = e2m1_scale_exponent(2.0f * sigma);
    fp8_scale_ = constant(ue8m0{static_cast<std::uint8_t>(fp8_exponent + 127)});
    fp4_scale_ = constant(ue8m0{static_cast<std::uint8_t>(fp4_exponent + 127)});
    Rng fp8(seed, fp8_codes), fp4(seed, fp4_codes), half(seed, bf16_values), full(seed, f32_values);
    const float fp8_sigma = sigma / exp2_int(fp8_exponent),
                fp4_sigma = sigma / exp2_int(fp4_exponent);
    fp8_ =
        buffer_of<f8_e4m3>(kBufferElements, [&] { return to_e4m3(fp8_sigma * fp8.next_normal()); });
    fp4_ = buffer_of<std::uint8_t>(kBufferElements, [&] {
      const unsigned low = to_e2m1(fp4_sigma * fp4.next_normal());
      const unsigned high = to_e2m1(fp4_sigma * fp4.next_normal());
      return static_cast<std::uint8_t>(low | (high << 4));
    });
    bf16_ = buffer_of<bf16>(kBufferElements, [&] { return to_bf16(sigma * half.next_normal()); });
    f32_ = buffer_of<float>(kBufferElements, [&] { return sigma * full.next_normal(); });
  }

  // Calls sink with pieces that make up the tensor.
  template <class Sink>
  void write(const io::TensorDecl& decl, DType scaled_dtype, Sink&& sink) {
    const Buffer& buffer = buffer_for(decl, scaled_dtype);
    const std::size_t n_elements = buffer.bytes.size() / buffer.element_bytes;
    std::size_t at =
        offsets_.next_below(static_cast<std::uint32_t>(n_elements)) * buffer.element_bytes;
    for (std::size_t left = nbytes(decl.shape, decl.dtype); left > 0;) {
      const std::size_t n = std::min(left, buffer.bytes.size() - at);
      sink(std::span(buffer.bytes).subspan(at, n));
      left -= n;
      at = 0;
    }
  }

 private:
  [[nodiscard]] const Buffer& buffer_for(const io::TensorDecl& decl, DType scaled_dtype) const {
    switch (decl.dtype) {
      case DType::f8_e4m3:
        return fp8_;
      case DType::f4_e2m1:
        return fp4_;
      case DType::ue8m0:
        return scaled_dtype == DType::f4_e2m1 ? fp4_scale_ : fp8_scale_;
      case DType::bf16:
        return decl.shape.rank() == 1 ? bf16_one_ : bf16_;
      default:
        HADAL_CHECK(decl.dtype == DType::f32);
        if (decl.name.ends_with("_scale")) return f32_small_;
        // Biases and sinks start at nothing, as in training.
        return ends_with_any(decl.name, {"_base", ".bias", ".attn_sink"}) ? f32_zero_ : f32_;
    }
  }

  Rng offsets_;
  Buffer fp8_, fp8_scale_, fp4_, fp4_scale_, bf16_, f32_;
  Buffer bf16_one_ = constant(to_bf16(1.0f)), f32_zero_ = constant(0.0f);
  Buffer f32_small_ = constant(0.01f);  // gates of the hyper-connections; training.md §2.9
};

// Distinct experts for every token, each expert equally often over the vocabulary.
Tensor balanced_table(const Config& c, std::uint64_t seed) {
  const std::int64_t k = c.num_experts_per_tok, n = c.n_routed_experts;
  const std::int64_t stride = std::max<std::int64_t>(1, n / k);  // k strides stay below n
  Tensor table = Tensor::empty({c.vocab_size, k}, DType::i64);
  const auto first = static_cast<std::int64_t>(philox4x32({0, 0, 0, 0}, seed)[0] % 1024u);
  for (std::int64_t t = 0; t < c.vocab_size; ++t) {
    for (std::int64_t j = 0; j < k; ++j) {
      table.data<std::int64_t>()[t * k + j] = (first + t + j * stride) % n;
    }
  }
  return table;
}

}  // namespace

Config slice_config(Config config, const SliceOptions& options) {
  const auto refuse = [](const std::string& message) {
    throw Error(ErrorCode::invalid_argument, message);
  };
  const auto n_kinds = static_cast<std::int64_t>(options.kinds.size());
  const std::int64_t n_layers =
      options.n_layers.value_or(n_kinds > 0 ? n_kinds : config.num_hidden_layers);
  if (n_kinds > 0 && n_kinds != n_layers) {
    refuse(fmt::format("{} layer kinds for {} layers; name a kind for each", n_kinds, n_layers));
  }
  if (n_layers < 1 || (n_kinds == 0 && n_layers > config.num_hidden_layers)) {
    refuse(fmt::format("{} layers asked for, {} has {}; name their kinds to make more", n_layers,
                       config.source, config.num_hidden_layers));
  }
  if (options.n_mtp < 0 || options.n_mtp > config.num_nextn_predict_layers) {
    refuse(fmt::format("{} MTP blocks asked for, {} has {}", options.n_mtp, config.source,
                       config.num_nextn_predict_layers));
  }
  const std::int64_t n_hash =
      options.n_hash_layers.value_or(std::min(config.num_hash_layers, n_layers));
  if (n_hash < 0 || n_hash > n_layers) {
    refuse(fmt::format("{} hash layers asked for, among {} layers", n_hash, n_layers));
  }

  const auto is_hca = [](std::int64_t ratio) { return ratio != 0 && ratio != kCsaRatio; };
  const auto hca =
      std::find_if(config.compress_ratios.begin(), config.compress_ratios.end(), is_hca);
  const std::int64_t hca_ratio = hca == config.compress_ratios.end() ? 128 : *hca;
  std::vector<std::int64_t> ratios;
  for (std::int64_t l = 0; l < n_layers; ++l) {
    if (n_kinds == 0) {
      ratios.push_back(config.layer(l).compress_ratio);
      continue;
    }
    const LayerKind kind = options.kinds[static_cast<std::size_t>(l)];
    ratios.push_back(kind == LayerKind::window ? 0
                     : kind == LayerKind::csa  ? kCsaRatio
                                               : hca_ratio);
  }
  for (std::int64_t i = 0; i < options.n_mtp; ++i) {
    ratios.push_back(config.mtp_layer(i).compress_ratio);
  }
  config.compress_ratios = std::move(ratios);
  config.num_hidden_layers = n_layers;
  config.num_hash_layers = n_hash;
  config.num_nextn_predict_layers = options.n_mtp;
  config.finalize();
  return config;
}

void synthesize_checkpoint(FileSystem& fs, Config config, const Path& to, std::uint64_t seed,
                           const io::CheckpointWriterOptions& output,
                           const ConvertProgress& progress) {
  config.quantization_config = QuantizationConfig{};
  config.expert_dtype = ExpertDType::fp4;
  std::vector<io::TensorDecl> decls = stored_tensors(config, WeightFormat::published);
  std::unordered_map<std::string, DType> scaled_dtype;  // of the weight, by the scale's name
  for (std::size_t i = 1; i < decls.size(); ++i) {
    if (decls[i].dtype == DType::ue8m0) scaled_dtype.emplace(decls[i].name, decls[i - 1].dtype);
  }
  io::CheckpointWriter writer(fs, to, std::move(decls), output);
  WeightSource source(config.initializer_range, seed);
  std::size_t done = 0;
  for (const io::TensorDecl& decl : writer.order()) {
    if (decl.dtype == DType::i64) {
      writer.write(decl.name, balanced_table(config, seed));
      done += nbytes(decl.shape, decl.dtype);
      continue;
    }
    const auto it = scaled_dtype.find(decl.name);
    source.write(decl, it == scaled_dtype.end() ? decl.dtype : it->second,
                 [&](std::span<const std::byte> piece) {
                   writer.write(decl.name, piece);
                   done += piece.size();
                   if (progress) progress(done, writer.total_bytes());
                 });
  }
  writer.write_file("config.json", to_json(config));
  writer.finish();
}

BoundWeights synthesize_weights(const Config& config, std::uint64_t seed,
                                const WeightPlace& place) {
  std::unordered_map<std::string, io::TensorDecl> decls;
  for (io::TensorDecl& d : stored_tensors(config, WeightFormat::published)) {
    if (d.shape.rank() == 1) d.dtype = DType::f32;
    decls.emplace(d.name, std::move(d));
  }
  WeightSource source(config.initializer_range, seed);
  const auto make = [&](const io::TensorDecl& decl, DType scaled_dtype) {
    Tensor t = place.make(decl.shape, decl.dtype);
    const TensorView bytes(t.bytes(), {static_cast<std::int64_t>(t.nbytes())}, DType::u8);
    std::int64_t at = 0;
    source.write(decl, scaled_dtype, [&](std::span<const std::byte> piece) {
      const auto n = static_cast<std::int64_t>(piece.size());
      // Only read from, but a view has no constness.
      place.write({const_cast<std::byte*>(piece.data()), {n}, DType::u8}, bytes.slice(at, at + n));
      at += n;
    });
    return t;
  };
  return BoundWeights::from_memory(config, [&](const ExpectedWeight& w) -> QuantTensor {
    if (w.role == WeightRole::token_table) {
      const Tensor wide = balanced_table(config, seed);
      const Tensor narrow = Tensor::empty(wide.shape(), DType::i32);
      std::copy_n(wide.data<const std::int64_t>(), wide.numel(), narrow.data<std::int32_t>());
      Tensor t = place.make(narrow.shape(), DType::i32);
      place.write(narrow, t);
      return {std::move(t), {}, {}};
    }
    const io::TensorDecl& decl = decls.at(w.name);
    QuantTensor out{make(decl, decl.dtype), {}, {}};
    const bool scaled = decl.dtype == DType::f4_e2m1 || decl.dtype == DType::f8_e4m3;
    if (const auto scale = decls.find(scaled ? scale_name(w.name) : ""); scale != decls.end()) {
      out.scale = make(scale->second, decl.dtype);
      out.block = decl.dtype == DType::f4_e2m1 ? kFp4Block : kFp8Block;
    }
    return out;
  });
}

}  // namespace hadal::model
