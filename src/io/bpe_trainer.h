// Learns a byte-level BPE vocabulary from text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/thread_pool.h"
#include "io/bpe.h"
#include "io/pretokenizer.h"

namespace hadal::io {

struct PieceCount {
  std::string piece;
  std::int64_t count;
};

// Counts the pieces that a pretokenizer cuts texts into: all that BPE learns from.
class PieceCounter {
 public:
  explicit PieceCounter(Pretokenizer pretokenizer);

  // Counts all of them, on every thread of `pool`. The sums do not depend on the threads. Throws
  // Error invalid_argument with the byte offset for a text that is not valid UTF-8.
  void add(std::span<const std::string_view> texts, ThreadPool& pool);

  // What was counted, by piece in byte order; the counter is empty then.
  [[nodiscard]] std::vector<PieceCount> take();

 private:
  struct StringHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const;
  };
  using Counts = std::unordered_map<std::string, std::int64_t, StringHash, std::equal_to<>>;
  struct Worker {
    RegexScratch regex;
    Counts counts;
  };
  [[nodiscard]] std::unique_ptr<Worker> borrow();
  void give_back(std::unique_ptr<Worker> worker);

  Pretokenizer pretokenizer_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

struct BpeTrainerOptions {
  std::size_t n_tokens = 4096;       // the 256 bytes and what merges make; control tokens not
  std::int64_t min_count = 2;        // a pair that is rarer is not merged
  std::size_t max_token_bytes = 64;  // rules of dashes and the like do not become one token
};

struct TrainedBpe {
  std::vector<std::string> tokens;  // bytes by number; the first 256 are one byte each, in the
                                    // order of their spellings in the byte alphabet
  std::vector<Merge> merges;        // by rank; numbers index `tokens`
};

// Merges the most frequent pair of neighbours until there are n_tokens tokens or no pair is left
// that is frequent enough (the result is smaller then). Of two pairs equally frequent the one with
// the lower left number is merged first, then the one with the lower right number: the result is a
// function of `pieces` and `options` alone. `progress` is told the tokens made so far; what it
// throws comes out. Throws Error invalid_argument for n_tokens < 256.
// Source: Sennrich et al. 2016, §3.2, over bytes as in GPT-2; a merge touches only the pieces that
// hold its pair.
using BpeProgress = std::function<void(std::size_t n_done, std::size_t n_wanted)>;
[[nodiscard]] TrainedBpe train_bpe(std::span<const PieceCount> pieces,
                                   const BpeTrainerOptions& options,
                                   const BpeProgress& progress = {});

}  // namespace hadal::io
