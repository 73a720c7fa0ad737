// Training on the GPU: the CPU's losses, its own bits again, states that carry on.
#include "train/trainer.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "cuda/support.h"
#include "parallel/self_comm.h"
#include "support/tiny_data.h"
#include "train/checkpoint.h"

namespace hadal::test {
namespace {

using train::AttentionPhase;
using train::Compute;
using train::NamedTensor;
using train::Parameter;
using train::RunConfig;
using train::StepRecord;
using train::Trainer;

const train::DataSet& tiny_data() {
  static const TemporaryDirectory directory("cuda-trainer-data");
  static const train::DataSet data = [] {
    write_tiny_data(directory.path());
    return train::DataSet::open(directory.path());
  }();
  return data;
}

// configs/nano.toml with fewer words: a layer of every kind, an MTP block, sizes that all storage
// formats hold.
model::Config nano_config() {
  model::Config c;
  c.source = "nano";
  c.vocab_size = 96;
  c.hidden_size = 128;
  c.num_hidden_layers = 5;
  c.num_hash_layers = 1;
  c.num_nextn_predict_layers = 1;
  c.max_position_embeddings = 256;
  c.num_attention_heads = 2;
  c.head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.q_lora_rank = 64;
  c.o_groups = 2;
  c.o_lora_rank = 64;
  c.sliding_window = 16;
  c.compress_ratios = {0, 4, 16, 4, 16, 0};
  c.index_n_heads = 2;
  c.index_head_dim = 64;
  c.index_topk = 8;
  c.n_routed_experts = 8;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 64;
  c.routed_scaling_factor = 1.5f;
  c.swiglu_limit = 10.0f;
  c.hc_mult = 4;
  c.hc_sinkhorn_iters = 20;
  c.finalize();
  return c;
}

// 10 dense steps, 4 of the indexer alone, 10 sparse ones.
RunConfig nano_run(Compute compute) {
  RunConfig c;
  c.source = "nano";
  c.model = nano_config();
  c.data = "tiny";
  c.seed = 3;
  c.micro_batch_tokens = 512;
  c.compute = compute;
  c.schedule.total_tokens = 1024 * 20;
  c.schedule.batch = {.first_tokens = 1024, .tokens = 1024};
  c.schedule.lr = {.peak = 5e-3, .end = 5e-4, .warmup_steps = 5, .decay_fraction = 0.2};
  c.schedule.stages = {{.sequence_length = 64, .fraction = 0.5, .sparse = false},
                       {.sequence_length = 128, .fraction = 0.5, .sparse = true}};
  c.schedule.indexer = {.warmup_steps = 4, .warmup_lr = 1e-2, .loss_weight = 1.0};
  c.schedule.bias_speed = 1e-2;
  c.balance_weight = 1e-3;
  c.anticipatory.enable = false;
  c.eval_tokens = 2048;
  check(c);
  return c;
}

std::string hash_of(Trainer& trainer) {
  return train::state_hash(trainer.state());
}

std::vector<StepRecord> run_steps(Trainer& trainer, int n) {
  std::vector<StepRecord> records;
  for (int i = 0; i < n && !trainer.is_finished(); ++i) records.push_back(trainer.step());
  return records;
}

class CudaTrainer : public CudaTest {
 protected:
  Trainer on_cpu(const RunConfig& config) { return {config, tiny_data(), pool_}; }
  Trainer on_gpu(const RunConfig& config) {
    return {config, tiny_data(), pool_, parallel::self(), &queue()};
  }
  // Writes to a weight wherever it is.
  static void poke(const Trainer& trainer, std::string_view name, std::int64_t at, float value) {
    const NamedTensor t = trainer.parameters().named(trainer.parameters().at(name));
    const Tensor host = copy_of(t.on_host());
    host.data<float>()[at] = value;
    t.assign(host);
  }

  // Copies of all weights, on the host.
  static std::vector<Tensor> values_of(const Trainer& trainer) {
    std::vector<Tensor> values;
    for (const train::Parameter& p : trainer.parameters().parameters()) {
      values.push_back(copy_of(trainer.parameters().named(p).on_host()));
    }
    return values;
  }

