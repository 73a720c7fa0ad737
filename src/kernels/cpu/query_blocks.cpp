#include "kernels/cpu/query_blocks.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace hadal::kernels::cpu {

namespace {

// What a block costs besides its products, in rows of them: gathering entries and adding their
// gradients, packing keys.
constexpr std::int64_t kOverheadRows = 32;

class Splitter {
 public:
  Splitter(const TensorView& selected, std::int64_t rows_per_query)
      : lists_(selected.data<const std::int32_t>()),
        topk_(selected.dim(1)),
        rows_per_query_(rows_per_query) {}

  // The cheapest way to halve, or not, a range again and again; blocks go to the end of `out`.
  struct Split {
    std::vector<std::int32_t> entries;  // of the whole range
    std::int64_t cost = 0;              // of its blocks
  };
  Split append(std::int64_t begin, std::int64_t end, std::vector<QueryBlock>& out) const {
    Split whole;
    const std::size_t n_before = out.size();
    std::int64_t halves_cost = std::numeric_limits<std::int64_t>::max();
    if (end - begin == 1) {
      whole.entries.assign(list(begin), list_end(begin));
    } else {
      const std::int64_t middle = begin + (end - begin) / 2;
      const Split left = append(begin, middle, out), right = append(middle, end, out);
      std::set_union(left.entries.begin(), left.entries.end(), right.entries.begin(),
                     right.entries.end(), std::back_inserter(whole.entries));
      halves_cost = left.cost + right.cost;
    }
    whole.cost = ((end - begin) * rows_per_query_ + kOverheadRows) *
                 static_cast<std::int64_t>(whole.entries.size());
    if (whole.cost > halves_cost) {
      whole.cost = halves_cost;
    } else {
      out.resize(n_before);
      out.push_back(QueryBlock{.begin = begin, .end = end, .entries = whole.entries, .listed = {}});
    }
    return whole;
  }

  void mark(QueryBlock& block) const {
    const std::int64_t n = block.n_entries();
    block.listed.assign(static_cast<std::size_t>((block.end - block.begin) * n), 0);
    for (std::int64_t t = block.begin; t < block.end; ++t) {
      std::uint8_t* row = block.listed.data() + (t - block.begin) * n;
      // Both ascend.
      auto at = block.entries.begin();
      for (const std::int32_t* entry = list(t); entry != list_end(t); ++entry) {
        at = std::lower_bound(at, block.entries.end(), *entry);
        row[at - block.entries.begin()] = 1;
      }
    }
  }

 private:
  [[nodiscard]] const std::int32_t* list(std::int64_t t) const { return lists_ + t * topk_; }
  [[nodiscard]] const std::int32_t* list_end(std::int64_t t) const {
    return std::find(list(t), list(t) + topk_, -1);
  }

  const std::int32_t* lists_;
  std::int64_t topk_, rows_per_query_;
};

}  // namespace

std::vector<QueryBlock> blocks_of_lists(const TensorView& selected, std::int64_t begin,
                                        std::int64_t end, std::int64_t rows_per_query) {
  std::vector<QueryBlock> blocks;
  if (begin == end) return blocks;
  const Splitter splitter(selected, rows_per_query);
  static_cast<void>(splitter.append(begin, end, blocks));
  for (QueryBlock& block : blocks) splitter.mark(block);
  return blocks;
}

void gather_entries(const QueryBlock& block, const float* rows, std::int64_t width, float* out) {
  for (std::int64_t i = 0; i < block.n_entries(); ++i) {
    const std::int64_t row = block.entries[static_cast<std::size_t>(i)];
    std::memcpy(out + i * width, rows + row * width, static_cast<std::size_t>(width) * 4);
  }
}

}  // namespace hadal::kernels::cpu
