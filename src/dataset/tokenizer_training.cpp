#include "dataset/tokenizer_training.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/thread_pool.h"
#include "dataset/document_encoder.h"
#include "dataset/document_reader.h"
#include "io/tokenizer_writer.h"

namespace hadal::dataset {
namespace {

constexpr std::size_t kBatchBytesPerThread = std::size_t{4} << 20;

std::int64_t n_fixed_tokens() {
  return 256 + std::ssize(io::kControlTokens);
}

}  // namespace

TokenizerTraining train_tokenizer(const TokenizerTrainingOptions& options,
                                  const TrainingProgress& progress) {
  if (options.vocab_size < n_fixed_tokens() || options.vocab_size > (1 << 24)) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("a vocabulary of {} is not possible: the bytes and the control tokens "
                            "are {} already, and {} is the most",
                            options.vocab_size, n_fixed_tokens(), 1 << 24));
  }
  const std::vector<SourceFile> sources = find_sources(options.inputs, options.text_extensions);
  std::uint64_t total = 0;
  for (const SourceFile& source : sources) total += source.nbytes;

  ThreadPool pool(options.n_threads);
  io::PieceCounter counter(io::deepseek_pretokenizer());
  DocumentReader reader(sources, "");
  TokenizerTraining result;
  const std::size_t batch_bytes = kBatchBytesPerThread * static_cast<std::size_t>(pool.size());
  const auto enough = [&] {
    return options.max_text_bytes > 0 && result.text_bytes >= options.max_text_bytes;
  };
  for (bool more = true; more && !enough();) {
    std::vector<std::string> texts;
    for (std::size_t nbytes = 0; nbytes < batch_bytes && !enough();) {
      const auto document = reader.next();
      more = document.has_value();
      if (!more) break;
      for (std::string& text : plain_texts(*document, place_of(*document, sources))) {
        nbytes += text.size();
        result.text_bytes += text.size();
        texts.push_back(std::move(text));
      }
    }
    const std::vector<std::string_view> views(texts.begin(), texts.end());
    counter.add(views, pool);
    if (progress) progress(TrainingPhase::reading, std::min(reader.n_file_bytes(), total), total);
  }
  const std::vector<io::PieceCount> pieces = counter.take();
  if (pieces.empty()) {
    throw Error(ErrorCode::invalid_argument, "the inputs hold no text to learn a tokenizer from");
  }
  io::BpeTrainerOptions bpe_options = options.bpe;
  bpe_options.n_tokens =
      static_cast<std::size_t>(options.vocab_size - std::ssize(io::kControlTokens));
  const io::TrainedBpe bpe =
      io::train_bpe(pieces, bpe_options, [&](std::size_t done, std::size_t wanted) {
        if (progress) progress(TrainingPhase::merging, done, wanted);
      });
  result.tokenizer_json = io::write_tokenizer_json(bpe);
  result.vocab_size = std::ssize(bpe.tokens) + std::ssize(io::kControlTokens);
  result.n_merges = bpe.merges.size();
  result.n_pieces = pieces.size();
  return result;
}

}  // namespace hadal::dataset