  // Both devices from the same weights; how far losses and gradients are apart.
  struct Apart {
    double first_loss = 0, first_norm = 0, worst_loss = 0;
    double begin = 0, end = 0;  // the GPU's losses
  };
  Apart compare(const RunConfig& config) {
    Trainer cpu = on_cpu(config), gpu = on_gpu(config);
    Apart apart;
    bool first = true;
    while (!cpu.is_finished()) {
      const StepRecord want = cpu.step(), got = gpu.step();
      EXPECT_EQ(got.phase, want.phase);
      EXPECT_EQ(got.step, want.step);
      EXPECT_EQ(got.tokens, want.tokens);
      if (std::isnan(want.loss)) continue;  // the indexer's warm-up
      const double loss = std::fabs(got.loss - want.loss);
      if (first) {
        apart.first_loss = loss, apart.begin = got.loss;
        apart.first_norm = std::fabs(got.grad_norm / want.grad_norm - 1);
        for (std::size_t i = 0; i < want.expert_load.size(); ++i) {  // a near tie or two
          EXPECT_NEAR(got.expert_load.at(i), want.expert_load[i], 0.02) << "layer " << i;
        }
        EXPECT_EQ(got.executed_flops, want.executed_flops);
        EXPECT_NEAR(*got.mtp_loss, *want.mtp_loss, 1e-4);
        EXPECT_NEAR(*got.balance_loss, *want.balance_loss, 1e-4);
      }
      first = false;
      apart.worst_loss = std::max(apart.worst_loss, loss);
      apart.end = got.loss;
    }
    EXPECT_TRUE(gpu.is_finished());
    return apart;
  }

