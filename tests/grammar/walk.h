// Texts drawn from a grammar by a model that finds every allowed token equally likely.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/rng.h"
#include "grammar/grammar_cache.h"
#include "grammar/matcher.h"
#include "grammar/schema.h"

namespace hadal::grammar {

inline const io::Tokenizer& bootstrap_tokenizer() {
  static const io::Tokenizer tokenizer =
      io::Tokenizer::load(HADAL_SOURCE_DIR "/models/hadal-bootstrap/tokenizer.json");
  return tokenizer;
}

inline GrammarCache& bootstrap_cache() {
  static GrammarCache cache(bootstrap_tokenizer());
  return cache;
}

inline const CommonRules& common_rules() {
  return bootstrap_cache().common({.before = "</",
                                   .mark = "｜DSML｜",
                                   .after = "parameter>",
                                   .mark_token = bootstrap_tokenizer().token_id("｜DSML｜")});
}

// A grammar of one schema, whose root(0) reads it.
inline std::shared_ptr<const Grammar> schema_grammar(std::string_view schema,
                                                     SchemaMode mode = SchemaMode::strict,
                                                     GrammarBudget budget = {}) {
  const CommonRules& common = common_rules();
  GrammarBuilder builder(common.grammar->tables(), budget);
  SchemaCompiler compiler(builder, common.json, schema, mode);
  const ValueForms forms = compiler.root();
  compiler.finish();
  const StateId start = builder.state(), end = builder.state();
  builder.accept(end);
  const std::vector<RuleId> all = forms.all();
  builder.call(start, all, end);
  const RuleId root = builder.rule();
  builder.set_rule(root, {.start = start, .needs = {{.rules = all, .required = true}}});
  Tables tables = builder.finish(std::vector{root});
  return std::make_shared<const Grammar>(std::move(tables), std::vector{root},
                                         bootstrap_cache().trie(), common.grammar);
}

inline std::vector<TokenId> allowed_tokens(const TokenMask& mask) {
  std::vector<TokenId> ids;
  for (TokenId id = 0; id < mask.vocab_size(); ++id) {
    if (mask.allows(id)) ids.push_back(id);
  }
  return ids;
}

// Prefers what closes things, more and more, so that walks end.
inline TokenId pick(const std::vector<TokenId>& allowed, std::size_t n_drawn, Rng& rng) {
  const io::Tokenizer& tokenizer = bootstrap_tokenizer();
  if (n_drawn > 60 && (n_drawn > 400 || rng.next_below(3) == 0)) {
    for (const char* closing : {"\"", "}", "]", "null"}) {
      const auto id = tokenizer.token_id(closing);
      if (id && std::find(allowed.begin(), allowed.end(), *id) != allowed.end()) return *id;
    }
  }
  return allowed[rng.next_below(static_cast<std::uint32_t>(allowed.size()))];
}

// One whole text of the grammar; "" and a failure when the walk gets stuck or does not end.
inline std::string walk(const std::shared_ptr<const Grammar>& grammar, std::uint64_t seed) {
  Rng rng(seed);
  Matcher matcher(grammar, grammar->root());
  TokenMask mask(bootstrap_tokenizer().vocab_size());
  std::string text;
  for (std::size_t n = 0; n < 5000; ++n) {
    matcher.fill(mask);
    const std::vector<TokenId> allowed = allowed_tokens(mask);
    if (matcher.complete() && (allowed.empty() || n > 60 || rng.next_below(4) == 0)) return text;
    if (allowed.empty()) {
      ADD_FAILURE() << "stuck behind " << text;
      return "";
    }
    const TokenId id = pick(allowed, n, rng);
    text += bootstrap_tokenizer().token_bytes(id);
    if (!matcher.accept(id)) {
      ADD_FAILURE() << "an allowed token was refused behind " << text;
      return "";
    }
  }
  ADD_FAILURE() << "no end in sight: " << text.substr(0, 500);
  return "";
}

// Whether the whole text is one of the grammar's. Token by token, each must be in the mask of the
// one before if and only if it is accepted.
inline bool admits(const std::shared_ptr<const Grammar>& grammar, std::string_view text,
                   bool check_masks = true) {
  Matcher bytes(grammar, grammar->root());
  const bool by_bytes = bytes.accept_text(text) && bytes.complete();

  Matcher matcher(grammar, grammar->root());
  TokenMask mask(bootstrap_tokenizer().vocab_size());
  bool by_tokens = true;
  for (const TokenId id : bootstrap_tokenizer().encode(text, io::SpecialTokens::ignore)) {
    if (check_masks) matcher.fill(mask);
    by_tokens = matcher.accept(id);
    if (check_masks) {
      EXPECT_EQ(mask.allows(id), by_tokens)
          << bootstrap_tokenizer().token_bytes(id) << " in " << text;
    }
    if (!by_tokens) break;
  }
  by_tokens = by_tokens && matcher.complete();
  EXPECT_EQ(by_bytes, by_tokens) << text;
  return by_bytes;
}

}  // namespace hadal::grammar
