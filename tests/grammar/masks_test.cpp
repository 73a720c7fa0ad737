// Masks that are pieced together from what is remembered say what trying every token would.
#include "grammar/masks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <span>
#include <thread>

#include "core/error.h"
#include "grammar/walk.h"

namespace hadal::grammar {
namespace {

using ::testing::ElementsAre;

std::vector<TokenId> tried(const Matcher& matcher) {
  std::vector<TokenId> ids;
  for (TokenId id = 0; id < bootstrap_tokenizer().vocab_size(); ++id) {
    Matcher copy = matcher;
    if (copy.accept(id)) ids.push_back(id);
  }
  return ids;
}

std::set<TokenId> tokens_of(std::span<const TrieNode> nodes) {
  std::set<TokenId> ids;
  for (const TrieNode& node : nodes) {
    if (node.token >= 0) ids.insert(node.token);
  }
  return ids;
}

TEST(TokenTrie, HasEveryTokenInPreorder) {
  const auto nodes = build_trie({{"ab", 1}, {"a", 2}, {"b", 3}, {"ab", 4}, {"abc", 5}, {"xy", 6}});
  std::vector<std::pair<std::string, TokenId>> found;
  std::string path;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    path.resize(nodes[i].depth);
    path += static_cast<char>(nodes[i].byte);
    if (nodes[i].token >= 0) found.emplace_back(path, nodes[i].token);
    ASSERT_GT(nodes[i].skip, i);
    std::uint32_t longest = 0;
    for (std::size_t below = i; below < nodes[i].skip; ++below) {
      if (nodes[below].token >= 0) longest = nodes[below].depth + 1U;
    }
    EXPECT_GE(nodes[i].longest, longest);
    EXPECT_LE(nodes[i].longest, 3U);
    if (nodes[i].skip < nodes.size()) {
      EXPECT_LE(nodes[nodes[i].skip].depth, nodes[i].depth);
    }
  }
  EXPECT_THAT(found, ElementsAre(std::pair{"a", 2}, std::pair{"ab", 1}, std::pair{"ab", 4},
                                 std::pair{"abc", 5}, std::pair{"b", 3}, std::pair{"xy", 6}));
}

TEST(Masks, AreWhatTryingEveryTokenSays) {
  const char* schemas[] = {
      "true",
      R"({"type":"object","properties":{"name":{"type":"string"},"n":{"type":"integer",
          "minimum":-5,"maximum":1200},"nest":{"$ref":"#"}},"required":["name"],
          "additionalProperties":false})",
      R"({"anyOf":[{"type":"object","properties":{"a":{"type":"array","items":{"type":"null"}}},
          "required":["a"]},{"type":"object","properties":{"a":{"type":"array","items":
          {"type":"string","maxLength":3}}}},{"enum":["a","ab","b\"c",1,true,[1,{"x":"y"}]]}]})"};
  for (const char* schema : schemas) {
    const auto grammar = schema_grammar(schema);
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      Rng rng(seed + 77);
      Matcher matcher(grammar, grammar->root());
      TokenMask mask(bootstrap_tokenizer().vocab_size());
      for (std::size_t n = 0; n < 24; ++n) {
        matcher.fill(mask);
        const std::vector<TokenId> allowed = allowed_tokens(mask);
        if (n % 3 == seed) {
          ASSERT_EQ(allowed, tried(matcher)) << schema << " step " << n;
        }
        if (allowed.empty()) break;
        ASSERT_TRUE(matcher.accept(pick(allowed, n < 5 ? 0 : 100, rng)));
      }
    }
  }
}

// Before every token, near the bounds and far from them: a mask that is taken over from unbounded
// strings says what the state's own would.
TEST(Masks, OfBoundedStringsAreThoseOfTheirOwnStates) {
  const char* schemas[] = {
      R"({"type":"string","maxLength":1})",
      R"({"type":"string","maxLength":9})",
      R"({"type":"string","maxLength":40})",
      R"({"type":"string","minLength":12})",
      R"({"type":"string","minLength":5,"maxLength":30})",
      R"({"type":"array","items":{"type":"string","minLength":2,"maxLength":12}})"};
  std::size_t n_bounded = 0;
  for (const char* schema : schemas) {
    const auto grammar = schema_grammar(schema);
    const Tables& tables = grammar->tables();
    n_bounded += tables.bounded.size();
    for (const BoundedState& bounded : tables.bounded) {
      const auto told = grammar->state_mask(bounded.state),
                 like = grammar->state_mask(bounded.like);
      // Without the hint.
      Tables plain = tables;
      plain.bounded.clear();
      const Grammar own(std::move(plain), {grammar->root()}, bootstrap_cache().trie(),
                        common_rules().grammar);
      const auto expected = own.state_mask(bounded.state);
      ASSERT_EQ(told->allowed, expected->allowed) << schema << " " << bounded.n_bytes;
      ASSERT_EQ(told->few, expected->few) << schema << " " << bounded.n_bytes;
      ASSERT_EQ(tokens_of(told->dependent), tokens_of(expected->dependent)) << schema;
      const bool is_far =
          bounded.may_end && bounded.n_bytes >= bootstrap_cache().trie()->longest_token();
      EXPECT_EQ(told == like, is_far);
    }
  }
  EXPECT_GT(n_bounded, 500U);
}

