#include "io/checkpoint_writer.h"

#include <gmock/gmock.h>

#include "support/failing_file_system.h"
#include "support/safetensors_bytes.h"

namespace hadal::io {
namespace {

using test::ScratchDirectory;

std::vector<TensorDecl> some_decls() {
  return {{"embed.weight", DType::bf16, {4, 8}, {}},
          {"a.weight", DType::f8_e4m3, {128, 64}, {}},
          {"a.scale", DType::ue8m0, {1, 1}, {}},
          {"b.weight", DType::f4_e2m1, {2, 32}, {}},
          {"b.scale", DType::ue8m0, {2, 1}, {}},
          {"table", DType::i64, {3}, {}},
          {"bias", DType::f32, {5}, {}}};
}

// Every byte of a tensor is the place of its name in the list.
void write_all(CheckpointWriter& writer) {
  const auto decls = some_decls();
  for (const TensorDecl& decl : writer.order()) {
    const auto place = std::find_if(decls.begin(), decls.end(),
                                    [&](const auto& d) { return d.name == decl.name; }) -
                       decls.begin();
    const std::vector<std::byte> bytes(nbytes(decl.shape, decl.dtype),
                                       static_cast<std::byte>(place));
    writer.write(decl.name, bytes);
  }
  writer.write_file("config.json", "{}");
}

TEST(CheckpointWriter, WritesShardsThatReadBack) {
  const ScratchDirectory scratch;
  for (const std::size_t shard_bytes : {1u, 8192u, 8300u, 1u << 20}) {
    SCOPED_TRACE(shard_bytes);
    CheckpointWriter writer(FileSystem::real(), scratch / "out", some_decls(),
                            {.shard_bytes = shard_bytes, .existing = Existing::replace});
    write_all(writer);
    writer.finish();
    const Checkpoint read = Checkpoint::open(scratch / "out");
    ASSERT_EQ(read.size(), 7u);
    EXPECT_EQ(read.total_bytes(), writer.total_bytes());
    std::size_t place = 0;
    for (const TensorDecl& decl : some_decls()) {
      const Tensor t = read.tensor(decl.name);
      EXPECT_EQ(t.nbytes(), nbytes(decl.shape, decl.dtype)) << decl.name;
      EXPECT_EQ(static_cast<std::size_t>(t.bytes()[t.nbytes() - 1]), place++) << decl.name;
    }
    std::size_t n_shards = 0;
    for (const auto& entry : std::filesystem::directory_iterator(scratch / "out")) {
      if (entry.path().extension() != ".safetensors") continue;
      ++n_shards;
      const auto file = SafetensorsFile::open(entry.path());
      EXPECT_EQ(file.metadata().at("format"), "pt");
      EXPECT_EQ(file.find("a.weight") == nullptr, file.find("a.scale") == nullptr);
      EXPECT_EQ(file.find("b.weight") == nullptr, file.find("b.scale") == nullptr);
      std::size_t size = 0;
      for (const auto& e : file.entries()) {
        size += e.nbytes;
        EXPECT_EQ(e.offset % (static_cast<std::size_t>(bits(e.dtype)) / 8), 0u) << e.name;
      }
      EXPECT_TRUE(size <= shard_bytes || file.entries().size() <= 2) << size;
    }
    EXPECT_EQ(n_shards, writer.n_shards());
  }
  EXPECT_EQ(scratch.n_entries(), 1u);  // nothing beside it
}

TEST(CheckpointWriter, LeavesNothingWithoutFinish) {
  const ScratchDirectory scratch;
  {
    CheckpointWriter writer(FileSystem::real(), scratch / "out", some_decls(), {});
    write_all(writer);
    EXPECT_TRUE(std::filesystem::exists(scratch / "out.partial"));
    EXPECT_FALSE(std::filesystem::exists(scratch / "out"));
  }
  EXPECT_EQ(scratch.n_entries(), 0u);
}

TEST(CheckpointWriter, FullDiskAtAnyMomentLeavesWhatWasThere) {
  const ScratchDirectory scratch;
  const auto attempt = [&](FileSystem& fs) {
    CheckpointWriter writer(fs, scratch / "out", some_decls(),
                            {.shard_bytes = 8300, .existing = Existing::replace});
    write_all(writer);
    writer.finish();
  };
  for (const bool exists : {false, true}) {
    const auto prepare = [&] {
      std::filesystem::remove_all(scratch / "out");
      if (!exists) return;
      std::filesystem::create_directories(scratch / "out");
      test::write_text(scratch / "out" / "config.json", "old");
    };
    prepare();
    test::FailingFileSystem whole;
    attempt(whole);
    ASSERT_GT(whole.n_operations(), 20);
    ASSERT_EQ(scratch.n_entries(), 1u);
    for (int limit = 0; limit < whole.n_operations(); ++limit) {
      prepare();
      test::FailingFileSystem full(limit);
      EXPECT_ERROR(attempt(full), ErrorCode::io, "No space left on device");
      ASSERT_EQ(std::filesystem::exists(scratch / "out"), exists) << "limit " << limit;
      ASSERT_EQ(scratch.n_entries(), exists ? 1u : 0u) << "limit " << limit;
      if (exists) {
        ASSERT_EQ(read_text(scratch / "out" / "config.json"), "old") << "limit " << limit;
      }
    }
  }
}

TEST(CheckpointWriter, RefusesWhatIsThere) {
  const ScratchDirectory scratch;
  const auto attempt = [&](Existing existing, const Path& path) {
    CheckpointWriter(FileSystem::real(), path, some_decls(), {.existing = existing});
  };
  test::write_text(scratch / "file", "x");
  EXPECT_ERROR(attempt(Existing::replace, scratch / "file"), ErrorCode::invalid_argument,
               "exists and is no directory");
  std::filesystem::create_directories(scratch / "home");
  EXPECT_ERROR(attempt(Existing::refuse, scratch / "home/"), ErrorCode::invalid_argument,
               "exists; choose another name, or --force");
  attempt(Existing::replace, scratch / "home");  // empty
  test::write_text(scratch / "home" / "letter.txt", "x");
  EXPECT_ERROR(attempt(Existing::replace, scratch / "home"), ErrorCode::invalid_argument,
               "is no model directory");
  EXPECT_TRUE(std::filesystem::exists(scratch / "home" / "letter.txt"));
  EXPECT_ERROR(attempt(Existing::refuse, "/"), ErrorCode::invalid_argument, "no name");
}

TEST(CheckpointWriter, WantsEveryTensorInOrder) {
  const ScratchDirectory scratch;
  {
    CheckpointWriter writer(FileSystem::real(), scratch / "out", some_decls(), {});
    EXPECT_ERROR(writer.finish(), ErrorCode::invalid_argument, "every declared tensor");
  }
  CheckpointWriter writer(FileSystem::real(), scratch / "out", some_decls(), {});
  EXPECT_ERROR(writer.write("nobody", std::vector<std::byte>(4)), ErrorCode::invalid_argument,
               "nobody is not declared or comes too late");
}

}  // namespace
}  // namespace hadal::io
