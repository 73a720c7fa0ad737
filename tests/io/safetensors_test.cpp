#include "io/safetensors.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "support/safetensors_bytes.h"

namespace hadal::io {
namespace {

using test::parse_bytes;
using test::RawTensor;
using test::safetensors_bytes;
using test::with_header;
using testing::ElementsAre;

// A directory of its own for each test, gone afterwards.
class SafetensorsDirectory : public testing::Test {
 protected:
  SafetensorsDirectory()
      : dir_(std::filesystem::temp_directory_path() /
             fmt::format("hadal_safetensors_{}_{}", ::getpid(),
                         testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::create_directories(dir_);
  }
  ~SafetensorsDirectory() override { std::filesystem::remove_all(dir_); }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(dir_ / name, std::ios::binary) << bytes;
  }
  const Path dir_;
};

std::string floats(std::initializer_list<float> values) {
  std::string out(values.size() * 4, '\0');
  std::memcpy(out.data(), values.begin(), out.size());
  return out;
}

std::string header_of(const std::string& dtype, const std::string& shape,
                      const std::string& offsets) {
  return fmt::format(R"({{"w":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape,
                     offsets);
}

TEST(Safetensors, ReadsTensorsMetadataAndOrder) {
  const auto file = parse_bytes(with_header(
      R"({"__metadata__":{"format":"pt"},)"
      R"("b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
      R"("a":{"dtype":"U8","shape":[1,3],"data_offsets":[8,11],"note":{"ignored":[1,{}]}},)"
      R"("empty":{"dtype":"F32","shape":[0,7],"data_offsets":[8,8]},)"
      R"("scalar":{"dtype":"BOOL","shape":[],"data_offsets":[11,12]}}   )",
      floats({1.5f, -2.0f}) + "xyz\x01"));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  std::vector<std::string> names;
  for (const auto& e : file.entries()) names.push_back(e.name);
  EXPECT_THAT(names, ElementsAre("b", "a", "empty", "scalar"));

  const Tensor b = file.tensor("b");
  EXPECT_EQ(b.shape(), Shape({2}));
  EXPECT_EQ(b.data<float>()[0], 1.5f);
  EXPECT_EQ(b.data<float>()[1], -2.0f);
  EXPECT_EQ(file.tensor("a").dtype(), DType::u8);
  EXPECT_EQ(std::to_integer<char>(file.tensor("a").bytes()[2]), 'z');
  EXPECT_EQ(file.tensor("empty").nbytes(), 0u);
  EXPECT_EQ(file.find("scalar")->dtype_name, "BOOL");
  EXPECT_EQ(file.tensor("scalar").shape().rank(), 0u);
  EXPECT_EQ(file.find("c"), nullptr);
  EXPECT_ERROR(file.tensor("c"), ErrorCode::not_found, "no tensor named c");
}

TEST(Safetensors, KeepsEveryType) {
  const std::vector<std::tuple<const char*, DType, std::size_t>> types = {
      {"F64", DType::f64, 8},       {"F32", DType::f32, 4},
      {"F16", DType::f16, 2},       {"BF16", DType::bf16, 2},
      {"I64", DType::i64, 8},       {"I32", DType::i32, 4},
      {"I8", DType::i8, 1},         {"U8", DType::u8, 1},
      {"BOOL", DType::u8, 1},       {"F8_E4M3", DType::f8_e4m3, 1},
      {"F8_E8M0", DType::ue8m0, 1}, {"F8_E8M0FNU", DType::ue8m0, 1}};
  for (const auto& [name, dtype, bytes] : types) {
    const auto file = parse_bytes(safetensors_bytes({{"w", name, {2}, std::string(2 * bytes, 0)}}));
    EXPECT_EQ(file.tensor("w").dtype(), dtype) << name;
    EXPECT_EQ(file.find("w")->dtype_name, name);
  }
  // F4 counts elements: two of them in a byte.
  const auto file = parse_bytes(safetensors_bytes({{"w", "F4", {1, 4}, "ab"}}));
  EXPECT_EQ(file.tensor("w").dtype(), DType::f4_e2m1);
  EXPECT_EQ(file.tensor("w").shape(), Shape({1, 4}));
}

TEST(Safetensors, CopiesMisalignedDataAndSharesTheRest) {
  // One byte in front puts the floats at an odd address; JSON keys are sorted, so "a" comes first.
  const auto file = parse_bytes(
      safetensors_bytes({{"a", "U8", {1}, "!"}, {"b", "F32", {2}, floats({0.25f, 7.0f})}}));
  const Tensor b = file.tensor("b");
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.bytes()) % alignof(float), 0u);
  EXPECT_EQ(b.data<float>()[0], 0.25f);
  EXPECT_EQ(b.data<float>()[1], 7.0f);
  EXPECT_EQ(file.tensor("a").bytes(), file.tensor("a").bytes());  // no copy
  EXPECT_NE(file.tensor("b").bytes(), b.bytes());
}

