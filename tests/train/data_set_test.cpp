// What is written to shards is read back, and what was damaged is named.
#include "train/data_set.h"

#include <gmock/gmock.h>

#include <fstream>

#include "core/error.h"
#include "data_fixture.h"
#include "support/fault_file_system.h"

namespace hadal::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string error_of(const std::function<void()>& action, ErrorCode code) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

std::vector<train::TokenDocument> mixed_documents() {
  auto documents = numbered_documents({3, 1, 17, 64, 5});
  documents[2].loss.assign(17, false);
  for (const int i : {1, 2, 9, 16}) documents[2].loss[static_cast<std::size_t>(i)] = true;
  documents[2].flags = train::kChatDocument;
  documents[3].flags = train::kFimDocument;
  return documents;
}

void expect_documents(const train::DocumentSet& set,
                      const std::vector<train::TokenDocument>& documents) {
  ASSERT_EQ(set.n_documents(), std::ssize(documents));
  for (std::int64_t d = 0; d < set.n_documents(); ++d) {
    const train::TokenDocument& wanted = documents[static_cast<std::size_t>(d)];
    const std::int64_t n = set.n_tokens(d);
    ASSERT_EQ(n, std::ssize(wanted.tokens));
    std::vector<TokenId> tokens(wanted.tokens.size());
    set.copy_tokens(d, 0, tokens);
    EXPECT_EQ(tokens, wanted.tokens);
    EXPECT_EQ(set.flags(d), wanted.flags);
    for (std::int64_t begin = 0; begin <= n; ++begin) {
      std::int64_t n_loss = 0;
      for (std::int64_t end = begin; end <= n; ++end) {
        EXPECT_EQ(set.count_loss(d, begin, end), n_loss);
        if (end == n) break;
        const bool loss = wanted.loss.empty() || wanted.loss[static_cast<std::size_t>(end)];
        EXPECT_EQ(set.has_loss(d, end), loss);
        n_loss += loss ? 1 : 0;
      }
    }
  }
}

TEST(DataSet, ReadsBackWhatWasWritten) {
  for (const std::int64_t vocab_size : {1000, 65536, 65537, 129280}) {
    for (const std::int64_t per_shard : {1, 2, 100}) {
      const ScratchDirectory scratch("data");
      auto documents = mixed_documents();
      documents[4].tokens = {static_cast<TokenId>(vocab_size - 1), 0, 7, 7, 7};
      write_data(scratch.path(), documents,
                 {.vocab_size = vocab_size, .documents_per_shard = per_shard});
      const auto data = train::DataSet::open(scratch.path());
      const train::DocumentSet& set = data.split("train");
      expect_documents(set, documents);
      EXPECT_EQ(set.counts(), (train::DataCounts{.n_documents = 5,
                                                 .n_tokens = 90,
                                                 .n_loss_tokens = 77,
                                                 .text_bytes = 360,
                                                 .n_chat_documents = 1,
                                                 .n_fim_documents = 1}));
      EXPECT_EQ(data.frequencies("train")[7], 3U);
    }
  }
}

TEST(DataSet, TheManifestSurvivesItsJson) {
  const ScratchDirectory scratch("data");
  train::DataManifest manifest =
      write_data(scratch.path(), mixed_documents(), {.documents_per_shard = 2});
  manifest.recipe = {{"seed", "7"}, {"inputs", "a \"b\""}};
  manifest.n_bad_documents = 3;
  EXPECT_EQ(train::parse_manifest(to_json(manifest), "m"), manifest);
}

TEST(DataSet, NamesWhatIsMissing) {
  const ScratchDirectory scratch("data");
  EXPECT_THAT(error_of([&] { (void)train::DataSet::open(scratch.path()); }, ErrorCode::not_found),
              AllOf(HasSubstr("has no manifest.json"), HasSubstr("hadal data build")));
  write_text(scratch / "build.json", "{}");
  EXPECT_THAT(error_of([&] { (void)train::DataSet::open(scratch.path()); }, ErrorCode::not_found),
              HasSubstr("has not finished"));
  write_data(scratch.path(), mixed_documents());
  const auto data = train::DataSet::open(scratch.path());
  EXPECT_THAT(error_of([&] { (void)data.split("test"); }, ErrorCode::not_found),
              HasSubstr("has no split \"test\"; there is: train"));
  std::filesystem::remove(scratch / "train-0.tok");
  EXPECT_THAT(error_of([&] { (void)train::DataSet::open(scratch.path()); }, ErrorCode::not_found),
              HasSubstr("train-0.tok"));
}

