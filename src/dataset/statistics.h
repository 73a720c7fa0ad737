// What a data set looks like, in numbers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/token.h"
#include "train/data_set.h"

namespace hadal::dataset {

struct LengthBin {
  std::int64_t begin, end;  // tokens of a document, end excluded
  std::int64_t n_documents = 0, n_tokens = 0;
};

struct TokenCount {
  TokenId token;
  std::uint64_t count;
};

// How documents fit into rows of one length.
struct PackingReport {
  std::int64_t sequence_length = 0;
  std::int64_t n_rows = 0;
  std::int64_t n_inputs = 0;         // tokens in them; the rest of the rows is empty
  std::int64_t n_cut_documents = 0;  // longer than a row
};

struct SplitStatistics {
  std::string name;
  train::DataCounts counts;
  std::int64_t shortest = 0, median = 0, longest = 0;  // documents, in tokens
  std::vector<LengthBin> lengths;    // powers of two, from the first to the last that is not empty
  std::vector<TokenCount> frequent;  // most frequent first, ties by id
  std::int64_t n_distinct_tokens = 0;
  std::optional<PackingReport> packing;
};

struct StatisticsOptions {
  std::size_t n_frequent = 20;
  std::int64_t sequence_length = 0;  // 0: no packing report
};

[[nodiscard]] std::vector<SplitStatistics> statistics_of(const train::DataSet& data,
                                                         const StatisticsOptions& options);

}  // namespace hadal::dataset
