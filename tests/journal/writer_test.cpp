#include "journal/writer.h"

#include <future>
#include <thread>

#include "journal/log_fixture.h"

namespace hadal::journal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class WriterTest : public LogTest {};

TEST(SyncPolicyText, IsReadAndWritten) {
  EXPECT_EQ(SyncPolicy::parse("none")->to_string(), "none");
  EXPECT_EQ(SyncPolicy::parse("step")->to_string(), "step");
  EXPECT_EQ(SyncPolicy::parse("interval")->to_string(), "interval:50ms");
  EXPECT_EQ(SyncPolicy::parse("interval:2s")->to_string(), "interval:2000ms");
  for (const char* wrong : {"", "off", "interval:", "interval:5", "interval:0ms", "interval:-1s",
                            "interval:5ms ", "interval:9999999s", "steps"}) {
    EXPECT_FALSE(SyncPolicy::parse(wrong)) << wrong;
  }
}

TEST_F(WriterTest, WhatWasPublishedReadsBackWhileRunningAndAfterwards) {
  LocalId local = 0;
  {
    auto writer = start();
    OpenRecord open = request("s", 2);
    open.keep_logprobs = true;
    local = *writer->open(open);
    TokenEntry first = token(local, 0, 1), second = token(local, 0, 0), stop = token(local, 1, 1);
    first.logprob = -0.5f;
    first.top = {{7, -0.5f}, {8, -1.f}};
    second.logprob = -0.25f;
    stop.is_stop_token = true;
    stop.logprob = -3.f;
    writer->commit({first, second}, {}, nullptr);
    writer->commit({stop}, {end_of(local, 1)}, nullptr);
    ASSERT_TRUE(writer->flush());

    const Stream live = *writer->read("s");
    open.local = local;
    EXPECT_EQ(live.open, open);
    EXPECT_THAT(live.events, ElementsAre(first, second, stop));  // log order over the choices
    EXPECT_FALSE(live.closed());
    EXPECT_EQ(live.choices[1].close->reason, CloseReason::stop);
    const StreamInfo info = *writer->find("s");
    EXPECT_EQ(info.n_tokens, 3u);
    EXPECT_EQ(info.choices[1].n_tokens, 2u);
    EXPECT_FALSE(info.closed());
    EXPECT_FALSE(writer->find("t"));
    EXPECT_FALSE(writer->read("t"));
  }
  Recovery after = look();
  ASSERT_EQ(after.unfinished().size(), 1u);
  EXPECT_EQ(after.streams.at(local).events.size(), 3u);
  EXPECT_EQ(after.torn_bytes, 0u);
  expect_drawn(after.streams.at(local));
}

TEST_F(WriterTest, LogprobsNobodyAskedForAreNotKept) {
  auto writer = start();
  const LocalId local = *writer->open(request("s"));
  TokenEntry entry = token(local, 0);
  entry.logprob = -1.f;
  entry.top = {{1, -1.f}};
  writer->commit({entry}, {}, nullptr);
  ASSERT_TRUE(writer->flush());
  EXPECT_THAT(writer->read("s")->events, ElementsAre(token(local, 0)));
}

TEST_F(WriterTest, ANameIsTakenOnceUntilItsRetentionIsOver) {
  WriterOptions o = options();
  auto now = std::make_shared<std::atomic<std::int64_t>>(1000);
  o.unix_seconds = [now] { return now->load(); };
  o.retention = std::chrono::seconds(60);
  auto writer = start(o);
  const auto first = writer->open(request("s"));
  ASSERT_TRUE(first);
  EXPECT_FALSE(writer->open(request("s")));
  writer->commit({token(*first, 0)}, {end_of(*first)}, nullptr);
  ASSERT_TRUE(writer->flush());
  EXPECT_EQ(writer->find("s")->closed_at, 1000);
  EXPECT_FALSE(writer->open(request("s")));
  *now = 1059;
  writer->maintain();
  EXPECT_TRUE(writer->read("s"));
  *now = 1060;
  writer->maintain();
  EXPECT_FALSE(writer->find("s"));
  const auto second = writer->open(request("s"));
  ASSERT_TRUE(second);
  EXPECT_NE(*second, *first);
  writer.reset();
  Recovery after = look();  // the old one's records are still there
  EXPECT_EQ(after.streams.size(), 1u);
  EXPECT_TRUE(after.streams.contains(*second));
}

