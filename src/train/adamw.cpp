#include "train/adamw.h"

#include "core/error.h"
#include "kernels/adamw.h"

namespace hadal::train {

Adamw::Adamw(const ParameterStore& store, AdamwOptions options,
             std::span<const VariableId> parameters)
    : options_(options),
      memory_(store.gpu()),
      steps_(Tensor::zeros({1}, DType::i64)),
      nbytes_(steps_.nbytes()) {
  for (const VariableId id : parameters) {
    const Parameter& p = store.at(id);
    HADAL_CHECK(p.info.group != ParameterGroup::frozen);
    units_.push_back(
        {&p, memory_.zeros(p.info.shape, DType::f32), memory_.zeros(p.info.shape, DType::f32)});
    nbytes_ += 2 * units_.back().mean.nbytes();
  }
}

UpdateStats Adamw::step(const ExecContext& ctx, double lr, double gradient_scale) {
  lr *= options_.lr_scale;
  std::vector<AdamwParameter> parameters;
  UpdateStats stats;
  for (const Unit& u : units_) {
    parameters.push_back({u.parameter->value, u.parameter->gradient, u.mean, u.variance,
                          u.parameter->info.decays ? options_.weight_decay : 0.0});
    stats.n_elements += u.parameter->value.numel();
  }
  std::vector<double> sums(parameters.size());
  const std::int64_t step = ++*steps_.data<std::int64_t>();
  ctx.launch(kAdamw, DType::f32,
             AdamwArgs{parameters, step, lr, options_.beta1, options_.beta2, options_.eps,
                       static_cast<float>(gradient_scale), sums});
  for (const double sum : sums) stats.sum_squares += sum * lr * lr;
  return stats;
}

std::vector<NamedTensor> Adamw::state() const {
  std::vector<NamedTensor> all{{"adamw.steps", steps_}};
  for (const Unit& u : units_) {
    all.push_back({"adamw.mean." + u.parameter->info.name, u.mean, memory_.gpu()});
    all.push_back({"adamw.variance." + u.parameter->info.name, u.variance, memory_.gpu()});
  }
  return all;
}

}  // namespace hadal::train
