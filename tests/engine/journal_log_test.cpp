// Steps of the engine, through the journal and back.
#include "engine/journal_log.h"

#include <gtest/gtest.h>

#include <future>

#include "support/fault_file_system.h"

namespace hadal::engine {
namespace {

TEST(JournalLog, StepsComeBackAsTheEngineSaidThem) {
  test::FaultFileSystem fs;
  const Path dir = "journal";
  std::vector<TokenEvent> said;
  {
    journal::Writer writer(fs, dir, {.sync = {.kind = journal::SyncPolicy::Kind::step}},
                           journal::recover(fs, dir));
    for (const char* name : {"a", "b"}) {
      journal::OpenRecord open;
      open.name = name;
      open.n_choices = 2;
      open.keep_logprobs = true;
      ASSERT_TRUE(writer.open(open));
    }
    JournalLog log(writer);
    const std::string a = "a", b = "b", unknown = "never opened";
    const std::vector<TokenEvent> step{
        {.choice = 0, .index = 0, .token = 5, .logprob = -0.5f, .top = {{5, -0.5f}, {6, -1.f}}},
        {.choice = 1, .index = 0, .token = 7, .logprob = -1.f},
        {.choice = 0, .index = 0, .token = 9, .logprob = -2.f},
        {.choice = 0, .index = 0, .token = 11, .logprob = -2.f}};
    const std::vector<TokenLog::Token> tokens{
        {&a, &step[0]}, {&a, &step[1]}, {&b, &step[2]}, {&unknown, &step[3]}};
    const auto shown = std::make_shared<std::promise<void>>();
    log.commit(tokens, {}, [shown] { shown->set_value(); });
    shown->get_future().wait();
    const TokenEvent last{
        .choice = 1, .index = 1, .token = 1, .logprob = -3.f, .is_stop_token = true};
    const Finish finish{.choice = 1, .reason = FinishReason::stop, .n_tokens = 2};
    const Finish failed{.choice = 0, .reason = FinishReason::error, .error = "why", .n_tokens = 1};
    const std::vector<TokenLog::Token> more{{&a, &last}};
    const std::vector<TokenLog::Closed> closed{{&a, &finish}, {&b, &failed}, {&unknown, &failed}};
    log.commit(more, closed, nullptr);
    said = {step[0], step[1], last};
    ASSERT_TRUE(writer.flush());
  }
  journal::Recovery after = journal::recover(fs, dir);
  ASSERT_EQ(after.streams.size(), 2u);
  const journal::Stream& a = after.streams.at(1);
  ASSERT_EQ(a.events.size(), said.size());
  for (std::size_t i = 0; i < said.size(); ++i) {
    const TokenEvent event = to_event(a.events[i]);
    EXPECT_EQ(event.choice, said[i].choice);
    EXPECT_EQ(event.index, said[i].index);
    EXPECT_EQ(event.token, said[i].token);
    EXPECT_EQ(event.logprob, said[i].logprob);
    EXPECT_EQ(event.is_stop_token, said[i].is_stop_token);
    ASSERT_EQ(event.top.size(), said[i].top.size());
    for (std::size_t k = 0; k < event.top.size(); ++k) {
      EXPECT_EQ(event.top[k].token, said[i].top[k].token);
      EXPECT_EQ(event.top[k].logprob, said[i].top[k].logprob);
    }
  }
  const auto drawn = drawn_of(a);
  ASSERT_EQ(drawn.size(), 2u);
  EXPECT_EQ(drawn[0].tokens, std::vector<TokenId>{5});
  EXPECT_FALSE(drawn[0].finished);
  EXPECT_EQ(drawn[1].tokens, (std::vector<TokenId>{7, 1}));
  EXPECT_TRUE(drawn[1].finished);
  const Finish finish = to_finish(after.streams.at(2).choices[0], 0);
  EXPECT_EQ(finish.reason, FinishReason::error);
  EXPECT_EQ(finish.error, "why");
  EXPECT_EQ(finish.n_tokens, 1);
}

TEST(JournalLog, ReasonsTranslateBothWays) {
  for (const FinishReason reason :
       {FinishReason::stop, FinishReason::length, FinishReason::cancelled, FinishReason::error}) {
    EXPECT_EQ(finish_reason(close_reason(reason)), reason);
    EXPECT_STREQ(journal::to_string(close_reason(reason)), to_string(reason));
  }
}

}  // namespace
}  // namespace hadal::engine
