// The same options make the same bytes, whatever happens on the way.
#include "dataset/builder.h"

#include <gmock/gmock.h>

#include <map>

#include "dataset/build_state.h"
#include "dataset/statistics.h"
#include "dataset/tokenizer_training.h"
#include "dataset_fixture.h"
#include "support/fault_file_system.h"
#include "train/data_set.h"

namespace hadal::test {
namespace {

using dataset::build_data;
using dataset::BuildOptions;
using dataset::BuildProgress;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Files = std::map<std::string, std::string>;

class Build : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string lines, text;
    for (int i = 0; i < 60; ++i) {
      lines += "{\"text\": \"The cat sat on " + std::to_string(i) + " dogs.\\nThen.\\n\"}\n";
      text += "And the dog " + std::string(static_cast<std::size_t>(i % 7), 'x') + "\n<end>\n";
    }
    lines += R"({"messages": [{"role": "user", "content": "Hi"},)"
             R"( {"role": "assistant", "content": "The cat."}]})"
             "\n";
    std::filesystem::create_directories(scratch_ / "in");
    write_text(scratch_ / "in/a.jsonl", lines);
    write_text(scratch_ / "in/b.txt", text);
    write_text(scratch_ / "tokenizer.json", small_tokenizer_json());
    options_.inputs = {scratch_ / "in"};
    options_.tokenizer = scratch_ / "tokenizer.json";
    options_.out = "/data/set";
    options_.separator = "<end>";
    options_.validation = 0.2;
    options_.shard_tokens = 300;
    options_.encode = {.seed = 4, .fim_rate = 0.2, .split_rate = 0.3};
    options_.n_threads = 2;
  }

  static Files files_of(FaultFileSystem& fs) {
    Files files;
    for (const auto& entry : fs.list("/data/set")) {
      files[entry.name] = fs.content(Path("/data/set") / entry.name);
    }
    return files;
  }
  Files clean_build() {
    FaultFileSystem fs;
    (void)build_data(fs, options_);
    return files_of(fs);
  }

  const ScratchDirectory scratch_{"build"};
  BuildOptions options_;
};

TEST_F(Build, WritesShardsThatReadBack) {
  options_.out = scratch_ / "out";
  const auto result = build_data(FileSystem::real(), options_);
  EXPECT_FALSE(result.resumed);
  const auto data = train::DataSet::open(options_.out);
  EXPECT_EQ(data.manifest(), result.manifest);
  const auto& train_split = data.split("train");
  const auto& validation = data.split("validation");
  EXPECT_EQ(train_split.n_documents() + validation.n_documents(), 121);
  EXPECT_GT(validation.n_documents(), 8);
  EXPECT_LT(validation.n_documents(), 50);
  EXPECT_GT(result.manifest.find_split("train")->shards.size(), 2U);
  EXPECT_EQ(train_split.counts().n_chat_documents + validation.counts().n_chat_documents, 1);
  EXPECT_GT(train_split.counts().n_fim_documents, 5);
  for (const train::ShardInfo& shard : result.manifest.find_split("train")->shards) {
    EXPECT_LE(shard.counts.n_tokens, 300);
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t n : data.frequencies("train")) sum += n;
  EXPECT_EQ(sum, static_cast<std::uint64_t>(train_split.n_tokens()));
  EXPECT_EQ(read_text(options_.out / "tokenizer.json"), small_tokenizer_json());
  EXPECT_EQ(data.manifest().pad_token, 2);
  std::vector<std::string> names;
  for (const auto& entry : FileSystem::real().list(options_.out)) names.push_back(entry.name);
  EXPECT_THAT(names, testing::Not(testing::Contains("build.json")));
  EXPECT_THAT(names, testing::Not(testing::Contains("build.lock")));
}

TEST_F(Build, TheResultDoesNotDependOnThreads) {
  const Files two = clean_build();
  options_.n_threads = 1;
  EXPECT_EQ(clean_build(), two);
  options_.encode.seed = 5;
  EXPECT_NE(clean_build(), two);
}

