#include "dataset/statistics.h"

#include <algorithm>
#include <bit>

#include "train/packer.h"

namespace hadal::dataset {
namespace {

std::vector<std::int64_t> lengths_of(const train::DocumentSet& documents) {
  std::vector<std::int64_t> lengths;
  lengths.reserve(static_cast<std::size_t>(documents.n_documents()));
  for (std::int64_t d = 0; d < documents.n_documents(); ++d) {
    lengths.push_back(documents.n_tokens(d));
  }
  return lengths;
}

// `lengths` sorted.
std::vector<LengthBin> bins_of(const std::vector<std::int64_t>& lengths) {
  std::vector<LengthBin> bins;
  for (const std::int64_t length : lengths) {
    const auto begin =
        static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(length)));
    if (bins.empty()) bins.push_back({begin, 2 * begin});
    while (bins.back().begin < begin) bins.push_back({bins.back().end, 2 * bins.back().end});
    ++bins.back().n_documents;
    bins.back().n_tokens += length;
  }
  return bins;
}

PackingReport pack(const std::vector<std::int64_t>& lengths, std::int64_t sequence_length) {
  PackingReport report{.sequence_length = sequence_length};
  std::vector<train::Piece> pieces;
  for (std::size_t d = 0; d < lengths.size(); ++d) {
    const std::int64_t n_inputs = lengths[d] - 1;
    train::cut_document(static_cast<std::int64_t>(d), 0, n_inputs, sequence_length, pieces);
    report.n_inputs += n_inputs;
    report.n_cut_documents += n_inputs > sequence_length ? 1 : 0;
  }
  report.n_rows =
      train::pack_best_fit(std::move(pieces), {.sequence_length = sequence_length}).n_rows();
  return report;
}

}  // namespace

std::vector<SplitStatistics> statistics_of(const train::DataSet& data,
                                           const StatisticsOptions& options) {
  std::vector<SplitStatistics> all;
  for (const train::SplitInfo& split : data.manifest().splits) {
    SplitStatistics out;
    out.name = split.name;
    out.counts = split.counts();
    std::vector<std::int64_t> lengths = lengths_of(data.split(split.name));
    if (options.sequence_length > 0) out.packing = pack(lengths, options.sequence_length);
    std::ranges::sort(lengths);
    if (!lengths.empty()) {
      out.shortest = lengths.front();
      out.median = lengths[lengths.size() / 2];
      out.longest = lengths.back();
    }
    out.lengths = bins_of(lengths);

    const std::vector<std::uint64_t> counts = data.frequencies(split.name);
    for (std::size_t id = 0; id < counts.size(); ++id) {
      if (counts[id] > 0) out.frequent.push_back({static_cast<TokenId>(id), counts[id]});
    }
    out.n_distinct_tokens = std::ssize(out.frequent);
    std::ranges::stable_sort(out.frequent, std::greater<>(), &TokenCount::count);
    out.frequent.resize(std::min(out.frequent.size(), options.n_frequent));
    all.push_back(std::move(out));
  }
  return all;
}

}  // namespace hadal::dataset
