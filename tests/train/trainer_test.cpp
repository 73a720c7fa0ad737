// The loop: losses fall, steps repeat to the bit, states carry on, spikes are recovered from.
#include "train/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>

#include "support/tiny_data.h"
#include "train/memory_plan.h"
#include "train/small_config.h"

namespace hadal::train {
namespace {

const DataSet& tiny_data() {
  static const test::TemporaryDirectory directory("trainer-data");
  static const DataSet data = [] {
    test::write_tiny_data(directory.path());
    return DataSet::open(directory.path());
  }();
  return data;
}

RunConfig small_run() {
  RunConfig c;
  c.source = "small";
  c.model = test::small_config();
  c.data = "tiny";
  c.seed = 3;
  c.micro_batch_tokens = 256;
  c.schedule.total_tokens = 512 * 60;
  c.schedule.batch = {.first_tokens = 512, .tokens = 512};
  c.schedule.lr = {.peak = 5e-3, .end = 5e-4, .warmup_steps = 5, .decay_fraction = 0.2};
  c.schedule.stages = {{.sequence_length = 64, .fraction = 0.5, .sparse = false},
                       {.sequence_length = 128, .fraction = 0.5, .sparse = true}};
  c.schedule.indexer = {.warmup_steps = 8, .warmup_lr = 1e-2, .loss_weight = 1.0};
  c.schedule.bias_speed = 1e-2;
  c.balance_weight = 1e-3;
  c.anticipatory.enable = false;
  c.eval_tokens = 2048;
  check(c);
  return c;
}

std::vector<std::byte> bytes_of(Trainer& trainer) {
  std::vector<std::byte> out;
  for (const NamedTensor& t : trainer.state().tensors) {
    out.insert(out.end(), t.tensor.bytes(), t.tensor.bytes() + t.tensor.nbytes());
  }
  return out;
}

std::vector<StepRecord> run_steps(Trainer& trainer, int n) {
  std::vector<StepRecord> records;
  for (int i = 0; i < n && !trainer.is_finished(); ++i) records.push_back(trainer.step());
  return records;
}

TEST(TrainerTest, LearnsThroughAllPhases) {
  const RunConfig config = small_run();
  ThreadPool pool(2);
  Trainer trainer(config, tiny_data(), pool);
  std::vector<std::string> phases;
  trainer.on_event = [&](const EventRecord& e) { phases.push_back(e.sentence); };
  const double before = trainer.evaluate()->loss;
  std::map<std::string, std::vector<StepRecord>> by_phase;
  while (!trainer.is_finished()) {
    const StepRecord r = trainer.step();
    by_phase[r.phase].push_back(r);
  }
  const double after = trainer.evaluate()->loss;
  // 92 tokens alike: log(92) = 4.52. The language's own entropy is near 0.8.
  EXPECT_NEAR(before, std::log(92.0), 0.3);
  EXPECT_LT(after, before - 1.0);
  EXPECT_EQ(by_phase["indexer_warmup"].size(), 8U);
  EXPECT_GE(by_phase["dense"].size(), 29U);
  EXPECT_GE(by_phase["sparse"].size(), 29U);
  ASSERT_GE(phases.size(), 3U);
  // Only the indexer learns while it warms up, and it does learn.
  const auto& warmup = by_phase["indexer_warmup"];
  EXPECT_LT(*warmup.back().index_loss, *warmup.front().index_loss);
  EXPECT_TRUE(by_phase["sparse"].back().index_loss.has_value());
  for (const StepRecord& r : by_phase["sparse"]) {
    EXPECT_TRUE(r.mtp_loss && r.balance_loss);
    EXPECT_EQ(r.expert_load.size(), 5U);
    // At least two a parameter and token, and three times that for training.
    EXPECT_GT(*r.executed_flops, 6.0 * 512 * 30'000);
    EXPECT_LT(*r.executed_flops, 6.0 * 512 * 500'000);
    EXPECT_FALSE(r.mfu.has_value());
    EXPECT_GT(r.grad_norm, 0);
  }
}

// Threads, micro-batches that split nothing, and recomputation change no bit.
TEST(TrainerTest, StepsRepeatToTheBit) {
  const RunConfig config = small_run();
  RunConfig kept = config;
  kept.recompute = false;
  ThreadPool one(1), three(3);
  Trainer a(config, tiny_data(), one), b(kept, tiny_data(), three);
  for (int i = 0; i < 6; ++i) {
    const StepRecord ra = a.step(), rb = b.step();
    EXPECT_EQ(ra.loss, rb.loss);
    EXPECT_EQ(ra.grad_norm, rb.grad_norm);
  }
  EXPECT_EQ(bytes_of(a), bytes_of(b));
}

// Micro-batches change the order of sums and nothing else.
TEST(TrainerTest, MicroBatchesAddUpToTheBatch) {
  const RunConfig config = small_run();
  RunConfig whole = config;
  whole.micro_batch_tokens = 0;
  ThreadPool pool(2);
  Trainer a(config, tiny_data(), pool), b(whole, tiny_data(), pool);
  const StepRecord ra = a.step(), rb = b.step();
  EXPECT_NEAR(ra.loss, rb.loss, 1e-5);
  EXPECT_NEAR(ra.grad_norm, rb.grad_norm, 1e-4 * rb.grad_norm);
}

void carry_over(Trainer& from, Trainer& to) {
  const TrainerState saved = from.state();
  const TrainerState place = to.prepare_restore(saved);
  ASSERT_EQ(saved.tensors.size(), place.tensors.size());
  for (std::size_t i = 0; i < saved.tensors.size(); ++i) {
    ASSERT_EQ(saved.tensors[i].name, place.tensors[i].name);
    ASSERT_EQ(saved.tensors[i].tensor.nbytes(), place.tensors[i].tensor.nbytes());
    std::memcpy(place.tensors[i].tensor.bytes(), saved.tensors[i].tensor.bytes(),
                saved.tensors[i].tensor.nbytes());
  }
  to.resumed();
}

// At every phase, and right at their borders.
TEST(TrainerTest, AStateCarriesOnToTheBit) {
  const RunConfig config = small_run();
  ThreadPool pool(2);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  const std::vector<int> stops{12, 33};
#else
  const std::vector<int> stops{1, 12, 30, 33, 38, 50};
#endif
  for (const int stop : stops) {
    Trainer whole(config, tiny_data(), pool), first(config, tiny_data(), pool);
    run_steps(whole, stop + 4);
    run_steps(first, stop);
    Trainer second(config, tiny_data(), pool);
    carry_over(first, second);
    const std::vector<StepRecord> rest = run_steps(second, 4);
    EXPECT_EQ(rest.back().step, stop + 4);
    EXPECT_EQ(bytes_of(whole), bytes_of(second)) << "stopped after " << stop;
  }
}

RunConfig spiking_run() {
  RunConfig c = small_run();
  c.schedule.stages = {{.sequence_length = 64, .fraction = 1.0, .sparse = false}};
  c.schedule.indexer.warmup_steps = 0;
  c.schedule.total_tokens = 512 * 80;
  c.anticipatory = {.enable = true,
                    .delay = 2,
                    .period = 10,
                    .loss_z = 6,
                    .gradient_ratio = 8,
                    .window = 64,
                    .snapshot_every = 8,
                    .rollback_steps = 4};
  return c;
}

// Weights thrown far off, as a bad update would: the loss jumps, and the run goes back.
void throw_off(Trainer& trainer, float factor) {
  for (const Parameter& p : trainer.parameters().parameters()) {
    if (p.info.group != ParameterGroup::muon || p.info.name.find("attn") == std::string::npos) {
      continue;
    }
    for (std::int64_t i = 0; i < p.value.numel(); ++i) p.value.data<float>()[i] *= -factor;
  }
  for (const char* name : {"head.weight", "embed.weight"}) {
    const Tensor& w = trainer.parameters().at(name).value;
    for (std::int64_t i = 0; i < w.numel(); ++i) w.data<float>()[i] *= -factor;
  }
}

TEST(TrainerTest, ASpikeRollsBackAndSwitchesAnticipationOn) {
  const RunConfig config = spiking_run();
  ThreadPool pool(2);
  Trainer trainer(config, tiny_data(), pool);
  std::vector<EventRecord> events;
  trainer.on_event = [&](const EventRecord& e) { events.push_back(e); };
  const double calm = run_steps(trainer, 45).back().loss;
  throw_off(trainer, 30);
  std::vector<StepRecord> after;
  bool rolled_back = false;
  for (int i = 0; i < 40; ++i) {
    after.push_back(trainer.step());
    rolled_back |= !events.empty() && events.back().what == event::kRollback;
  }
  ASSERT_TRUE(rolled_back);
  EXPECT_GT(after.front().loss, calm + 1);
  EXPECT_LT(after.back().loss, calm + 0.3);
  int on = 0, drained = 0;
  for (const StepRecord& r : after) {
    on += r.anticipatory == "on";
    drained += r.anticipatory == "draining";
  }
  EXPECT_EQ(on, 10);
  EXPECT_GE(drained, 2);
}

// The same spike, however often the run goes back for it: it may not stay there for ever.
TEST(TrainerTest, ASpikeThatComesAgainIsLetPass) {
  RunConfig config = spiking_run();
  config.anticipatory.gradient_ratio = 1e-3;  // every step is a spike once there are statistics
  ThreadPool pool(2);
  Trainer trainer(config, tiny_data(), pool);
  int n_rollbacks = 0, n_passed = 0;
  trainer.on_event = [&](const EventRecord& e) {
    n_rollbacks += e.what == event::kRollback;
    n_passed += e.what == "spike";
  };
  int n_steps = 0;
  while (!trainer.is_finished() && n_steps < 400) static_cast<void>(trainer.step()), ++n_steps;
  EXPECT_TRUE(trainer.is_finished());
  EXPECT_GE(n_rollbacks, 2);
  EXPECT_GE(n_passed, 1);
}

// The same jump with nobody looking: without going back, and without experts chosen ahead, the run
// is worse off after as many steps.
TEST(TrainerTest, WithoutAnticipationASpikeStays) {
  ThreadPool pool(2);
  std::vector<double> after[2];
  for (const bool anticipates : {true, false}) {
    RunConfig config = spiking_run();
    config.anticipatory.enable = anticipates;
    Trainer trainer(config, tiny_data(), pool);
    run_steps(trainer, 45);
    throw_off(trainer, 30);
    while (std::ssize(after[anticipates]) < 30) {
      after[anticipates].push_back(trainer.step().loss);
    }
  }
  for (std::size_t i = 0; i < 30; i += 3) {
    std::printf("%2zu steps later: with %.3f, without %.3f\n", i + 1, after[1][i], after[0][i]);
  }
  EXPECT_LT(after[1].back(), after[0].back() - 0.5);
}

// While the ring is full, a state holds the choices made ahead.
TEST(TrainerTest, AnticipationCarriesOnToTheBit) {
  const RunConfig config = spiking_run();
  ThreadPool pool(2);
  Trainer whole(config, tiny_data(), pool), first(config, tiny_data(), pool);
  for (Trainer* t : {&whole, &first}) {
    run_steps(*t, 40);
    throw_off(*t, 30);
    run_steps(*t, 6);
  }
  ASSERT_GT(first.state().choices_ahead, 0);
  Trainer second(config, tiny_data(), pool);
  carry_over(first, second);
  run_steps(whole, 3);
  run_steps(second, 3);
  EXPECT_EQ(bytes_of(whole), bytes_of(second));
}

// With no delay, the choices made ahead are those that the step itself makes.
TEST(TrainerTest, AnticipationWithoutDelayIsOrdinaryTraining) {
  RunConfig ahead = spiking_run(), plain = ahead;
  ahead.anticipatory.delay = 0;
  ahead.schedule.bias_speed = plain.schedule.bias_speed = 0;  // it is halved while ahead
  plain.anticipatory.enable = false;
  ThreadPool pool(2);
  Trainer a(ahead, tiny_data(), pool), b(plain, tiny_data(), pool);
  // Switched on by hand: a state says how long it stays.
  TrainerState state = a.state();
  state.anticipatory_steps = 6;
  static_cast<void>(a.prepare_restore(state));
  a.resumed();
  for (int i = 0; i < 5; ++i) {
    const StepRecord ra = a.step(), rb = b.step();
    EXPECT_EQ(ra.anticipatory, "on");
    EXPECT_EQ(ra.loss, rb.loss);
  }
  for (const Parameter& p : a.parameters().parameters()) {
    EXPECT_EQ(
        std::memcmp(p.value.bytes(), b.parameters().at(p.info.id).value.bytes(), p.value.nbytes()),
        0)
        << p.info.name;
  }
}

TEST(TrainerTest, ANonFiniteGradientStopsWithItsNameAndLeavesTheWeights) {
  const RunConfig config = small_run();
  ThreadPool pool(2);
  Trainer trainer(config, tiny_data(), pool);
  run_steps(trainer, 2);
  trainer.parameters().at("layers.1.attn.wq_b.weight").value.data<float>()[5] = NAN;
  const std::vector<std::byte> before = bytes_of(trainer);
  try {
    static_cast<void>(trainer.step());
    FAIL() << "a NaN went through";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::corrupt_data);
    EXPECT_NE(std::string(e.what()).find("step 3"), std::string::npos) << e.what();
  }
  EXPECT_EQ(before, bytes_of(trainer));
}

TEST(TrainerTest, ANonFiniteLossRollsBackWhereTheConfigSaysSo) {
  RunConfig config = spiking_run();
  config.anticipatory.enable = false;
  config.on_non_finite = OnNonFinite::rollback;
  ThreadPool pool(2);
  Trainer trainer(config, tiny_data(), pool);
  run_steps(trainer, 12);
  trainer.parameters().at("layers.1.attn.wq_b.weight").value.data<float>()[5] = INFINITY;
  static_cast<void>(trainer.step());
  EXPECT_EQ(trainer.progress().step, 8);
  EXPECT_TRUE(std::isfinite(run_steps(trainer, 3).back().loss));
}

// What the plan says is what the steps then hold.
TEST(TrainerTest, ThePlanIsWhatIsUsed) {
  for (const bool recompute : {false, true}) {
    RunConfig config = small_run();
    config.recompute = recompute;
    config.micro_batch_tokens = 0;
    ThreadPool pool(2);
    const MemoryPlan plan = plan_memory(config, pool);
    Trainer trainer(config, tiny_data(), pool);
    std::int64_t most = 0;
    while (!trainer.is_finished()) most = std::max(most, trainer.step().peak_memory_bytes);
    EXPECT_NEAR(static_cast<double>(plan.total()), static_cast<double>(most),
                0.1 * static_cast<double>(most))
        << to_string(plan);
  }
}

TEST(TrainerTest, AVocabularyThatDoesNotFitIsRefused) {
  RunConfig config = small_run();
  config.model.vocab_size = 64;
  config.model.finalize();
  ThreadPool pool(1);
  EXPECT_THROW(Trainer(config, tiny_data(), pool), Error);
}

}  // namespace
}  // namespace hadal::train