TEST_F(Build, EqualDocumentsFallToTheSameSplit) {
  std::string lines;
  for (int i = 0; i < 40; ++i) {
    lines += "{\"text\": \"dog number " + std::to_string(i % 10) + "\"}\n";
  }
  write_text(scratch_ / "in/a.jsonl", lines);
  std::filesystem::remove(scratch_ / "in/b.txt");
  options_.validation = 0.5;
  options_.out = scratch_ / "out";
  (void)build_data(FileSystem::real(), options_);
  const auto data = train::DataSet::open(options_.out);
  EXPECT_EQ(data.split("train").n_documents() % 4, 0);
  EXPECT_EQ(data.split("validation").n_documents() % 4, 0);
}

// Killed after every so many bytes, it goes on and ends with the same files.
TEST_F(Build, AKillAtAnyByteChangesNothing) {
  const Files wanted = clean_build();
  std::uint64_t total = 0;
  {
    FaultFileSystem fs;
    (void)build_data(fs, options_);
    total = fs.bytes_written();
  }
  int n_resumed = 0;
  for (std::uint64_t budget = 0; budget < total; budget += total / 37 + 1) {
    FaultFileSystem fs;
    fs.kill_after_bytes(budget);
    EXPECT_THROW((void)build_data(fs, options_), Error);
    fs.restart();
    n_resumed += build_data(fs, options_).resumed ? 1 : 0;
    ASSERT_EQ(files_of(fs), wanted) << "killed after " << budget << " bytes";
  }
  EXPECT_GT(n_resumed, 10);
}

TEST_F(Build, ALossOfPowerChangesNothing) {
  const Files wanted = clean_build();
  FaultFileSystem whole;
  (void)build_data(whole, options_);
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    FaultFileSystem fs;
    fs.kill_after_bytes(whole.bytes_written() * (seed + 1) / 9);
    EXPECT_THROW((void)build_data(fs, options_), Error);
    fs.power_loss(seed);
    (void)build_data(fs, options_);
    ASSERT_EQ(files_of(fs), wanted) << "seed " << seed;
  }
}

TEST_F(Build, AFullDiskKeepsWhatIsDone) {
  const Files wanted = clean_build();
  FaultFileSystem fs;
  const auto tokenizer_bytes = small_tokenizer_json().size();
  fs.set_capacity(tokenizer_bytes + 6000);
  EXPECT_THAT(error_of([&] { (void)build_data(fs, options_); }, ErrorCode::io),
              AllOf(HasSubstr("No space left"), HasSubstr("complete shards stay"),
                    HasSubstr("same command")));
  EXPECT_TRUE(fs.exists("/data/set/train-00000.tok"));
  EXPECT_FALSE(fs.exists("/data/set/manifest.json"));
  for (const auto& entry : fs.list("/data/set")) EXPECT_FALSE(entry.name.ends_with(".tmp"));
  fs.set_capacity(std::uint64_t{1} << 40);
  EXPECT_TRUE(build_data(fs, options_).resumed);
  EXPECT_EQ(files_of(fs), wanted);
}

TEST_F(Build, AnInterruptIsAnExceptionOutOfTheProgress) {
  // More than one batch of documents.
  std::string lines;
  for (int i = 0; i < 5000; ++i) lines += "{\"text\": \"cat " + std::to_string(i) + "\"}\n";
  write_text(scratch_ / "in/a.jsonl", lines);
  options_.shard_tokens = 2000;
  const Files wanted = clean_build();
  FaultFileSystem fs;
  BuildProgress seen;
  EXPECT_THROW((void)build_data(fs, options_,
                                [&](const BuildProgress& progress) {
                                  seen = progress;
                                  throw Error(ErrorCode::cancelled, "stop");
                                }),
               Error);
  EXPECT_GT(seen.n_shards, 2);
  EXPECT_EQ(seen.n_files, 2U);
  EXPECT_GT(seen.n_bytes_done, 0U);
  std::int64_t n_tokens_now = 0;
  const auto result = build_data(
      fs, options_, [&](const BuildProgress& progress) { n_tokens_now = progress.n_tokens_now; });
  EXPECT_TRUE(result.resumed);
  const auto n_tokens = result.manifest.find_split("train")->counts().n_tokens +
                        result.manifest.find_split("validation")->counts().n_tokens;
  EXPECT_LT(n_tokens_now, n_tokens - seen.n_shards * 1000);
  EXPECT_EQ(files_of(fs), wanted);
}