TEST(Safetensors, TensorsOutliveTheFile) {
  Tensor w;
  {
    const auto file = parse_bytes(safetensors_bytes({{"w", "U8", {3}, "abc"}}));
    w = file.tensor("w");
  }
  EXPECT_EQ(std::to_integer<char>(w.bytes()[1]), 'b');
}

struct Broken {
  std::string name;
  std::string bytes;
  ErrorCode code;
  std::string sentence;
};

std::vector<Broken> broken_files() {
  const auto corrupt = ErrorCode::corrupt_data;
  const auto one = [](const std::string& dtype, const std::string& shape,
                      const std::string& offsets, std::size_t n_data = 8) {
    return with_header(header_of(dtype, shape, offsets), std::string(n_data, 'x'));
  };
  const std::string f32 = R"("F32")";
  std::string huge_length = "\xff\xff\xff\xff\xff\xff\xff\x7f{}";
  std::string long_header = std::string("\x10\0\0\0\0\0\0\0", 8) + "{}";
  const std::string two_floats = R"("dtype":"F32","shape":[2])";
  return {
      {"Empty", "", corrupt, "0 bytes, too short"},
      {"SevenBytes", "1234567", corrupt, "7 bytes, too short"},
      {"HeaderOver100MB", huge_length, corrupt, "the format allows 100000000"},
      {"HeaderPastTheEnd", long_header, corrupt, "claims 16 bytes, the file has 2"},
      {"HeaderNotJson", with_header("hello", ""), corrupt, "not valid JSON (at byte 1 of it)"},
      {"HeaderEmpty", with_header("", ""), corrupt, "not valid JSON"},
      {"HeaderNotUtf8", with_header("{\"\xff\":1}", ""), corrupt, "not valid JSON"},
      {"HeaderTrailing", with_header("{} {}", ""), corrupt, "not valid JSON"},
      {"HeaderIsList", with_header("[]", ""), corrupt, "a list, wanted a JSON object"},
      {"HeaderIsNumber", with_header("12", ""), corrupt, "the number 12, wanted a JSON object"},
      {"EntryIsNumber", with_header(R"({"w":3})", ""), corrupt,
       "w: the number 3 in the header, wanted an object"},
      {"MetadataNotText", with_header(R"({"__metadata__":{"a":1}})", ""), corrupt,
       "__metadata__.a is the number 1, wanted text"},
      {"MetadataNested", with_header(R"({"__metadata__":{"a":{}}})", ""), corrupt,
       "__metadata__.a is an object, wanted text"},
      {"DuplicateTensor",
       with_header("{\"w\":{" + two_floats + ",\"data_offsets\":[0,8]},\"w\":{" + two_floats +
                       ",\"data_offsets\":[0,8]}}",
                   std::string(8, 'x')),
       corrupt, "the tensor \"w\" appears twice"},
      {"DuplicateKey", with_header(R"({"w":{"dtype":"F32","dtype":"U8"}})", ""), corrupt,
       "the key \"dtype\" appears twice"},
      {"NoDtype", with_header(R"({"w":{"shape":[2],"data_offsets":[0,8]}})", std::string(8, 'x')),
       corrupt, "w: the header has no dtype"},
      {"NoShape", with_header(R"({"w":{"dtype":"F32","data_offsets":[0,8]}})", std::string(8, 'x')),
       corrupt, "no shape"},
      {"NoOffsets", with_header("{\"w\":{" + two_floats + "}}", ""), corrupt, "no data_offsets"},
      {"UnknownDtype", one(R"("F8_E5M2")", "[8]", "[0,8]"), ErrorCode::unsupported,
       "the dtype is \"F8_E5M2\"; hadal reads"},
      {"DtypeNotText", one("7", "[8]", "[0,8]"), corrupt, "dtype is the number 7, wanted text"},
      {"ShapeNotList", one(f32, "2", "[0,8]"), corrupt, "shape is the number 2, wanted a list"},
      {"NegativeShape", one(f32, "[-2]", "[0,8]"), corrupt,
       "shape holds the negative number -2, wanted non-negative integers"},
      {"FractionalShape", one(f32, "[2.0]", "[0,8]"), corrupt, "shape holds the fraction 2.0"},
      {"TextInShape", one(f32, R"(["2"])", "[0,8]"), corrupt, "shape holds the text \"2\""},
      {"NestedShape", one(f32, "[[2]]", "[0,8]"), corrupt, "shape holds a list"},
      {"RankTooHigh", one(f32, "[1,1,1,1,1,1,2]", "[0,8]"), ErrorCode::unsupported, "rank 7"},
      {"ShapeOverflow", one(f32, "[4294967296,4294967296]", "[0,8]"), corrupt,
       "more elements than any file could hold"},
      {"ShapeOverflowHiddenByZero", one(f32, "[4294967296,4294967296,0]", "[0,0]", 0), corrupt,
       "more elements than any file could hold"},
      {"ShapeBeyondSigned", one(f32, "[18446744073709551615]", "[0,8]"), corrupt,
       "more elements than any file could hold"},
      {"BytesOverflow", one(f32, "[2305843009213693952]", "[0,8]"), corrupt,
       "more elements than any file could hold"},
      {"HalfAByte", one(R"("F4")", "[3]", "[0,2]", 2), corrupt, "does not fill whole bytes"},
      {"OneOffset", one(f32, "[2]", "[8]"), corrupt, "data_offsets has 1 numbers"},
      {"NegativeOffset", one(f32, "[2]", "[-8,0]"), corrupt,
       "data_offsets holds the negative number -8"},
      {"ReversedOffsets", one(f32, "[2]", "[8,0]"), corrupt, "data_offsets are reversed: [8, 0]"},
      {"SizeMismatch", one(f32, "[3]", "[0,8]"), corrupt,
       "w: [3] F32 is 12 bytes, but data_offsets [0, 8] span 8"},
      {"PastTheEnd", one(f32, "[2]", "[0,8]", 7), corrupt, "the file is cut short or damaged"},
      {"PastTheEndHuge", one(f32, "[2]", "[18446744073709551607,18446744073709551615]"), corrupt,
       "the file is cut short or damaged"},
      {"HoleInFront", one(f32, "[2]", "[4,12]", 12), corrupt,
       "4 bytes before w belong to no tensor"},
      {"HoleBehind", one(f32, "[2]", "[0,8]", 9), corrupt, "1 bytes after the last tensor"},
      {"Overlap",
       with_header("{\"v\":{" + two_floats + ",\"data_offsets\":[0,8]},\"w\":{" + two_floats +
                       ",\"data_offsets\":[4,12]}}",
                   std::string(12, 'x')),
       corrupt, "the data of v and w overlap"},
      {"DeepNesting", with_header("{\"w\":{\"x\":" + std::string(100000, '['), ""), corrupt,
       "not valid JSON"},
  };
}

