#include "train/parameters.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "core/error.h"

namespace hadal::train {

namespace {

using model::WeightRole;

// `part` of dimension 0 each; all of it when it does not divide.
std::vector<RowRange> split_rows(std::int64_t rows, std::int64_t part) {
  HADAL_CHECK(part > 0 && rows % part == 0);
  std::vector<RowRange> ranges;
  for (std::int64_t begin = 0; begin < rows; begin += part) ranges.push_back({begin, begin + part});
  return ranges;
}

std::vector<RowRange> matrices_of(const model::ExpectedWeight& w, const model::Config& c,
                                  const GroupOptions& options) {
  const std::string_view name = w.name;
  const std::int64_t rows = w.shape[0];
  // The series of a compressor lie in one tensor, but are factors of their own.
  if (name.ends_with("compressor.wkv.weight") || name.ends_with("compressor.wgate.weight")) {
    const bool of_indexer = name.find(".indexer.") != std::string_view::npos;
    return split_rows(rows, of_indexer ? c.index_head_dim : c.head_dim);
  }
  // Each group's factor of the output projection.
  if (name.ends_with(".wo_a.weight")) return split_rows(rows, c.o_lora_rank);
  // The gates of a hyper-connection: pre, post, comb.
  if (name.ends_with("hc_attn_fn") || name.ends_with("hc_ffn_fn")) {
    const std::int64_t n = c.hc_mult;
    return {{0, n}, {n, 2 * n}, {2 * n, rows}};
  }
  if (options.split_heads && name.ends_with(".wq_b.weight")) {
    const bool of_indexer = name.find(".indexer.") != std::string_view::npos;
    return split_rows(rows, of_indexer ? c.index_head_dim : c.head_dim);
  }
  return {{0, rows}};
}

// A matrix that maps activations to activations. Sinks, ape and biases are tables and vectors:
// they have no polar factor that would mean anything.
bool is_matrix(const model::ExpectedWeight& w) {
  switch (w.role) {
    case WeightRole::linear:
    case WeightRole::expert:
      return true;
    case WeightRole::matrix:
      return w.name != "embed.weight" && w.name != "head.weight";
    case WeightRole::f32_only:
      return w.name.ends_with("_fn");
    case WeightRole::norm:
    case WeightRole::token_table:
      return false;
  }
  return false;
}

ParameterInfo info_of(const model::ExpectedWeight& w, VariableId id, const model::Config& c,
                      const GroupOptions& options) {
  ParameterInfo info{.id = id,
                     .name = w.name,
                     .shape = w.shape,
                     .role = w.role,
                     .group = ParameterGroup::adamw,
                     .decays = false,
                     .of_indexer = w.name.find(".indexer.") != std::string::npos,
                     .matrices = {}};
  if (w.role == WeightRole::token_table || w.name.ends_with("ffn.gate.bias")) {
    info.group = ParameterGroup::frozen;
  } else if (is_matrix(w)) {
    info.decays = true;
    const bool hyper_connection = w.role == WeightRole::f32_only;
    if (!options.matrices_on_adamw && !(hyper_connection && options.hyper_connections_on_adamw)) {
      info.group = ParameterGroup::muon;
      info.matrices = matrices_of(w, c, options);
    }
  } else {
    info.decays = w.role == WeightRole::matrix;  // embedding and head
  }
  return info;
}

}  // namespace

const char* to_string(ParameterGroup group) {
  switch (group) {
    case ParameterGroup::muon:
      return "muon";
    case ParameterGroup::adamw:
      return "adamw";
    case ParameterGroup::frozen:
      return "frozen";
  }
  return "?";
}

std::vector<ParameterInfo> parameter_layout(const model::Config& config,
                                            const GroupOptions& options) {
  std::vector<ParameterInfo> layout;
  for (const model::ExpectedWeight& w : model::expected_weights(config)) {
    layout.push_back(info_of(w, static_cast<VariableId>(layout.size() + 1), config, options));
  }
  return layout;
}

std::vector<LogicalMatrix> logical_matrices(std::span<const ParameterInfo> layout) {
  std::vector<LogicalMatrix> all;
  for (const ParameterInfo& p : layout) {
    for (const RowRange& rows : p.matrices) {
      all.push_back({p.id, rows, p.shape[1], p.role == WeightRole::expert});
    }
  }
  return all;
}

ParameterStore::ParameterStore(model::Config config, const GroupOptions& options, cuda::Queue* gpu)
    : config_(std::move(config)), values_memory_(gpu), gradients_memory_(gpu) {
  const std::vector<ParameterInfo> layout = parameter_layout(config_, options);
  matrices_ = logical_matrices(layout);
  for (const ParameterInfo& info : layout) {
    Parameter p{info, {}, {}};
    if (info.role == WeightRole::token_table) {
      p.value = values_memory_.zeros(info.shape, DType::i32);
    } else {
      p.value = values_memory_.zeros(info.shape, DType::f32).as_variable(info.id);
    }
    if (info.group != ParameterGroup::frozen) {
      p.gradient = gradients_memory_.zeros(info.shape, DType::f32);
    }
    by_name_.emplace(info.name, parameters_.size());
    parameters_.push_back(std::move(p));
  }
}

const Parameter& ParameterStore::at(VariableId id) const {
  HADAL_CHECK(id >= 1 && id <= parameters_.size());
  return parameters_[id - 1];
}

const Parameter& ParameterStore::at(std::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  if (it == by_name_.end()) {
    throw Error(ErrorCode::not_found,
                fmt::format("no parameter {} among the {} of {}", name, parameters_.size(),
                            config_.source.empty() ? "this model" : config_.source));
  }
  return parameters_[it->second];
}

void ParameterStore::zero_gradients(ThreadPool& pool) {
  if (gpu() != nullptr) return gradients_memory_.clear();
  pool.parallel_for(static_cast<std::int64_t>(parameters_.size()), 1,
                    [&](std::int64_t begin, std::int64_t end) {
                      for (std::int64_t i = begin; i < end; ++i) {
                        const Tensor& g = parameters_[static_cast<std::size_t>(i)].gradient;
                        if (g) std::memset(g.bytes(), 0, g.nbytes());
                      }
                    });
}

std::size_t ParameterStore::nbytes() const {
  std::size_t sum = 0;
  for (const Parameter& p : parameters_) {
    sum += p.value.nbytes();
    if (p.gradient) sum += p.gradient.nbytes();
  }
  return sum;
}

}  // namespace hadal::train
