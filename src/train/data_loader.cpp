#include "train/data_loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "core/error.h"
#include "train/data_order.h"

namespace hadal::train {
namespace {

// Streams of permutations: an even number orders an epoch's documents, an odd one a window's rows.
std::uint64_t document_stream(std::int64_t epoch) {
  return static_cast<std::uint64_t>(epoch) << 1;
}
std::uint64_t row_stream(const LoaderWindow& window) {
  return (static_cast<std::uint64_t>(window.epoch) << 40 ^ static_cast<std::uint64_t>(window.begin)
                                                               << 1) |
         1;
}

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorCode::invalid_argument, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace

std::span<const Sample> Batch::part(Rank rank) const {
  HADAL_CHECK(rank.n > 0 && rank.index >= 0 && rank.index < rank.n);
  const std::int64_t n = std::ssize(samples);
  const auto begin = static_cast<std::size_t>(n * rank.index / rank.n);
  const auto end = static_cast<std::size_t>(n * (rank.index + 1) / rank.n);
  return std::span(samples).subspan(begin, end - begin);
}

DataLoader::DataLoader(const DocumentSet& documents, const LoaderOptions& options)
    : documents_(documents), options_(options) {
  if (options.alignment < 1 || options.window_documents < 1 || options.window_tokens < 1 ||
      options.max_epochs < 0) {
    refuse(
        "alignment {}, window_documents {}, window_tokens {}, max_epochs {}: wanted positive "
        "numbers",
        options.alignment, options.window_documents, options.window_tokens, options.max_epochs);
  }
  bool has_target = false;
  for (std::int64_t d = 0; d < documents.n_documents() && !has_target; ++d) {
    has_target = documents.count_loss(d, 1, documents.n_tokens(d)) > 0;
  }
  if (!has_target) {
    refuse(
        "the data has {} documents and no token to predict in any of them: every document is a "
        "single token or masked",
        documents.n_documents());
  }
  state_.seed = options.seed;
  state_.n_documents = documents.n_documents();
  state_.n_tokens = documents.n_tokens();
  state_.alignment = options.alignment;
  state_.window_documents = options.window_documents;
  state_.window_tokens = options.window_tokens;
}

void DataLoader::restore(const LoaderState& state) {
  const auto expect = [](const char* what, auto found, auto wanted) {
    if (found != wanted) {
      refuse(
          "the state of the data loader has {} {}, this run {}: it continues with the data and "
          "the options that it began with",
          what, found, wanted);
    }
  };
  expect("seed", state.seed, state_.seed);
  expect("documents", state.n_documents, state_.n_documents);
  expect("tokens", state.n_tokens, state_.n_tokens);
  expect("alignment", state.alignment, state_.alignment);
  expect("window_documents", state.window_documents, state_.window_documents);
  expect("window_tokens", state.window_tokens, state_.window_tokens);

  // Windows are made again one after the other: each needs what its predecessor left.
  LoaderState restored = state;
  std::vector<Piece> left;
  state_.windows.clear();
  for (const LoaderWindow& window : state.windows) {
    if (window.begin < 0 || window.begin > window.end || window.end > state_.n_documents ||
        window.sequence_length < 1 || window.sequence_length % options_.alignment != 0) {
      refuse(
          "the state of the data loader has documents {} to {} of {} in rows of {}, which is no "
          "window of this data",
          window.begin, window.end, state_.n_documents, window.sequence_length);
    }
    state_.windows.push_back(window);
    pack(left);
    if (window.n_rows_taken < 0 || window.n_rows_taken > rows_.n_rows()) {
      refuse("the state of the data loader has taken {} rows of a window of {}",
             window.n_rows_taken, rows_.n_rows());
    }
    left = left_over();
  }
  state_ = std::move(restored);
}

Batch DataLoader::next(const BatchShape& shape) {
  const std::int64_t length = shape.sequence_length;
  if (length < 1 || length % options_.alignment != 0) {
    refuse("sequence_length {} is no multiple of the alignment {} of documents", length,
           options_.alignment);
  }
  if (shape.batch_tokens < length || shape.batch_tokens % length != 0) {
    refuse("a batch of {} tokens is no multiple of sequence_length {}", shape.batch_tokens, length);
  }
  Batch batch;
  batch.sequence_length = length;
  const std::int64_t n_samples = shape.batch_tokens / length;
  while (std::ssize(batch.samples) < n_samples && ready(length)) {
    LoaderWindow& window = state_.windows.back();
    if (batch.samples.empty()) batch.epoch = window.epoch;
    batch.samples.push_back(sample_of(rows_.row(row_at(window.n_rows_taken++))));
    batch.n_inputs += batch.samples.back().n_inputs;
    batch.n_targets += batch.samples.back().n_targets;
  }
  state_.n_samples += std::ssize(batch.samples);
  state_.n_inputs += batch.n_inputs;
  state_.n_targets += batch.n_targets;
  return batch;
}

// Sees to it that a row of this length can be taken; false at the end of the data.
bool DataLoader::ready(std::int64_t sequence_length) {
  while (n_rows_left() == 0 || state_.windows.back().sequence_length != sequence_length) {
    if (n_rows_left() == 0) {
      state_.windows.clear();
      if (state_.next_document == state_.n_documents) {
        state_.next_document = 0;
        ++state_.epoch;
      }
      if (options_.max_epochs > 0 && state_.epoch >= options_.max_epochs) return false;
    }
    open_window(sequence_length);
  }
  return true;
}

void DataLoader::open_window(std::int64_t sequence_length) {
  std::vector<Piece> left = state_.windows.empty() ? std::vector<Piece>() : left_over();
  // Of the epoch that the pieces left over are of.
  LoaderWindow window{.epoch = state_.epoch,
                      .begin = state_.next_document,
                      .end = state_.next_document,
                      .sequence_length = sequence_length,
                      .n_rows_taken = 0};
  const Permutation order(state_.n_documents, {options_.seed, document_stream(window.epoch)});
  std::int64_t n_tokens = 0;
  while (window.end < state_.n_documents && n_tokens < options_.window_tokens &&
         window.end - window.begin < options_.window_documents) {
    n_tokens += documents_.n_tokens(options_.shuffle ? order[window.end] : window.end);
    ++window.end;
  }
  state_.next_document = window.end;
  state_.windows.push_back(window);
  pack(left);
}

// What the current window's rows that were not taken hold, with the pieces of a document that
// follow each other put together again.
std::vector<Piece> DataLoader::left_over() const {
  std::vector<Piece> pieces;
  for (std::int64_t r = state_.windows.back().n_rows_taken; r < rows_.n_rows(); ++r) {
    const auto row = rows_.row(row_at(r));
    pieces.insert(pieces.end(), row.begin(), row.end());
  }
  std::ranges::sort(pieces, {}, [](const Piece& p) { return std::tuple(p.document, p.begin); });
  std::vector<Piece> joined;
  for (const Piece& piece : pieces) {
    if (!joined.empty() && joined.back().document == piece.document &&
        joined.back().begin + joined.back().n_tokens == piece.begin) {
      joined.back().n_tokens += piece.n_tokens;
    } else {
      joined.push_back(piece);
    }
  }
  return joined;
}

// Makes the rows of the last window.
void DataLoader::pack(const std::vector<Piece>& left) {
  const LoaderWindow& window = state_.windows.back();
  std::vector<Piece> pieces;
  for (const Piece& piece : left) {
    cut_document(piece.document, piece.begin, piece.begin + piece.n_tokens, window.sequence_length,
                 pieces);
  }
  const Permutation order(state_.n_documents, {options_.seed, document_stream(window.epoch)});
  for (std::int64_t i = window.begin; i < window.end; ++i) {
    const std::int64_t document = options_.shuffle ? order[i] : i;
    cut_document(document, 0, documents_.n_tokens(document) - 1, window.sequence_length, pieces);
  }
  std::erase_if(pieces, [&](const Piece& piece) {
    return documents_.count_loss(piece.document, piece.begin + 1,
                                 piece.begin + piece.n_tokens + 1) == 0;
  });
  rows_ = pack_best_fit(std::move(pieces), {.sequence_length = window.sequence_length,
                                            .alignment = options_.alignment});
}

std::int64_t DataLoader::n_rows_left() const {
  return state_.windows.empty() ? 0 : rows_.n_rows() - state_.windows.back().n_rows_taken;
}

std::int64_t DataLoader::row_at(std::int64_t place) const {
  if (!options_.shuffle) return place;
  return Permutation(rows_.n_rows(), {options_.seed, row_stream(state_.windows.back())})[place];
}

Sample DataLoader::sample_of(std::span<const Piece> pieces) const {
  Sample sample;
  sample.pieces.assign(pieces.begin(), pieces.end());
  for (const Piece& piece : pieces) {
    sample.n_inputs += piece.n_tokens;
    sample.n_targets +=
        documents_.count_loss(piece.document, piece.begin + 1, piece.begin + piece.n_tokens + 1);
  }
  return sample;
}

MicroBatch DataLoader::load(std::span<const Sample> samples) const {
  MicroBatch batch;
  std::vector<TokenId> ids;
  for (const Sample& sample : samples) {
    for (std::size_t p = 0; p < sample.pieces.size(); ++p) {
      const Piece& piece = sample.pieces[p];
      const auto n = static_cast<std::size_t>(piece.n_tokens);
      ids.resize(n + 1);
      documents_.copy_tokens(piece.document, piece.begin, ids);
      for (std::size_t i = 0; i < n; ++i) {
        const bool loss =
            documents_.has_loss(piece.document, piece.begin + static_cast<std::int64_t>(i) + 1);
        batch.targets.push_back(loss ? ids[i + 1] : -1);
        batch.n_targets += loss ? 1 : 0;
      }
      // No padding behind a row's last piece.
      const std::int64_t over = piece.n_tokens % options_.alignment;
      const std::int64_t n_padding =
          over == 0 || p + 1 == sample.pieces.size() ? 0 : options_.alignment - over;
      ids.resize(n);
      ids.resize(n + static_cast<std::size_t>(n_padding), options_.pad_token);
      batch.targets.resize(batch.targets.size() + static_cast<std::size_t>(n_padding), -1);
      batch.tokens.add(ids, 0, std::ssize(batch.tokens.sequences));
      batch.n_padding.push_back(n_padding);
    }
  }
  return batch;
}

}  // namespace hadal::train
