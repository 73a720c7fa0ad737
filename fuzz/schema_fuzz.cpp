// Any text as a schema: compiled or refused with a sentence, within a budget; and what is compiled
// never gets stuck on a walk.
//
// The first byte: bit 0 is strict, the rest seeds the walk. What follows is the schema.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/rng.h"
#include "grammar/matcher.h"
#include "grammar/schema.h"
#include "io/byte_alphabet.h"

namespace {

using namespace hadal;
using namespace hadal::grammar;

// All bytes, and longer tokens that cross what a grammar keeps apart.
const std::shared_ptr<const TokenTrie>& trie() {
  static const auto made = [] {
    nlohmann::json vocab;
    int id = 0;
    for (; id < 256; ++id) vocab[io::spelling_of_byte(static_cast<unsigned char>(id))] = id;
    for (const char* text : {"{\"", "\":", "\",\"", "\"}", "]}", "[[", "},{", "null", "1,", "e1"}) {
      vocab[text] = id++;
    }
    const nlohmann::json json = {
        {"version", "1.0"},
        {"added_tokens", nlohmann::json::array()},
        {"normalizer", nullptr},
        {"pre_tokenizer",
         {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
        {"decoder", {{"type", "ByteLevel"}}},
        {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
    return std::make_shared<const TokenTrie>(io::Tokenizer::parse(json.dump()));
  }();
  return made;
}

std::shared_ptr<const Grammar> compile(std::string_view schema, SchemaMode mode) {
  GrammarBuilder builder({}, {.max_states = 20000, .max_time = std::chrono::seconds(2)});
  const JsonRules json = add_json_rules(builder, "");
  SchemaCompiler compiler(builder, json, schema, mode);
  const std::vector<RuleId> all = compiler.root().all();
  (void)compiler.root();
  compiler.finish();
  const StateId start = builder.state(), end = builder.state();
  builder.accept(end);
  builder.call(start, all, end);
  const RuleId root = builder.rule();
  builder.set_rule(root, {.start = start, .needs = {{.rules = all, .required = true}}});
  return std::make_shared<const Grammar>(builder.finish(std::vector{root}), std::vector{root},
                                         trie());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  const std::string_view schema(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::shared_ptr<const Grammar> grammar;
  try {
    grammar = compile(schema, (data[0] & 1U) != 0 ? SchemaMode::strict : SchemaMode::tolerant);
  } catch (const Error& e) {
    HADAL_CHECK(e.code == ErrorCode::invalid_argument || e.code == ErrorCode::unsupported);
    return 0;
  }
  Rng rng(data[0]);
  Matcher matcher(grammar, grammar->root());
  TokenMask mask(trie()->vocab_size());
  for (int n = 0; n < 100; ++n) {
    matcher.fill(mask);
    std::vector<TokenId> allowed;
    for (TokenId id = 0; id < mask.vocab_size(); ++id) {
      if (mask.allows(id)) allowed.push_back(id);
    }
    HADAL_CHECK(!allowed.empty() || matcher.complete());
    if (allowed.empty()) break;
    const auto i = rng.next_below(static_cast<std::uint32_t>(allowed.size()));
    HADAL_CHECK(matcher.accept(allowed[i]));
  }
  return 0;
}
