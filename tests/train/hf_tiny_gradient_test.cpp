// tests/golden/hf-tiny: loss and gradients of the Hugging Face implementation, whole model.
#include <map>
#include <set>

#include "model/in_batch_kv.h"
#include "model/weight_names.h"
#include "support/gradient.h"
#include "support/model_fixture.h"
#include "train/loss.h"
#include "train/working_weights.h"

namespace hadal::test {
namespace {

constexpr const char* kDirectory = HADAL_TEST_DATA_DIR "/golden/hf-tiny";

// Weights of a checkpoint as parameters, and a tape that collects their gradients.
struct Trainable {
  explicit Trainable(Numerics numerics, int n_threads = 2, bool recompute_marked = true)
      : config(model::load_config(kDirectory)),
        context(numerics, n_threads),
        store(config),
        tape(context.allocator, static_cast<VariableId>(store.parameters().size())) {
    const auto weights = model::BoundWeights::bind(io::Checkpoint::open(kDirectory), config);
    for (const train::Parameter& p : store.parameters()) {
      const Tensor from = weights.plain(p.info.name);
      std::memcpy(p.value.bytes(), from.bytes(), from.nbytes());
      if (p.gradient) tape.set_gradient(p.info.id, p.gradient);
    }
    tape.recompute_enabled = recompute_marked;
    working.emplace(store, model::WeightFormat::f32, context.pool);
    model.emplace(config, working->bind());
  }

  // Both sequences in one batch; the gradient of their mean loss.
  double run() {
    const auto expected =
        io::SafetensorsFile::open(std::string(kDirectory) + "/expected.safetensors");
    train::MicroBatch batch;
    for (std::int64_t row = 0; row < 2; ++row) {
      std::vector<TokenId> ids = ids_of(expected.tensor("input_ids"), row);
      batch.targets.insert(batch.targets.end(), ids.begin() + 1, ids.end());
      ids.pop_back();
      batch.tokens.add(ids, 0, row);
    }
    context.ctx.set_tape(&tape);
    context.allocator.reset_peak();
    model::InBatchKv kv(config, context.ctx.numerics(), context.allocator);
    const train::LossSums sums =
        train::run_losses(context.ctx, *model, batch, kv, {.scale = 1.0f / (2 * 119)});
    tape.backward(context.ctx);
    peak = context.allocator.peak_bytes();
    return sums.main_mean();
  }

  model::Config config;
  TestContext context;
  train::ParameterStore store;
  Tape tape;
  std::optional<train::WorkingWeights> working;
  std::optional<model::Model> model;
  std::size_t peak = 0;
};

// The gradient of a parameter in the reference's file: by its module name, experts fused.
Values expected_gradient(const io::SafetensorsFile& expected, const train::Parameter& p,
                         std::map<std::string, std::string>& module_names) {
  if (const auto it = module_names.find(p.info.name); it != module_names.end()) {
    return values_of(expected.tensor(it->second));
  }
  // "layers.3.ffn.experts.5.w1.weight" lies in the fused tensor of its layer.
  const std::string& name = p.info.name;
  const std::size_t at = name.find(".experts.");
  if (at == std::string::npos) return {};
  const std::int64_t expert = std::stoll(name.substr(at + 9));
  const char part = name[name.size() - std::string("1.weight").size()];
  const std::string key = name.substr(0, at) + ".experts" + (part == '2' ? ":down" : ":gate_up");
  const Tensor all = expected.tensor(module_names.at(key));
  const std::int64_t rows = p.info.shape[0], halves = part == '2' ? 1 : 2;
  const std::int64_t begin = (expert * halves + (part == '3' ? 1 : 0)) * rows;
  return values_of(
      all.reshape({all.numel() / p.info.shape[1], p.info.shape[1]}).slice(begin, begin + rows));
}

TEST(HfTinyGradient, LossAndEveryGradient) {
  Trainable t(Numerics::fp32);
  const auto expected =
      io::SafetensorsFile::open(std::string(kDirectory) + "/expected.safetensors");
  EXPECT_NEAR(t.run(), values_of(expected.tensor("loss"))[0], 1e-5);

  std::map<std::string, std::string> module_names;  // official -> in the file
  std::size_t n_in_file = 0;
  for (const io::SafetensorsEntry& entry : expected.entries()) {
    const std::string& name = entry.name;
    if (!name.starts_with("grad.")) continue;
    ++n_in_file;
    const model::CanonicalName canonical = model::canonical_name(name.substr(5));
    const char* part = canonical.fused == model::FusedExperts::gate_up ? ":gate_up"
                       : canonical.fused == model::FusedExperts::down  ? ":down"
                                                                       : "";
    module_names[canonical.name + part] = name;
  }
  std::set<std::string> used;
  for (const train::Parameter& p : t.store.parameters()) {
    if (!p.gradient) continue;
    const Values wanted = expected_gradient(expected, p, module_names);
    if (wanted.empty()) {
      // The indexer learns from a loss of its own, which the reference does not have.
      EXPECT_TRUE(p.info.of_indexer) << p.info.name;
      for (const double g : values_of(p.gradient)) ASSERT_EQ(g, 0.0) << p.info.name;
      continue;
    }
    // f32 backward passes in another order: 1e-4 is where the golden's README starts.
    EXPECT_LT(relative_l2(p.gradient, wanted), 1e-4) << p.info.name;
  }
  EXPECT_EQ(n_in_file, 128U);
}

// Recomputation and threads change nothing but memory and time.
TEST(HfTinyGradient, RecomputationAndThreadsKeepEveryBit) {
  Trainable kept(Numerics::fp32, 1, false), rebuilt(Numerics::fp32, 3, true);
  EXPECT_EQ(kept.run(), rebuilt.run());
  for (const train::Parameter& p : kept.store.parameters()) {
    if (!p.gradient) continue;
    EXPECT_TRUE(same_bits(p.gradient, rebuilt.store.at(p.info.id).gradient)) << p.info.name;
  }
  EXPECT_GT(rebuilt.tape.n_rebuilt(), 0U);
  EXPECT_LT(rebuilt.peak, kept.peak * 9 / 10);
}

}  // namespace
}  // namespace hadal::test
