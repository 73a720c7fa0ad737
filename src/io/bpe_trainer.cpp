#include "io/bpe_trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <queue>
#include <utility>

#include "core/error.h"
#include "io/byte_alphabet.h"
#include "io/utf8.h"
#include "io/vocabulary.h"

namespace hadal::io {
namespace {

constexpr std::size_t kProgressEvery = 64;  // merges

std::uint64_t pair_key(TokenId left, TokenId right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
}
TokenId left_of(std::uint64_t pair) {
  return static_cast<TokenId>(pair >> 32);
}
TokenId right_of(std::uint64_t pair) {
  return static_cast<TokenId>(pair & UINT32_MAX);
}

// The bytes in the order of their spellings: "!" first, the 68 that have no glyph last.
std::array<unsigned char, 256> bytes_by_spelling() {
  std::array<unsigned char, 256> bytes{};
  std::iota(bytes.begin(), bytes.end(), static_cast<unsigned char>(0));
  std::ranges::sort(bytes, {}, [](unsigned char byte) { return spelling_of_byte(byte); });
  return bytes;
}

class Trainer {
 public:
  Trainer(std::span<const PieceCount> pieces, const BpeTrainerOptions& options)
      : pieces_(pieces), options_(options) {
    std::array<TokenId, 256> number{};
    for (const unsigned char byte : bytes_by_spelling()) {
      number[byte] = static_cast<TokenId>(out_.tokens.size());
      add_token(std::string(1, static_cast<char>(byte)));
    }
    std::size_t total = 0;
    for (const PieceCount& piece : pieces_) total += piece.piece.size();
    symbols_.reserve(total);
    words_.reserve(pieces_.size());
    for (const PieceCount& piece : pieces_) {
      words_.push_back({symbols_.size(), piece.piece.size()});
      for (const char c : piece.piece) {
        symbols_.push_back(number[static_cast<unsigned char>(c)]);
      }
    }
    for (std::uint32_t word = 0; word < words_.size(); ++word) {
      const std::span<const TokenId> symbols = symbols_of(word);
      for (std::size_t i = 1; i < symbols.size(); ++i) {
        change(symbols[i - 1], symbols[i], pieces_[word].count, word);
      }
    }
    push_changed();
  }

  TrainedBpe run(const BpeProgress& progress) {
    while (out_.tokens.size() < options_.n_tokens && !heap_.empty()) {
      const Candidate best = heap_.top();
      heap_.pop();
      const auto found = pairs_.find(best.pair);
      if (found == pairs_.end() || found->second.count != best.count) continue;  // out of date
      if (best.count < options_.min_count) break;
      Pair pair = std::move(found->second);
      pairs_.erase(found);
      const TokenId left = left_of(best.pair), right = right_of(best.pair);
      std::string bytes = out_.tokens[static_cast<std::size_t>(left)] +
                          out_.tokens[static_cast<std::size_t>(right)];
      if (bytes.size() > options_.max_token_bytes) continue;
      merge(left, right, std::move(bytes), pair.words);
      if (progress && out_.merges.size() % kProgressEvery == 0) {
        progress(out_.tokens.size(), options_.n_tokens);
      }
    }
    return std::move(out_);
  }

 private:
  struct Word {
    std::size_t begin, size;  // in symbols_
  };
  struct Pair {
    std::int64_t count = 0;
    std::vector<std::uint32_t> words;  // that hold it, or held it once; some twice
    bool changed = false;
  };
  struct Candidate {
    std::int64_t count;
    std::uint64_t pair;
    bool operator<(const Candidate& other) const {  // the top of the heap is the largest
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };

  std::span<TokenId> symbols_of(std::uint32_t word) {
    return std::span(symbols_).subspan(words_[word].begin, words_[word].size);
  }

  TokenId add_token(std::string bytes) {
    const auto number = static_cast<TokenId>(out_.tokens.size());
    numbers_.emplace(bytes, number);
    out_.tokens.push_back(std::move(bytes));
    return number;
  }

  void change(TokenId left, TokenId right, std::int64_t by, std::uint32_t word) {
    const std::uint64_t key = pair_key(left, right);
    Pair& pair = pairs_[key];
    pair.count += by;
    if (by > 0 && (pair.words.empty() || pair.words.back() != word)) pair.words.push_back(word);
    if (!std::exchange(pair.changed, true)) changed_.push_back(key);
  }

  // Every change is pushed, so a candidate whose count is not the pair's is out of date.
  void push_changed() {
    for (const std::uint64_t key : changed_) {
      const auto found = pairs_.find(key);
      if (found == pairs_.end()) continue;
      found->second.changed = false;
      if (found->second.count > 0) {
        heap_.push({found->second.count, key});
      } else {
        pairs_.erase(found);
      }
    }
    changed_.clear();
  }

