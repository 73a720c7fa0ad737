// The biases on the choice of experts (balance.h), where the load balance can reach them.
#pragma once

#include <span>
#include <vector>

#include "train/parameters.h"
#include "train/step_watch.h"

namespace hadal::train {

// A few numbers a layer. The host keeps them, and a GPU gets them again when they change: nobody
// waits for them.
class SelectionBiases {
 public:
  // `store` must outlive this.
  explicit SelectionBiases(const ParameterStore& store);

  // After somebody else wrote the values: a checkpoint, a rollback.
  void fetch();
  // Towards an even load (update_bias), in layers that ran.
  void update(std::span<const StepWatch::Layer> layers, double speed);
  // Largest minus smallest; NaN where ids choose.
  [[nodiscard]] double spread(std::size_t layer) const;

 private:
  const ParameterStore* store_;
  struct Bias {
    const Parameter* parameter = nullptr;  // null: ids choose
    Tensor host;                           // the value itself, or a copy of a GPU's
  };
  std::vector<Bias> biases_;  // by layer, MTP blocks last
};

}  // namespace hadal::train
