// The trainer's merges are those of counting every pair anew, and its tokenizer.json is one that
// reads back.
#include "io/bpe_trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "core/error.h"
#include "io/tokenizer.h"
#include "io/tokenizer_writer.h"

namespace hadal::io {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<PieceCount> pieces_of(std::map<std::string, std::int64_t> counts) {
  std::vector<PieceCount> pieces;
  for (auto& [piece, count] : counts) pieces.push_back({piece, count});
  return pieces;
}

std::vector<std::string> merged_bytes(const TrainedBpe& bpe) {
  std::vector<std::string> out;
  for (const Merge& merge : bpe.merges) {
    out.push_back(bpe.tokens[static_cast<std::size_t>(merge.left)] + "+" +
                  bpe.tokens[static_cast<std::size_t>(merge.right)]);
  }
  return out;
}

// The slow obvious way: count all pairs of all words for every merge.
std::vector<std::string> merges_by_recounting(const std::vector<PieceCount>& pieces,
                                              const BpeTrainerOptions& options) {
  // The numbers of the bytes decide ties, so they are the trainer's.
  TrainedBpe start = train_bpe({}, {.n_tokens = 256});
  std::vector<std::string> tokens = start.tokens;
  std::map<std::string, TokenId> number;
  for (const std::string& token : tokens) number.emplace(token, number.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) number[tokens[i]] = static_cast<TokenId>(i);
  std::vector<std::vector<TokenId>> words;
  for (const PieceCount& piece : pieces) {
    words.emplace_back();
    for (const char c : piece.piece) words.back().push_back(number.at(std::string(1, c)));
  }
  std::vector<std::string> merges;
  while (tokens.size() < options.n_tokens) {
    std::map<std::pair<TokenId, TokenId>, std::int64_t> counts;
    for (std::size_t w = 0; w < words.size(); ++w) {
      for (std::size_t i = 1; i < words[w].size(); ++i) {
        counts[{words[w][i - 1], words[w][i]}] += pieces[w].count;
      }
    }
    std::pair<TokenId, TokenId> best;
    std::int64_t most = 0;
    for (const auto& [pair, count] : counts) {
      if (count > most) best = pair, most = count;
    }
    if (most < options.min_count || most == 0) break;
    const std::string left = tokens[static_cast<std::size_t>(best.first)];
    const std::string right = tokens[static_cast<std::size_t>(best.second)];
    const auto [it, is_new] = number.emplace(left + right, static_cast<TokenId>(tokens.size()));
    if (is_new) tokens.push_back(left + right);
    if (const std::string name = left + "+" + right; !std::ranges::count(merges, name)) {
      merges.push_back(name);
    }
    for (auto& word : words) {
      std::vector<TokenId> merged;
      for (std::size_t i = 0; i < word.size(); ++i) {
        if (i + 1 < word.size() && word[i] == best.first && word[i + 1] == best.second) {
          merged.push_back(it->second);
          ++i;
        } else {
          merged.push_back(word[i]);
        }
      }
      word = std::move(merged);
    }
  }
  return merges;
}

TEST(BpeTrainer, MergesTheMostFrequentPairFirst) {
  const auto bpe = train_bpe(pieces_of({{"low", 5}, {"lower", 2}, {"newest", 6}, {"widest", 3}}),
                             {.n_tokens = 256 + 4});
  // e-s and s-t occur nine times each; "e" is before "s". Then es-t nine times, l-o and o-w seven.
  EXPECT_THAT(merged_bytes(bpe), ElementsAre("e+s", "es+t", "l+o", "lo+w"));
}

TEST(BpeTrainer, DoesWhatCountingAnewDoes) {
  std::mt19937 random(7);
  for (int round = 0; round < 20; ++round) {
    std::map<std::string, std::int64_t> counts;
    const int n_letters = 2 + round % 4;
    for (int w = 0; w < 60; ++w) {
      std::string word;
      const int length = 1 + static_cast<int>(random() % 12);
      for (int i = 0; i < length; ++i) word += static_cast<char>('a' + random() % n_letters);
      counts[word] += 1 + static_cast<std::int64_t>(random() % 5);
    }
    const auto pieces = pieces_of(counts);
    const BpeTrainerOptions options{.n_tokens = 256 + 60, .min_count = 2};
    EXPECT_EQ(merged_bytes(train_bpe(pieces, options)), merges_by_recounting(pieces, options))
        << "round " << round;
  }
}

TEST(BpeTrainer, StopsWhereThereIsNothingToMerge) {
  EXPECT_THAT(merged_bytes(train_bpe(pieces_of({{"ab", 1}}), {.n_tokens = 300})), ElementsAre());
  EXPECT_THAT(merged_bytes(train_bpe(pieces_of({{"ab", 1}}), {.n_tokens = 300, .min_count = 1})),
              ElementsAre("a+b"));
  const auto rule =
      train_bpe(pieces_of({{std::string(64, '-'), 9}}), {.n_tokens = 300, .max_token_bytes = 8});
  EXPECT_THAT(merged_bytes(rule), ElementsAre("-+-", "--+--", "----+----"));
  try {
    (void)train_bpe({}, {.n_tokens = 255});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("256 bytes"));
  }
}

