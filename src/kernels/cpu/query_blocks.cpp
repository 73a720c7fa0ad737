#include "kernels/cpu/query_blocks.h"

#include <algorithm>

namespace hadal::kernels::cpu {

namespace {

// A block is cut while its products would be mostly masked.
constexpr std::int64_t kMaxWaste = 3;

struct Lists {
  const std::int32_t* data;
  std::int64_t topk;
  [[nodiscard]] const std::int32_t* begin(std::int64_t t) const { return data + t * topk; }
  [[nodiscard]] const std::int32_t* end(std::int64_t t) const {
    return std::find(begin(t), begin(t) + topk, -1);
  }
};

void append_blocks(const Lists& lists, std::int64_t begin, std::int64_t end,
                   std::vector<QueryBlock>& out) {
  QueryBlock block{.begin = begin, .end = end, .entries = {}, .listed = {}};
  std::int64_t longest = 0;
  for (std::int64_t t = begin; t < end; ++t) {
    block.entries.insert(block.entries.end(), lists.begin(t), lists.end(t));
    longest = std::max<std::int64_t>(longest, lists.end(t) - lists.begin(t));
  }
  std::sort(block.entries.begin(), block.entries.end());
  block.entries.erase(std::unique(block.entries.begin(), block.entries.end()), block.entries.end());
  if (end - begin > 1 && block.n_entries() > kMaxWaste * longest) {
    const std::int64_t middle = begin + (end - begin) / 2;
    append_blocks(lists, begin, middle, out);
    append_blocks(lists, middle, end, out);
    return;
  }
  block.listed.assign(static_cast<std::size_t>((end - begin) * block.n_entries()), 0);
  for (std::int64_t t = begin; t < end; ++t) {
    std::uint8_t* row = block.listed.data() + (t - begin) * block.n_entries();
    for (const std::int32_t* entry = lists.begin(t); entry != lists.end(t); ++entry) {
      row[std::lower_bound(block.entries.begin(), block.entries.end(), *entry) -
          block.entries.begin()] = 1;
    }
  }
  out.push_back(std::move(block));
}

}  // namespace

std::vector<QueryBlock> blocks_of_lists(const TensorView& selected, std::int64_t begin,
                                        std::int64_t end) {
  std::vector<QueryBlock> blocks;
  if (begin < end) {
    append_blocks({selected.data<const std::int32_t>(), selected.dim(1)}, begin, end, blocks);
  }
  return blocks;
}

void gather_entries(const QueryBlock& block, const float* rows, std::int64_t width, float* out) {
  for (std::int64_t i = 0; i < block.n_entries(); ++i) {
    const std::int64_t row = block.entries[static_cast<std::size_t>(i)];
    std::memcpy(out + i * width, rows + row * width, static_cast<std::size_t>(width) * 4);
  }
}

}  // namespace hadal::kernels::cpu