  void merge(TokenId left, TokenId right, std::string bytes, std::vector<std::uint32_t>& words) {
    // Two ways to the same bytes are one token. A pair can also come back after it was merged, when
    // its left or right side was made in another way since: no new merge then.
    const auto known = numbers_.find(bytes);
    const TokenId merged = known != numbers_.end() ? known->second : add_token(std::move(bytes));
    if (merged_pairs_.emplace(pair_key(left, right), merged).second) {
      out_.merges.push_back({left, right, merged});
    }
    std::ranges::sort(words);
    words.erase(std::unique(words.begin(), words.end()), words.end());
    for (const std::uint32_t word : words) merge_in(word, left, right, merged);
    pairs_.erase(pair_key(left, right));  // "aaa" counts its own pair down
    push_changed();
  }

  void merge_in(std::uint32_t word, TokenId left, TokenId right, TokenId merged) {
    const std::span<TokenId> symbols = symbols_of(word);
    const std::int64_t count = pieces_[word].count;
    std::size_t n = 0;  // symbols kept so far
    for (std::size_t i = 0; i < symbols.size();) {
      if (i + 1 == symbols.size() || symbols[i] != left || symbols[i + 1] != right) {
        symbols[n++] = symbols[i++];
        continue;
      }
      if (n > 0) {
        change(symbols[n - 1], left, -count, word);
        change(symbols[n - 1], merged, count, word);
      }
      if (i + 2 < symbols.size()) {
        change(right, symbols[i + 2], -count, word);
        change(merged, symbols[i + 2], count, word);
      }
      symbols[n++] = merged;
      i += 2;
    }
    words_[word].size = n;
  }

  std::span<const PieceCount> pieces_;
  const BpeTrainerOptions& options_;
  std::vector<TokenId> symbols_;
  std::vector<Word> words_;
  std::unordered_map<std::uint64_t, Pair> pairs_;
  std::unordered_map<std::uint64_t, TokenId> merged_pairs_;
  std::unordered_map<std::string, TokenId> numbers_;
  std::vector<std::uint64_t> changed_;
  std::priority_queue<Candidate> heap_;
  TrainedBpe out_;
};

}  // namespace

std::size_t PieceCounter::StringHash::operator()(std::string_view text) const {
  return hash_bytes(text);
}

PieceCounter::PieceCounter(Pretokenizer pretokenizer) : pretokenizer_(std::move(pretokenizer)) {}

std::unique_ptr<PieceCounter::Worker> PieceCounter::borrow() {
  const std::lock_guard lock(mutex_);
  if (workers_.empty()) return std::make_unique<Worker>();
  auto worker = std::move(workers_.back());
  workers_.pop_back();
  return worker;
}

void PieceCounter::give_back(std::unique_ptr<Worker> worker) {
  const std::lock_guard lock(mutex_);
  workers_.push_back(std::move(worker));
}

void PieceCounter::add(std::span<const std::string_view> texts, ThreadPool& pool) {
  pool.parallel_for(std::ssize(texts), 1, [&](std::int64_t begin, std::int64_t end) {
    auto worker = borrow();
    for (std::int64_t i = begin; i < end; ++i) {
      const std::string_view text = texts[static_cast<std::size_t>(i)];
      if (const auto at = find_invalid_utf8(text)) {
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("the text is not valid UTF-8 at byte {} of {}", *at, text.size()));
      }
      pretokenizer_.split(text, worker->regex, [&](std::string_view piece) {
        const auto found = worker->counts.find(piece);
        if (found != worker->counts.end()) {
          ++found->second;
        } else {
          worker->counts.emplace(piece, 1);
        }
      });
    }
    give_back(std::move(worker));
  });
}

std::vector<PieceCount> PieceCounter::take() {
  const std::lock_guard lock(mutex_);
  Counts all;
  for (const auto& worker : workers_) {
    if (all.empty()) {
      all = std::move(worker->counts);
    } else {
      for (const auto& [piece, count] : worker->counts) all[piece] += count;
    }
  }
  workers_.clear();
  std::vector<PieceCount> pieces;
  pieces.reserve(all.size());
  while (!all.empty()) {
    auto node = all.extract(all.begin());
    pieces.push_back({std::move(node.key()), node.mapped()});
  }
  std::ranges::sort(pieces, {}, &PieceCount::piece);
  return pieces;
}

TrainedBpe train_bpe(std::span<const PieceCount> pieces, const BpeTrainerOptions& options,
                     const BpeProgress& progress) {
  if (options.n_tokens < 256) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} tokens are too few: every one of the 256 bytes has its own",
                            options.n_tokens));
  }
  return Trainer(pieces, options).run(progress);
}

}  // namespace hadal::io