 private:
  ThreadPool pool_;
};

TEST_F(CudaTrainer, StartsFromTheSameBits) {
  const RunConfig config = nano_run(Compute::f32);
  Trainer cpu = on_cpu(config), gpu = on_gpu(config);
  EXPECT_EQ(hash_of(cpu), hash_of(gpu));
  // The same weights: a forward pass whose sums have another order.
  EXPECT_NEAR(cpu.evaluate()->loss, gpu.evaluate()->loss, 1e-5);
  const std::vector<TokenId> prompt{0, 5, 9, 33};
  EXPECT_LE(std::ssize(gpu.continue_greedily(prompt, 6)), 6);
}

// f32 on both sides. The first step differs by the order of sums alone: 2^-24 grown by some
// thousand terms. With AdamW on everything, steps then differ where a gradient is so small that its
// sign is noise, which is where a weight does not matter.
TEST_F(CudaTrainer, FollowsTheCpuWithAdamw) {
  RunConfig config = nano_run(Compute::f32);
  config.groups.matrices_on_adamw = true;
  const Apart apart = compare(config);
  EXPECT_LT(apart.first_loss, 1e-5);
  EXPECT_LT(apart.first_norm, 1e-4);
  EXPECT_LT(apart.worst_loss, 2e-2);
  EXPECT_LT(apart.end, apart.begin - 0.5);
}

// Newton-Schulz is bf16 there and f32 here: singular values that end within 0.5 %, and another
// direction where there is next to no momentum, which the loss hardly feels at first. Over 20 steps
// that a loss of 4.6 falls by more than 1, curves stay within a few hundredths.
TEST_F(CudaTrainer, FollowsTheCpuWithMuon) {
  const Apart apart = compare(nano_run(Compute::f32));
  EXPECT_LT(apart.first_loss, 1e-5);
  EXPECT_LT(apart.first_norm, 1e-4);
  EXPECT_LT(apart.worst_loss, 0.1);
  EXPECT_LT(apart.end, apart.begin - 0.5);
}

// Through every phase, with and without recomputation.
TEST_F(CudaTrainer, StepsRepeatToTheBit) {
  for (const Compute compute : {Compute::f32, Compute::bf16, Compute::qat}) {
    const RunConfig config = nano_run(compute);
    RunConfig kept = config;
    kept.recompute = false;
    Trainer a = on_gpu(config), b = on_gpu(config), c = on_gpu(kept);
    while (!a.is_finished()) {
      const StepRecord ra = a.step(), rb = b.step(), rc = c.step();
      ASSERT_EQ(ra.grad_norm, rb.grad_norm) << to_string(compute) << " step " << ra.step;
      ASSERT_EQ(ra.grad_norm, rc.grad_norm) << to_string(compute) << " step " << ra.step;
    }
    EXPECT_EQ(hash_of(a), hash_of(b)) << to_string(compute);
    EXPECT_EQ(hash_of(a), hash_of(c)) << to_string(compute);
  }
}

TEST_F(CudaTrainer, LearnsInBf16AndInTrainedQuantisation) {
  for (const Compute compute : {Compute::bf16, Compute::qat}) {
    RunConfig config = nano_run(compute);
    config.qat_start = 0.3;  // the format changes on the way
    Trainer trainer = on_gpu(config);
    const double before = trainer.evaluate()->loss;
    const std::vector<StepRecord> records = run_steps(trainer, 100);
    EXPECT_GE(records.size(), 24U);  // rows are not quite full: a step more may be needed
    EXPECT_LT(trainer.evaluate()->loss, before - 0.5) << to_string(compute);
    const StepRecord& last = records.back();
    EXPECT_EQ(last.qat, compute == Compute::qat ? "fp4" : "off");
    EXPECT_GT(*last.executed_flops, 0);
    EXPECT_GT(*last.mfu, 0);
    EXPECT_LT(*last.mfu, 1);
    EXPECT_GT(last.peak_memory_bytes, 0);
    EXPECT_GT(last.seconds.newton_schulz, 0);
    EXPECT_LE(last.seconds.newton_schulz, last.seconds.optimizer);
  }
}

// In every phase and at their borders, through files.
TEST_F(CudaTrainer, ACheckpointCarriesOnToTheBit) {
  const TemporaryDirectory directory("cuda-trainer-checkpoints");
  FileSystem& fs = FileSystem::real();
  const RunConfig config = nano_run(Compute::bf16);
  Trainer whole = on_gpu(config), first = on_gpu(config);
  for (const int stop : {1, 10, 12, 14, 19}) {
    run_steps(first, stop - static_cast<int>(first.n_steps()));
    train::CheckpointState state;
    state.trainer = first.state();
    state.model = config.model;
    const train::SaveReport report =
        train::save_checkpoint(fs, directory.path(), state, {.shard_bytes = 1 << 20});
    Trainer second = on_gpu(config);
    run_steps(second, 2);  // what it has is not what it is given
    const auto saved = train::SavedCheckpoint::open(fs, report.directory);
    saved.read(second.prepare_restore(saved.state().trainer).tensors);
    second.resumed();
    EXPECT_EQ(hash_of(second), hash_of(first)) << "stopped after " << stop;
    run_steps(second, 3);
    run_steps(whole, stop + 3 - static_cast<int>(whole.n_steps()));
    EXPECT_EQ(second.n_steps(), stop + 3);
    EXPECT_EQ(hash_of(second), hash_of(whole)) << "stopped after " << stop;
  }
}

// A run may change its device: what a GPU saved, a CPU goes on with.
TEST_F(CudaTrainer, AStateMovesToTheCpu) {
  const RunConfig config = nano_run(Compute::f32);
  Trainer gpu = on_gpu(config), cpu = on_cpu(config);
  run_steps(gpu, 12);
  const train::TrainerState saved = gpu.state(), place = cpu.prepare_restore(saved);
  ASSERT_EQ(saved.tensors.size(), place.tensors.size());
  for (std::size_t i = 0; i < saved.tensors.size(); ++i) {
    ASSERT_EQ(saved.tensors[i].name, place.tensors[i].name);
    place.tensors[i].assign(saved.tensors[i].on_host());
  }
  cpu.resumed();
  EXPECT_EQ(hash_of(cpu), hash_of(gpu));
  const StepRecord want = cpu.step(), got = gpu.step();
  EXPECT_EQ(want.phase, "indexer_warmup");
  EXPECT_NEAR(*got.index_loss, *want.index_loss, 1e-3 * *want.index_loss);
}

// While experts are chosen ahead a state holds the choices, and forcing them on the GPU is what
// choosing them at once would have been.
TEST_F(CudaTrainer, AnticipationCarriesOnToTheBit) {
  RunConfig config = nano_run(Compute::bf16);
  config.schedule.indexer.warmup_steps = 0;
  config.schedule.stages = {{.sequence_length = 64, .fraction = 1.0, .sparse = false}};
  config.anticipatory = {.enable = true, .delay = 2, .period = 10};
  Trainer whole = on_gpu(config), first = on_gpu(config);
  for (Trainer* t : {&whole, &first}) {
    train::TrainerState state = t->state();
    state.anticipatory_steps = 6;
    static_cast<void>(t->prepare_restore(state));
    t->resumed();
    run_steps(*t, 4);
  }
  const train::TrainerState saved = first.state();
  ASSERT_EQ(saved.choices_ahead, 2);
  Trainer second = on_gpu(config);
  const train::TrainerState place = second.prepare_restore(saved);
  for (std::size_t i = 0; i < saved.tensors.size(); ++i) {
    place.tensors[i].assign(saved.tensors[i].on_host());
  }
  second.resumed();
  run_steps(whole, 6);
  run_steps(second, 6);
  EXPECT_EQ(hash_of(whole), hash_of(second));
}

TEST_F(CudaTrainer, ANonFiniteGradientStopsWithItsName) {
  const RunConfig config = nano_run(Compute::f32);
  Trainer trainer = on_gpu(config);
  run_steps(trainer, 2);
  poke(trainer, "layers.1.attn.wq_b.weight", 5, std::numeric_limits<float>::quiet_NaN());
  const std::vector<Tensor> before = values_of(trainer);
  try {
    static_cast<void>(trainer.step());
    FAIL() << "a NaN went through";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::corrupt_data);
    EXPECT_NE(std::string(e.what()).find("step 3"), std::string::npos) << e.what();
  }
  // The batch is spent; the weights are as they were, the NaN among them.
  const std::vector<Tensor> after = values_of(trainer);
  ASSERT_EQ(after.size(), before.size());
  for (std::size_t i = 0; i < after.size(); ++i) {
    EXPECT_EQ(std::memcmp(after[i].bytes(), before[i].bytes(), after[i].nbytes()), 0) << i;
  }
}

TEST_F(CudaTrainer, AWeightThatCannotBeQuantisedIsNamed) {
  const RunConfig config = nano_run(Compute::qat);
  Trainer trainer = on_gpu(config);
  poke(trainer, "layers.2.ffn.experts.3.w1.weight", 129, INFINITY);
  try {
    trainer.resumed();
    FAIL() << "infinity went through";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("layers.2.ffn.experts.3.w1.weight: row 1 column 1 is inf"),
              std::string::npos)
        << e.what();
  }
}

