// What a token mask costs at the vocabulary of the full model: remembered, pieced together, and for
// a state that is met for the first time.
#include <benchmark/benchmark.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_set>
#include <vector>

#include "core/rng.h"
#include "grammar/grammar_cache.h"
#include "grammar/matcher.h"
#include "grammar/schema.h"
#include "io/byte_alphabet.h"

namespace hadal::grammar {
namespace {

constexpr std::size_t kVocabulary = 129280;

// Words with and without a blank before them, numbers, and runs of punctuation as code and JSON
// have them: like the real vocabulary in what matters here, shared beginnings and quotes inside.
const io::Tokenizer& wide_tokenizer() {
  static const io::Tokenizer made = [] {
    nlohmann::json vocab;
    std::unordered_set<std::string> known;
    const auto add = [&](const std::string& bytes) {
      if (known.size() >= kVocabulary || !known.insert(bytes).second) return;
      std::string spelling;
      for (const char c : bytes) spelling += io::spelling_of_byte(static_cast<unsigned char>(c));
      vocab[spelling] = known.size() - 1;
    };
    for (int byte = 0; byte < 256; ++byte) add(std::string(1, static_cast<char>(byte)));
    Rng rng(1);
    const std::string punctuation = "\"\"\":,,{}[]()<>/\\ \n=;.'";
    while (known.size() < kVocabulary) {
      std::string token;
      const std::uint32_t kind = rng.next_below(100);
      if (kind < 4) {
        for (std::uint32_t i = 0; i < 1 + rng.next_below(4); ++i) {
          token += punctuation[rng.next_below(static_cast<std::uint32_t>(punctuation.size()))];
        }
      } else if (kind < 6) {
        token = std::to_string(rng.next_below(1000));
      } else if (kind < 40) {
        const std::uint32_t first = 0x4E00 + rng.next_below(0x5000);
        for (std::uint32_t c = first; c < first + 1 + rng.next_below(3); ++c) {
          token += static_cast<char>(0xE0 | c >> 12);
          token += static_cast<char>(0x80 | (c >> 6 & 0x3F));
          token += static_cast<char>(0x80 | (c & 0x3F));
        }
      } else {
        if (rng.next_below(2) == 0) token = " ";
        const std::uint32_t n = 2 + rng.next_below(8);
        for (std::uint32_t i = 0; i < n; ++i) {
          token += "etaoinshrdlcum"[rng.next_below(rng.next_below(3) == 0 ? 14 : 6)];
        }
      }
      add(token);
    }
    const nlohmann::json json = {
        {"version", "1.0"},
        {"added_tokens", nlohmann::json::array()},
        {"normalizer", nullptr},
        {"pre_tokenizer",
         {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
        {"decoder", {{"type", "ByteLevel"}}},
        {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
    return io::Tokenizer::parse(json.dump());
  }();
  return made;
}

GrammarCache& cache() {
  static GrammarCache made(wide_tokenizer());
  return made;
}

const CommonRules& common() {
  return cache().common(
      {.before = "</", .mark = "|DSML|", .after = "parameter>", .mark_token = std::nullopt});
}

constexpr const char* kSchema =
    R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0,
        "maximum":150},"tags":{"type":"array","items":{"type":"string"}},"short":{"type":"string",
        "maxLength":80},"child":{"$ref":"#"},"kind":{"enum":["one","two","three"]}},
        "required":["name","age"],"additionalProperties":false})";

std::shared_ptr<const Grammar> compile() {
  GrammarBuilder builder(common().grammar->tables());
  SchemaCompiler compiler(builder, common().json, kSchema, SchemaMode::strict);
  const std::vector<RuleId> all = compiler.root().all();
  compiler.finish();
  return std::make_shared<const Grammar>(builder.finish(all), all, cache().trie(),
                                         common().grammar);
}

// Places in a text of the schema.
const std::vector<std::string> kPlaces{
    "{",                                                 // before a key
    R"({"na)",                                           // inside a key
    R"({"name": ")",                                     // at a string's beginning
    R"({"name": "some text, and)",                       // inside a string
    R"({"name": "x", "age": 1)",                         // inside a number
    R"({"name": "x", "tags": ["a", "b)",                 // inside a string in an array
    R"({"child": {"child": {"name": "x", "age": 2}, )",  // between members, inside objects
    R"({"short": "some)",                                // a string of bounded length
};

