// Threads, random bits, memory and files.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <numeric>

#include "core/allocator.h"
#include "core/file.h"
#include "core/rng.h"
#include "core/thread_pool.h"

namespace hadal {
namespace {

TEST(ThreadPool, CoversEveryIndexOnce) {
  for (const int threads : {1, 2, 7}) {
    ThreadPool pool(threads);
    for (const std::int64_t n : {0, 1, 2, 100, 1001}) {
      for (const std::int64_t grain : {1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> hits(static_cast<std::size_t>(n));
        pool.parallel_for(n, grain, [&](std::int64_t begin, std::int64_t end) {
          EXPECT_LE(end - begin, grain);
          for (std::int64_t i = begin; i < end; ++i) ++hits[static_cast<std::size_t>(i)];
        });
        for (const auto& hit : hits) ASSERT_EQ(hit.load(), 1);
      }
    }
  }
}

TEST(ThreadPool, RethrowsAndStaysUsable) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(pool.parallel_for(100, 1,
                                   [](std::int64_t begin, std::int64_t) {
                                     if (begin == 37) throw Error(ErrorCode::io, "37");
                                   }),
                 Error);
    std::atomic<int> n{0};
    pool.parallel_for(50, 1, [&](std::int64_t, std::int64_t) { ++n; });
    EXPECT_EQ(n.load(), 50);
  }
}

TEST(ThreadPool, NestedLoopsRunInline) {
  ThreadPool pool(2);
  std::atomic<int> n{0};
  pool.parallel_for(4, 1, [&](std::int64_t, std::int64_t) {
    pool.parallel_for(5, 1, [&](std::int64_t, std::int64_t) { ++n; });
  });
  EXPECT_EQ(n.load(), 20);
}

// The known answers that the authors publish with their implementation (Random123, kat_vectors).
TEST(Rng, PhiloxKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, 0),
            (std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0U, ~0U, ~0U, ~0U}, ~0ULL),
            (std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822ULL),
            (std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, NormalHasItsMoments) {
  Rng rng(3);
  const int n = 100000;
  double sum = 0, squares = 0;
  for (int i = 0; i < n; ++i) {
    const double v = static_cast<double>(rng.next_normal());
    sum += v, squares += v * v;
  }
  EXPECT_NEAR(sum / n, 0.0, 0.0130);      // 4 standard errors
  EXPECT_NEAR(squares / n, 1.0, 0.0180);  // 4 * sqrt(2/n)
}

TEST(PoolAllocator, ReusesWhatIsGivenBack) {
  PoolAllocator pool;
  const std::byte* first = nullptr;
  {
    const Tensor t = pool.empty({1000}, DType::f32);
    first = t.bytes();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % 64, 0U);
  }
  EXPECT_EQ(pool.empty({990}, DType::f32).bytes(), first);
  const std::size_t held = pool.bytes_held();
  for (int i = 0; i < 100; ++i) (void)pool.empty({1000}, DType::f32);
  EXPECT_EQ(pool.bytes_held(), held);
  pool.trim();
  EXPECT_EQ(pool.bytes_held(), 0U);
}

TEST(PoolAllocator, TensorsMayOutliveThePool) {
  Tensor t;
  {
    PoolAllocator pool;
    t = pool.empty({16}, DType::f32);
  }
  t.data<float>()[15] = 1.0f;
  EXPECT_EQ(t.data<float>()[15], 1.0f);
}

TEST(PoolAllocator, EverySizeFits) {
  PoolAllocator pool;
  for (std::int64_t n = 1; n < 3000; n += 7) {
    const Tensor t = pool.empty({n}, DType::u8);
    std::fill_n(t.bytes(), n, std::byte{1});  // ASan would see a short block
  }
}

TEST(Files, MissingFileIsASentence) {
  try {
    (void)MappedFile::open("/nonexistent/file");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::not_found);
    EXPECT_STREQ(error.what(), "cannot open /nonexistent/file: No such file or directory");
  }
}

TEST(Files, WritesAndReadsBack) {
  const Path path = Path(testing::TempDir()) / fmt::format("hadal_files_test_{}", ::getpid());
  FileSystem& fs = FileSystem::real();
  auto file = fs.create(path);
  file->append("one ");
  file->append("two");
  file->sync();
  file->close();
  fs.rename(path, Path(path.string() + ".renamed"));
  EXPECT_EQ(read_text(path.string() + ".renamed"), "one two");
  EXPECT_THROW((void)read_text(path), Error);
  fs.remove_all(path.string() + ".renamed");
}

TEST(Tensors, SlicesAndShapes) {
  const Tensor t = Tensor::zeros({4, 6}, DType::f4_e2m1);
  EXPECT_EQ(t.nbytes(), 12U);
  EXPECT_EQ(t.slice(1, 3).bytes() - t.bytes(), 3);
  EXPECT_EQ(t.slice(1, 3).shape(), (Shape{2, 6}));
  EXPECT_THROW((void)t.slice(3, 5), Error);
  EXPECT_THROW((void)t.data<float>(), Error);
  EXPECT_THROW((void)t.reshape({5, 5}), Error);
  EXPECT_THROW(expect_shape(t, {4, 7}, "thing"), Error);
  EXPECT_EQ(to_string(Shape{4, 6}), "[4, 6]");
}

}  // namespace
}  // namespace hadal