TEST_F(CudaTrainer, ANonFiniteLossGoesBackToASnapshot) {
  RunConfig config = nano_run(Compute::bf16);
  config.on_non_finite = train::OnNonFinite::rollback;
  config.anticipatory.snapshot_every = 4;
  config.anticipatory.rollback_steps = 2;
  Trainer trainer = on_gpu(config), calm = on_gpu(config);
  run_steps(trainer, 7);
  poke(trainer, "layers.1.attn.wq_b.weight", 5, INFINITY);
  // The model multiplies what was made of the masters: made again, it has the infinity.
  trainer.resumed();
  static_cast<void>(trainer.step());
  EXPECT_EQ(trainer.progress().step, 4);
  // From there it is as if nothing had happened.
  run_steps(trainer, 5);
  run_steps(calm, 9);
  EXPECT_EQ(hash_of(trainer), hash_of(calm));
}

// Two processes, so to say.
class TwoRanks final : public parallel::Communicator {
 public:
  [[nodiscard]] int rank() const override { return 0; }
  [[nodiscard]] int size() const override { return 2; }
  void all_gather(std::span<const std::byte>, std::span<const std::int64_t>,
                  std::span<std::byte>) override {}
  void all_to_all(std::span<const std::byte>, std::span<const std::int64_t>, std::span<std::byte>,
                  std::span<const std::int64_t>) override {}
  void broadcast(std::span<std::byte>, int) override {}
  void barrier() override {}
  [[noreturn]] void abort(const std::string& why) override {
    throw Error(ErrorCode::cancelled, why);
  }
};

TEST_F(CudaTrainer, HasOneProcess) {
  const RunConfig config = nano_run(Compute::f32);
  ThreadPool pool(1);
  TwoRanks ranks;
  try {
    const Trainer trainer(config, tiny_data(), pool, ranks, &queue());
    FAIL() << "a GPU and two processes";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::unsupported);
    EXPECT_NE(std::string(e.what()).find("without mpirun"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace hadal::test
