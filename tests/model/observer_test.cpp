// What a forward pass tells its observer about routing, and what it takes from it.
#include <map>

#include "support/gradient.h"
#include "support/model_fixture.h"

namespace hadal::test {
namespace {

// Notes the routing of every layer, and forces those it was given.
class RoutingObserver final : public model::StepObserver {
 public:
  std::map<std::int64_t, ops::Routing> seen;
  std::map<std::int64_t, Tensor> forced;
  ClampCounts clamps;

  Tensor forced_experts(std::int64_t layer) override {
    const auto found = forced.find(layer);
    return found == forced.end() ? Tensor() : found->second;
  }
  void routed(ExecContext& /*ctx*/, std::int64_t layer, const Tensor& logits,
              const ops::Routing& routing) override {
    EXPECT_EQ(logits.dim(0), routing.experts.dim(0));
    EXPECT_TRUE(seen.emplace(layer, routing).second) << "layer " << layer << " twice";
  }
  ClampCounts* clamp_counts(std::int64_t /*layer*/) override { return &clamps; }
  bool wants_index_scores(std::int64_t /*layer*/) override { return false; }
  void indexed(ExecContext& /*ctx*/, std::int64_t /*layer*/,
               const ops::IndexedAttention& /*attention*/) override {}
};

class ObserverTest : public testing::Test {
 protected:
  Tensor run(model::StepObserver* observer) {
    cache::PagedKv kv(loaded_.config, {.numerics = Numerics::official});
    model::TokenBatch batch;
    std::vector<TokenId> ids;
    for (TokenId id = 0; id < 20; ++id) ids.push_back(id * 7 % 50);
    batch.add(ids, 0, kv.open());
    const model::StepOptions options{.observer = observer};
    const Tensor streams = loaded_.model.forward(t_.ctx, batch, kv, nullptr, options);
    if (loaded_.model.n_mtp() == 0) return streams;
    return loaded_.model.mtp_forward(t_.ctx, 0, batch, kv, streams, ids, options);
  }

  LoadedModel loaded_{HADAL_TEST_DATA_DIR "/golden/official-tiny"};
  TestContext t_{Numerics::official};
};

TEST_F(ObserverTest, SeesEveryLayerOnceAndChangesNothing) {
  RoutingObserver observer;
  EXPECT_TRUE(same_bits(run(&observer), run(nullptr)));
  // The layers and the first MTP block, which goes by the number after theirs.
  const std::int64_t n_layers = loaded_.config.num_hidden_layers;
  EXPECT_EQ(static_cast<std::int64_t>(observer.seen.size()),
            n_layers + (loaded_.model.n_mtp() > 0 ? 1 : 0));
  EXPECT_EQ(observer.seen.begin()->first, 0);
  EXPECT_EQ(observer.seen.rbegin()->first + 1, static_cast<std::int64_t>(observer.seen.size()));
  EXPECT_GT(observer.clamps.n_values, 0);
}

TEST_F(ObserverTest, ItsOwnRoutingForcedIsTheSamePass) {
  RoutingObserver first, second;
  const Tensor wanted = run(&first);
  for (const auto& [layer, routing] : first.seen) second.forced[layer] = routing.experts;
  EXPECT_TRUE(same_bits(wanted, run(&second)));
}

TEST_F(ObserverTest, AnotherRoutingIsUsedWhereItIsForced) {
  RoutingObserver first, second;
  const Tensor plain = run(&first);
  const std::int64_t layer = loaded_.config.num_hidden_layers - 1;
  Tensor other = Tensor::empty(first.seen.at(layer).experts.shape(), DType::i32);
  for (std::int64_t i = 0; i < other.numel(); ++i) {
    const auto slot = static_cast<std::int32_t>(i % other.dim(1));
    other.data<std::int32_t>()[i] = slot;
  }
  second.forced[layer] = other;
  EXPECT_FALSE(same_bits(plain, run(&second)));
  EXPECT_TRUE(same_bits(second.seen.at(layer).experts, other));
  EXPECT_TRUE(same_bits(second.seen.at(0).experts, first.seen.at(0).experts));
}

}  // namespace
}  // namespace hadal::test
