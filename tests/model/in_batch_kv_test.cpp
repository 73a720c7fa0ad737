// Training's histories give the serving cache's bits; attention as a layer runs backwards, and its
// indexer learns beside it.
#include "model/in_batch_kv.h"

#include <random>

#include "kernels/cpu/kv_rows.h"
#include "model/attention.h"
#include "ops/index_loss.h"
#include "ops/indexer.h"
#include "support/gradient.h"
#include "support/model_fixture.h"

namespace hadal::test {
namespace {

struct Case {
  const char* directory;
  Numerics numerics;
};

const LoadedModel& loaded(const char* directory) {
  static std::map<std::string, std::unique_ptr<LoadedModel>> models;
  auto& slot = models[directory];
  if (!slot) slot = std::make_unique<LoadedModel>(directory);
  return *slot;
}

constexpr Case kOfficial{HADAL_TEST_DATA_DIR "/golden/official-tiny", Numerics::official};
constexpr Case kFp32{HADAL_TEST_DATA_DIR "/golden/hf-tiny", Numerics::fp32};

// Ragged: one token, less than a window of any compressor, past the sliding window, past topk.
constexpr std::int64_t kLengths[] = {1, 3, 57, 150, 20};

std::vector<TokenId> text(const LoadedModel& m, std::int64_t n, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<TokenId> ids(static_cast<std::size_t>(n));
  for (TokenId& id : ids) {
    id = static_cast<TokenId>(rng() % static_cast<std::uint32_t>(m.config.vocab_size));
  }
  return ids;
}

// Sequence i in slot i; a fresh PagedKv hands out the same numbers.
model::TokenBatch batch_of(const LoadedModel& m, std::span<const std::int64_t> lengths) {
  model::TokenBatch batch;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    batch.add(text(m, lengths[i], static_cast<std::uint32_t>(i)), 0, static_cast<std::int64_t>(i));
  }
  return batch;
}

class Watcher : public model::StepObserver {
 public:
  Tensor forced_experts(std::int64_t) override { return {}; }
  void routed(ExecContext&, std::int64_t, const Tensor&, const ops::Routing&) override {}
  bool wants_index_scores(std::int64_t) override { return wants; }
  void indexed(ExecContext& ctx, std::int64_t, const ops::IndexedAttention& attention) override {
    n_indexed += 1;
    seen = attention;
    if (recall_topk > 0) {
      loss = ops::index_loss(ctx, attention, {.scale = 1, .recall_topk = recall_topk});
    }
  }
  bool wants = true;
  std::int64_t recall_topk = 0;
  int n_indexed = 0;
  ops::IndexedAttention seen;
  ops::IndexLoss loss;
};

class InBatchKvTest : public testing::TestWithParam<Case> {
 protected:
  [[nodiscard]] const LoadedModel& model() const { return loaded(GetParam().directory); }
};

TEST_P(InBatchKvTest, GivesTheBitsOfTheServingCache) {
  const model::TokenBatch batch = batch_of(model(), kLengths);
  TestContext t(GetParam().numerics);
  cache::PagedKv paged(model().config, {.numerics = GetParam().numerics});
  for (std::size_t i = 0; i < std::size(kLengths); ++i) {
    ASSERT_EQ(paged.open(), static_cast<std::int64_t>(i));
  }
  const Tensor served = model().model.forward(t.ctx, batch, paged);
  model::InBatchKv kv(model().config, GetParam().numerics, t.allocator);
  const Tensor trained = model().model.forward(t.ctx, batch, kv);
  EXPECT_TRUE(same_bits(served, trained));
  for (std::int64_t depth = 0; depth < model().model.n_mtp(); ++depth) {
    const std::vector<TokenId> next = text(model(), batch.n_tokens(), 99);
    EXPECT_TRUE(same_bits(model().model.mtp_forward(t.ctx, depth, batch, paged, served, next),
                          model().model.mtp_forward(t.ctx, depth, batch, kv, trained, next)));
  }
}

TEST_P(InBatchKvTest, HoldsWhatItPlansUntilItIsCleared) {
  const model::TokenBatch batch = batch_of(model(), kLengths);
  TestContext t(GetParam().numerics);
  model::InBatchKv kv(model().config, GetParam().numerics, t.allocator);
  const std::size_t before = t.allocator.bytes_in_use();
  Tensor streams = model().model.forward(t.ctx, batch, kv);
  if (model().model.n_mtp() == 0) {
    EXPECT_EQ(kv.bytes(),
              model::InBatchKv::bytes_for(model().config, GetParam().numerics, kLengths));
  }
  streams = {};
  // Every row set is rounded up to a size class of the pool.
  EXPECT_GE(t.allocator.bytes_in_use() - before, kv.bytes());
  // A sequence runs once a step, in one piece.
  EXPECT_THROW(static_cast<void>(model().model.forward(t.ctx, batch, kv)), Error);
  kv.clear();
  EXPECT_EQ(t.allocator.bytes_in_use(), before);
  EXPECT_EQ(kv.bytes(), 0U);
  static_cast<void>(model().model.forward(t.ctx, batch, kv));
}

TEST_P(InBatchKvTest, AttendingToAllEntriesRunsNoIndexer) {
  const std::int64_t length[] = {150};
  const model::TokenBatch batch = batch_of(model(), length);
  TestContext t(GetParam().numerics);
  KernelProfile profile;
  const auto forward = [&](const model::StepOptions& options) {
    model::InBatchKv kv(model().config, GetParam().numerics, t.allocator);
    profile = {};
    t.ctx.profile = &profile;
    Tensor y = model().model.forward(t.ctx, batch, kv, nullptr, options);
    t.ctx.profile = nullptr;
    return y;
  };
  const auto csa = static_cast<int>(model().config.count(model::LayerKind::csa));
  const Tensor sparse = forward({});
  EXPECT_EQ(profile.kernels["index_topk"].calls, csa);
  const std::int64_t compressions = profile.kernels["compress_kv"].calls;
  const Tensor dense = forward({.csa_selection = model::CsaSelection::all});
  EXPECT_EQ(profile.kernels.count("index_topk"), 0U);
  EXPECT_EQ(profile.kernels.count("hadamard"), 0U);
  EXPECT_EQ(profile.kernels["compress_kv"].calls, compressions - csa);
  EXPECT_FALSE(same_bits(sparse, dense));

  // Looking at scores changes nothing.
  Watcher watcher;
  EXPECT_TRUE(same_bits(sparse, forward({.observer = &watcher})));
  EXPECT_EQ(watcher.n_indexed, csa);
  EXPECT_TRUE(watcher.seen.selected);
  EXPECT_TRUE(
      same_bits(dense, forward({.csa_selection = model::CsaSelection::all, .observer = &watcher})));
  EXPECT_EQ(watcher.n_indexed, 2 * csa);
  EXPECT_FALSE(watcher.seen.selected);
  EXPECT_EQ(profile.kernels.count("index_topk"), 0U);
  watcher.wants = false;
  EXPECT_TRUE(
      same_bits(dense, forward({.csa_selection = model::CsaSelection::all, .observer = &watcher})));
  EXPECT_EQ(watcher.n_indexed, 2 * csa);
  EXPECT_EQ(profile.kernels.count("hadamard"), 0U);

  // Entries that all fit the list: the two are the same.
  const std::int64_t short_length[] = {model().config.index_topk * model::kCsaRatio};
  const model::TokenBatch few = batch_of(model(), short_length);
  model::InBatchKv a(model().config, GetParam().numerics, t.allocator);
  model::InBatchKv b(model().config, GetParam().numerics, t.allocator);
  EXPECT_TRUE(same_bits(
      model().model.forward(t.ctx, few, a),
      model().model.forward(t.ctx, few, b, nullptr, {.csa_selection = model::CsaSelection::all})));
}

TEST_P(InBatchKvTest, TheObserverSeesTheKeysThatWereStoredAndARecall) {
  const model::TokenBatch batch = batch_of(model(), kLengths);
  TestContext t(GetParam().numerics);
  const std::int64_t topk = model().config.index_topk;
  for (const auto selection : {model::CsaSelection::indexer, model::CsaSelection::all}) {
    model::InBatchKv kv(model().config, GetParam().numerics, t.allocator);
    Watcher watcher;
    watcher.recall_topk = topk;
    static_cast<void>(model().model.forward(t.ctx, batch, kv, nullptr,
                                            {.csa_selection = selection, .observer = &watcher}));
    std::int64_t rows = 0, left_out = 0;
    for (const std::int64_t n : kLengths) {
      rows += ops::rows_with_entries(n, model::kCsaRatio);
      left_out += ops::rows_with_entries(n, (topk + 1) * model::kCsaRatio);
    }
    EXPECT_EQ(watcher.loss.n_rows, rows);
    EXPECT_EQ(watcher.loss.n_recall_rows, left_out);
    EXPECT_GT(watcher.loss.sum, 0.0);
    const double recall = watcher.loss.recall_sum / static_cast<double>(left_out);
    EXPECT_GT(recall, 0.0);
    EXPECT_LT(recall, 1.0);
    // A student that scores as the cache does: the list is that of its own keys.
    if (selection == model::CsaSelection::all) continue;
    EXPECT_EQ(watcher.seen.index_queries.variable(), 0U);
    std::vector<IndexSequence> sequences;
    std::vector<std::unique_ptr<ops::StepRows>> parts;
    for (const AttentionSequence& s : watcher.seen.sequences) {
      const StepEntries& e = s.added;
      // Rounding once more does not move values that are rounded.
      parts.push_back(std::make_unique<ops::StepRows>(ops::store_step_rows(
          t.ctx, watcher.seen.index_keys.slice(e.row, e.row + e.count), kv.index_format())));
      PagedRows keys = parts.back()->view();
      keys.rows_per_page = std::max<std::int64_t>(1, e.count);
      sequences.push_back({s.begin, s.end, s.start, keys});
    }
    const Tensor selected =
        ops::index_topk(t.ctx, watcher.seen.index_queries, watcher.seen.index_weights, topk,
                        model::kCsaRatio, sequences);
    EXPECT_TRUE(same_bits(selected, watcher.seen.selected));
  }
}

// One attention layer alone, from the checkpoint, with a gradient for its input.
class AttentionLayer {
 public:
  AttentionLayer(const Case& c, std::int64_t index)
      : m_(loaded(c.directory)), numerics_(c.numerics), index_(index) {
    const model::LayerSpec& spec = m_.config.layer(index);
    ops::RopeParameters p{.rope_dim = m_.config.qk_rope_head_dim, .theta = spec.rope.theta};
    if (spec.rope.yarn) {
      p.yarn_factor = spec.rope.yarn->factor;
      p.original_max_position_embeddings = spec.rope.yarn->original_max_position_embeddings;
    }
    frequencies_ = ops::rope_frequencies(p);
    layer_.emplace(m_.config, spec, index, m_.weights, "layers." + std::to_string(index) + ".attn",
                   frequencies_, 0);
    batch_ = batch_of(m_, kLengths);
  }

