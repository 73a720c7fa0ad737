// What the journal costs: a commit on the engine's thread, and a step of 16 sequences under each
// policy, on the disk that holds the temporary directory.
#include "journal/writer.h"

#include <benchmark/benchmark.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

namespace hadal::journal {
namespace {

constexpr std::uint32_t kSequences = 16;

class Journal {
 public:
  explicit Journal(SyncPolicy::Kind kind) {
    FileSystem& fs = FileSystem::real();
    path_ = std::filesystem::temp_directory_path() /
            ("hadal-journal-bench-" + std::to_string(::getpid()));
    fs.remove_all(path_);
    WriterOptions options;
    options.sync.kind = kind;
    writer = std::make_unique<Writer>(fs, path_, options, recover(fs, path_));
    for (std::uint32_t i = 0; i < kSequences; ++i) {
      OpenRecord open;
      open.name = "stream-" + std::to_string(i);
      open.prompt.assign(1000, 42);
      open.request.assign(4000, 'x');
      locals_.push_back(*writer->open(open));
    }
    (void)writer->flush();
  }
  ~Journal() {
    writer.reset();
    FileSystem::real().remove_all(path_);
  }
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // One token of every sequence.
  void step() {
    std::vector<TokenEntry> tokens;
    tokens.reserve(kSequences);
    for (const LocalId local : locals_) {
      tokens.push_back({.local = local, .index = next_, .token = 4711, .logprob = -1.f});
    }
    ++next_;
    writer->commit(std::move(tokens), {}, [] {});
  }

  std::unique_ptr<Writer> writer;

 private:
  Path path_;
  std::vector<LocalId> locals_;
  std::uint32_t next_ = 0;
};

// As fast as it goes: what the log's thread can take, syncs shared by all that waits.
void throughput(benchmark::State& state) {
  Journal journal(static_cast<SyncPolicy::Kind>(state.range(0)));
  for (auto _ : state) {
    for (int i = 0; i < 1000; ++i) journal.step();
    (void)journal.writer->flush();
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * 1000 * kSequences);
  state.SetLabel(SyncPolicy{.kind = static_cast<SyncPolicy::Kind>(state.range(0))}.to_string());
}
BENCHMARK(throughput)
    ->DenseRange(0, 2)
    ->MeasureProcessCPUTime()
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

// A step that computes for `range(1)` microseconds and then hands its tokens over, as the engine
// does. Policy -1 is no journal: the difference is what it costs.
void engine_step(benchmark::State& state) {
  const bool with_journal = state.range(0) >= 0;
  const auto kind = static_cast<SyncPolicy::Kind>(state.range(0));
  std::unique_ptr<Journal> journal;
  if (with_journal) journal = std::make_unique<Journal>(kind);
  const auto compute = std::chrono::microseconds(state.range(1));
  double commit_seconds = 0;
  // A fixed amount of arithmetic, so that a core shared with the log's thread shows.
  const auto calibrate = [](std::uint64_t n) {
    std::uint64_t x = 1;
    for (std::uint64_t i = 0; i < n; ++i)
      benchmark::DoNotOptimize(x = x * 6364136223846793005u + 1);
  };
  static const double kPerSecond = [&] {
    const auto begin = std::chrono::steady_clock::now();
    calibrate(20'000'000);
    return 2e7 / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }();
  const auto n =
      static_cast<std::uint64_t>(kPerSecond * std::chrono::duration<double>(compute).count());
  for (auto _ : state) {
    calibrate(n);
    const auto begin = std::chrono::steady_clock::now();
    if (with_journal) journal->step();
    commit_seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  const auto steps = static_cast<double>(state.iterations());
  state.counters["commit_us"] = 1e6 * commit_seconds / steps;
  if (with_journal) {
    const WriterStats stats = journal->writer->stats();
    state.counters["syncs_per_step"] = static_cast<double>(stats.syncs) / steps;
    state.counters["sync_ms"] =
        stats.syncs > 0 ? 1e3 * stats.sync_seconds / static_cast<double>(stats.syncs) : 0;
  }
  state.SetLabel(with_journal ? SyncPolicy{.kind = kind}.to_string() : "off");
}
BENCHMARK(engine_step)
    ->ArgsProduct({{-1, 0, 1, 2}, {2000, 10000}})
    ->MeasureProcessCPUTime()
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->MinTime(2);

}  // namespace
}  // namespace hadal::journal