// A walk comes to a string's bound with tokens of every length, characters of several bytes and
// escapes among them.
TEST(Masks, OfBoundedStringsAreWhatTryingEveryTokenSays) {
  const auto grammar = schema_grammar(R"({"type":"string","minLength":6,"maxLength":20})");
  const std::string_view text = "\"a\u00e9\xF0\x9F\x98\x80 \\n\\u0041 w\xC3\xA9 1234567890";
  Matcher matcher(grammar, grammar->root());
  TokenMask mask(bootstrap_tokenizer().vocab_size());
  for (const char byte : text) {
    ASSERT_TRUE(matcher.accept_text(std::string_view(&byte, 1)));
    matcher.fill(mask);
    ASSERT_EQ(allowed_tokens(mask), tried(matcher)) << text.substr(0, 20);
  }
  EXPECT_EQ(allowed_tokens(mask).size(), 1U);  // only the quote is left
}

TEST(Masks, AreRightWhereNestingRunsOut) {
  const auto grammar = schema_grammar("true");
  TokenMask mask(bootstrap_tokenizer().vocab_size());
  for (const std::size_t depth : {62, 63, 64, 65}) {
    Matcher matcher(grammar, grammar->root());
    ASSERT_TRUE(matcher.accept_text(std::string(depth, '[')));
    matcher.fill(mask);
    EXPECT_EQ(allowed_tokens(mask), tried(matcher)) << depth;
  }
}

TEST(Masks, ForbidEveryAddedTokenInText) {
  const auto grammar = schema_grammar(R"({"type":"string"})");
  Matcher matcher(grammar, grammar->root());
  ASSERT_TRUE(matcher.accept_text("\"x"));
  TokenMask mask(bootstrap_tokenizer().vocab_size());
  matcher.fill(mask);
  for (TokenId id = 0; id < bootstrap_tokenizer().vocab_size(); ++id) {
    EXPECT_FALSE(bootstrap_tokenizer().is_added(id) && mask.allows(id)) << id;
  }
  EXPECT_TRUE(mask.allows(*bootstrap_tokenizer().token_id("\"")));
}

TEST(Matcher, CopiesGoTheirOwnWays) {
  const auto grammar = schema_grammar(R"({"enum":["left","right"]})");
  Matcher one(grammar, grammar->root());
  ASSERT_TRUE(one.accept_text("\""));
  Matcher other = one;
  ASSERT_TRUE(one.accept_text("left\""));
  EXPECT_TRUE(one.complete());
  EXPECT_FALSE(other.complete());
  ASSERT_TRUE(other.accept_text("right\""));
  EXPECT_TRUE(other.complete());
}

TEST(Masks, MayBeAskedForByManyThreads) {
  const auto grammar = schema_grammar(
      R"({"type":"array","items":{"type":"object","properties":{"a":{"type":"string"},
          "b":{"type":"number"}},"additionalProperties":false}})");
  std::vector<std::string> texts(4);
  std::vector<std::thread> threads;
  for (std::string& text : texts) {
    threads.emplace_back([&] { text = walk(grammar, 5); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& text : texts) EXPECT_EQ(text, texts.front());
}

TEST(GrammarCache, KeepsWhatIsUsed) {
  GrammarCache cache(bootstrap_tokenizer(), 2);
  int n_made = 0;
  const auto get = [&](const std::string& key) {
    return cache.get(key, [&] {
      ++n_made;
      return common_rules().grammar;
    });
  };
  (void)get("a"), (void)get("b"), (void)get("a");
  EXPECT_EQ(n_made, 2);
  (void)get("c");  // b goes
  (void)get("a");
  EXPECT_EQ(n_made, 3);
  (void)get("b");
  EXPECT_EQ(n_made, 4);
  EXPECT_EQ(cache.size(), 2U);
  EXPECT_THROW((void)cache.get("d",
                               []() -> std::shared_ptr<const Grammar> {
                                 throw Error(ErrorCode::invalid_argument, "no");
                               }),
               Error);
  EXPECT_EQ(cache.size(), 2U);
}

}  // namespace
}  // namespace hadal::grammar