TEST_F(Build, RefusesADirectoryThatIsNotItsOwn) {
  FaultFileSystem fs;
  fs.create_directories("/data/set");
  fs.set_content("/data/set/thesis.tex", "x");
  EXPECT_THAT(error_of([&] { (void)build_data(fs, options_); }, ErrorCode::invalid_argument),
              AllOf(HasSubstr("not empty"), HasSubstr("thesis.tex")));
  EXPECT_EQ(files_of(fs).size(), 1U);

  FaultFileSystem finished;
  (void)build_data(finished, options_);
  EXPECT_THAT(error_of([&] { (void)build_data(finished, options_); }, ErrorCode::invalid_argument),
              HasSubstr("holds a finished data set"));
}

TEST_F(Build, GoesOnOnlyWithWhatItBeganWith) {
  const auto stopped = [&](FaultFileSystem& fs) {
    fs.set_capacity(small_tokenizer_json().size() + 6000);
    EXPECT_THROW((void)build_data(fs, options_), Error);
    fs.set_capacity(std::uint64_t{1} << 40);
  };
  const auto refused = [&](FaultFileSystem& fs) {
    return error_of([&] { (void)build_data(fs, options_); }, ErrorCode::invalid_argument);
  };
  FaultFileSystem fs;
  stopped(fs);
  options_.encode.seed = 5;
  EXPECT_THAT(refused(fs),
              AllOf(HasSubstr("unfinished build with seed \"4\""), HasSubstr("\"5\"")));
  options_.encode.seed = 4;
  std::string tokenizer = small_tokenizer_json();
  write_text(scratch_ / "tokenizer.json", tokenizer + "\n");
  EXPECT_THAT(refused(fs), HasSubstr("another tokenizer"));
  write_text(scratch_ / "tokenizer.json", tokenizer);
  std::string shard = fs.content("/data/set/train-00000.tok");
  shard[70] ^= 1;
  fs.set_content("/data/set/train-00000.tok", shard);
  EXPECT_THAT(error_of([&] { (void)build_data(fs, options_); }, ErrorCode::corrupt_data),
              AllOf(HasSubstr("train-00000.tok"), HasSubstr("was changed")));
  shard[70] ^= 1;
  fs.set_content("/data/set/train-00000.tok", shard);
  write_text(scratch_ / "in/c.txt", "one more");
  EXPECT_THAT(refused(fs), HasSubstr("of other inputs"));
  std::filesystem::remove(scratch_ / "in/c.txt");
  EXPECT_TRUE(build_data(fs, options_).resumed);

  FaultFileSystem damaged;
  stopped(damaged);
  damaged.set_content("/data/set/build.json", "{\"version\": 1}");
  EXPECT_THAT(error_of([&] { (void)build_data(damaged, options_); }, ErrorCode::corrupt_data),
              HasSubstr("build.json is not the state of a build"));
}

TEST_F(Build, StopsAtABadDocumentOrLeavesItOut) {
  write_text(scratch_ / "in/c.jsonl", "{\"text\": \"fine\"}\n{\"text\": \n{\"text\": \" \"}\n");
  write_text(scratch_ / "in/d.txt", "caf\xE9");
  FaultFileSystem fs;
  EXPECT_THAT(error_of([&] { (void)build_data(fs, options_); }, ErrorCode::corrupt_data),
              HasSubstr("c.jsonl:2: "));
  options_.bad = dataset::BadDocuments::skip;
  options_.out = "/data/skipped";
  const auto result = build_data(fs, options_);
  EXPECT_EQ(result.manifest.n_bad_documents, 2);
  EXPECT_EQ(result.manifest.n_empty_documents, 1);
  ASSERT_EQ(result.bad_documents.size(), 2U);
  EXPECT_THAT(result.bad_documents[1], AllOf(HasSubstr("d.txt"), HasSubstr("byte 3 is 0xE9")));

  // Counted alike when the build is stopped in between.
  options_.out = "/data/set";
  const Files wanted = clean_build();
  FaultFileSystem stopped;
  stopped.set_capacity(small_tokenizer_json().size() + 6000);
  EXPECT_THROW((void)build_data(stopped, options_), Error);
  stopped.set_capacity(std::uint64_t{1} << 40);
  (void)build_data(stopped, options_);
  EXPECT_EQ(files_of(stopped), wanted);
}

