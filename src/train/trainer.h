// The loop: batches in, better weights out.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/model.h"
#include "parallel/self_comm.h"
#include "train/data_loader.h"
#include "train/loss.h"
#include "train/optimizer.h"
#include "train/rank_exchange.h"
#include "train/run_config.h"
#include "train/selection_biases.h"
#include "train/step_flops.h"
#include "train/step_record.h"
#include "train/step_watch.h"
#include "train/trainer_state.h"
#include "train/working_weights.h"

namespace hadal::train {

// Trains one model: on one process and a CPU or a GPU, or, with a communicator, on the CPUs of
// several that each take a part of every batch. Steps repeat to the bit: with the same config,
// data, state, device and number of processes, on any number of threads. Another number of
// processes or another device changes the order of sums and nothing else. What is not
// const is called by all ranks alike, and answers alike.
// Source: DeepSeek-V4 §3.4.1, §4.2; training.md §1.6, §2.
class Trainer {
 public:
  // Weights are initialised from the config's seed, to the same bits on every device. Everything
  // handed in must outlive this. `gpu`: whose memory has the weights and all that is of their size,
  // and whose kernels run; null: the CPU.
  // Throws Error: invalid_argument when config and data do not fit each other or the other ranks',
  // unsupported for a GPU and several ranks.
  Trainer(const RunConfig& config, const DataSet& data, ThreadPool& pool,
          parallel::Communicator& ranks = parallel::self(), cuda::Queue* gpu = nullptr);
  ~Trainer();

  [[nodiscard]] const Progress& progress() const { return progress_; }
  [[nodiscard]] bool is_finished() const;
  // Of the optimizer, the indexer's warm-up counted.
  [[nodiscard]] std::int64_t n_steps() const { return progress_.step + progress_.indexer_steps; }

  // One step of the optimizer. A spike makes it go back to a snapshot instead, which the record's
  // step number and `on_event` tell.
  // Throws Error corrupt_data with step and tensor when a loss or a gradient is not finite and the
  // config says to stop; the weights are those of the step before.
  [[nodiscard]] StepRecord step();
  // Told about phase changes, spikes, rollbacks.
  std::function<void(const EventRecord&)> on_event;

  // Mean loss of the first eval_tokens tokens of the validation split; empty when it has none.
  [[nodiscard]] std::optional<EvalRecord> evaluate();
  // Continues a prompt greedily by up to n tokens.
  [[nodiscard]] std::vector<TokenId> continue_greedily(std::vector<TokenId> prompt, std::int64_t n);

  // Whole on every rank, whatever their number; it is enough that one saves it, and any number
  // goes on with it.
  [[nodiscard]] TrainerState state();
  // Makes room for the tensors of a state with these numbers. Assign to all of them, then call
  // resumed().
  [[nodiscard]] TrainerState prepare_restore(const TrainerState& numbers);
  void resumed();

  // With divided experts, this rank's values of those that others run are as old as the last of
  // synchronise(), state() and evaluate().
  void synchronise();
  [[nodiscard]] const ParameterStore& parameters() const { return *store_; }
  [[nodiscard]] WorkingWeights& working_weights() { return *working_; }
  [[nodiscard]] const model::Model& model() const { return *model_; }
  [[nodiscard]] Numerics numerics() const;

 private:
  struct Prepared;     // a batch, cut into micro-batches, with its counts
  struct Snapshot;     // a state, copied
  struct Accumulated;  // over the micro-batches of a step
  enum class Extent : std::uint8_t {
    own,       // what this rank holds, for snapshots
    all,       // what all ranks together hold
    all_empty  // the same, not fetched: to be written to
  };

  void expect_same_on_all_ranks() const;
  [[nodiscard]] Prepared fetch(const StepPlan& plan);
  [[nodiscard]] std::vector<std::int64_t> micro_batch_bounds(const Batch& batch,
                                                             std::int64_t n_own) const;
  [[nodiscard]] Prepared next_batch(const StepPlan& plan);
  void choose_experts(Prepared& batch, const StepPlan& plan);
  [[nodiscard]] bool chooses_ahead(std::int64_t layer, const StepPlan& plan) const;
  [[nodiscard]] TrainerState collect(Extent extent);
  void add_optimizer_state(Extent extent, std::vector<NamedTensor>& to) const;
  [[nodiscard]] Tensor joined_choices(const Prepared& batch, std::size_t layer,
                                      Extent extent) const;
  [[nodiscard]] TrainerState prepare(const TrainerState& numbers, Extent extent);
  [[nodiscard]] Accumulated run(const Prepared& batch, const StepPlan& plan, StepWatch& watch);
  void expect_finite(const LossSums& sums, const GradientReport& gradients) const;
  void describe_cost(const Prepared& batch, const StepPlan& plan, StepRecord& record);
  void describe_layers(const StepWatch& watch, StepRecord& record) const;
  [[nodiscard]] std::size_t state_bytes() const;
  void enter_phase(const StepPlan& plan);
  [[nodiscard]] ExecContext context();
  [[nodiscard]] ExecContext context_with_ranks();  // experts where they are
  void bind_gradients(AttentionPhase phase);
  void use_format(model::WeightFormat format);
  [[nodiscard]] model::WeightFormat wanted_format() const;
  [[nodiscard]] model::StepOptions step_options(const StepPlan& plan, StepWatch* watch) const;
  void take_snapshot();
  void roll_back(const std::string& why);
  [[nodiscard]] bool may_roll_back(const std::string& spike);
  void event(const std::string& kind, const std::string& sentence);

  const RunConfig& config_;
  const DataSet& data_;
  ThreadPool& pool_;
  parallel::Communicator& ranks_;
  cuda::Queue* gpu_;
  Stream stream_;
  PoolAllocator host_pool_;
  PoolAllocator& allocator_;  // of what a step needs, on the device
  KernelRegistry registry_;
  std::unique_ptr<ParameterStore> store_;
  std::unique_ptr<SelectionBiases> biases_;
  mutable RankExchange exchange_;
  bool experts_are_old_ = false;  // those of other ranks, here
  std::unique_ptr<WorkingWeights> working_;
  std::unique_ptr<model::Model> model_;
  std::unique_ptr<Optimizer> optimizer_, indexer_optimizer_;
  std::unique_ptr<Tape> tape_;
  std::optional<StepFlops> flops_;  // of the phase
  DataLoader loader_;
  SpikeDetector spikes_;
  Progress progress_;
  AttentionPhase phase_ = AttentionPhase::dense;
  bool started_ = false;  // the phase has been announced
  std::int64_t anticipatory_steps_ = 0;
  std::deque<Prepared> ahead_;  // whose experts are chosen
  std::deque<Snapshot> snapshots_;
  // Going back to one snapshot again and again is going nowhere: the data are the same.
  struct Returns {
    std::int64_t to = -1;    // step of the snapshot
    int n = 0;               // times in a row
    std::int64_t until = 0;  // step before which nothing more is a spike
  } returns_;
};

}  // namespace hadal::train
