// Documents to batches, in an order that can be entered at any step.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/token.h"
#include "model/token_batch.h"
#include "train/data_set.h"
#include "train/packer.h"

namespace hadal::train {

struct LoaderOptions {
  std::uint64_t seed = 0;
  bool shuffle = true;          // false: documents and rows in the order of the shards
  std::int64_t alignment = 1;   // as PackOptions
  std::int64_t max_epochs = 0;  // 0: without end
  // Documents are packed in windows: this many in shuffled order, or fewer when their tokens are
  // more than window_tokens.
  std::int64_t window_documents = 65536;
  std::int64_t window_tokens = std::int64_t{1} << 28;
  TokenId pad_token = 0;
};

// Documents [begin, end) of an epoch's order, packed into rows of one length.
struct LoaderWindow {
  std::int64_t epoch = 0;
  std::int64_t begin = 0, end = 0;
  std::int64_t sequence_length = 0;
  std::int64_t n_rows_taken = 0;
  bool operator==(const LoaderWindow&) const = default;
};

// Where a loader stands: all that a checkpoint needs besides the data and the options. A few
// numbers, whatever the size of the data.
struct LoaderState {
  std::uint64_t seed = 0;
  std::int64_t n_documents = 0, n_tokens = 0;  // of the split, to notice other data
  std::int64_t alignment = 1, window_documents = 0, window_tokens = 0;

  std::int64_t epoch = 0;          // of the next document to be taken into a window
  std::int64_t next_document = 0;  // its place in the epoch's order
  // The window that rows are taken from, last; in front of it those whose remaining rows it packed
  // anew because the sequence length changed.
  std::vector<LoaderWindow> windows;

  std::int64_t n_samples = 0, n_inputs = 0, n_targets = 0;  // handed out so far
  bool operator==(const LoaderState&) const = default;
};

[[nodiscard]] std::string to_json(const LoaderState& state);
// Throws Error corrupt_data with `source` in front.
[[nodiscard]] LoaderState parse_loader_state(std::string_view json, const std::string& source);

// A row of a batch: pieces of documents that do not see each other.
struct Sample {
  std::vector<Piece> pieces;
  std::int64_t n_inputs = 0;   // tokens of the pieces
  std::int64_t n_targets = 0;  // of those, with a loss
};

// What all ranks together do in one optimizer step.
struct Batch {
  std::int64_t epoch = 0;  // of the first sample
  std::int64_t sequence_length = 0;
  std::vector<Sample> samples;
  std::int64_t n_inputs = 0, n_targets = 0;  // of all samples: what a mean over tokens divides by

  // The samples of one of n ranks: disjoint, in order, together all, their numbers within one.
  struct Rank {
    std::int64_t index = 0, n = 1;
  };
  [[nodiscard]] std::span<const Sample> part(Rank rank) const;
};

// Samples as the model takes them.
struct MicroBatch {
  // A sequence each piece, from position 0, its slot its number here. With an alignment, a sequence
  // may end in padding up to where the next begins: causal, so that nothing sees it.
  model::TokenBatch tokens;
  std::vector<TokenId> targets;         // by row of tokens: what comes next; -1 where no loss is
                                        // taken, and on padding
  std::vector<std::int64_t> n_padding;  // by sequence: rows at its end that are padding
  std::int64_t n_targets = 0;
};

struct BatchShape {
  std::int64_t sequence_length;
  std::int64_t batch_tokens;  // rows times sequence_length, filled or not
};

// Batches in an order that is a function of data, options and the shapes asked for, never of the
// number of ranks or of where a run was stopped. Every epoch holds every document once: shuffled,
// taken window by window, cut to the sequence length and packed by best fit; pieces without a
// target are left out, and rows come in shuffled order. `documents` must outlive this. Not for use
// by two threads at once, except load().
class DataLoader {
 public:
  // Throws Error invalid_argument when the split has no token with a target, or for impossible
  // options.
  DataLoader(const DocumentSet& documents, const LoaderOptions& options);

  // Goes on where `state` was taken. Throws Error invalid_argument when that was of other data or
  // with other options, naming what differs.
  void restore(const LoaderState& state);
  [[nodiscard]] const LoaderState& state() const { return state_; }

  // The next batch, of batch_tokens / sequence_length samples; with max_epochs, fewer at the end
  // and none behind it. A sequence length other than the last one's packs what is left of the
  // window anew. Throws Error invalid_argument when batch_tokens is no multiple of sequence_length
  // or that none of the alignment.
  [[nodiscard]] Batch next(const BatchShape& shape);

  // Reads the tokens of samples; from any thread. Throws as DocumentSet::copy_tokens.
  [[nodiscard]] MicroBatch load(std::span<const Sample> samples) const;

  // Rows left in the window, for tests and reports: how well they are filled.
  [[nodiscard]] std::int64_t n_rows_left() const;

 private:
  [[nodiscard]] bool ready(std::int64_t sequence_length);
  void open_window(std::int64_t sequence_length);
  void pack(const std::vector<Piece>& left_over);
  [[nodiscard]] std::vector<Piece> left_over() const;
  [[nodiscard]] std::int64_t row_at(std::int64_t place) const;
  [[nodiscard]] Sample sample_of(std::span<const Piece> pieces) const;

  const DocumentSet& documents_;
  LoaderOptions options_;
  LoaderState state_;
  PackedRows rows_;  // of state_.windows.back()
};

}  // namespace hadal::train
