// Encoding and decoding speed in bytes of text a second, on one core.
#include <benchmark/benchmark.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/rng.h"
#include "io/tokenizer.h"

namespace hadal::io {
namespace {

const Tokenizer& bootstrap() {
  // Beside the sources, so that the bench runs from anywhere in a build tree.
  static const Tokenizer tokenizer =
      Tokenizer::load(std::filesystem::path(__FILE__).parent_path().parent_path().parent_path() /
                      "models/hadal-bootstrap/tokenizer.json");
  return tokenizer;
}

enum class Prose : std::uint8_t { english, code, chinese };

// `n_words` words, some frequent and most rare, as in a real text.
std::string make_text(Prose prose, int n_words) {
  static const std::vector<std::string> kWords[] = {
      {"the ",
       "of ",
       "and ",
       "a ",
       "to ",
       "in ",
       "is ",
       "that ",
       "it ",
       "was ",
       "for ",
       "on ",
       "are ",
       "with ",
       "as ",
       "I ",
       "his ",
       "they ",
       "be ",
       "at ",
       "one ",
       "have ",
       "this ",
       "language ",
       "model, ",
       "attention ",
       "compressed. ",
       "Unfortunately, ",
       "hyperbolic ",
       "1984; ",
       "don't ",
       "\"quoted\" ",
       "state-of-the-art ",
       "internationalisation ",
       "end.\n\n"},
      {"if (",  "x",       " == ",     "nullptr",  ") {\n",  "    ",     "return ",
       "std::", "vector<", "int",      "> ",       "count_", " += ",     "0x1F",
       ";\n",   "}\n",     "// why\n", "\"text\"", "->",     "operator", "[i]"},
      {"的", "是", "我们", "中国", "语言", "模型", "，", "。", "在", "了", "注意力", "压缩",
       "2024年", "一个", "\n", "DeepSeek", "カタカナ"}};
  const auto& words = kWords[static_cast<std::size_t>(prose)];
  Rng rng(17);
  std::string text;
  for (int i = 0; i < n_words; ++i) {
    text += words[rng.next_below(static_cast<std::uint32_t>(words.size()))];
    // One word in eight is one nobody has seen before.
    if (prose == Prose::english && rng.next_below(8) == 0) {
      for (std::uint32_t n = 3 + rng.next_below(8); n > 0; --n) {
        text += static_cast<char>('a' + rng.next_below(26));
      }
      text += ' ';
    }
  }
  return text;
}

void encode(benchmark::State& state, Prose prose) {
  const std::string text = make_text(prose, static_cast<int>(state.range(0)));
  for (auto _ : state) benchmark::DoNotOptimize(bootstrap().encode(text));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(text.size()));
}
BENCHMARK_CAPTURE(encode, english, Prose::english)->ArgName("words")->Arg(100)->Arg(1'000'000);
BENCHMARK_CAPTURE(encode, code, Prose::code)->ArgName("words")->Arg(100)->Arg(1'000'000);
BENCHMARK_CAPTURE(encode, chinese, Prose::chinese)->ArgName("words")->Arg(100)->Arg(1'000'000);

// One piece that no pattern cuts: the long way of BPE.
void encode_one_piece(benchmark::State& state) {
  const std::string text(static_cast<std::size_t>(state.range(0)), ' ');
  for (auto _ : state) benchmark::DoNotOptimize(bootstrap().encode(text));
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(encode_one_piece)->ArgName("bytes")->Arg(64)->Arg(1 << 10)->Arg(1 << 20);

void decode(benchmark::State& state) {
  const auto ids = bootstrap().encode(make_text(Prose::english, 100'000));
  std::size_t nbytes = 0;
  for (auto _ : state) nbytes += bootstrap().decode(ids).size();
  state.SetBytesProcessed(static_cast<std::int64_t>(nbytes));
}
BENCHMARK(decode);

}  // namespace
}  // namespace hadal::io
