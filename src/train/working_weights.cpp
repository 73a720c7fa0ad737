#include "train/working_weights.h"

#include <fmt/format.h>

#include <atomic>
#include <cstring>

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

QuantTensor quantised(const Parameter& p, Storage storage, std::int64_t* n_lifted) {
  try {
    if (storage == Storage::fp8) return quantize_fp8(p.value);
    Fp4InFp8 fp4 = quantize_fp4_in_fp8(p.value);
    *n_lifted = fp4.n_lifted;
    return std::move(fp4.weight);
  } catch (const Error& e) {
    throw Error(e.code, fmt::format("{}: {}", p.info.name, e.what()));
  }
}

void round_to_bf16(const Tensor& master, const Tensor& to) {
  const auto* from = master.data<const float>();
  for (std::int64_t i = 0; i < master.numel(); ++i) {
    if (to.dtype() == DType::bf16)
      to.data<bf16>()[i] = to_bf16(from[i]);
    else
      to.data<float>()[i] = hadal::round_to_bf16(from[i]);
  }
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

void copy_bytes(const Tensor& from, const Tensor& to) {
  HADAL_CHECK(from.nbytes() == to.nbytes());
  std::memcpy(to.bytes(), from.bytes(), to.nbytes());
}

}  // namespace

WorkingWeights::WorkingWeights(const ParameterStore& store, WeightFormat format, ThreadPool& pool)
    : store_(&store), format_(format) {
  for (const Parameter& p : store.parameters()) {
    QuantTensor w;
    switch (storage_of(p.info, format)) {
      case Storage::master:
        w.data = p.value;
        break;
      case Storage::rounded_to_bf16:
        w.data = Tensor::zeros(p.info.shape, DType::f32);
        break;
      case Storage::bf16:
        w.data = Tensor::zeros(p.info.shape, DType::bf16);
        break;
      case Storage::fp8:
        w = {Tensor::zeros(p.info.shape, DType::f8_e4m3),
             Tensor::zeros(model::scale_shape(p.info.shape, kFp8Block), DType::ue8m0), kFp8Block};
        break;
      case Storage::fp4:
        if (p.info.shape[1] % kFp4Block.cols != 0) {
          throw Error(
              ErrorCode::invalid_argument,
              fmt::format("{}: {} has {} columns, and FP4 is stored in blocks of {}; train "
                          "without FP4 or change the config",
                          p.info.name, to_string(p.info.shape), p.info.shape[1], kFp4Block.cols));
        }
        w = {Tensor::zeros(p.info.shape, DType::f4_e2m1),
             Tensor::zeros(model::scale_shape(p.info.shape, kFp4Block), DType::ue8m0), kFp4Block};
        break;
    }
    w.data = w.data.as_variable(p.info.group == ParameterGroup::frozen ? 0 : p.info.id);
    weights_.push_back(std::move(w));
  }
  static_cast<void>(refresh(pool));
}

WorkingWeights::Refreshed WorkingWeights::refresh(ThreadPool& pool,
                                                  std::span<const std::uint8_t> skipped) {
  if (format_ == WeightFormat::f32) return {};
  const std::span<const Parameter> parameters = store_->parameters();
  std::atomic<std::int64_t> n_lifted{0};
  pool.parallel_for(std::ssize(parameters), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      if (!skipped.empty() && skipped[static_cast<std::size_t>(i)] != 0) continue;
      const Parameter& p = parameters[static_cast<std::size_t>(i)];
      const QuantTensor& w = weights_[static_cast<std::size_t>(i)];
      const Storage storage = storage_of(p.info, format_);
      if (storage == Storage::master) continue;
      if (storage == Storage::bf16 || storage == Storage::rounded_to_bf16) {
        round_to_bf16(p.value, w.data);
        continue;
      }
      std::int64_t lifted = 0;
      const QuantTensor fresh = quantised(p, storage, &lifted);
      copy_bytes(fresh.data, w.data);
      copy_bytes(fresh.scale, w.scale);
      n_lifted += lifted;
    }
  });
  return {n_lifted};
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
    if (is_scale) {
      writer.write(decl.name, w.scale);
      continue;
    }
    const Tensor& data = w.data;
    if (decl.dtype == data.dtype()) {
      writer.write(decl.name, data);
    } else if (decl.dtype == DType::bf16) {  // norms
      const Tensor narrow = Tensor::empty(data.shape(), DType::bf16);
      round_to_bf16(data, narrow);
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
