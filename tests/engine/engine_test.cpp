// Many generations at once: each gets the tokens that it would get alone, whatever happens.
#include "engine/engine.h"

#include <gmock/gmock.h>

#include "cache/disk_store.h"
#include "engine/engine_fixture.h"
#include "support/failing_file_system.h"

namespace hadal::engine {
namespace {

using ::testing::HasSubstr;

struct Load {
  std::vector<Request> requests;
  std::vector<Answer> expected;
};

// Prompts of many lengths, temperatures and seeds; some share a beginning.
const Load& load() {
  static const Load instance = [] {
    Load l;
    const std::vector<TokenId> shared = prompt(200, 1);
    for (int i = 0; i < 10; ++i) {
      std::vector<TokenId> ids = i % 3 == 0 ? shared : std::vector<TokenId>{};
      const auto tail =
          prompt(static_cast<std::size_t>(3 + 29 * i), 100U + static_cast<unsigned>(i));
      ids.insert(ids.end(), tail.begin(), tail.end());
      l.requests.push_back(make_request("r" + std::to_string(i), ids, 20 + 9 * i,
                                        i % 4 == 0 ? 0.0f : 1.0f,
                                        static_cast<std::uint64_t>(1000 + i)));
      l.expected.push_back(alone(l.requests.back()));
    }
    return l;
  }();
  return instance;
}

void expect_as_alone(const EngineOptions& options, bool disturb = false) {
  Engine engine(runtime(), tiny(), options, nullptr);
  std::vector<Request> requests = load().requests;
  for (Request& r : requests) {
    r.sink = std::make_shared<TestSink>();
    engine.submit(r);
  }
  if (disturb) {
    for (int round = 0; round < 12; ++round) {
      for (const Request& r : requests) {
        if ((round + static_cast<int>(r.prompt.size())) % 3 == 0) engine.preempt(r.stream);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  for (std::size_t i = 0; i < requests.size(); ++i) {
    sink_of(requests[i])->wait();
    const Answer answer = sink_of(requests[i])->answer();
    EXPECT_EQ(answer.tokens, load().expected[i].tokens) << i;
    EXPECT_EQ(answer.logprobs, load().expected[i].logprobs) << i;
    ASSERT_TRUE(answer.finish);
    EXPECT_EQ(answer.finish->reason, FinishReason::length) << answer.finish->error;
  }
  EXPECT_EQ(engine.status().n_running, 0);
}

TEST(Engine, EveryAnswerIsAsAlone) {
  expect_as_alone({.draft_tokens = 0});
}

TEST(Engine, DraftsChangeNothing) {
  expect_as_alone({.draft_tokens = 2, .max_draft_batch = 3});
  expect_as_alone({.draft_tokens = 1, .max_draft_batch = 64});
}

TEST(Engine, StepSizesAndBatchSizesChangeNothing) {
  expect_as_alone({.max_running = 3, .max_step_tokens = 1, .prefix_cache = false});
  expect_as_alone({.max_running = 2, .max_step_tokens = 130, .snapshot_interval = 128});
}

// Room for fewer pages than the answers grow to: sequences are sent away again and again.
TEST(Engine, PreemptionBySwappingChangesNothing) {
  EngineOptions options{.draft_tokens = 1};
  const cache::PagedKv kv(tiny().config, {.page_tokens = options.page_tokens});
  options.kv_bytes = kv.page_bytes() * 9;
  expect_as_alone(options);
  Engine engine(runtime(), tiny(), options, nullptr);
}

TEST(Engine, PreemptionByDroppingChangesNothing) {
  EngineOptions options{.draft_tokens = 0};
  const cache::PagedKv kv(tiny().config, {.page_tokens = options.page_tokens});
  options.kv_bytes = kv.page_bytes() * 9;
  options.preemption = EngineOptions::Preemption::drop;
  expect_as_alone(options);
}

TEST(Engine, PreemptionAtAnyMomentChangesNothing) {
  for (const auto how : {EngineOptions::Preemption::swap, EngineOptions::Preemption::drop}) {
    for (const bool cached : {true, false}) {
      expect_as_alone({.draft_tokens = 1, .prefix_cache = cached, .preemption = how}, true);
    }
  }
}

TEST(Engine, MemoryThatRunsOutPreempts) {
  EngineOptions options{.draft_tokens = 0};
  const cache::PagedKv kv(tiny().config, {.page_tokens = options.page_tokens});
  options.kv_bytes = kv.page_bytes() * 6;
  Engine engine(runtime(), tiny(), options, nullptr);
  std::vector<Request> requests;
  for (unsigned i = 0; i < 3; ++i) {
    requests.push_back(make_request("r" + std::to_string(i), prompt(100, i), 200));
    engine.submit(requests.back());
  }
  for (const Request& r : requests) {
    sink_of(r)->wait();
    EXPECT_EQ(sink_of(r)->answer().finish->error, "");
    EXPECT_EQ(sink_of(r)->answer().tokens, alone(r).tokens);
    EXPECT_EQ(sink_of(r)->answer(), alone(r));
  }
  EXPECT_GT(engine.status().preemptions, 0U);
}

TEST(Engine, ChoicesShareAPromptAndDrawApart) {
  for (const std::size_t n : {1UL, 100UL, 128UL, 300UL}) {
    Engine engine(runtime(), tiny(), {.draft_tokens = 1}, nullptr);
    Request r = make_request("n", prompt(n, 5), 30);
    r.n_choices = 4;
    engine.submit(r);
    sink_of(r)->wait(4);
    for (std::int32_t c = 0; c < 4; ++c) EXPECT_EQ(sink_of(r)->answer(c), alone(r, c)) << n;
    EXPECT_NE(sink_of(r)->answer(0).tokens, sink_of(r)->answer(1).tokens);
    EXPECT_EQ(engine.status().prompt_tokens, n);  // read once
  }
}

TEST(Engine, AnInterruptedAnswerGoesOnAtAnyIndex) {
  Request whole = make_request("whole", prompt(150, 9), 40);
  const Answer expected = alone(whole);
  Engine engine(runtime(), tiny(), {.draft_tokens = 1}, nullptr);
  for (std::size_t cut = 0; cut <= 40; cut += 4) {
    Request r = make_request("cut" + std::to_string(cut), whole.prompt, 40);
    r.drawn.push_back({.tokens = {expected.tokens.begin(),
                                  expected.tokens.begin() + static_cast<std::ptrdiff_t>(cut)}});
    engine.submit(r);
    sink_of(r)->wait();
    const Answer rest = sink_of(r)->answer();
    EXPECT_EQ(rest.tokens,
              std::vector<TokenId>(expected.tokens.begin() + static_cast<std::ptrdiff_t>(cut),
                                   expected.tokens.end()))
        << cut;
    EXPECT_EQ(rest.finish->n_tokens, 40);
    if (!sink_of(r)->events().empty()) {
      EXPECT_EQ(sink_of(r)->events().front().index, static_cast<std::int64_t>(cut));
    }
  }
}

TEST(Engine, StopTokensAndObserversEndAnAnswerExactly) {
  const Answer expected = alone(make_request("x", prompt(61, 3), 60));
  struct EndsAt final : TokenObserver {
    explicit EndsAt(int at) : left(at) {}
    bool ends_with(TokenId) override { return --left == 0; }
    int left;
  };
  Engine engine(runtime(), tiny(), {.draft_tokens = 4}, nullptr);
  for (const int at : {1, 2, 7, 8, 9, 30}) {
    Request r = make_request("observer" + std::to_string(at), prompt(61, 3), 60);
    r.make_observer = [at](std::int32_t) { return std::make_unique<EndsAt>(at); };
    engine.submit(r);
    sink_of(r)->wait();
    EXPECT_EQ(sink_of(r)->answer().tokens.size(), static_cast<std::size_t>(at));
    EXPECT_EQ(sink_of(r)->answer().finish->reason, FinishReason::stop);

    Request s = make_request("stop" + std::to_string(at), prompt(61, 3), 60);
    s.stop_tokens = {expected.tokens[static_cast<std::size_t>(at)]};
    engine.submit(s);
    sink_of(s)->wait();
    const std::vector<TokenEvent> events = sink_of(s)->events();
    EXPECT_TRUE(events.back().is_stop_token);
    EXPECT_EQ(sink_of(s)->answer().finish->reason, FinishReason::stop);
    EXPECT_LE(events.size(), static_cast<std::size_t>(at) + 1);
  }
}

// Lets only even tokens through, and every fifth token must be 8.
class EvenTokens final : public grammar::Constraint {
 public:
  bool fill(grammar::TokenMask& mask) override {
    mask.clear();
    if (n_ % 5 == 4) {
      mask.allow(8);
    } else {
      for (TokenId id = 0; id < mask.vocab_size(); id += 2) mask.allow(id);
    }
    return true;
  }
  void accept(TokenId) override { ++n_; }
  std::unique_ptr<Constraint> clone() const override { return std::make_unique<EvenTokens>(*this); }

 private:
  int n_ = 0;
};

TEST(Engine, ConstraintsHoldWithDraftsAndAcrossPreemption) {
  std::vector<TokenId> first;
  for (const std::int64_t drafts : {0, 3}) {
    Engine engine(runtime(), tiny(), {.draft_tokens = drafts}, nullptr);
    Request r = make_request("even", prompt(50, 2), 60);
    r.make_constraint = [](std::int32_t) { return std::make_unique<EvenTokens>(); };
    engine.submit(r);
    sink_of(r)->wait_for_tokens(5);
    engine.preempt(r.stream);
    sink_of(r)->wait();
    const std::vector<TokenId> tokens = sink_of(r)->answer().tokens;
    ASSERT_EQ(tokens.size(), 60U);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      EXPECT_EQ(tokens[i] % 2, 0);
      if (i % 5 == 4) {
        EXPECT_EQ(tokens[i], 8);
      }
    }
    if (first.empty()) first = tokens;
    EXPECT_EQ(tokens, first);
  }
}

TEST(Engine, TopLogprobsAreTheModels) {
  Engine engine(runtime(), tiny(), {.draft_tokens = 2}, nullptr);
  Request r = make_request("top", prompt(20, 4), 12);
  r.top_logprobs = 5;
  r.sampling.logit_bias = {{3, 50.0f}};
  engine.submit(r);
  sink_of(r)->wait();
  for (const TokenEvent& e : sink_of(r)->events()) {
    ASSERT_EQ(e.top.size(), 5U);
    for (std::size_t i = 1; i < 5; ++i) EXPECT_GE(e.top[i - 1].logprob, e.top[i].logprob);
    EXPECT_EQ(e.token, 3);
    EXPECT_LE(e.logprob, e.top[0].logprob + 1e-6f);
  }
}

TEST(Engine, CancelEndsOneAndTouchesNobodyElse) {
  Engine engine(runtime(), tiny(), {}, nullptr);
  Request stays = make_request("stays", prompt(80, 1), 120),
          goes = make_request("goes", prompt(90, 2), 0);
  goes.n_choices = 2;
  engine.submit(stays);
  engine.submit(goes);
  sink_of(goes)->wait_for_tokens(4);
  engine.cancel("goes");
  engine.cancel("nobody");
  sink_of(goes)->wait(2);
  EXPECT_EQ(sink_of(goes)->answer(0).finish->reason, FinishReason::cancelled);
  EXPECT_EQ(sink_of(goes)->answer(1).finish->reason, FinishReason::cancelled);
  sink_of(stays)->wait();
  EXPECT_EQ(sink_of(stays)->answer(), alone(stays));
}

TEST(Engine, ASuspendedReaderStandsStillAndGoesOn) {
  Engine engine(runtime(), tiny(), {}, nullptr);
  Request r = make_request("slow", prompt(40, 6), 400);
  engine.submit(r);
  sink_of(r)->wait_for_tokens(10);
  engine.suspend("slow", true);
  Request other = make_request("other", prompt(40, 7), 30);
  engine.submit(other);
  sink_of(other)->wait();
  const std::size_t before = sink_of(r)->events().size();
  Request another = make_request("another", prompt(40, 8), 30);
  engine.submit(another);
  sink_of(another)->wait();
  EXPECT_EQ(sink_of(r)->events().size(), before);
  EXPECT_LT(before, 400U);
  engine.suspend("slow", false);
  sink_of(r)->wait();
  EXPECT_EQ(sink_of(r)->answer(), alone(r));
}

TEST(Engine, SharedPrefixesAreReadOnce) {
  Engine engine(runtime(), tiny(), {.draft_tokens = 0}, nullptr);
  Request first = make_request("first", prompt(600, 11), 20);
  engine.submit(first);
  sink_of(first)->wait();
  EXPECT_EQ(sink_of(first)->stats().cached_tokens, 0);
  EXPECT_EQ(sink_of(first)->stats().written_tokens, 512);

  // The next turn of a conversation: the answer and more behind the prompt.
  std::vector<TokenId> longer = first.prompt;
  const std::vector<TokenId> answer = sink_of(first)->answer().tokens;
  longer.insert(longer.end(), answer.begin(), answer.end());
  const std::vector<TokenId> more = prompt(50, 12);
  longer.insert(longer.end(), more.begin(), more.end());
  Request next = make_request("next", longer, 20);
  engine.submit(next);
  sink_of(next)->wait();
  EXPECT_EQ(sink_of(next)->stats().cached_tokens, 512);
  EXPECT_EQ(sink_of(next)->answer(), alone(next));

  // Others do not see it.
  Request stranger = make_request("stranger", longer, 5);
  stranger.cache_domain = "somebody else";
  engine.submit(stranger);
  sink_of(stranger)->wait();
  EXPECT_EQ(sink_of(stranger)->stats().cached_tokens, 0);
}

// Two pages of system prompt, and a memory that other conversations fill many times over.
class SystemPrompt : public testing::Test {
 protected:
  SystemPrompt() {
    const cache::PagedKv kv(tiny().config, {.page_tokens = options_.page_tokens});
    options_.kv_bytes = kv.page_bytes() * 12;
  }
  // The cached tokens of a conversation that begins with system prompt `which`.
  std::int64_t converse(Engine& engine, std::uint32_t which, std::uint32_t question) {
    std::vector<TokenId> ids = prompt(300, which);
    const std::vector<TokenId> more = prompt(60, question);
    ids.insert(ids.end(), more.begin(), more.end());
    Request r = make_request("system" + std::to_string(n_++), ids, 3);
    r.preamble_tokens = 300;
    engine.submit(r);
    sink_of(r)->wait();
    EXPECT_EQ(sink_of(r)->answer(), alone(r));
    return sink_of(r)->stats().cached_tokens;
  }
  void press(Engine& engine) {
    for (std::uint32_t i = 0; i < 6; ++i) {
      Request r = make_request("press" + std::to_string(n_++), prompt(500, 500 + i), 2);
      engine.submit(r);
      sink_of(r)->wait();
    }
  }
  EngineOptions options_{.draft_tokens = 0};
  int n_ = 0;
};

TEST_F(SystemPrompt, StaysUnderPressureOnceTwoCameWithIt) {
  Engine engine(runtime(), tiny(), options_, nullptr);
  EXPECT_EQ(converse(engine, 60, 1), 0);
  press(engine);
  EXPECT_EQ(converse(engine, 60, 2), 0);  // one request's is evicted as all else
  press(engine);
  EXPECT_EQ(converse(engine, 60, 3), 256);
  EXPECT_EQ(engine.status().pages_pinned, 2);
  EXPECT_EQ(engine.status().pinned_prefixes, 1);
  EXPECT_GT(engine.status().pinned_bytes, 0U);

  options_.pinned_share = 0;
  Engine without(runtime(), tiny(), options_, nullptr);
  for (std::uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(converse(without, 60, i), 0);
    press(without);
  }
  EXPECT_EQ(without.status().pages_pinned, 0);
}

TEST_F(SystemPrompt, ManyOfThemKeepToTheirShare) {
  Engine engine(runtime(), tiny(), options_, nullptr);
  for (std::uint32_t which = 60; which < 66; ++which) {
    for (std::uint32_t i = 0; i < 2; ++i) converse(engine, which, i);
    EXPECT_LE(engine.status().pages_pinned, 3);
  }
  EXPECT_EQ(engine.status().pinned_prefixes, 1);
}

TEST_F(SystemPrompt, GoesBeforeARequestIsRefused) {
  options_.kv_bytes = options_.kv_bytes / 12 * 8;
  Engine engine(runtime(), tiny(), options_, nullptr);
  for (std::uint32_t i = 0; i < 2; ++i) converse(engine, 60, i);
  EXPECT_EQ(engine.status().pages_pinned, 2);
  // At admission: all eight pages are needed.
  Request r = make_request("large", prompt(7 * 128 - 20, 70), 3);
  engine.submit(r);
  sink_of(r)->wait();
  EXPECT_EQ(sink_of(r)->answer().finish->error, "");
  EXPECT_EQ(engine.status().pages_pinned, 0);
  // While it grows.
  for (std::uint32_t i = 0; i < 2; ++i) converse(engine, 60, i);
  EXPECT_EQ(engine.status().pages_pinned, 2);
  Request grows = make_request("grows", prompt(5 * 128 - 20, 71), 300);
  engine.submit(grows);
  sink_of(grows)->wait();
  EXPECT_EQ(sink_of(grows)->answer().finish->error, "");
  EXPECT_EQ(engine.status().pages_pinned, 0);
}

// Each strategy for window rows, across a restart: the same answer, and what it costs in tokens.
TEST(Engine, ARestartedEngineContinuesFromDisk) {
  const std::vector<TokenId> shared = prompt(700, 31);
  std::vector<TokenId> longer = shared;
  const std::vector<TokenId> more = prompt(40, 32);
  longer.insert(longer.end(), more.begin(), more.end());
  const EngineOptions options{.draft_tokens = 0};
  const cache::KvLayout layout(tiny().config, options.numerics, options.page_tokens, 0);
  for (const auto strategy : {cache::WindowStrategy::full, cache::WindowStrategy::periodic,
                              cache::WindowStrategy::zero}) {
    const test::ScratchDirectory scratch(cache::to_string(strategy));
    const cache::DiskStoreOptions disk_options{
        .fingerprint = "tiny", .strategy = strategy, .min_free_bytes = 0};
    {
      cache::DiskStore disk(FileSystem::real(), scratch.path(), layout, disk_options);
      Engine engine(runtime(), tiny(), options, nullptr, &disk);
      Request first = make_request("first", shared, 5);
      engine.submit(first);
      sink_of(first)->wait();
    }
    cache::DiskStore disk(FileSystem::real(), scratch.path(), layout, disk_options);
    Engine engine(runtime(), tiny(), options, nullptr, &disk);
    Request next = make_request("next", longer, 20);
    engine.submit(next);
    sink_of(next)->wait();
    EXPECT_EQ(sink_of(next)->answer(), alone(next)) << cache::to_string(strategy);
    // Six layers of 48 tokens each are run again without stored windows.
    EXPECT_EQ(sink_of(next)->stats().cached_tokens,
              strategy == cache::WindowStrategy::zero ? 256 : 640)
        << cache::to_string(strategy);
  }
}

// The goal for agents: what a turn reads again is less than a page, besides what is new.
TEST(Engine, TwentyRoundsReadLessThanAPageAgainEach) {
  Engine engine(runtime(), tiny(), {}, nullptr);
  std::vector<TokenId> text = prompt(260, 20);
  for (unsigned round = 0; round < 20; ++round) {
    Request r = make_request("round" + std::to_string(round), text, 21, 1.0f, round);
    engine.submit(r);
    sink_of(r)->wait();
    if (round > 0) {
      const std::int64_t known = static_cast<std::int64_t>(text.size()) - 11;
      EXPECT_GE(sink_of(r)->stats().cached_tokens, known - 128) << round;
    }
    const std::vector<TokenId> answer = sink_of(r)->answer().tokens;
    text.insert(text.end(), answer.begin(), answer.end());
    const std::vector<TokenId> result = prompt(11, 1000 + round);
    text.insert(text.end(), result.begin(), result.end());
  }
}

TEST(Engine, RefusesWhatCanNeverRun) {
  Engine engine(runtime(), tiny(), {}, nullptr);
  const auto refusal = [&](Request r) {
    try {
      engine.submit(std::move(r));
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::invalid_argument);
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_THAT(refusal(make_request("a", {}, 5)), HasSubstr("empty"));
  EXPECT_THAT(refusal(make_request("a", {1, 999999}, 5)), HasSubstr("vocabulary"));
  EXPECT_THAT(refusal(make_request("a", prompt(1U << 20, 1), 5)), HasSubstr("context"));
  Request r = make_request("a", {1}, 5);
  r.n_choices = 0;
  EXPECT_THAT(refusal(r), HasSubstr("n is 0"));
  r = make_request("a", {1}, 5);
  r.sampling.top_p = 0;
  EXPECT_THAT(refusal(r), HasSubstr("top_p"));
  r = make_request("a", {1}, 5);
  r.preamble_tokens = 2;
  EXPECT_THAT(refusal(r), HasSubstr("preamble_tokens is 2"));
  EXPECT_THROW(Engine(runtime(), tiny(), {.pinned_share = 1.5}, nullptr), Error);
  EXPECT_THROW(Engine(runtime(), tiny(), {.kv_bytes = 1}, nullptr), Error);
  EXPECT_THROW(Engine(runtime(), tiny(), {.max_running = 0}, nullptr), Error);
}

TEST(Engine, ANameInUseIsAnErrorOfTheSecond) {
  Engine engine(runtime(), tiny(), {}, nullptr);
  Request first = make_request("same", prompt(30, 1), 60),
          second = make_request("same", prompt(30, 2), 5);
  engine.submit(first);
  engine.submit(second);
  sink_of(second)->wait();
  EXPECT_EQ(sink_of(second)->answer().finish->reason, FinishReason::error);
  EXPECT_THAT(sink_of(second)->answer().finish->error, HasSubstr("under way"));
  sink_of(first)->wait();
  EXPECT_EQ(sink_of(first)->answer(), alone(first));
}

TEST(Engine, TheLogHasEveryTokenBeforeAnyoneSeesIt) {
  struct Log final : TokenLog {
    void commit(std::span<const Token> tokens, std::span<const Closed> closed,
                std::function<void()> publish) override {
      for (const Token& t : tokens) logged[*t.stream].push_back(t.event->token);
      n_closed += closed.size();
      held.push_back(std::move(publish));
      if (held.size() < 3) return;  // as a journal that is behind
      for (auto& p : held) p();
      held.clear();
    }
    std::map<std::string, std::vector<TokenId>> logged;
    std::vector<std::function<void()>> held;
    std::size_t n_closed = 0;
  } log;
  Request a = make_request("a", prompt(30, 1), 30), b = make_request("b", prompt(130, 2), 30);
  {
    Engine engine(runtime(), tiny(), {}, &log);
    engine.submit(a);
    engine.submit(b);
    sink_of(a)->wait_for_tokens(20);
    while (engine.status().n_running > 0) std::this_thread::yield();
  }
  for (auto& p : log.held) p();
  EXPECT_EQ(log.n_closed, 2U);
  EXPECT_EQ(log.logged["a"], sink_of(a)->answer().tokens);
  EXPECT_EQ(log.logged["b"], sink_of(b)->answer().tokens);
  EXPECT_EQ(sink_of(a)->answer(), alone(a));
}

}  // namespace
}  // namespace hadal::engine