  [[nodiscard]] Tensor input() const {
    const Tensor x = random_f32({batch_.n_tokens(), m_.config.hidden_size}, 11);
    return numerics_ == Numerics::official ? to_dtype(x, DType::bf16) : x;
  }
  [[nodiscard]] const model::TokenBatch& batch() const { return batch_; }

  Tensor forward(ExecContext& ctx, model::KvState& kv, const Tensor& x,
                 const model::StepOptions& options = {}) const {
    const model::Step step{.batch = batch_,
                           .kv = kv,
                           .token_ids = {},
                           .rope_tables = {ops::rope_table(ctx, frequencies_, batch_.positions)},
                           .csa_selection = options.csa_selection,
                           .observer = options.observer};
    return layer_->forward(ctx, step, x);
  }

  struct Result {
    Tensor y, dx;
    std::size_t kept_bytes = 0;  // between forward and backward
    std::size_t n_rebuilt = 0;
  };
  [[nodiscard]] Result run(const model::StepOptions& options, bool recompute = true,
                           int n_threads = 2) const {
    TestContext t(numerics_, n_threads);
    Tape tape(t.allocator, 1);
    tape.recompute_enabled = recompute;
    TensorList gradients;
    const TensorList in = as_parameters(tape, {input()}, gradients);
    t.ctx.set_tape(&tape);
    model::InBatchKv kv(m_.config, numerics_, t.allocator);
    Result result;
    result.y = forward(t.ctx, kv, in[0], options);
    result.kept_bytes = t.allocator.bytes_in_use();
    add_probe(tape, result.y, probe(result.y));
    tape.backward(t.ctx);
    result.dx = gradients[0];
    result.n_rebuilt = tape.n_rebuilt();
    return result;
  }
  [[nodiscard]] static Tensor probe(const Tensor& y) { return random_f32(y.shape(), 12); }

