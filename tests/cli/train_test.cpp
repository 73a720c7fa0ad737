// The whole way of a small model, as a user goes it: text, tokenizer, data, training with a crash
// in the middle, fine-tuning under quantisation, export, and words from the engine.
#include <signal.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "command.h"
#include "core/rng.h"

namespace hadal::test {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;

// Sanitizers make training ten times slower: there, only that all of it runs and resumes.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kShort = true;
#else
constexpr bool kShort = false;
#endif

std::string sentences(std::uint64_t seed, int n) {
  static const char* const kNames[] = {"Ada", "Bob", "Cleo", "Dan", "Eve", "Finn"};
  static const char* const kVerbs[] = {"likes", "sees", "paints", "finds", "sells"};
  static const char* const kThings[] = {"boat", "lamp", "tree", "stone", "river", "clock"};
  Rng rng(seed);
  std::string text;
  for (int i = 0; i < n; ++i) {
    const std::uint32_t a = rng.next_below(6), v = rng.next_below(5), t = rng.next_below(6);
    text += std::string(kNames[a]) + " " + kVerbs[v] + " the " + kThings[t] + ". The " +
            kThings[t] + " is old, and " + kNames[a] + " " + kVerbs[v] + " it.\n";
    if (i % 8 == 7) text += "\n";
  }
  return text;
}

std::vector<Json> metrics(const std::string& run, const std::string& kind) {
  std::vector<Json> out;
  std::istringstream lines(read_text(run + "/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    Json record = Json::parse(line, nullptr, false);
    if (record.is_object() && record["kind"] == kind) out.push_back(std::move(record));
  }
  return out;
}

// Starts the command and kills it once its run has logged `step`.
void kill_at_step(std::vector<std::string> arguments, const std::string& run, std::size_t step) {
  arguments.insert(arguments.begin(), HADAL_BINARY);
  std::vector<char*> argv;
  for (std::string& word : arguments) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    const int null = ::open("/dev/null", O_RDWR);
    ::dup2(null, STDOUT_FILENO);
    ::dup2(null, STDERR_FILENO);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(10);
  while (std::chrono::steady_clock::now() < deadline) {
    if (::waitpid(pid, nullptr, WNOHANG) == pid) FAIL() << "the run ended before it was killed";
    std::error_code ignored;
    if (std::filesystem::exists(run + "/metrics.jsonl", ignored) &&
        metrics(run, "step").size() >= step) {
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

class NanoPipeline : public ::testing::Test {
 protected:
  [[nodiscard]] std::string path(const std::string& name) const {
    return (scratch_ / name).string();
  }
  // Output of a command that has to succeed.
  static std::string run(const std::vector<std::string>& arguments) {
    const CommandResult r = hadal_command(arguments);
    EXPECT_EQ(r.status, 0) << r.err << r.out;
    return r.out;
  }
  [[nodiscard]] std::vector<std::string> train(const std::string& name,
                                               std::vector<std::string> more = {}) const {
    std::vector<std::string> words = {
        "train",  std::string(HADAL_SOURCE_DIR) + "/configs/nano.toml",
        "--data", path("data"),
        "-o",     path(name)};
    for (const char* set :
         {kShort ? "train.total_tokens=8192" : "train.total_tokens=163840",
          "train.batch_tokens=1024", "train.micro_batch_tokens=1024", "lr.warmup_steps=10",
          kShort ? "output.checkpoint_every=2" : "output.checkpoint_every=25",
          kShort ? "output.eval_every=4" : "output.eval_every=60", "output.sample_every=0",
          kShort ? "indexer.warmup_steps=2" : "indexer.warmup_steps=20"}) {
      words.insert(words.end(), {"--set", set});
    }
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  const ScratchDirectory scratch_{"pipeline"};
};

TEST_F(NanoPipeline, FromTextToWords) {
  std::filesystem::create_directories(path("text"));
  for (int i = 0; i < 12; ++i) {
    write_text(path("text/" + std::to_string(i) + ".txt"),
               sentences(static_cast<std::uint64_t>(i), 400));
  }
  std::string chats;
  for (int i = 0; i < 300; ++i) {
    chats += R"({"messages": [{"role": "user", "content": "Who?"}, )"
             R"({"role": "assistant", "content": "Ada sees the lamp."}]})"
             "\n";
  }
  std::filesystem::create_directories(path("chats"));
  write_text(path("chats/chats.jsonl"), chats);
  run({"tokenizer", "train", path("text"), "--vocab-size", "512", "--out", path("tok")});
  for (const char* name : {"data", "chat_data"}) {
    run({"data", "build", path(std::string(name) == "data" ? "text" : "chats"), "--tokenizer",
         path("tok"), "--document-separator", R"(\n\n)", "--validation", "0.05", "--out",
         path(name)});
  }

  // 160 steps and 20 of the indexer, once in one piece and once killed on the way.
  run(train("whole"));
  const std::vector<Json> steps = metrics(path("whole"), "step");
  // A few more than tokens / batch: rows are never quite full.
  ASSERT_GE(steps.size(), kShort ? 10U : 180U);
  ASSERT_LE(steps.size(), kShort ? 13U : 200U);
  const std::vector<Json> evals = metrics(path("whole"), "eval");
  ASSERT_GE(evals.size(), 2U);
  EXPECT_GT(steps.front()["loss"].get<double>(), 5.5);  // log 512 is 6.24
  EXPECT_LT(evals.back()["loss"].get<double>(), kShort ? 7.0 : 2.5);
  for (const Json& layer : steps.back()["dead_experts"]) {
    EXPECT_LE(layer.get<int>(), kShort ? 8 : 0);
  }

  kill_at_step(train("killed"), path("killed"), kShort ? 5 : 100);
  run({"train", "--resume", "-o", path("killed")});
  for (const char* name : {"whole", "killed"}) {
    run({"export", path(name), path(std::string(name) + "_f32"), "--format", "f32"});
  }
  EXPECT_EQ(read_text(path("whole_f32/model-00001-of-00001.safetensors")),
            read_text(path("killed_f32/model-00001-of-00001.safetensors")));
  expect_refusal(hadal_command(train("whole")), "--resume");

  // Fine-tuning under FP4, on answers only.
  run({"train",  std::string(HADAL_SOURCE_DIR) + "/configs/nano.toml",
       "--data", path("chat_data"),
       "-o",     path("chat"),
       "--init", path("whole"),
       "--set",  "train.compute='qat'",
       "--set",  "train.total_tokens=20480",
       "--set",  "train.batch_tokens=1024",
       "--set",  "lr.peak=1e-3",
       "--set",  "lr.end=1e-4",
       "--set",  "lr.warmup_steps=2",
       "--set",  "indexer.warmup_steps=0",
       "--set",  "output.eval_every=0",
       "--set",  "output.sample_every=0"});
  const std::vector<Json> tuned = metrics(path("chat"), "step");
  ASSERT_GE(tuned.size(), kShort ? 3U : 20U);
  EXPECT_EQ(tuned.back()["qat"], "fp4");
  EXPECT_LT(tuned.back()["loss"].get<double>(),
            (kShort ? 1.1 : 0.5) * tuned.front()["loss"].get<double>());

  run({"export", path("chat"), path("model")});
  EXPECT_THAT(run({"generate", "-m", path("model"), "--temperature", "0", "--max-tokens", "12",
                   "-p", "Ada likes the"}),
              testing::Not(testing::IsEmpty()));
  EXPECT_THAT(run({"report", path("whole"), path("killed"), "--text"}), HasSubstr("loss"));
}

class TrainBadInput : public NanoPipeline {};

TEST_F(TrainBadInput, EverySentenceNamesWhatIsWrong) {
  expect_refusal(hadal_command({"train", "-o", path("run"), "--resume"}), "config.toml");
  expect_refusal(hadal_command({"train", path("none.toml"), "-o", path("run")}), "none.toml");
  const std::string nano = std::string(HADAL_SOURCE_DIR) + "/configs/nano.toml";
  expect_refusal(hadal_command({"train", nano, "-o", path("run")}), "data.directory");
  expect_refusal(hadal_command({"train", nano, "--data", path("nothing"), "-o", path("run")}),
                 "nothing");
  const auto with = [&](const std::string& set) {
    return hadal_command({"train", nano, "--data", path("d"), "-o", path("run"), "--set", set});
  };
  expect_refusal(with("lr.peek=1"), "lr.peek");
  expect_refusal(with("lr.peak='fast'"), "lr.peak");
  expect_refusal(with("train.compute='fp2'"), "one of f32, bf16, qat");
  expect_refusal(with("train.total_tokens=-5"), "train.total_tokens");
  expect_refusal(with("model.hidden_size=0"), "hidden_size");
  expect_refusal(with("nonsense"), "SECTION.KEY=VALUE");
  write_text(path("broken.toml"), "[train\n");
  expect_refusal(hadal_command({"train", path("broken.toml"), "-o", path("run")}),
                 "broken.toml:1:");
}

TEST(TrainPlan, SaysWhatARunNeeds) {
  const CommandResult r =
      hadal_command({"train", std::string(HADAL_SOURCE_DIR) + "/configs/nano.toml", "--data",
                     "somewhere", "-o", "unused", "--plan"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, HasSubstr("activations"));
}

}  // namespace
}  // namespace hadal::test
