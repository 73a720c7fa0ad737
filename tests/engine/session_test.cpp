// Generation: the same tokens whatever the drafts, the chunks and the interruptions.
#include "engine/generate.h"

#include <gtest/gtest.h>

#include <random>

namespace hadal::engine {
namespace {

const LoadedModel& tiny() {
  static const auto loaded = load_model(HADAL_TEST_DATA_DIR "/golden/official-tiny");
  return *loaded;
}

std::vector<TokenId> prompt(std::size_t n, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<TokenId> ids(n);
  for (TokenId& id : ids) id = static_cast<TokenId>(rng() % 256);
  return ids;
}

struct Outcome {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  SessionStats stats;
};

Outcome run_request(const GenerationRequest& request, const SessionOptions& options) {
  Runtime runtime(2);
  Session session(runtime, tiny(), options);
  const GenerationResult result = generate(session, request, nullptr);
  Outcome out;
  for (const SampledToken& t : result.tokens) {
    out.tokens.push_back(t.token), out.logprobs.push_back(t.logprob);
  }
  out.stats = session.stats();
  return out;
}

GenerationRequest request(float temperature) {
  return {.prompt = prompt(61, 3),
          .sampling = {.temperature = temperature, .seed = 99},
          .max_tokens = 80,
          .stop_tokens = {}};
}

TEST(Session, DraftsNeverChangeTheText) {
  for (const float temperature : {0.0f, 0.7f, 1.0f}) {
    const Outcome plain = run_request(request(temperature), {});
    ASSERT_EQ(plain.tokens.size(), 80U);
    for (const std::int64_t drafts : {1, 2, 4}) {
      const Outcome drafted = run_request(request(temperature), {.draft_tokens = drafts});
      EXPECT_EQ(drafted.tokens, plain.tokens) << drafts << " drafts, temperature " << temperature;
      EXPECT_EQ(drafted.logprobs, plain.logprobs);
      EXPECT_GT(drafted.stats.drafted_tokens, 0);
    }
  }
}

TEST(Session, DraftsNeverChangeTheTextUnderPenalties) {
  GenerationRequest r = request(0.8f);
  r.sampling.repetition_penalty = 1.3f;
  r.sampling.frequency_penalty = 0.5f;
  r.sampling.presence_penalty = 0.3f;
  r.sampling.top_p = 0.9f;
  r.sampling.logit_bias = {{5, 2.0f}, {9, -1.0f}};
  EXPECT_EQ(run_request(r, {.draft_tokens = 3}).tokens, run_request(r, {}).tokens);
}

// Random weights draft badly, so a bias leaves two tokens to choose from: draft and target share
// their noise and often agree. Accepted, rejected and fully accepted runs all occur.
TEST(Session, AcceptedDraftsSaveStepsAndChangeNothing) {
  GenerationRequest r = request(1.0f);
  r.sampling.logit_bias = {{5, 60.0f}, {9, 60.0f}};
  r.max_tokens = 200;
  const Outcome plain = run_request(r, {});
  for (const std::int64_t drafts : {1, 2, 4}) {
    const Outcome drafted = run_request(r, {.draft_tokens = drafts});
    EXPECT_EQ(drafted.tokens, plain.tokens);
    EXPECT_EQ(drafted.logprobs, plain.logprobs);
    EXPECT_GT(drafted.stats.accepted_drafts, 50);
    EXPECT_GT(drafted.stats.drafted_tokens, drafted.stats.accepted_drafts);
    EXPECT_LT(drafted.stats.decode_steps, 150);
  }
}

TEST(Session, ChunksDoNotChangeTheText) {
  const Outcome whole = run_request(request(1.0f), {});
  for (const std::int64_t chunk : {1, 7, 32}) {
    EXPECT_EQ(run_request(request(1.0f), {.prefill_chunk = chunk}).tokens, whole.tokens);
    EXPECT_EQ(run_request(request(1.0f), {.prefill_chunk = chunk, .draft_tokens = 2}).tokens,
              whole.tokens);
  }
}

// Whoever resumes at a token index draws what an uninterrupted run would.
TEST(Session, ResumesAtAnyIndex) {
  const Outcome whole = run_request(request(1.0f), {});
  for (const std::size_t cut : {1U, 17U, 79U}) {
    Runtime runtime(1);
    Session session(runtime, tiny(), {});
    std::vector<TokenId> text = prompt(61, 3);
    text.insert(text.end(), whole.tokens.begin(),
                whole.tokens.begin() + static_cast<std::ptrdiff_t>(cut));
    session.set_prompt(text);
    Sampler sampler({.seed = 99}, 256);
    std::vector<TokenId> rest;
    while (rest.size() + cut < 80) {
      for (const SampledToken& t :
           session.step(sampler, static_cast<std::int64_t>(cut + rest.size()))) {
        rest.push_back(t.token);
      }
    }
    EXPECT_TRUE(std::equal(rest.begin(), rest.end(),
                           whole.tokens.begin() + static_cast<std::ptrdiff_t>(cut)));
  }
}

// A second turn continues from the history of the first, with the same result as from scratch.
TEST(Session, ContinuesAConversationFromItsHistory) {
  for (const std::int64_t drafts : {0, 2}) {
    Runtime runtime(2);
    Session session(runtime, tiny(), {.draft_tokens = drafts});
    GenerationRequest first = request(1.0f);
    first.max_tokens = 20;
    (void)generate(session, first, nullptr);
    GenerationRequest second = request(1.0f);
    second.prompt = session.tokens();
    const std::vector<TokenId> more = prompt(9, 7);
    second.prompt.insert(second.prompt.end(), more.begin(), more.end());
    const std::int64_t before = session.stats().prefilled_tokens;
    const GenerationResult continued = generate(session, second, nullptr);
    EXPECT_LE(session.stats().prefilled_tokens - before, 9 + 1);
    const Outcome scratch = run_request(second, {});
    ASSERT_EQ(continued.tokens.size(), scratch.tokens.size());
    for (std::size_t i = 0; i < scratch.tokens.size(); ++i) {
      ASSERT_EQ(continued.tokens[i].token, scratch.tokens[i]) << "drafts " << drafts;
    }
  }
}

TEST(Session, StopTokensEndTheAnswerAlsoInsideADraft) {
  const Outcome free = run_request(request(1.0f), {});
  GenerationRequest r = request(1.0f);
  r.stop_tokens = {free.tokens[10]};
  const auto first = std::find(free.tokens.begin(), free.tokens.end(), free.tokens[10]);
  for (const std::int64_t drafts : {0, 3}) {
    Runtime runtime(2);
    Session session(runtime, tiny(), {.draft_tokens = drafts});
    const GenerationResult result = generate(session, r, nullptr);
    EXPECT_EQ(result.reason, FinishReason::stop);
    EXPECT_EQ(result.stop_token, free.tokens[10]);
    EXPECT_EQ(static_cast<std::ptrdiff_t>(result.tokens.size()), first - free.tokens.begin());
    EXPECT_EQ(session.tokens().back(), free.tokens[10]);
  }
}

TEST(Session, CallbackEndsTheAnswerAndTheNextStepContinues) {
  const Outcome free = run_request(request(1.0f), {});
  for (const std::int64_t drafts : {0, 3}) {
    Runtime runtime(2);
    Session session(runtime, tiny(), {.draft_tokens = drafts});
    int n = 0;
    (void)generate(session, request(1.0f), [&](const SampledToken&) { return ++n < 5; });
    Sampler sampler({.seed = 99}, 256);
    EXPECT_EQ(session.step(sampler, 5).front().token, free.tokens[5]);
  }
}

TEST(Session, RefusesWhatItCannotRun) {
  Runtime runtime(1);
  Session session(runtime, tiny(), {});
  EXPECT_THROW(session.set_prompt({}), Error);
  const std::vector<TokenId> outside = {1, 256};
  EXPECT_THROW(session.set_prompt(outside), Error);
  const std::vector<TokenId> longer(1025, 1);
  try {
    session.set_prompt(longer);
    FAIL() << "a prompt beyond the context was accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "the prompt has 1025 tokens, the model's context 1024; shorten the prompt");
  }
  // And it is as usable as before.
  session.set_prompt(prompt(5, 1));
}

TEST(Session, StopsWhenTheContextIsFull) {
  for (const std::int64_t drafts : {0, 3}) {
    GenerationRequest r = request(1.0f);
    r.prompt = prompt(1000, 8);
    r.max_tokens = 0;
    const Outcome filled = run_request(r, {.draft_tokens = drafts});
    EXPECT_EQ(filled.tokens.size(), 24U);
  }
}

TEST(Session, CancelKeepsTheSessionUsable) {
  Runtime runtime(1);
  Session session(runtime, tiny(), {.prefill_chunk = 8});
  std::atomic<bool> cancel{false};
  GenerationRequest r = request(1.0f);
  r.cancel = &cancel;
  int chunks = 0;
  const GenerationResult result = generate(session, r, nullptr, [&](std::int64_t, std::int64_t) {
    if (++chunks == 3) cancel = true;
    return true;
  });
  EXPECT_EQ(result.reason, FinishReason::cancelled);
  cancel = false;
  const GenerationResult again = generate(session, r, nullptr);
  const Outcome plain = run_request(request(1.0f), {});
  ASSERT_EQ(again.tokens.size(), plain.tokens.size());
  EXPECT_EQ(again.tokens.back().token, plain.tokens.back());
}

TEST(StopStrings, HoldsBackOnlyWhatMayBecomeAStop) {
  StopStrings stops({"END", "\n\n"});
  EXPECT_EQ(stops.feed("abcE"), "abc");
  EXPECT_EQ(stops.feed("N"), "");
  EXPECT_EQ(stops.feed("x\n"), "ENx");
  EXPECT_EQ(stops.feed("y"), "\ny");
  EXPECT_EQ(stops.feed("zENDtail"), "z");
  EXPECT_TRUE(stops.stopped());
  EXPECT_EQ(stops.finish(), "");
}

TEST(StopStrings, EveryByteSplitGivesTheSameText) {
  const std::string text = "one EEN two \nEND three";
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    StopStrings stops({"END"});
    std::string out = stops.feed(text.substr(0, cut));
    out += stops.feed(text.substr(cut));
    out += stops.finish();
    EXPECT_EQ(out, "one EEN two \n");
  }
}

}  // namespace
}  // namespace hadal::engine