TEST_F(WriterTest, NamesTheFormatCannotHoldAreRefused) {
  auto writer = start();
  EXPECT_THROW((void)writer->open(request("")), Error);
  EXPECT_THROW((void)writer->open(request(std::string(kMaxNameBytes + 1, 'x'))), Error);
  EXPECT_THROW((void)writer->open(request("s", 0)), Error);
  EXPECT_TRUE(writer->open(request(std::string(kMaxNameBytes, 'x'))));
}

TEST_F(WriterTest, StepPolicyShowsNothingBeforeTheSync) {
  auto writer = start();
  const LocalId local = *writer->open(request("s"));
  ASSERT_TRUE(writer->flush());
  fs.hold_syncs(true);
  std::atomic<bool> shown{false};
  writer->commit({token(local, 0)}, {}, [&] { shown = true; });
  writer->commit({token(local, 1)}, {}, nullptr);  // the producer does not wait
  while (fs.content(last_segment()).find(std::string("STEP")) == std::string::npos &&
         writer->stats().pending_tokens < 2) {
    std::this_thread::yield();
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(shown);
  EXPECT_EQ(writer->stats().pending_tokens, 2u);
  fs.hold_syncs(false);
  ASSERT_TRUE(writer->flush());
  EXPECT_TRUE(shown);
  EXPECT_EQ(writer->stats().pending_tokens, 0u);
}

TEST_F(WriterTest, ManyCommitsShareOneSync) {
  auto writer = start();
  const LocalId local = *writer->open(request("s"));
  ASSERT_TRUE(writer->flush());
  fs.hold_syncs(true);
  writer->commit({token(local, 0)}, {}, nullptr);
  std::vector<std::uint32_t> order;
  for (std::uint32_t i = 1; i < 40; ++i) {
    writer->commit({token(local, i)}, {}, [&order, i] { order.push_back(i); });
  }
  const auto before = fs.n_syncs();
  fs.hold_syncs(false);
  ASSERT_TRUE(writer->flush());
  EXPECT_LE(fs.n_syncs() - before, 4u);
  ASSERT_EQ(order.size(), 39u);
  for (std::uint32_t i = 0; i < 39; ++i) EXPECT_EQ(order[i], i + 1);
}

TEST_F(WriterTest, PolicyNoneNeverSyncsAndIntervalDoesByItself) {
  for (const auto kind : {SyncPolicy::Kind::none, SyncPolicy::Kind::interval}) {
    auto writer = start(options(kind));
    const LocalId local = *writer->open(request(kind == SyncPolicy::Kind::none ? "a" : "b"));
    const auto shown = std::make_shared<std::promise<void>>();
    const auto before = fs.n_syncs();
    writer->commit({token(local, 0)}, {}, [shown] { shown->set_value(); });
    shown->get_future().wait();
    if (kind == SyncPolicy::Kind::none) {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      EXPECT_EQ(fs.n_syncs(), before);
    } else {
      while (fs.n_syncs() == before) std::this_thread::yield();  // would wait for ever
    }
  }
}

TEST_F(WriterTest, RotationKeepsOpenStreamsAndTheirOrder) {
  auto writer = start();
  const LocalId a = *writer->open(request("a")), b = *writer->open(request("b", 2));
  std::vector<TokenEntry> said;
  for (std::uint32_t i = 0; i < 600; ++i) {
    std::vector<TokenEntry> step{token(a, i)};
    if (i % 2 == 0) step.push_back(token(b, i / 2, 1));
    if (i % 3 == 0) step.push_back(token(b, i / 3, 0));
    for (const TokenEntry& entry : step) {
      if (entry.local == b) said.push_back(entry);
    }
    writer->commit(step, {}, nullptr);
    if (i % 50 == 0) (void)writer->flush();
  }
  ASSERT_TRUE(writer->flush());
  EXPECT_GT(writer->stats().segments + writer->stats().deleted_segments, 3u);
  EXPECT_TRUE(writer->read("b")->events == said);
  writer.reset();
  Recovery after = look();
  EXPECT_EQ(after.streams.at(b).events, said);
  EXPECT_EQ(after.streams.at(a).n_tokens, 600u);
}

TEST_F(WriterTest, SegmentsGoWhenTheirStreamsAreForgotten) {
  WriterOptions o = options();
  auto now = std::make_shared<std::atomic<std::int64_t>>(1000);
  o.unix_seconds = [now] { return now->load(); };
  o.retention = std::chrono::seconds(60);
  auto writer = start(o);
  const LocalId keeps_open = *writer->open(request("open"));
  for (int s = 0; s < 30; ++s) {
    const LocalId local = *writer->open(request("s" + std::to_string(s)));
    for (std::uint32_t i = 0; i < 40; ++i) writer->commit({token(local, i)}, {}, nullptr);
    writer->commit({token(keeps_open, static_cast<std::uint32_t>(s))}, {end_of(local)}, nullptr);
    ASSERT_TRUE(writer->flush());
  }
  const std::size_t full = n_segments();
  ASSERT_GT(full, 9u);
  *now = 2000;
  // The open stream began in the first segment: it is copied, and the old segments go.
  writer->maintain();
  EXPECT_GE(writer->stats().copied_streams, 1u);
  EXPECT_EQ(n_segments(), 1u);
  EXPECT_GE(writer->stats().deleted_segments, full - 1);
  const auto check = [&](const Stream& stream) {
    EXPECT_EQ(stream.n_tokens, 30u);
    EXPECT_EQ(stream.open.prompt, request("open").prompt);
    expect_drawn(stream);
  };
  check(*writer->read("open"));
  writer->commit({token(keeps_open, 30)}, {}, nullptr);
  ASSERT_TRUE(writer->flush());
  EXPECT_EQ(writer->read("open")->n_tokens, 31u);
  writer.reset();
  Recovery after = look();
  ASSERT_EQ(after.streams.size(), 1u);
  EXPECT_EQ(after.streams.begin()->second.n_tokens, 31u);
}

TEST_F(WriterTest, ACopyBesideItsOriginalChangesNothing) {
  WriterOptions o = options();
  o.max_open_age = 1;
  auto writer = start(o);
  // A closed stream keeps the first segment, so the original stays.
  const LocalId kept = *writer->open(request("kept"));
  const LocalId open = *writer->open(request("open"));
  writer->commit({token(kept, 0)}, {end_of(kept)}, nullptr);
  for (std::uint32_t i = 0; i < 300; ++i) {
    writer->commit({token(open, i)}, {}, nullptr);
    if (i % 50 == 0) writer->maintain();
  }
  ASSERT_TRUE(writer->flush());
  EXPECT_GT(writer->stats().copied_streams, 0u);
  EXPECT_EQ(writer->stats().deleted_segments, 0u);
  EXPECT_EQ(writer->read("open")->n_tokens, 300u);
  writer.reset();
  Recovery after = look();
  EXPECT_EQ(after.streams.at(open).events.size(), 300u);
  expect_drawn(after.streams.at(open));
}

TEST_F(WriterTest, OldSegmentsRotateByAge) {
  WriterOptions o = options();
  auto now = std::make_shared<std::atomic<std::int64_t>>(1000);
  o.unix_seconds = [now] { return now->load(); };
  auto writer = start(o);
  *now = 5000;
  writer->maintain();
  EXPECT_EQ(n_segments(), 1u);  // nothing in it: it stays
  (void)writer->open(request("s"));
  writer->maintain();
  EXPECT_EQ(n_segments(), 2u);
}

TEST_F(WriterTest, AFullDiskFailsTheLogAndPublishesOn) {
  auto writer = start();
  const LocalId local = *writer->open(request("s"));
  writer->commit({token(local, 0)}, {}, nullptr);
  ASSERT_TRUE(writer->flush());
  // Room for nothing beyond what is preallocated: the segment fills, the next one cannot begin.
  fs.set_capacity(4096);
  std::atomic<std::uint32_t> shown{0};
  for (std::uint32_t i = 1; i < 500; ++i) {
    writer->commit({token(local, i)}, {}, [&] { ++shown; });
  }
  EXPECT_FALSE(writer->flush());
  EXPECT_EQ(shown, 499u);
  EXPECT_FALSE(writer->healthy());
  EXPECT_THAT(writer->failure(), HasSubstr("No space left"));
  EXPECT_GT(writer->stats().unlogged_tokens, 0u);
  // Names and ends are still known.
  const LocalId late = *writer->open(request("late"));
  EXPECT_FALSE(writer->open(request("late")));
  writer->commit({token(late, 0)}, {end_of(late), end_of(local)}, [&] { ++shown; });
  EXPECT_FALSE(writer->flush());
  EXPECT_EQ(shown, 500u);
  EXPECT_TRUE(writer->find("s")->closed());
  EXPECT_TRUE(writer->find("late")->closed());
  EXPECT_FALSE(writer->read("late"));
  const std::uint64_t on_disk = writer->read("s")->n_tokens;
  EXPECT_GT(on_disk, 0u);
  writer.reset();
  fs.set_capacity(1 << 20);
  Recovery after = recover(fs, dir);
  ASSERT_EQ(after.unfinished().size(), 1u);
  EXPECT_GE(after.unfinished()[0]->n_tokens, on_disk);
  expect_drawn(*after.unfinished()[0]);
}

TEST_F(WriterTest, AFailedSyncFailsTheLogForGood) {
  auto writer = start();
  const LocalId local = *writer->open(request("s"));
  ASSERT_TRUE(writer->flush());
  fs.fail_syncs(true);
  const auto shown = std::make_shared<std::promise<void>>();
  writer->commit({token(local, 0)}, {}, [shown] { shown->set_value(); });
  shown->get_future().wait();  // in any case
  EXPECT_THAT(writer->failure(), HasSubstr("cannot sync"));
  fs.fail_syncs(false);
  EXPECT_FALSE(writer->flush());  // what a failed sync dropped, no later one brings back
}

TEST_F(WriterTest, AnEngineThatSkipsATokenIsNoticed) {
  auto writer = start();
  const LocalId local = *writer->open(request("s"));
  writer->commit({token(local, 0), token(local, 2)}, {}, nullptr);
  EXPECT_FALSE(writer->flush());
  EXPECT_THAT(writer->failure(), HasSubstr("token 2 of stream \"s\""));
}

TEST_F(WriterTest, TwoWritersDoNotShareADirectory) {
  auto writer = start();
  EXPECT_THROW((void)start(), Error);
  writer.reset();
  EXPECT_NE(start(), nullptr);
}

TEST_F(WriterTest, ConcurrentOpensReadsAndCommitsLoseNothing) {
  WriterOptions o = options(SyncPolicy::Kind::interval);
  o.segment_bytes = 16384;
  auto writer = start(o);
  constexpr int kThreads = 3, kStreams = 20;
  std::mutex mutex;
  std::vector<LocalId> opened;
  std::atomic<std::uint64_t> shown{0};
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop) {
      for (const StreamInfo& info : writer->streams()) {
        if (info.local % 7 != 0) continue;
        const auto stream = writer->read(info.name);
        ASSERT_TRUE(stream);
        expect_drawn(*stream);
        ASSERT_GE(stream->n_tokens, info.n_tokens);
      }
      (void)writer->stats();
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> clients;
  for (int t = 0; t < kThreads; ++t) {
    clients.emplace_back([&, t] {
      for (int s = 0; s < kStreams; ++s) {
        const auto local = writer->open(request(std::to_string(t) + "-" + std::to_string(s)));
        ASSERT_TRUE(local);
        const std::lock_guard lock(mutex);
        opened.push_back(*local);
      }
    });
  }
  // The engine: whatever is open draws 20 tokens and ends.
  std::map<LocalId, std::uint32_t> at;
  std::size_t n_closed = 0;
  while (n_closed < std::size_t{kThreads} * kStreams) {
    std::vector<TokenEntry> step;
    std::vector<ChoiceEnd> ends;
    {
      const std::lock_guard lock(mutex);
      for (const LocalId local : opened) at.try_emplace(local, 0);
    }
    for (auto& [local, next] : at) {
      if (next == 20) continue;
      step.push_back(token(local, next++));
      if (next == 20) {
        ends.push_back(end_of(local));
        ++n_closed;
      }
    }
    const auto n = step.size();
    writer->commit(std::move(step), std::move(ends), [&shown, n] { shown += n; });
    if (n_closed % 8 == 0) writer->maintain();
  }
  for (std::thread& client : clients) client.join();
  ASSERT_TRUE(writer->flush());
  stop = true;
  reader.join();
  EXPECT_EQ(shown, 20u * kThreads * kStreams);
  EXPECT_EQ(writer->stats().closed_streams, std::uint64_t{kThreads} * kStreams);
  writer.reset();
  Recovery after = look();
  EXPECT_EQ(after.streams.size(), std::size_t{kThreads} * kStreams);
  EXPECT_TRUE(after.unfinished().empty());
  for (const auto& [local, stream] : after.streams) EXPECT_EQ(stream.n_tokens, 20u);
}

}  // namespace
}  // namespace hadal::journal