TEST(DataSet, NamesAManifestThatIsNone) {
  const ScratchDirectory scratch("data");
  const std::string good = to_json(write_data(scratch.path(), mixed_documents()));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    write_text(scratch / "manifest.json", text);
    try {
      (void)train::load_manifest(scratch.path());
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_THAT(with("{", "["), HasSubstr("not a manifest of token shards"));
  EXPECT_THAT(with("\"hadal token shards\"", "5"), HasSubstr("not a manifest of token shards"));
  EXPECT_THAT(with("\"version\": 1", "\"version\": 2"), HasSubstr("version is 2"));
  EXPECT_THAT(with("\"token_bytes\": 2", "\"token_bytes\": 4"), HasSubstr("token_bytes"));
  EXPECT_THAT(with("\"vocab_size\": 1000", "\"vocab_size\": 0"), HasSubstr("vocab_size is 0"));
  EXPECT_THAT(with("\"pad_token\": 2", "\"pad_token\": 1000"), HasSubstr("pad_token is 1000"));
  EXPECT_THAT(with("\"documents\": 5", "\"documents\": 6"), HasSubstr("not the sums"));
  EXPECT_THAT(with("\"file\": \"train-0.tok\"", "\"file\": \"../../etc/x\""),
              HasSubstr("no name of a file beside it"));
}

TEST(DataSet, NoticesADamagedShard) {
  const ScratchDirectory scratch("data");
  write_data(scratch.path(), mixed_documents());
  const std::string good = read_text(scratch / "train-0.tok");
  const auto open = [&](train::VerifyData verify) {
    return error_of([&] { (void)train::DataSet::open(scratch.path(), verify); },
                    ErrorCode::corrupt_data);
  };
  for (const auto verify : {train::VerifyData::checksums, train::VerifyData::sizes}) {
    write_text(scratch / "train-0.tok", good.substr(0, good.size() - 1));
    EXPECT_THAT(open(verify), AllOf(HasSubstr("train-0.tok"), HasSubstr("cut off")));
    write_text(scratch / "train-0.tok", good + "x");
    EXPECT_THAT(open(verify), HasSubstr("was changed"));
    std::string header = good;
    header[20] ^= 1;
    write_text(scratch / "train-0.tok", header);
    EXPECT_THAT(open(verify), HasSubstr("train-0.tok"));
  }
  // Every single bit.
  for (std::size_t byte = 0; byte < good.size(); byte += 7) {
    std::string bad = good;
    bad[byte] = static_cast<char>(bad[byte] ^ (1 << byte % 8));
    write_text(scratch / "train-0.tok", bad);
    EXPECT_THAT(open(train::VerifyData::checksums), HasSubstr("SHA-256"));
  }
}

TEST(DataSet, WithoutChecksumsAnIdOutsideTheVocabularyIsStillNoticed) {
  const ScratchDirectory scratch("data");
  write_data(scratch.path(), mixed_documents());
  std::string bad = read_text(scratch / "train-0.tok");
  bad[64] = '\xFF', bad[65] = '\xFF';  // the first token
  write_text(scratch / "train-0.tok", bad);
  const auto data = train::DataSet::open(scratch.path(), train::VerifyData::sizes);
  std::vector<TokenId> tokens(3);
  EXPECT_THAT(
      error_of([&] { data.split("train").copy_tokens(0, 0, tokens); }, ErrorCode::corrupt_data),
      HasSubstr("none of a vocabulary of 1000"));
}

TEST(DataSet, AShardOfAnotherDataSetIsNoticed) {
  const ScratchDirectory scratch("data");
  write_data(scratch / "a", mixed_documents());
  auto manifest = write_data(scratch / "b", mixed_documents());
  manifest.tokenizer.sha256 = to_hex(sha256("another"));
  write_text(scratch / "b/manifest.json", to_json(manifest));
  EXPECT_THAT(error_of([&] { (void)train::DataSet::open(scratch / "b"); }, ErrorCode::corrupt_data),
              HasSubstr("another tokenizer"));
}

TEST(DataSet, AVocabularyThatTheModelLacksIsRefused) {
  const train::DataManifest manifest{.vocab_size = 4096};
  EXPECT_NO_THROW(train::expect_vocabulary(manifest, "data", 4096));
  EXPECT_NO_THROW(train::expect_vocabulary(manifest, "data", 129280));
  EXPECT_THAT(error_of([&] { train::expect_vocabulary(manifest, "data", 512); },
                       ErrorCode::invalid_argument),
              AllOf(HasSubstr("vocabulary of 4096"), HasSubstr("vocab_size is 512")));
}

TEST(WriteAtomically, AFullDiskLeavesNothingHalf) {
  FaultFileSystem fs;
  fs.create_directories("/d");
  (void)train::write_atomically(fs, "/d", "old", "as it was");
  fs.set_capacity(20);
  EXPECT_THAT(error_of([&] { (void)train::write_atomically(fs, "/d", "old", "0123456789abcdef"); },
                       ErrorCode::io),
              HasSubstr("No space left"));
  EXPECT_EQ(fs.content("/d/old"), "as it was");
  EXPECT_FALSE(fs.exists("/d/old.tmp"));
}

}  // namespace
}  // namespace hadal::test