class BrokenFile : public testing::TestWithParam<Broken> {};
TEST_P(BrokenFile, IsRefusedWithItsOwnSentence) {
  EXPECT_ERROR(parse_bytes(GetParam().bytes), GetParam().code, GetParam().sentence);
  EXPECT_ERROR(parse_bytes(GetParam().bytes), GetParam().code, "test.st: ");
}
INSTANTIATE_TEST_SUITE_P(Safetensors, BrokenFile, testing::ValuesIn(broken_files()),
                         [](const auto& test) { return test.param.name; });

// Whatever byte a file ends at, it is refused or it is whole.
TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string bytes =
      safetensors_bytes({{"a", "F32", {2}, floats({1, 2})}, {"b", "I8", {3}, "xyz"}});
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_ERROR(parse_bytes(bytes.substr(0, n)), ErrorCode::corrupt_data, "test.st");
  }
  EXPECT_EQ(parse_bytes(bytes).entries().size(), 2u);
}

TEST_F(SafetensorsDirectory, WriterRoundTrips) {
  SafetensorsWriter writer(FileSystem::real(), dir_ / "w.safetensors",
                           {{"f", DType::f32, {2, 2}, ""},
                            {"none", DType::f32, {0}, ""},
                            {"fp4", DType::f4_e2m1, {1, 4}, ""},
                            {"flag", DType::u8, {1}, "BOOL"}},
                           {{"made_by", "a test"}});
  const std::string f = floats({1, 2, 3, 4});
  const auto bytes = std::as_bytes(std::span(f));
  writer.write("f", bytes.first(6));  // in pieces, across an element
  writer.write("f", bytes.subspan(6));
  Tensor fp4 = Tensor::zeros({1, 4}, DType::f4_e2m1);
  fp4.bytes()[0] = std::byte{0xA3};
  writer.write("fp4", fp4);
  EXPECT_FALSE(std::filesystem::exists(dir_ / "w.safetensors"));
  const std::byte flag{1};
  writer.write("flag", std::span(&flag, 1));
  writer.finish();

  const auto file = SafetensorsFile::open(dir_ / "w.safetensors");
  EXPECT_EQ(file.metadata().at("made_by"), "a test");
  EXPECT_EQ(std::memcmp(file.tensor("f").bytes(), f.data(), f.size()), 0);
  EXPECT_EQ(file.tensor("f").shape(), Shape({2, 2}));
  EXPECT_EQ(file.find("f")->offset % 64, 0u);
  EXPECT_EQ(file.tensor("fp4").dtype(), DType::i8);  // as the published checkpoints pack it
  EXPECT_EQ(file.tensor("fp4").shape(), Shape({1, 2}));
  EXPECT_EQ(file.tensor("fp4").bytes()[0], std::byte{0xA3});
  EXPECT_EQ(file.find("flag")->dtype_name, "BOOL");
  EXPECT_FALSE(std::filesystem::exists(dir_ / "w.safetensors.partial"));
}

