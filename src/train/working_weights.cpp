#include "train/working_weights.h"

#include <fmt/format.h>

#include "kernels/store_weights.h"

namespace hadal::train {

namespace {

using model::WeightFormat;
using model::WeightRole;

enum class Storage : std::uint8_t { master, rounded_to_bf16, bf16, fp8, fp4 };

Storage storage_of(const ParameterInfo& info, WeightFormat format) {
  if (format == WeightFormat::f32) return Storage::master;
  const bool quantised = format == WeightFormat::published || format == WeightFormat::fp8;
  switch (info.role) {
    case WeightRole::linear:
      return quantised ? Storage::fp8 : Storage::bf16;
    case WeightRole::expert:
      if (format == WeightFormat::published) return Storage::fp4;
      return quantised ? Storage::fp8 : Storage::bf16;
    case WeightRole::matrix:
      return Storage::bf16;
    case WeightRole::norm:
      return Storage::rounded_to_bf16;  // layers hold norms in f32
    case WeightRole::f32_only:
    case WeightRole::token_table:
      return Storage::master;
  }
  return Storage::master;
}

model::Config stored_config(model::Config config, WeightFormat format) {
  const bool scaled = format == WeightFormat::published || format == WeightFormat::fp8;
  config.quantization_config.reset();
  config.expert_dtype = model::ExpertDType::unstated;
  if (scaled) {
    config.quantization_config = model::QuantizationConfig{};
    config.expert_dtype =
        format == WeightFormat::published ? model::ExpertDType::fp4 : model::ExpertDType::fp8;
  }
  return config;
}

}  // namespace

WorkingWeights::WorkingWeights(const ParameterStore& store, WeightFormat format, ThreadPool& pool)
    : store_(&store), format_(format), memory_(store.gpu()) {
  kernels::cpu::register_kernels(registry_);
  kernels::cuda::register_kernels(registry_);
  for (const Parameter& p : store.parameters()) {
    weights_.push_back(make(p.info, p.value));
    Tensor& data = weights_.back().data;
    data = data.as_variable(p.info.group == ParameterGroup::frozen ? 0 : p.info.id);
  }
  static_cast<void>(refresh(pool));
}

QuantTensor WorkingWeights::make(const ParameterInfo& info, const Tensor& master) {
  const auto scaled = [&](DType dtype, QuantBlock block) -> QuantTensor {
    Tensor data = memory_.zeros(info.shape, dtype);
    return {std::move(data), memory_.zeros(model::scale_shape(info.shape, block), DType::ue8m0),
            block};
  };
  switch (storage_of(info, format_)) {
    case Storage::master:
      return {master, {}, {}};
    case Storage::rounded_to_bf16:
      return {memory_.zeros(info.shape, DType::f32), {}, {}};
    case Storage::bf16:
      return {memory_.zeros(info.shape, DType::bf16), {}, {}};
    case Storage::fp8:
      return scaled(DType::f8_e4m3, kFp8Block);
    case Storage::fp4:
      if (info.shape[1] % kFp4Block.cols == 0) return scaled(DType::f4_e2m1, kFp4Block);
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{}: {} has {} columns, and FP4 is stored in blocks of {}; train "
                              "without FP4 or change the config",
                              info.name, to_string(info.shape), info.shape[1], kFp4Block.cols));
  }
  return {};
}

void WorkingWeights::throw_not_finite(const Parameter& p, std::int64_t element) const {
  const std::int64_t cols = p.value.dim(1);
  const Tensor value = store_->named(p).on_host();
  throw Error(
      ErrorCode::corrupt_data,
      fmt::format("{}: row {} column {} is {}; only finite weights can be quantised", p.info.name,
                  element / cols, element % cols, value.data<const float>()[element]));
}

WorkingWeights::Refreshed WorkingWeights::refresh(ThreadPool& pool,
                                                  std::span<const std::uint8_t> skipped) {
  Refreshed refreshed;
  if (format_ == WeightFormat::f32) return refreshed;
  const std::span<const Parameter> parameters = store_->parameters();
  std::vector<StoredWeight> stored;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (!skipped.empty() && skipped[i] != 0) continue;
    const Parameter& p = parameters[i];
    if (storage_of(p.info, format_) == Storage::master) continue;
    StoredWeight w{.master = p.value, .data = weights_[i].data, .scale = {}};
    if (weights_[i].scale) w.scale = weights_[i].scale;
    stored.push_back(w);
    places.push_back(i);
  }
  std::vector<StoreResult> results(stored.size());
  Stream stream = store_->gpu() == nullptr ? Stream(pool) : Stream(pool, *store_->gpu());
  registry_.find(kStoreWeights, {stream.device(), DType::f32})(
      stream, {.weights = stored, .results = results});
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (results[i].non_finite >= 0) throw_not_finite(parameters[places[i]], results[i].non_finite);
    refreshed.n_lifted += results[i].n_lifted;
  }
  return refreshed;
}

model::BoundWeights WorkingWeights::bind() const {
  std::size_t next = 0;
  return model::BoundWeights::from_memory(
      store_->config(), [&](const model::ExpectedWeight& w) -> QuantTensor {
        HADAL_CHECK(store_->parameters()[next].info.name == w.name);
        return weights_[next++];
      });
}

std::vector<io::TensorDecl> WorkingWeights::declarations() const {
  return model::stored_tensors(store_->config(), format_);
}

void WorkingWeights::write(io::CheckpointWriter& writer,
                           const model::ConvertProgress& progress) const {
  writer.write_file("config.json", model::to_json(stored_config(store_->config(), format_)));
  std::size_t done = 0;
  for (const io::TensorDecl& decl : writer.order()) {
    if (progress) progress(done, writer.total_bytes());
    done += hadal::nbytes(decl.shape, decl.dtype);
    const bool is_scale = decl.name.ends_with(".scale");
    const std::string name =
        is_scale ? decl.name.substr(0, decl.name.size() - 6) + ".weight" : decl.name;
    const Parameter& p = store_->at(name);
    const QuantTensor& w = weights_[p.info.id - 1];
    const Tensor data =
        NamedTensor{decl.name, is_scale ? w.scale : w.data, memory_.gpu()}.on_host();
    if (decl.dtype == data.dtype()) {
      writer.write(decl.name, data);
    } else if (decl.dtype == DType::bf16) {  // norms
      const Tensor narrow = Tensor::empty(data.shape(), DType::bf16);
      for (std::int64_t i = 0; i < data.numel(); ++i) {
        narrow.data<bf16>()[i] = to_bf16(data.data<const float>()[i]);
      }
      writer.write(decl.name, narrow);
    } else {
      HADAL_CHECK(decl.dtype == DType::i64 && data.dtype() == DType::i32);
      const Tensor wide = Tensor::empty(data.shape(), DType::i64);
      for (std::int64_t i = 0; i < data.numel(); ++i) {
        wide.data<std::int64_t>()[i] = data.data<const std::int32_t>()[i];
      }
      writer.write(decl.name, wide);
    }
  }
}

std::size_t WorkingWeights::nbytes() const {
  std::size_t n = 0;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i].data.bytes() != store_->parameters()[i].value.bytes()) {
      n += weights_[i].nbytes();
    }
  }
  return n;
}

}  // namespace hadal::train