TEST_F(Build, RefusesInputsWithoutADocument) {
  std::filesystem::remove(scratch_ / "in/a.jsonl");
  write_text(scratch_ / "in/b.txt", "\n<end>\n \n");
  FaultFileSystem fs;
  EXPECT_THAT(error_of([&] { (void)build_data(fs, options_); }, ErrorCode::invalid_argument),
              HasSubstr("none of 1 files holds a document"));
  EXPECT_FALSE(fs.exists("/data/set/manifest.json"));
}

TEST_F(Build, RefusesOptionsThatCannotBe) {
  FaultFileSystem fs;
  options_.validation = 1;
  EXPECT_THAT(error_of([&] { (void)build_data(fs, options_); }, ErrorCode::invalid_argument),
              HasSubstr("validation is 1"));
  options_.validation = 0;
  options_.shard_tokens = 0;
  EXPECT_THAT(error_of([&] { (void)build_data(fs, options_); }, ErrorCode::invalid_argument),
              HasSubstr("shard_tokens is 0"));
}

TEST_F(Build, StatisticsAddUp) {
  options_.out = scratch_ / "out";
  (void)build_data(FileSystem::real(), options_);
  const auto data = train::DataSet::open(options_.out);
  const auto splits = dataset::statistics_of(data, {.n_frequent = 5, .sequence_length = 16});
  ASSERT_EQ(splits.size(), 2U);
  EXPECT_EQ(splits[0].name, "train");
  for (const auto& split : splits) {
    std::int64_t n_documents = 0, n_tokens = 0, end = split.lengths.front().begin;
    for (const auto& bin : split.lengths) {
      EXPECT_EQ(bin.begin, end);
      end = bin.end;
      n_documents += bin.n_documents;
      n_tokens += bin.n_tokens;
    }
    EXPECT_EQ(n_documents, split.counts.n_documents);
    EXPECT_EQ(n_tokens, split.counts.n_tokens);
    EXPECT_LE(split.shortest, split.median);
    EXPECT_LE(split.median, split.longest);
    ASSERT_EQ(split.frequent.size(), 5U);
    EXPECT_GE(split.frequent[0].count, split.frequent[4].count);
    ASSERT_TRUE(split.packing.has_value());
    EXPECT_EQ(split.packing->n_inputs, split.counts.n_tokens - split.counts.n_documents);
    EXPECT_GE(split.packing->n_rows * 16, split.packing->n_inputs);
  }
}

TEST_F(Build, ATokenizerIsLearntFromTheSameSources) {
  const auto training = dataset::train_tokenizer({.inputs = options_.inputs, .vocab_size = 300});
  EXPECT_EQ(training.vocab_size, 300);
  EXPECT_EQ(training.n_merges, 24U);
  const auto tokenizer = io::Tokenizer::parse(training.tokenizer_json);
  EXPECT_EQ(tokenizer.vocab_size(), 300);
  EXPECT_EQ(tokenizer.encode(" cat").size(), 1U);
  const auto again =
      dataset::train_tokenizer({.inputs = options_.inputs, .vocab_size = 300, .n_threads = 1});
  EXPECT_EQ(again.tokenizer_json, training.tokenizer_json);
  const auto part = dataset::train_tokenizer(
      {.inputs = options_.inputs, .vocab_size = 300, .max_text_bytes = 100});
  EXPECT_LT(part.text_bytes, 200U);
  const auto small = dataset::train_tokenizer({.inputs = options_.inputs, .vocab_size = 5000});
  EXPECT_LT(small.vocab_size, 5000);
  EXPECT_THAT(
      error_of(
          [&] { (void)dataset::train_tokenizer({.inputs = options_.inputs, .vocab_size = 275}); },
          ErrorCode::invalid_argument),
      HasSubstr("are 276 already"));
}

TEST(BuildState, SurvivesItsJson) {
  dataset::BuildState state;
  state.recipe = {{"seed", "1"}, {"inputs", "a b"}};
  state.sources = "abc";
  state.tokenizer_sha256 = "def";
  state.splits["train"].position = {.file = 1, .offset = 7, .n_lines = 2, .document = 3};
  state.splits["train"].n_bad = 4;
  state.splits["train"].shards.push_back(
      {.digest = {.file = "train-00000.tok", .nbytes = 9, .sha256 = "aa"},
       .counts = {.n_documents = 1, .n_tokens = 2, .n_loss_tokens = 1, .text_bytes = 8}});
  EXPECT_EQ(dataset::parse_build_state(to_json(state), "s"), state);
}

}  // namespace
}  // namespace hadal::test
