// Bad input gets one sentence that can be acted on, exit status 1, and leaves nothing behind.
#include <nlohmann/json.hpp>

#include "command.h"
#include "support/safetensors_bytes.h"

namespace hadal::test {
namespace {

using Json = nlohmann::ordered_json;

class BadInput : public ::testing::Test {
 protected:
  // A copy of a model directory, to be broken.
  Path copy_of(const std::string& model, const std::string& name = "model") {
    const Path to = scratch_ / name;
    std::filesystem::copy(model, to);
    for (const auto& entry : std::filesystem::directory_iterator(to)) {
      std::filesystem::permissions(entry.path(), std::filesystem::perms::owner_all);
    }
    return to;
  }
  void change_config(const Path& model, const std::function<void(Json&)>& change) {
    Json j = Json::parse(read_text(model / "config.json"));
    change(j);
    write_text(model / "config.json", j.dump());
  }
  // Overwrites bytes of a tensor's data.
  void poke(const Path& file, const std::string& tensor, std::size_t at, const std::string& bytes) {
    const auto entry = *io::SafetensorsFile::open(file).find(tensor);
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(static_cast<std::streamoff>(entry.offset + at));
    stream << bytes;
  }
  CommandResult generate(const Path& model, std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {"generate", "-m", model.string(), "-p", "x", "-n", "2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return hadal_command(arguments);
  }

  ScratchDirectory scratch_{"input"};
};

TEST_F(BadInput, NoModel) {
  expect_refusal(generate("/nowhere/model"), "/nowhere/model");
  expect_refusal(hadal_command({"inspect", "/nowhere/model"}), "/nowhere/model");
  std::filesystem::create_directories(scratch_ / "empty");
  expect_refusal(generate(scratch_ / "empty"), "config.json");
}

TEST_F(BadInput, MissingShard) {
  const Path model = copy_of(kBootstrap);
  std::filesystem::remove(model / "model-00002-of-00002.safetensors");
  expect_refusal(generate(model), "model-00002-of-00002.safetensors");
  expect_refusal(hadal_command({"inspect", model.string()}), "model-00002-of-00002.safetensors");
  expect_refusal(hadal_command({"quantize", "-m", model.string(), "-o", (scratch_ / "q").string()}),
                 "model-00002-of-00002.safetensors");
  EXPECT_FALSE(std::filesystem::exists(scratch_ / "q"));
  EXPECT_FALSE(std::filesystem::exists(scratch_ / "q.partial"));
}

TEST_F(BadInput, TruncatedFile) {
  const Path model = copy_of(kTiny);
  const Path file = model / "model.safetensors";
  const auto size = std::filesystem::file_size(file);
  for (const auto keep : {std::uintmax_t{0}, std::uintmax_t{5}, std::uintmax_t{100}, size - 1}) {
    std::filesystem::copy_file(kTiny + "/model.safetensors", file,
                               std::filesystem::copy_options::overwrite_existing);
    std::filesystem::permissions(file, std::filesystem::perms::owner_all);
    std::filesystem::resize_file(file, keep);
    expect_refusal(hadal_command({"inspect", model.string()}), "model.safetensors");
  }
}

TEST_F(BadInput, LyingHeader) {
  const Path model = copy_of(kTiny);
  std::string bytes = read_text(model / "model.safetensors");
  // A length of 2^63 or so, then one that is merely too large.
  for (const char top : {'\x7f', '\x01'}) {
    bytes[7] = top;
    write_text(model / "model.safetensors", bytes);
    expect_refusal(hadal_command({"inspect", model.string()}), "model.safetensors");
  }
}

TEST_F(BadInput, WrongShape) {
  const Path model = copy_of(kTiny);
  change_config(model, [](Json& j) { j["moe_intermediate_size"] = 256; });
  const CommandResult r = hadal_command({"inspect", model.string()});
  expect_refusal(r, "config.json implies [256, 128]");
  EXPECT_THAT(r.err, testing::HasSubstr("and 1"));  // ten are listed, the rest counted
}

TEST_F(BadInput, UnknownConfigValues) {
  const Path model = copy_of(kTiny);
  const auto with = [&](const char* key, const Json& value) {
    std::filesystem::copy_file(kTiny + "/config.json", model / "config.json",
                               std::filesystem::copy_options::overwrite_existing);
    change_config(model, [&](Json& j) { j[key] = value; });
    return hadal_command({"inspect", model.string()});
  };
  expect_refusal(with("model_type", "llama"), "llama");
  expect_refusal(with("scoring_func", "softmax"), "softmax");
  expect_refusal(with("expert_dtype", "int4"), "int4");
  expect_refusal(with("hidden_size", -1), "hidden_size");
  expect_refusal(with("hidden_size", "wide"), "hidden_size");
  write_text(model / "config.json", "{\"hidden_size\": ");
  expect_refusal(hadal_command({"inspect", model.string()}), "config.json");
}

TEST_F(BadInput, NaNWeightsOnRequest) {
  const Path model = copy_of(kTiny);
  poke(model / "model.safetensors", "layers.1.attn.wq_a.weight", 5, "\x7f");  // E4M3 NaN
  EXPECT_EQ(hadal_command({"inspect", model.string()}).status, 0);
  const std::string sentence = "layers.1.attn.wq_a.weight: row 0 column 5 is NaN";
  expect_refusal(hadal_command({"inspect", model.string(), "--check-finite"}), sentence);
  expect_refusal(hadal_command({"quantize", "-m", model.string(), "-o", (scratch_ / "q").string()}),
                 sentence);
  EXPECT_FALSE(std::filesystem::exists(scratch_ / "q"));
}

TEST_F(BadInput, PromptLongerThanTheContext) {
  const Path model = copy_of(kBootstrap);
  change_config(model, [](Json& j) { j["max_position_embeddings"] = 8; });
  const CommandResult r = hadal_command(
      {"generate", "-m", model.string(), "-p", "one two three four five six seven eight nine ten"});
  expect_refusal(r, "tokens, the model's context 8");
}

TEST_F(BadInput, PromptThatIsNoText) {
  expect_refusal(hadal_command({"generate", "-p", "a\xff"}), "not valid UTF-8");
  expect_refusal(hadal_command({"tokenize", "\xc3"}), "not valid UTF-8");
  expect_refusal(hadal_command({"generate", "-f", "/nowhere/prompt.txt"}), "/nowhere/prompt.txt");
}

TEST_F(BadInput, UnknownControlToken) {
  const CommandResult r = hadal_command({"generate", "-p", "Hi <｜Robot｜>", "-n", "2"});
  expect_refusal(r, "<｜Robot｜>");
  EXPECT_EQ(hadal_command({"generate", "-p", "Hi <｜Robot｜>", "-n", "2", "--no-special"}).status,
            0);
  EXPECT_EQ(hadal_command({"generate", "-p", "Hi <｜User｜>", "-n", "2"}).status, 0);
}

TEST_F(BadInput, TokenizerWithoutChatTokens) {
  const Path model = copy_of(kBootstrap);
  std::string text = read_text(model / "tokenizer.json");
  for (std::size_t at; (at = text.find("<｜User｜>")) != std::string::npos;) {
    text.replace(at, std::string("<｜User｜>").size(), "<｜Nobody｜>");
  }
  write_text(model / "tokenizer.json", text);
  expect_refusal(hadal_command({"chat", "-m", model.string(), "-p", "Hi"}), "no token <｜User｜>");
  expect_refusal(hadal_command({"generate", "--chat", "-m", model.string(), "-p", "Hi"}),
                 "no token <｜User｜>");
  EXPECT_EQ(generate(model).status, 0);
}

TEST_F(BadInput, NoTokenizer) {
  expect_refusal(generate(kTiny), "tokenizer.json");
  expect_refusal(hadal_command({"chat", "-m", kTiny, "-p", "Hi"}), "tokenizer.json");
}

TEST_F(BadInput, TokenizerOfAnotherModel) {
  const Path model = copy_of(kTiny);
  std::filesystem::copy_file(kBootstrap + "/tokenizer.json", model / "tokenizer.json");
  expect_refusal(generate(model), "another model");
}

TEST_F(BadInput, SamplingOutOfRange) {
  expect_refusal(hadal_command({"generate", "-p", "x", "-t", "-1"}), "temperature");
  expect_refusal(hadal_command({"generate", "-p", "x", "--top-p", "1.5"}), "top_p");
  expect_refusal(hadal_command({"generate", "-p", "x", "--stop", ""}), "stop string is empty");
}

TEST_F(BadInput, ExistingOutput) {
  std::filesystem::create_directories(scratch_ / "q");
  expect_refusal(hadal_command({"quantize", "-m", kTiny, "-o", (scratch_ / "q").string()}),
                 "exists; choose another name, or --force");
  expect_refusal(hadal_command({"synthesize", "-c", kTiny, "-o", (scratch_ / "q").string()}),
                 "exists");
  expect_refusal(hadal_command({"quantize", "-m", kTiny, "-o", kTiny, "--force"}),
                 "would replace itself");
}

TEST_F(BadInput, FullDiskUnderStdout) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "this system has no /dev/full";
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"inspect"}, {"tokenize", "Hello"}, {"generate", "-p", "x"}}) {
    const CommandResult r = hadal_command(arguments, {.stdout_path = "/dev/full"});
    EXPECT_EQ(r.status, 1) << arguments[0];
    EXPECT_THAT(r.err, testing::HasSubstr("cannot write to stdout")) << arguments[0];
  }
}

}  // namespace
}  // namespace hadal::test
