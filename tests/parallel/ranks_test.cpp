// Collectives, on as many ranks as there are: one in the plain suite, 2 and 4 under mpirun.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "core/rng.h"
#include "parallel/ranks.h"
#include "parallel/self_comm.h"

namespace hadal::parallel {
namespace {

using test::ranks;

std::vector<float> values_of(int rank, std::size_t n) {
  Rng rng(100 + static_cast<std::uint64_t>(rank));
  std::vector<float> v(n);
  for (float& x : v) x = std::ldexp(static_cast<float>(rng.next_below(1U << 24)) - (1 << 23), -20);
  return v;
}

// Sums are added in rank order, whatever arrives first; also where there are fewer values than
// ranks, and more than travel at a time.
TEST(Ranks, SumsAreInRankOrder) {
  for (const std::size_t n : {0U, 1U, 3U, 1000U, (1U << 22) + 5U}) {
    std::vector<float> sum = values_of(ranks().rank(), n);
    ranks().all_reduce_sum(std::span(sum));
    std::vector<float> wanted = values_of(0, n);
    for (int r = 1; r < ranks().size(); ++r) {
      const std::vector<float> more = values_of(r, n);
      for (std::size_t i = 0; i < n; ++i) wanted[i] += more[i];
    }
    EXPECT_EQ(sum, wanted) << n;
  }
}

TEST(Ranks, SumsOfOtherTypes) {
  const auto n = static_cast<std::int64_t>(ranks().size());
  std::vector<double> d{0.1 * (ranks().rank() + 1), std::nan("")};
  ranks().all_reduce_sum(std::span(d));
  double wanted = 0.1;
  for (int r = 1; r < n; ++r) wanted += 0.1 * (r + 1);
  EXPECT_EQ(d[0], wanted);
  EXPECT_TRUE(std::isnan(d[1]));
  std::vector<std::int64_t> i{ranks().rank(), std::int64_t{1} << 60};
  ranks().all_reduce_sum(std::span(i));
  EXPECT_EQ(i[0], n * (n - 1) / 2);
  EXPECT_EQ(i[1], n << 60);
}

TEST(Ranks, GatherPutsPartsInRankOrder) {
  // Rank r has r parts: the first has none.
  std::vector<std::byte> own(static_cast<std::size_t>(ranks().rank()),
                             static_cast<std::byte>(ranks().rank()));
  std::vector<std::int64_t> n_bytes(static_cast<std::size_t>(ranks().size()));
  std::iota(n_bytes.begin(), n_bytes.end(), 0);
  std::vector<std::byte> all, wanted;
  for (int r = 0; r < ranks().size(); ++r) {
    wanted.insert(wanted.end(), static_cast<std::size_t>(r), static_cast<std::byte>(r));
  }
  all.resize(wanted.size());
  ranks().all_gather(own, n_bytes, all);
  EXPECT_EQ(all, wanted);
}

TEST(Ranks, ExchangeBringsEachItsOwn) {
  const int n = ranks().size(), own = ranks().rank();
  // From rank s to rank d: 3 s + d values, each 10 s + d.
  const auto count = [](int s, int d) { return static_cast<std::size_t>(3 * s + d); };
  std::vector<std::byte> send, wanted;
  std::vector<std::int64_t> n_sent, n_received;
  for (int r = 0; r < n; ++r) {
    send.insert(send.end(), count(own, r), static_cast<std::byte>(10 * own + r));
    wanted.insert(wanted.end(), count(r, own), static_cast<std::byte>(10 * r + own));
    n_sent.push_back(static_cast<std::int64_t>(count(own, r)));
    n_received.push_back(static_cast<std::int64_t>(count(r, own)));
  }
  std::vector<std::byte> received(wanted.size());
  ranks().all_to_all(send, n_sent, received, n_received);
  EXPECT_EQ(received, wanted);
}

TEST(Ranks, BroadcastFromEveryRoot) {
  for (int root = 0; root < ranks().size(); ++root) {
    std::vector<std::byte> bytes(5, static_cast<std::byte>(ranks().rank()));
    ranks().broadcast(bytes, root);
    EXPECT_EQ(bytes, std::vector<std::byte>(5, static_cast<std::byte>(root)));
  }
  ranks().barrier();
}

// Wrong amounts are noticed before anything is sent.
TEST(Ranks, AmountsThatDoNotFitAreRefused) {
  std::vector<std::byte> own(1), all(static_cast<std::size_t>(ranks().size()) + 1);
  const std::vector<std::int64_t> n_bytes(static_cast<std::size_t>(ranks().size()), 1);
  EXPECT_THROW(ranks().all_gather(own, n_bytes, all), Error);
}

TEST(SelfComm, AbortIsAnError) {
  EXPECT_THROW(self().abort("reason"), Error);
  EXPECT_THROW(abort_on_error(self(), [] { throw Error(ErrorCode::io, "disk"); }), Error);
  EXPECT_EQ(abort_on_error(self(), [] { return 3; }), 3);
}

}  // namespace
}  // namespace hadal::parallel
