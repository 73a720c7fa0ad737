// Each subcommand does what its help says.
#include <nlohmann/json.hpp>

#include "command.h"
#include "io/safetensors.h"
#include "io/tokenizer.h"

namespace hadal::test {
namespace {

using Json = nlohmann::ordered_json;

Json json_of(const std::vector<std::string>& arguments) {
  const CommandResult r = hadal_command(arguments);
  EXPECT_EQ(r.status, 0) << r.err;
  return Json::parse(r.out, nullptr, false);
}

TEST(Tokenize, PrintsIdsThatTheTokenizerGives) {
  const auto tokenizer = io::Tokenizer::load(kBootstrap + "/tokenizer.json");
  const std::string text = "Grüße, <｜User｜> 3.14\n\tx\x01";
  EXPECT_EQ(json_of({"tokenize", "--json", text}).get<std::vector<TokenId>>(),
            tokenizer.encode(text));
  EXPECT_EQ(json_of({"tokenize", "--json", "--no-special", text}).get<std::vector<TokenId>>(),
            tokenizer.encode(text, io::SpecialTokens::ignore));
  const CommandResult table = hadal_command({"tokenize", "a\n<｜User｜>"});
  EXPECT_THAT(table.out, testing::HasSubstr("\"<｜User｜>\"  special"));
  EXPECT_THAT(table.out, testing::HasSubstr("\\n"));
  EXPECT_THAT(table.out, testing::HasSubstr("3 tokens\n"));
}

TEST(Tokenize, ReadsAJsonStringALine) {
  const ScratchDirectory scratch("texts");
  const auto tokenizer = io::Tokenizer::load(kBootstrap + "/tokenizer.json");
  const std::vector<std::string> texts = {"", "Hello", "two\nlines", "quote \" \\", "日本 \u2028"};
  std::string lines;
  for (const std::string& text : texts) lines += Json(text).dump() + "\n";
  const Path file = scratch / "texts.jsonl";
  write_text(file, lines);
  const CommandResult r = hadal_command({"tokenize", "--tokenizer", kBootstrap + "/tokenizer.json",
                                         "--input", file.string(), "--json"});
  EXPECT_EQ(r.status, 0) << r.err;
  std::string want;
  for (const std::string& text : texts) want += Json(tokenizer.encode(text)).dump() + "\n";
  EXPECT_EQ(r.out, want);

  write_text(scratch / "ids.jsonl", r.out);
  const CommandResult back = hadal_command(
      {"tokenize", "--decode", "--input", (scratch / "ids.jsonl").string(), "--json"});
  EXPECT_EQ(back.out, lines);

  write_text(file, "\"fine\"\nnot json\n");
  expect_refusal(hadal_command({"tokenize", "--input", file.string(), "--json"}),
                 "texts.jsonl:2: wanted one JSON string a line");
}

TEST(Tokenize, Decodes) {
  EXPECT_EQ(hadal_command({"tokenize", "--decode", "4731, 14\n223"}).out, "Hello, ");
  expect_refusal(hadal_command({"tokenize", "--decode", "4731 99999999"}), "99999999");
  expect_refusal(hadal_command({"tokenize", "--decode", "hello"}), "wanted token ids");
}

// The paper's abstract: 10 and 7 % of DeepSeek-V3.2 for Flash, 27 and 10 % for Pro, at 1M tokens.
// The 27 is 26.5 with the weights that reproduce the other three (see accounting.h).
TEST(Inspect, PrintsThePapersRatios) {
  const auto ratios = [](const char* config) {
    return json_of({"inspect", std::string(HADAL_SOURCE_DIR "/configs/") + config, "--context",
                    "1048576", "--json"});
  };
  const Json flash = ratios("deepseek-v4-flash.json"), pro = ratios("deepseek-v4-pro.json");
  EXPECT_NEAR(flash["flops_ratio"].get<double>(), 0.10, 0.005);
  EXPECT_NEAR(flash["kv_ratio"].get<double>(), 0.07, 0.005);
  EXPECT_NEAR(pro["flops_ratio"].get<double>(), 0.27, 0.006);
  EXPECT_NEAR(pro["kv_ratio"].get<double>(), 0.10, 0.005);
  const CommandResult text =
      hadal_command({"inspect", HADAL_SOURCE_DIR "/configs/deepseek-v4-flash.json"});
  for (const char* figure :
       {"284.33 B", "159609485896 bytes", "10.0 %", "7.3 %", "DeepSeek-V3.2"}) {
    EXPECT_THAT(text.out, testing::HasSubstr(figure));
  }
}

TEST(Inspect, CountsWhatADirectoryHolds) {
  const Json j = json_of({"inspect", kBootstrap, "--json"})["directory"];
  EXPECT_EQ(j["bytes"], io::Checkpoint::open(kBootstrap).total_bytes());
  EXPECT_EQ(j["formats"]["I8"]["tensors"], 144);  // 6 layers, 8 experts, 3 matrices
  EXPECT_EQ(j["tokenizer"]["ids"], 8192);
  EXPECT_TRUE(j["warnings"].empty());
  // Without arguments it is the embedded model, stored as its config says.
  const Json embedded = json_of({"inspect", "--json"});
  EXPECT_EQ(embedded["stored"]["published"]["bytes"], j["bytes"]);
}

TEST(Generate, IsDeterministicAndFollowsItsOptions) {
  const std::vector<std::string> base = {"generate", "-p", "In the beginning", "-n", "24"};
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments = base;
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  const Json first = json_of(with({"--seed", "5", "--json"}));
  EXPECT_EQ(first["token_ids"].size(), 24u);
  EXPECT_EQ(first["logprobs"].size(), 24u);
  EXPECT_EQ(first["finish_reason"], "length");
  EXPECT_EQ(first["prompt_tokens"], 4);
  for (const std::vector<std::string>& same :
       {std::vector<std::string>{}, {"--chunk", "1"}, {"--threads", "1"}}) {
    std::vector<std::string> arguments = with({"--seed", "5", "--json"});
    arguments.insert(arguments.end(), same.begin(), same.end());
    EXPECT_EQ(json_of(arguments)["token_ids"], first["token_ids"]);
  }
  EXPECT_NE(json_of(with({"--seed", "6", "--json"}))["token_ids"], first["token_ids"]);
  EXPECT_EQ(hadal_command(with({"--seed", "5"})).out, first["text"].get<std::string>() + "\n");

  const std::string greedy = json_of(with({"-t", "0", "--json"}))["text"];
  const std::size_t at = greedy.find(" beginning");
  ASSERT_NE(at, std::string::npos);
  const Json stopped = json_of(with({"-t", "0", "--json", "--stop", " beginning"}));
  EXPECT_EQ(stopped["text"], greedy.substr(0, at));
  EXPECT_EQ(stopped["finish_reason"], "stop");
}

TEST(Generate, ReadsItsPromptFromAnywhere) {
  const ScratchDirectory scratch("prompt");
  const std::string text = "The function returns";
  write_text(scratch / "p.txt", text);
  const auto out = hadal_command({"generate", "-p", text, "-n", "5", "-t", "0"}).out;
  EXPECT_EQ(
      hadal_command({"generate", "-f", (scratch / "p.txt").string(), "-n", "5", "-t", "0"}).out,
      out);
  EXPECT_EQ(hadal_command({"generate", "-f", "-", "-n", "5", "-t", "0"}, {.text = text}).out, out);
}

TEST(Generate, StatisticsGoToStderr) {
  const CommandResult r = hadal_command({"generate", "-p", "A", "-n", "3", "--stats"});
  EXPECT_THAT(r.err, testing::HasSubstr("answer: 3 tokens"));
  EXPECT_THAT(r.err, testing::HasSubstr("end: length"));
  EXPECT_EQ(r.out.find("tokens"), std::string::npos);
}

TEST(Chat, AnswersAndRemembersLineByLine) {
  EXPECT_EQ(hadal_command({"chat", "-p", "What is the capital of France?", "-t", "0"}).out,
            "The capital of France is Paris.\n");
  const CommandResult r = hadal_command(
      {"chat", "-t", "0"},
      {.text = "What is the capital of France?\n\n/stats\n/reset\n/think max\n/think off\n"
               "/nonsense\nWho are you?\n/quit\nnever read\n"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, testing::StartsWith("The capital of France is Paris.\nprompt: "));
  EXPECT_THAT(r.out, testing::HasSubstr("KV cache"));
  EXPECT_THAT(r.out, testing::HasSubstr("there is no command /nonsense"));
  EXPECT_THAT(r.out, testing::EndsWith("I am hadal-bootstrap, a tiny demonstration model.\n"));
}

TEST(Chat, AsksForTheResultsOfToolCalls) {
  const ScratchDirectory scratch("tools");
  write_text(scratch / "tools.json", R"([{"type": "function", "function": {
    "name": "calculator", "description": "Evaluate an arithmetic expression.",
    "parameters": {"type": "object",
                   "properties": {"expression": {"type": "string", "description": "The expression."}},
                   "required": ["expression"]}}}])");
  const CommandResult r =
      hadal_command({"chat", "-t", "0", "--tools", (scratch / "tools.json").string()},
                    {.text = "What is 12*37?\n444\n"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, testing::StartsWith("-> calculator {\"expression\": \"12*37\"}\n"));
  EXPECT_THAT(r.out, testing::HasSubstr("444"));
  write_text(scratch / "tools.json", "[1]");
  const CommandResult bad =
      hadal_command({"chat", "-p", "x", "--tools", (scratch / "tools.json").string()});
  expect_refusal(bad, "tools.json");
}

TEST(Synthesize, WritesAModelThatRuns) {
  const ScratchDirectory scratch("model");
  const std::string out = (scratch / "m").string();
  const CommandResult r =
      hadal_command({"synthesize", "--config", kTiny, "--layer-kinds", "window,csa,hca",
                     "--hash-layers", "1", "--mtp", "1", "--out", out});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, testing::HasSubstr("layers: window(hash) csa hca; 1 MTP"));
  const Json decode = json_of({"bench", "decode", "-m", out, "--context", "40", "--tokens", "12",
                               "--draft-tokens", "1", "--json"});
  EXPECT_GT(decode["tokens_per_s"].get<double>(), 0);
  EXPECT_GT(decode["peak_read_gb_per_s"].get<double>(), 0);
  EXPECT_GE(decode["step_over_kernels"].get<double>(), 1.0);
  const Json memory = json_of({"bench", "memory", "-m", out, "--context", "40", "--json"});
  EXPECT_GT(memory["kv_growing_mb"].get<double>(), 0);
  const Json prefill = json_of({"bench", "prefill", "-m", out, "--context", "40", "--json"});
  EXPECT_GT(prefill["gflop_per_s"].get<double>(), 0);
  expect_refusal(hadal_command({"bench", "decode", "-m", out, "--context", "2000"}),
                 "more than the model's context, 1024");
}

// The shipped model is what quantize makes of what it is itself: converting again changes nothing.
TEST(Quantize, KeepsWhatIsPublishedAlready) {
  const ScratchDirectory scratch("model");
  const std::string out = (scratch / "q").string();
  const CommandResult r =
      hadal_command({"quantize", "-m", kBootstrap, "-o", out, "--shard-size", "15MiB"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, testing::HasSubstr("expert fp4, kept"));
  for (const char* file :
       {"config.json", "tokenizer.json", "generation_config.json", "model.safetensors.index.json",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}) {
    EXPECT_TRUE(read_text(Path(out) / file) == read_text(Path(kBootstrap) / file)) << file;
  }
  const CommandResult again =
      hadal_command({"quantize", "-m", kTiny, "-o", out, "--format", "bf16", "--force"});
  EXPECT_EQ(again.status, 0) << again.err;
  EXPECT_TRUE(std::filesystem::exists(Path(out) / "model-00001-of-00001.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(Path(out) / "tokenizer.json"));
}

}  // namespace
}  // namespace hadal::test