TEST(PieceCounter, SumsDoNotDependOnThreads) {
  std::vector<std::string> texts;
  for (int i = 0; i < 50; ++i) {
    texts.push_back("The " + std::to_string(i % 7) + " cats, (or 1234 dogs);\nran to " +
                    std::string(static_cast<std::size_t>(i % 3), ' ') + "日本語.\n");
  }
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  std::vector<std::vector<PieceCount>> results;
  for (const int n_threads : {1, 4}) {
    ThreadPool pool(n_threads);
    PieceCounter counter(deepseek_pretokenizer());
    counter.add(std::span(views).first(20), pool);
    counter.add(std::span(views).subspan(20), pool);
    results.push_back(counter.take());
    EXPECT_TRUE(counter.take().empty());
  }
  ASSERT_EQ(results[0].size(), results[1].size());
  for (std::size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_EQ(results[0][i].piece, results[1][i].piece);
    EXPECT_EQ(results[0][i].count, results[1][i].count);
  }
  const auto digits = std::ranges::find(results[0], "123", &PieceCount::piece);
  ASSERT_NE(digits, results[0].end());  // up to three digits
  EXPECT_EQ(digits->count, 50);
}

TEST(PieceCounter, RefusesWhatIsNotUtf8) {
  ThreadPool pool(1);
  PieceCounter counter(deepseek_pretokenizer());
  const std::string_view text = "fine\xFFnot";
  try {
    counter.add(std::span(&text, 1), pool);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("byte 4"));
  }
}

class TrainedTokenizer : public ::testing::Test {
 protected:
  void SetUp() override {
    ThreadPool pool(1);
    PieceCounter counter(deepseek_pretokenizer());
    std::string text;
    for (int i = 0; i < 40; ++i) {
      text += "the other theory of those things is there; \"and so on\".\nété 日本語 3.14159\n";
    }
    const std::string_view view = text;
    counter.add(std::span(&view, 1), pool);
    bpe_ = train_bpe(counter.take(), {.n_tokens = 300});
    tokenizer_.emplace(Tokenizer::parse(write_tokenizer_json(bpe_)));
  }
  TrainedBpe bpe_;
  std::optional<Tokenizer> tokenizer_;
};

TEST_F(TrainedTokenizer, HasEveryIdOnce) {
  EXPECT_EQ(tokenizer_->vocab_size(), 300 + std::ssize(kControlTokens));
  EXPECT_EQ(tokenizer_->n_added_tokens(), kControlTokens.size());
  EXPECT_EQ(tokenizer_->token_id(kBeginOfSentence), 0);
  EXPECT_EQ(tokenizer_->token_id(kEndOfSentence), 1);
  EXPECT_EQ(tokenizer_->token_id("!"), 3);
  EXPECT_EQ(tokenizer_->token_id("<｜read_url｜>"), tokenizer_->vocab_size() - 1);
  for (TokenId id = 0; id < tokenizer_->vocab_size(); ++id) {
    EXPECT_FALSE(tokenizer_->token_bytes(id).empty()) << id;
  }
}

TEST_F(TrainedTokenizer, GivesBackEveryText) {
  for (const std::string text : {"the other things", "Grüße aus Köln 🐙\n\n",
                                 "<｜User｜>hi</think>", "\x01\x7f\t\r\n", "1234567"}) {
    EXPECT_EQ(tokenizer_->decode(tokenizer_->encode(text)), text);
  }
  EXPECT_EQ(tokenizer_->encode("<think>").size(), 1U);
}

TEST_F(TrainedTokenizer, HasLearntTheText) {
  EXPECT_EQ(tokenizer_->encode(" theory").size(), 1U);
  EXPECT_LT(tokenizer_->encode("the other theory of those things").size(), 10U);
}

TEST_F(TrainedTokenizer, IsAFunctionOfThePieces) {
  EXPECT_EQ(write_tokenizer_json(bpe_), write_tokenizer_json(bpe_));
  EXPECT_TRUE(write_tokenizer_json(bpe_).ends_with("}\n"));
}

}  // namespace
}  // namespace hadal::io
