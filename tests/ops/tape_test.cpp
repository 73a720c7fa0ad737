// The tape itself: fan-out, frozen parameters, recomputation to the bit and for less memory.
#include <gtest/gtest.h>

#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "support/gradient.h"

namespace hadal {
namespace {

using test::random_f32;
using test::same_bits;
using test::TestContext;

TEST(TapeTest, NothingIsRecordedWithoutAVariable) {
  TestContext tc(Numerics::fp32);
  Tape tape(tc.allocator, 1);
  tc.ctx.set_tape(&tape);
  static_cast<void>(ops::scale(tc.ctx, random_f32({3}, 1), 2));
  EXPECT_EQ(tape.n_operations(), 0U);
}

TEST(TapeTest, AFrozenParameterWantsNothing) {
  TestContext tc(Numerics::fp32);
  Tape tape(tc.allocator, 1);  // no buffer given
  tc.ctx.set_tape(&tape);
  static_cast<void>(ops::scale(tc.ctx, random_f32({3}, 1).as_variable(1), 2));
  EXPECT_EQ(tape.n_operations(), 0U);
}

// x is used three times, and two users hand the same gradient on.
TEST(TapeTest, GradientsOfSeveralUsersAdd) {
  TestContext tc(Numerics::fp32);
  const TensorList g = test::tape_gradients(
      tc, {Tensor::zeros({2, 3, 4}, DType::f32), Tensor::zeros({2, 4}, DType::f32)},
      [](ExecContext& ctx, const TensorList& in) -> TensorList {
        const Tensor a = ops::scale(ctx, in[1], 1);
        const Tensor y = ops::add_to_streams(ctx, ops::add_to_streams(ctx, in[0], a), a);
        return {y, ops::scale(ctx, y, 3)};
      });
  const Tensor p0 = random_f32({2, 3, 4}, 1000), p1 = random_f32({2, 3, 4}, 1001);
  for (std::int64_t i = 0; i < 24; ++i) {
    EXPECT_NEAR(g[0].data<float>()[i], p0.data<float>()[i] + 3 * p1.data<float>()[i], 1e-5);
  }
  for (std::int64_t t = 0; t < 2; ++t) {
    for (std::int64_t c = 0; c < 4; ++c) {
      double sum = 0;
      for (std::int64_t j = 0; j < 3; ++j) sum += 2 * g[0].data<float>()[(t * 3 + j) * 4 + c];
      EXPECT_NEAR(g[1].data<float>()[t * 4 + c], sum, 1e-5);
    }
  }
}

TEST(TapeTest, GradientsAccumulateOverSteps) {
  TestContext tc(Numerics::fp32);
  Tape tape(tc.allocator, 1);
  TensorList g;
  const TensorList in = test::as_parameters(tape, {random_f32({3}, 1)}, g);
  tc.ctx.set_tape(&tape);
  for (int step = 0; step < 3; ++step) {
    const Tensor y = ops::scale(tc.ctx, in[0], 2);
    test::add_probe(tape, y, test::random_f32({3}, 7));
    tape.backward(tc.ctx);
    EXPECT_EQ(tape.n_operations(), 0U);
  }
  const Tensor probe = test::random_f32({3}, 7);
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(g[0].data<float>()[i], 6 * probe.data<float>()[i], 1e-5);
}

// A stack of norm + linear; the normed input of every linear is marked, and rebuilt from inputs
// that are themselves marked when `deep`.
struct Stack {
  TensorList weights;
  Tensor x;

  struct Result {
    TensorList gradients;
    std::size_t peak = 0, rebuilt = 0;
  };
  enum class Marks { none, normed, deep };

  Result run(Marks marks) const {
    TestContext tc(Numerics::fp32);
    Tape tape(tc.allocator, static_cast<VariableId>(weights.size()));
    Result result;
    const TensorList w = test::as_parameters(tape, weights, result.gradients);
    tc.ctx.set_tape(&tape);
    tc.allocator.reset_peak();
    {
      Tensor h = x;
      for (std::size_t i = 0; i < w.size(); i += 2) {
        Tensor normed = ops::rms_norm(tc.ctx, h, w[i], 1e-6f);
        if (marks != Marks::none) normed = recompute(tc.ctx, normed);
        h = ops::linear(tc.ctx, normed, {w[i + 1], {}, {}});
        if (marks == Marks::deep && i % 4 == 0) h = recompute(tc.ctx, h);
      }
      test::add_probe(tape, h, random_f32(h.shape(), 3));
    }
    tape.backward(tc.ctx);
    result.peak = tc.allocator.peak_bytes();
    result.rebuilt = tape.n_rebuilt();
    return result;
  }
};

TEST(TapeTest, RecomputationChangesMemoryAndNoBit) {
  Stack stack;
  for (int i = 0; i < 8; ++i) {
    stack.weights.push_back(random_f32({64}, 10U + static_cast<unsigned>(i)));
    stack.weights.push_back(random_f32({64, 64}, 20U + static_cast<unsigned>(i), 0.1f));
  }
  stack.x = random_f32({256, 64}, 1);
  const Stack::Result kept = stack.run(Stack::Marks::none);
  const Stack::Result normed = stack.run(Stack::Marks::normed);
  const Stack::Result deep = stack.run(Stack::Marks::deep);
  for (std::size_t i = 0; i < stack.weights.size(); ++i) {
    EXPECT_TRUE(same_bits(kept.gradients[i], normed.gradients[i])) << i;
    EXPECT_TRUE(same_bits(kept.gradients[i], deep.gradients[i])) << i;
  }
  EXPECT_EQ(kept.rebuilt, 0U);
  EXPECT_EQ(normed.rebuilt, 8U);
  EXPECT_EQ(deep.rebuilt, 12U);
  const std::size_t row = std::size_t{256} * 64 * 4;
  EXPECT_LE(normed.peak + 6 * row, kept.peak);
  EXPECT_LE(deep.peak + 2 * row, normed.peak);
}

// An input that nobody holds any more is rebuilt in turn.
TEST(TapeTest, AMarkReachesBackThroughWhatIsGone) {
  TestContext tc(Numerics::fp32);
  Tape tape(tc.allocator, 1);
  TensorList g;
  const TensorList in = test::as_parameters(tape, {random_f32({8}, 1)}, g);
  tc.ctx.set_tape(&tape);
  Tensor y = ops::scale(tc.ctx, in[0], 2);
  y = ops::scale(tc.ctx, y, 3);  // scale keeps nothing, so the first result is gone here
  y = recompute(tc.ctx, y);
  const Tensor z = ops::rms_norm(tc.ctx, y, Tensor::zeros({8}, DType::f32), 1e-6f);
  y = {};
  test::add_probe(tape, z, random_f32({8}, 3));
  tape.backward(tc.ctx);
  EXPECT_EQ(tape.n_rebuilt(), 2U);
}

TEST(TapeTest, AStepThatIsGivenUpLeavesNothing) {
  TestContext tc(Numerics::fp32);
  Tape tape(tc.allocator, 1);
  TensorList g;
  const TensorList in = test::as_parameters(tape, {random_f32({8}, 1)}, g);
  tc.ctx.set_tape(&tape);
  {
    const Tensor y = ops::scale(tc.ctx, in[0], 2);
    test::add_probe(tape, y, y.detached());
  }
  tape.clear();
  EXPECT_EQ(tc.allocator.bytes_in_use(), 0U);
  tape.backward(tc.ctx);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(g[0].data<float>()[i], 0.0f);
}

}  // namespace
}  // namespace hadal
