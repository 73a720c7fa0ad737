#include "server/model_identity.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <optional>

#include "core/error.h"
#include "support/failing_file_system.h"
#include "support/safetensors_bytes.h"

namespace hadal::server {
namespace {

using ::hadal::test::RawTensor;
using ::hadal::test::safetensors_bytes;
using ::testing::HasSubstr;

// A model of two layers with eight experts each, and files for it.
class ModelIdentity : public testing::Test {
 protected:
  static std::vector<RawTensor> tensors() {
    std::vector<RawTensor> out;
    const auto add = [&](const std::string& name, std::size_t nbytes) {
      std::string data(nbytes, '\0');
      for (std::size_t i = 0; i < nbytes; ++i) {
        data[i] = static_cast<char>(i * 31 + name.size() * 7 + static_cast<unsigned char>(name[7]));
      }
      out.push_back({name, "U8", {static_cast<std::int64_t>(nbytes)}, data});
    };
    for (const char* layer : {"layers.0.", "layers.1."}) {
      add(layer + std::string("norm"), 16);
      add(layer + std::string("router"), 640);
      for (int e = 0; e < 8; ++e) add(layer + fmt::format("experts.{}.w1", e), 4096);
    }
    return out;
  }
  Path write(const std::string& name, const std::vector<std::vector<RawTensor>>& files) {
    const Path directory = scratch_.path() / name;
    std::filesystem::create_directories(directory);
    for (std::size_t i = 0; i < files.size(); ++i) {
      const auto file = FileSystem::real().create(
          directory / fmt::format("model-{:05}-of-{:05}.safetensors", i, files.size()));
      file->append(std::string_view(safetensors_bytes(files[i])));
      file->close();
    }
    return directory;
  }
  static Sha256Digest digest(const Path& directory, const WeightSamples& samples = {}) {
    return weights_digest(FileSystem::real(), directory, samples);
  }

  hadal::test::ScratchDirectory scratch_{"model_identity"};
};

TEST_F(ModelIdentity, EveryByteCountsWhereTheSamplesSuffice) {
  const Sha256Digest original = digest(write("original", {tensors()}));
  EXPECT_EQ(digest(write("copy", {tensors()})), original);
  for (std::size_t i = 0; i < tensors().size(); ++i) {
    for (const bool last : {false, true}) {
      std::vector<RawTensor> changed = tensors();
      std::string& data = changed[i].data;
      data[last ? data.size() - 1 : data.size() / 2] ^= 1;
      EXPECT_NE(digest(write("changed", {changed})), original) << changed[i].name;
    }
  }
}

TEST_F(ModelIdentity, FilesDoNotMatterNamesAndTypesDo) {
  const Sha256Digest original = digest(write("original", {tensors()}));
  const std::vector<RawTensor> all = tensors();
  const std::vector<RawTensor> first(all.begin(), all.begin() + 7),
      rest(all.begin() + 7, all.end());
  EXPECT_EQ(digest(write("shards", {rest, first})), original);
  std::vector<RawTensor> other = tensors();
  other[0].name = "layers.9.norm";
  EXPECT_NE(digest(write("renamed", {other})), original);
  other = tensors();
  other[0].dtype = "I8";
  EXPECT_NE(digest(write("typed", {other})), original);
  other = tensors();
  other[0].shape = {4, 4};
  EXPECT_NE(digest(write("shaped", {other})), original);
  EXPECT_THROW((void)digest(scratch_.path() / "nowhere"), Error);
}

// 66,000 bytes, of which 80 x 16 are read: the norms whole, of the rest what is left.
TEST_F(ModelIdentity, SamplesAreSharedByKind) {
  const WeightSamples few{.n = 80, .nbytes = 16};
  const Sha256Digest original = digest(write("original", {tensors()}), few);
  std::vector<RawTensor> changed = tensors();
  changed[0].data[15] ^= 1;  // layers.0.norm
  EXPECT_NE(digest(write("norm", {changed}), few), original);
  // Training moves nearly every value of what it touches: one tensor of any kind is enough, as long
  // as samples are not rarer than tensors.
  for (std::size_t i = 0; i < tensors().size(); ++i) {
    changed = tensors();
    for (char& byte : changed[i].data) byte ^= 1;
    EXPECT_NE(digest(write("trained", {changed}), few), original) << changed[i].name;
  }
  // The limit that the header states: a byte between samples.
  changed = tensors();
  changed[5].data[40] ^= 1;
  EXPECT_EQ(digest(write("byte", {changed}), few), original);
}

// Bytes that this process has read from files.
std::optional<std::int64_t> bytes_read() {
  std::ifstream io("/proc/self/io");
  std::string word;
  std::int64_t n = 0;
  if (io >> word >> n && word == "rchar:") return n;
  return std::nullopt;
}

TEST_F(ModelIdentity, ReadsFewBytesOfManyGigabytes) {
  const std::uint64_t size = std::uint64_t{32} << 30;
  const Path directory = scratch_ / "large";
  std::filesystem::create_directories(directory);
  const std::string header =
      fmt::format(R"({{"a":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}})", size);
  const Path path = directory / "model.safetensors";
  const auto file = FileSystem::real().create(path);
  file->append(std::string_view(::hadal::test::with_header(header, "")));
  file->close();
  std::filesystem::resize_file(path, 8 + header.size() + size);  // a hole
  const auto before = bytes_read();
  const Sha256Digest original = digest(directory);
  const auto after = bytes_read();
  if (!before || !after) GTEST_SKIP() << "/proc/self/io is not readable";
  EXPECT_LT(*after - *before, std::int64_t{5} << 20);
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary)
      .seekp(static_cast<std::streamoff>(8 + header.size()))
      .put('x');
  EXPECT_NE(digest(directory), original);
}

TEST(ModelDifference, SaysWhatIsAnother) {
  const std::string now = "hadal 1\nnumerics official\nweights aaaa\nconfig c\ntokenizer t\n";
  EXPECT_EQ(model_difference(now, now), "");
  // Another build goes on, perhaps with other tokens of the same distribution.
  EXPECT_EQ(
      model_difference("hadal 2\nnumerics official\nweights aaaa\nconfig c\ntokenizer t\n", now),
      "");
  EXPECT_EQ(model_difference("hadal 1\nnumerics fp32\nweights bbbb\nconfig c\ntokenizer t\n", now),
            "numerics fp32 then, official now; weights bbbb then, aaaa now");
  EXPECT_THAT(model_difference("", now), HasSubstr("weights unknown then, aaaa now"));
  EXPECT_THAT(model_difference(now + "adapter x\n", now), HasSubstr("adapter x then, unknown now"));
  EXPECT_TRUE(same_tokenizer(now, "tokenizer t\n"));
  EXPECT_FALSE(same_tokenizer(now, "tokenizer u\n"));
}

}  // namespace
}  // namespace hadal::server