TEST_F(SafetensorsDirectory, WriterRefusesWhatDoesNotFitItsDeclarations) {
  auto& fs = FileSystem::real();
  const Path path = dir_ / "w.safetensors";
  const auto invalid = ErrorCode::invalid_argument;
  const std::array<std::byte, 8> data{};
  const std::span<const std::byte> all(data);
  EXPECT_ERROR(SafetensorsWriter(fs, path, {{"a", DType::u8, {1}, ""}, {"a", DType::u8, {1}, ""}}),
               invalid, "\"a\" is declared twice");
  EXPECT_ERROR(SafetensorsWriter(fs, path, {{"__metadata__", DType::u8, {1}, ""}}), invalid,
               "reserved");
  EXPECT_ERROR(SafetensorsWriter(fs, path, {{"a", DType::f4_e2m1, {2, 3}, ""}}), invalid,
               "even number of columns");
  EXPECT_ERROR(SafetensorsWriter(fs, path, {{"a", DType::f32, {2}, "F16"}}), invalid,
               "f32 cannot be written as \"F16\"");
  EXPECT_ERROR(SafetensorsWriter(fs, path, {{"a\xff", DType::f32, {2}, ""}}), invalid, "UTF-8");

  SafetensorsWriter writer(fs, path, {{"a", DType::u8, {4}, ""}, {"b", DType::f32, {1}, ""}});
  EXPECT_ERROR(writer.write("b", all.first(4)), invalid, "data for b, but a is due");
  EXPECT_ERROR(writer.write("a", all), invalid, "8 bytes for a, which has room for 4");
  writer.write("a", all.first(4));
  EXPECT_ERROR(writer.write("a", all.first(1)), invalid, "data for a, but b is due");
  EXPECT_ERROR(writer.write("b", Tensor::zeros({1}, DType::i32)), invalid,
               "b was declared [1] f32 and comes as [1] i32");
  EXPECT_ERROR(writer.finish(), invalid, "b has 0 of 4 bytes");
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(Safetensors, AlignedOrderPutsWideTypesFirst) {
  const auto sorted = aligned_order({{"s", DType::ue8m0, {3}, ""},
                                     {"x", DType::f32, {1}, ""},
                                     {"i", DType::i64, {1}, ""},
                                     {"y", DType::f32, {1}, ""}});
  std::vector<std::string> names;
  for (const auto& d : sorted) names.push_back(d.name);
  EXPECT_THAT(names, ElementsAre("i", "x", "y", "s"));
}

TEST_F(SafetensorsDirectory, CheckpointOfOneFile) {
  write("model.safetensors", safetensors_bytes({{"b", "U8", {1}, "b"}, {"a", "U8", {2}, "aa"}}));
  const auto checkpoint = Checkpoint::open(dir_);
  EXPECT_EQ(checkpoint.size(), 2u);
  EXPECT_EQ(checkpoint.total_bytes(), 3u);
  EXPECT_TRUE(checkpoint.contains("a"));
  EXPECT_FALSE(checkpoint.contains("c"));
  EXPECT_EQ(checkpoint.tensor("a").nbytes(), 2u);
  EXPECT_EQ(Checkpoint::open(dir_ / "model.safetensors").size(), 2u);
  EXPECT_ERROR(checkpoint.tensor("c"), ErrorCode::not_found, "no tensor named c");
}

TEST_F(SafetensorsDirectory, CheckpointOfShards) {
  write("m-1.safetensors", safetensors_bytes({{"a", "U8", {1}, "a"}, {"stale", "U8", {1}, "s"}}));
  write("m-2.safetensors", safetensors_bytes({{"b", "U8", {1}, "b"}}));
  write("model.safetensors.index.json",
        index_json({{"a", "m-1.safetensors"}, {"b", "m-2.safetensors"}}, 2));
  const auto checkpoint = Checkpoint::open(dir_);
  EXPECT_THAT(checkpoint.names(), testing::UnorderedElementsAre("a", "b"));
  EXPECT_FALSE(checkpoint.contains("stale"));  // the index has the say
  EXPECT_EQ(checkpoint.total_bytes(), 2u);
  EXPECT_EQ(std::to_integer<char>(checkpoint.tensor("b").bytes()[0]), 'b');
}

TEST_F(SafetensorsDirectory, BrokenCheckpointsAreRefused) {
  const auto corrupt = ErrorCode::corrupt_data;
  const char* kIndex = "model.safetensors.index.json";
  EXPECT_ERROR(Checkpoint::open(dir_ / "nowhere"), ErrorCode::not_found, "no such checkpoint");
  EXPECT_ERROR(Checkpoint::open(dir_), ErrorCode::not_found, "nor model.safetensors");

  write("m-1.safetensors", safetensors_bytes({{"a", "U8", {1}, "a"}}));
  write(kIndex, index_json({{"a", "m-1.safetensors"}, {"b", "m-2.safetensors"}}, 2));
  EXPECT_ERROR(Checkpoint::open(dir_), ErrorCode::not_found,
               "the shard m-2.safetensors is missing");
  write(kIndex, index_json({{"a", "m-1.safetensors"}, {"b", "m-1.safetensors"}}, 2));
  EXPECT_ERROR(Checkpoint::open(dir_), corrupt,
               "places b in m-1.safetensors, which has no such tensor");
  write(kIndex, "{");
  EXPECT_ERROR(Checkpoint::open(dir_), corrupt, "the index is not valid JSON");
  write(kIndex, R"({"metadata":{}})");
  EXPECT_ERROR(Checkpoint::open(dir_), corrupt, "no \"weight_map\" object");
  write(kIndex, R"({"weight_map":{}})");
  EXPECT_ERROR(Checkpoint::open(dir_), corrupt, "weight_map is empty");
  write(kIndex, R"({"weight_map":{"a":3}})");
  EXPECT_ERROR(Checkpoint::open(dir_), corrupt, "weight_map.a is number");
  write(kIndex, R"({"weight_map":{"a":"../m-1.safetensors"}})");
  EXPECT_ERROR(Checkpoint::open(dir_), corrupt, "wanted the plain name of a file");
  write(kIndex,
        R"({"metadata":{"a":1},"weight_map":{"a":"m-1.safetensors","a":"m-1.safetensors"}})");
  EXPECT_ERROR(Checkpoint::open(dir_), corrupt, "weight_map names a twice");
  write(kIndex, R"({"weight_map":{"a":"m-1.safetensors"},"other":{"x":{"a":1,"a":2}}})");
  EXPECT_EQ(Checkpoint::open(dir_).size(), 1u);
}

TEST(Safetensors, ATensorInTwoFilesIsRefused) {
  const std::string bytes = safetensors_bytes({{"a", "U8", {1}, "a"}});
  EXPECT_ERROR(
      Checkpoint::from_files({parse_bytes(bytes, "x.st"), parse_bytes(bytes, "y.st")}, "d"),
      ErrorCode::corrupt_data, "d: a is in both x.st and y.st");
}

TEST(Safetensors, ReadsTheGoldenFiles) {
  const auto hf = Checkpoint::open(HADAL_TEST_DATA_DIR "/golden/hf-tiny");
  EXPECT_EQ(hf.size(), 255u);
  EXPECT_EQ(hf.tensor("model.layers.0.ffn.gate.tid2eid").dtype(), DType::i64);
  const auto official = Checkpoint::open(HADAL_TEST_DATA_DIR "/golden/official-tiny");
  EXPECT_EQ(official.size(), 504u);
  EXPECT_EQ(official.tensor("layers.2.attn.wo_a.scale").dtype(), DType::ue8m0);
  EXPECT_EQ(official.tensor("layers.2.ffn.experts.0.w1.weight").dtype(), DType::i8);
  const auto units = SafetensorsFile::open(HADAL_TEST_DATA_DIR "/golden/units.safetensors");
  EXPECT_EQ(units.tensor("decode.e8m0").data<float>()[133], 64.0f);  // architecture.md appendix B
}

}  // namespace
}  // namespace hadal::io