void position(benchmark::State& state, Matcher& matcher) {
  const std::string& place = kPlaces[static_cast<std::size_t>(state.range(0))];
  state.SetLabel(place);
  if (!matcher.accept_text(place)) state.SkipWithError("the schema refuses this place");
}

void fill_remembered(benchmark::State& state) {
  const auto grammar = compile();
  Matcher matcher(grammar, grammar->root());
  position(state, matcher);
  TokenMask mask(wide_tokenizer().vocab_size());
  for (auto _ : state) {
    matcher.fill(mask);
    benchmark::DoNotOptimize(mask.words().data());
  }
}
BENCHMARK(fill_remembered)->DenseRange(0, 7)->Unit(benchmark::kMicrosecond);

// Another grammar of the same schema: its states are known, its masks are not.
void fill_pieced_together(benchmark::State& state) {
  const auto known = compile();
  {
    Matcher matcher(known, known->root());
    position(state, matcher);
    TokenMask mask(wide_tokenizer().vocab_size());
    matcher.fill(mask);
  }
  Stacks stacks(known->tables(), known->root());
  for (const char c : kPlaces[static_cast<std::size_t>(state.range(0))]) {
    (void)stacks.step(static_cast<unsigned char>(c));
  }
  stacks.commit();
  for (auto _ : state) benchmark::DoNotOptimize(known->compute_mask(stacks).data());
}
BENCHMARK(fill_pieced_together)->DenseRange(0, 7)->Unit(benchmark::kMicrosecond);

void fill_first(benchmark::State& state) {
  for (auto _ : state) {
    state.PauseTiming();
    const auto grammar = compile();
    Matcher matcher(grammar, grammar->root());
    position(state, matcher);
    TokenMask mask(wide_tokenizer().vocab_size());
    state.ResumeTiming();
    matcher.fill(mask);
    benchmark::DoNotOptimize(mask.words().data());
  }
}
BENCHMARK(fill_first)->DenseRange(0, 7)->Unit(benchmark::kMicrosecond)->Iterations(5);

// All positions of a string of bounded length, each for the first time: what an answer of that
// length pays, spread over its tokens.
void fill_along_a_bounded_string(benchmark::State& state) {
  for (auto _ : state) {
    state.PauseTiming();
    const auto grammar = compile();
    Matcher matcher(grammar, grammar->root());
    if (!matcher.accept_text(R"({"short": ")")) state.SkipWithError("refused");
    TokenMask mask(wide_tokenizer().vocab_size());
    state.ResumeTiming();
    for (int i = 0; i < 80; ++i) {
      matcher.fill(mask);
      benchmark::DoNotOptimize(mask.words().data());
      if (!matcher.accept_text("x")) state.SkipWithError("refused");
    }
  }
  state.SetLabel("80 characters");
}
BENCHMARK(fill_along_a_bounded_string)->Unit(benchmark::kMillisecond)->Iterations(3);

void accept_token(benchmark::State& state) {
  const auto grammar = compile();
  Matcher matcher(grammar, grammar->root());
  if (!matcher.accept_text(R"({"name": "x)")) state.SkipWithError("refused");
  for (auto _ : state) benchmark::DoNotOptimize(matcher.accept_text(" etao"));
}
BENCHMARK(accept_token);

void compile_schema(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(compile());
}
BENCHMARK(compile_schema)->Unit(benchmark::kMicrosecond);

void build_vocabulary(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(TokenTrie(wide_tokenizer()).nodes().data());
}
BENCHMARK(build_vocabulary)->Unit(benchmark::kMillisecond)->Iterations(2);

void common_masks(benchmark::State& state) {
  for (auto _ : state) {
    state.PauseTiming();
    GrammarCache fresh(wide_tokenizer());
    state.ResumeTiming();
    benchmark::DoNotOptimize(&fresh.common(
        {.before = "</", .mark = "|DSML|", .after = "parameter>", .mark_token = std::nullopt}));
  }
}
BENCHMARK(common_masks)->Unit(benchmark::kMillisecond)->Iterations(2);

}  // namespace
}  // namespace hadal::grammar