 private:
  const LoadedModel& m_;
  Numerics numerics_;
  std::int64_t index_;
  ops::RopeFrequencies frequencies_;
  std::optional<model::Attention> layer_;
  model::TokenBatch batch_;
};

TEST_P(InBatchKvTest, AnAttentionLayerRepeatsItsGradientToTheBit) {
  for (const std::int64_t index : {0, 2, 3}) {
    const AttentionLayer layer(GetParam(), index);
    for (const auto selection : {model::CsaSelection::indexer, model::CsaSelection::all}) {
      const model::StepOptions options{.csa_selection = selection};
      const auto marked = layer.run(options), kept = layer.run(options, false);
      EXPECT_TRUE(same_bits(marked.y, kept.y));
      EXPECT_TRUE(same_bits(marked.dx, kept.dx)) << index;
      EXPECT_EQ(kept.n_rebuilt, 0U);
      EXPECT_GT(marked.n_rebuilt, 0U);
      EXPECT_LT(marked.kept_bytes, kept.kept_bytes);
      EXPECT_TRUE(same_bits(marked.dx, layer.run(options, true, 1).dx)) << index;
      EXPECT_TRUE(same_bits(marked.dx, layer.run(options, true, 3).dx)) << index;
      // The trunk does not feel the indexer's loss.
      Watcher watcher;
      watcher.recall_topk = 4;
      const auto watched = layer.run({.csa_selection = selection, .observer = &watcher});
      EXPECT_TRUE(same_bits(marked.y, watched.y));
      EXPECT_TRUE(same_bits(marked.dx, watched.dx)) << index;
    }
  }
}

// Along a random direction; forward in f32 is good to about 1e-6 of its size, so that a step of
// 1e-2 gives a slope to a few times 1e-4.
TEST(AttentionLayerGradient, EqualsTheSlopeOfTheLayer) {
  for (const std::int64_t index : {0, 2, 3}) {
    const AttentionLayer layer(kFp32, index);
    const model::StepOptions options{.csa_selection = model::CsaSelection::all};
    const auto result = layer.run(options);
    TestContext t(Numerics::fp32);
    const auto loss = [&](const Tensor& direction, float step) {
      Tensor x = to_dtype(layer.input(), DType::f32);
      for (std::int64_t i = 0; i < x.numel(); ++i) {
        x.data<float>()[i] += step * direction.data<float>()[i];
      }
      model::InBatchKv kv(loaded(kFp32.directory).config, Numerics::fp32, t.allocator);
      const Tensor y = layer.forward(t.ctx, kv, x, options);
      const Tensor w = AttentionLayer::probe(y);
      double sum = 0;
      for (std::int64_t i = 0; i < y.numel(); ++i) {
        sum += static_cast<double>(y.data<float>()[i]) * static_cast<double>(w.data<float>()[i]);
      }
      return sum;
    };
    for (const std::uint64_t seed : {21, 22, 23}) {
      const Tensor direction = random_f32(result.dx.shape(), seed);
      double along = 0, norm = 0;
      for (std::int64_t i = 0; i < direction.numel(); ++i) {
        const double g = result.dx.data<float>()[i];
        along += g * static_cast<double>(direction.data<float>()[i]);
        norm += g * g;
      }
      const float h = 4e-3f;
      // Two steps cancel the cubic term.
      const double one = (loss(direction, h) - loss(direction, -h)) / (2 * static_cast<double>(h));
      const double two =
          (loss(direction, 2 * h) - loss(direction, -2 * h)) / (4 * static_cast<double>(h));
      EXPECT_NEAR(along, (4 * one - two) / 3, 2e-3 * std::sqrt(norm)) << index;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, InBatchKvTest, testing::Values(kOfficial, kFp32),
                         [](const auto& param_info) {
                           return std::string(to_string(param_info.param.numerics));
                         });

}  // namespace
}  // namespace hadal::test
