#include "train/step_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.h"

namespace hadal::train {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

StepRecord full_record() {
  StepRecord r;
  r.step = 12, r.tokens = 98'304, r.time = 1.79e9, r.phase = "sparse", r.stage = 2;
  r.sequence_length = 4096, r.batch_tokens = 8192, r.lr = 2.7e-4, r.loss = 3.25;
  r.mtp_loss = 3.5, r.index_loss = 0.0625, r.index_recall = 0.9375,
  r.index_recall_of_best = 0.96875, r.balance_loss = 1.0;
  r.grad_norm = 1.5, r.clipped_grad_norm = 1, r.clipped = true;
  r.muon_update_rms = 4.86e-5, r.adamw_update_rms = 1e-4;
  r.expert_load = {kNan, 1.25, 1.75}, r.dead_experts = {0, 0, 3}, r.bias_spread = {kNan, 0.5, 0.25};
  r.gate_clamped = {0.001}, r.up_clamped_high = {0.002}, r.up_clamped_low = {0.003};
  r.sink_mass = {0.1, 0.2, 0.3}, r.scale_lifts = 7, r.amax_gain = 1.5;
  r.seconds = {.step = 2,
               .data = 0.125,
               .forward = 0.5,
               .backward = 1,
               .optimizer = 0.25,
               .newton_schulz = 0.2};
  r.tokens_per_second = 4096, r.executed_flops = 1e12, r.mfu = 0.5;
  r.peak_memory_bytes = 3'000'000'000, r.anticipatory = "on", r.qat = "fp4";
  r.checkpoint_hash = "00ff", r.values = {{"reward", 0.75}};
  return r;
}

template <class Record>
Record back(const Record& record) {
  return std::get<Record>(*parse_record(to_json_line(record), "here"));
}

TEST(StepRecord, EveryFieldComesBack) {
  const std::string line = to_json_line(full_record());
  EXPECT_EQ(line.find('\n'), std::string::npos);
  // The text says all, so that equal text is an equal record.
  EXPECT_EQ(to_json_line(back(full_record())), line);
  const StepRecord r = back(full_record());
  EXPECT_EQ(r.tokens, 98'304);
  EXPECT_EQ(r.dead_experts, (std::vector<std::int64_t>{0, 0, 3}));
  EXPECT_EQ(r.seconds.newton_schulz, 0.2);
  EXPECT_EQ(r.values.at("reward"), 0.75);
  EXPECT_TRUE(r.clipped);
}

TEST(StepRecord, WhatWasNotMeasuredTakesNoRoomAndStaysEmpty) {
  StepRecord r;
  r.step = 1;
  const std::string line = to_json_line(r);
  for (const char* name : {"mtp_loss", "expert_load", "mfu", "fp4_scale_lift", "values"}) {
    EXPECT_THAT(line, testing::Not(testing::HasSubstr(name)));
  }
  EXPECT_FALSE(back(r).mtp_loss.has_value());
  EXPECT_TRUE(back(r).expert_load.empty());
}

TEST(StepRecord, WhatIsNotFiniteIsNullAndComesBackAsNan) {
  StepRecord r = full_record();
  r.loss = kNan, r.grad_norm = std::numeric_limits<double>::infinity(), r.mtp_loss = kNan;
  const std::string line = to_json_line(r);
  EXPECT_THAT(line, testing::HasSubstr("\"loss\":null"));
  EXPECT_THAT(line, testing::HasSubstr("\"grad_norm\":null"));
  EXPECT_THAT(line, testing::HasSubstr("\"expert_load\":[null,1.25,1.75]"));
  const StepRecord again = back(r);
  EXPECT_TRUE(std::isnan(again.loss));
  EXPECT_TRUE(again.mtp_loss.has_value() && std::isnan(*again.mtp_loss));
  EXPECT_TRUE(std::isnan(again.expert_load[0]));
}

TEST(StepRecord, EvaluationsSamplesAndEventsComeBack) {
  const EvalRecord eval{
      .step = 3, .tokens = 9, .time = 5, .split = "code", .loss = 2.5, .eval_tokens = 100};
  EXPECT_EQ(to_json_line(back(eval)), to_json_line(eval));
  const SampleRecord sample{
      .step = 3, .tokens = 9, .time = 5, .prompt = "Es war \"ein", .text = "mal\n</script> \x01 ü"};
  EXPECT_EQ(back(sample).text, sample.text);
  EXPECT_EQ(to_json_line(back(sample)), to_json_line(sample));
  const EventRecord event{.step = 3, .tokens = 9, .time = 5, .what = "spike", .sentence = "z = 7"};
  EXPECT_EQ(back(event).sentence, "z = 7");
  EXPECT_EQ(step_of(event), 3);
}

TEST(StepRecord, ATextThatIsCutWithinACharacterStillMakesJson) {
  const SampleRecord sample{.step = 1, .tokens = 0, .time = 0, .prompt = "", .text = "gr\xC3"};
  EXPECT_EQ(back(sample).text, "gr\xEF\xBF\xBD");  // U+FFFD
}

TEST(StepRecord, UnknownFieldsAndKindsArePassedOver) {
  const auto r = parse_record(R"({"kind":"step","step":4,"loss":1,"later":{"x":[1]}})", "here");
  EXPECT_EQ(std::get<StepRecord>(*r).step, 4);
  EXPECT_FALSE(parse_record(R"({"kind":"rollout","reward":1})", "here").has_value());
}

TEST(StepRecord, DamageIsNamed) {
  const auto refusal = [](const char* line) {
    try {
      (void)parse_record(line, "run/metrics.jsonl line 7");
      return std::string("nothing thrown");
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::corrupt_data);
      return std::string(error.what());
    }
  };
  for (const char* line :
       {"", "{", "[1]", "{\"step\":1}", "{\"kind\":1}", "{\"kind\":\"step\"}", "\xFF",
        R"({"kind":"step","step":1,"loss":"low"})", R"({"kind":"step","step":1.5})",
        R"({"kind":"step","step":1e30})", R"({"kind":"step","step":18446744073709551615})",
        R"({"kind":"step","step":1,"expert_load":3})", R"({"kind":"step","step":1,"clipped":1})",
        R"({"kind":"eval","step":1,"split":2})"}) {
    EXPECT_THAT(refusal(line), testing::StartsWith("run/metrics.jsonl line 7: ")) << line;
  }
  EXPECT_THAT(refusal(R"({"kind":"step","step":1,"loss":"low"})"),
              testing::HasSubstr("loss is \"low\", which should be a number"));
}

}  // namespace
}  // namespace hadal::train
