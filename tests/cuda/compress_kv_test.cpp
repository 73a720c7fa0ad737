#include "kernels/compress_kv.h"

#include <fmt/format.h>

#include "cuda/support.h"

namespace hadal::test {
namespace {

struct CompressCase {
  std::int64_t ratio, width;
  bool overlap;
  std::int64_t slack;  // rows of the tail beyond what it needs
  std::vector<std::pair<std::int64_t, std::int64_t>> sequences;  // start, tokens
};

// Everything that a call reads and writes, on one device.
struct State {
  Tensor entries, kv, gate, bias;
  std::vector<Tensor> tail_kv, tail_gate;
};

class CudaCompress : public CudaTest {
 protected:
  static std::int64_t series(const CompressCase& c) { return c.overlap ? 2 : 1; }
  static std::int64_t n_entries(const CompressCase& c, std::size_t i) {
    const auto [start, n] = c.sequences[i];
    return (start + n) / c.ratio - start / c.ratio;
  }

  State make(const CompressCase& c, DType dtype) {
    std::int64_t n_tokens = 0, entries = 0;
    State s;
    const std::int64_t row = series(c) * c.width, ring = series(c) * c.ratio + c.slack;
    for (std::size_t i = 0; i < c.sequences.size(); ++i) {
      n_tokens += c.sequences[i].second;
      entries += n_entries(c, i);
      s.tail_kv.push_back(random({ring, row}, DType::f32));
      s.tail_gate.push_back(random({ring, row}, DType::f32, 2.0f));
    }
    s.entries = Tensor::zeros({entries, c.width}, dtype);
    s.kv = random({n_tokens, row}, DType::f32);
    s.gate = random({n_tokens, row}, DType::f32, 2.0f);
    s.bias = random({c.ratio, row}, DType::f32);
    return s;
  }
  State device_copy(const State& s) {
    State d{.entries = device_empty(s.entries.shape(), s.entries.dtype()),
            .kv = to_device(s.kv),
            .gate = to_device(s.gate),
            .bias = to_device(s.bias),
            .tail_kv = {},
            .tail_gate = {}};
    for (const Tensor& t : s.tail_kv) d.tail_kv.push_back(to_device(t));
    for (const Tensor& t : s.tail_gate) d.tail_gate.push_back(to_device(t));
    return d;
  }
  static std::vector<CompressSequence> sequences(const CompressCase& c, const State& s,
                                                 bool tails) {
    std::vector<CompressSequence> out;
    std::int64_t token = 0, entry = 0;
    for (std::size_t i = 0; i < c.sequences.size(); ++i) {
      const auto [start, n] = c.sequences[i];
      out.push_back({token, token + n, start, entry, {}});
      if (tails) out.back().tail = {s.tail_kv[i], s.tail_gate[i]};
      token += n, entry += n_entries(c, i);
    }
    return out;
  }
  static CompressKvArgs arguments(const CompressCase& c, const State& s,
                                  std::span<const CompressSequence> all) {
    return {.entries = s.entries,
            .kv = s.kv,
            .gate = s.gate,
            .position_bias = s.bias,
            .ratio = c.ratio,
            .overlap = c.overlap,
            .sequences = all};
  }
};

const CompressCase kCases[] = {
    {4, 70, true, 0, {{0, 41}}},
    {4, 512, true, 3, {{0, 64}, {13, 1}, {15, 1}, {8, 6}}},  // V4: CSA
    {4, 128, true, 3, {{0, 3}, {1, 2}, {1023, 1}}},          // nothing, nothing, one entry
    {128, 512, false, 7, {{0, 300}, {255, 1}, {100, 2}}},    // V4: HCA
    {7, 33, false, 0, {{0, 6}, {6, 1}, {20, 22}}},
    {1, 16, false, 1, {{5, 4}}},
};

TEST_F(CudaCompress, EqualsTheCpu) {
  for (const CompressCase& c : kCases) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const std::string what = fmt::format("ratio {}, width {} {}, {} sequences", c.ratio, c.width,
                                           to_string(dtype), c.sequences.size());
      const State host = make(c, dtype), device = device_copy(host);
      const auto on_host = sequences(c, host, true), on_device = sequences(c, device, true);
      run_cpu(kCompressKv, dtype, arguments(c, host, on_host));
      run_gpu(kCompressKv, dtype, arguments(c, device, on_device));
      // exp to 2 ulp on either side and one order of sums; bf16 may round the other way.
      expect_close(to_host(device.entries), host.entries, dtype == DType::f32 ? 1e-6 : 1e-3, 1e-6,
                   what);
      // One addition, and copies.
      expect_same_bytes(to_host(device.gate), host.gate, what + ": gate");
      expect_same_bytes(to_host(device.kv), host.kv, what + ": kv");
      for (std::size_t i = 0; i < c.sequences.size(); ++i) {
        expect_same_bytes(to_host(device.tail_kv[i]), host.tail_kv[i], what + ": tail");
        expect_same_bytes(to_host(device.tail_gate[i]), host.tail_gate[i], what + ": gate tail");
      }
    }
  }
}

TEST_F(CudaCompress, NeedsNoTailForWholeSequences) {
  const CompressCase c{4, 64, true, 0, {{0, 23}, {0, 4}, {0, 1}}};
  const State host = make(c, DType::f32), device = device_copy(host);
  const auto on_host = sequences(c, host, false), on_device = sequences(c, device, false);
  run_cpu(kCompressKv, DType::f32, arguments(c, host, on_host));
  run_gpu(kCompressKv, DType::f32, arguments(c, device, on_device));
  expect_close(to_host(device.entries), host.entries, 1e-6, 1e-6, "entries");
}

// A prompt at once and in pieces: the same entries, the same tails at the end.
TEST_F(CudaCompress, PiecesAreTheWhole) {
  for (const bool overlap : {true, false}) {
    const std::int64_t n = 301;
    const CompressCase c{overlap ? 4 : 128, 96, overlap, 5, {{0, n}}};
    const State host = make(c, DType::bf16), whole = device_copy(host), parts = device_copy(host);
    const auto all = sequences(c, whole, true);
    run_gpu(kCompressKv, DType::bf16, arguments(c, whole, all));
    const std::int64_t sizes[] = {1, 1, 2, 3, 100, 1, 19, 126, 48};
    std::int64_t t = 0;
    for (const std::int64_t size : sizes) {
      const std::int64_t end = std::min(n, t + size);
      const std::int64_t first = t / c.ratio, last = end / c.ratio;
      const CompressSequence s{0, end - t, t, 0, {parts.tail_kv[0], parts.tail_gate[0]}};
      run_gpu(kCompressKv, DType::bf16,
              {.entries = parts.entries.view().slice(first, last),
               .kv = parts.kv.view().slice(t, end),
               .gate = parts.gate.view().slice(t, end),
               .position_bias = parts.bias,
               .ratio = c.ratio,
               .overlap = c.overlap,
               .sequences = {&s, 1}});
      t = end;
    }
    ASSERT_EQ(t, n);
    expect_same_bytes(to_host(parts.entries), to_host(whole.entries), "entries");
    expect_same_bytes(to_host(parts.tail_kv[0]), to_host(whole.tail_kv[0]), "tail");
    expect_same_bytes(to_host(parts.tail_gate[0]), to_host(whole.tail_gate[0]), "gate tail");
  }
}

TEST_F(CudaCompress, ASequenceDoesNotKnowItsBatch) {
  CompressCase c{4, 64, true, 2, {}};
  for (std::int64_t i = 0; i < 300; ++i) c.sequences.emplace_back(i % 29, 1 + i % 7);
  const State host = make(c, DType::bf16), device = device_copy(host);
  const auto all = sequences(c, device, true);
  run_gpu(kCompressKv, DType::bf16, arguments(c, device, all));
  const Tensor entries = to_host(device.entries);
  for (std::size_t i = 0; i < 300; i += 23) {
    const State alone = device_copy(host);
    CompressSequence s = sequences(c, alone, true)[i];
    const std::int64_t n = n_entries(c, i), begin = s.begin, end = s.end, row = s.first_entry;
    s.begin = 0, s.end = end - begin, s.first_entry = 0;
    run_gpu(kCompressKv, DType::bf16,
            {.entries = alone.entries.view().slice(row, row + n),
             .kv = alone.kv.view().slice(begin, end),
             .gate = alone.gate.view().slice(begin, end),
             .position_bias = alone.bias,
             .ratio = c.ratio,
             .overlap = c.overlap,
             .sequences = {&s, 1}});
    const Tensor got = to_host(alone.entries);
    for (std::int64_t e = row * c.width; e < (row + n) * c.width; ++e) {
      ASSERT_EQ(got.data<bf16>()[e].bits, entries.data<bf16>()[e].bits) << "sequence " << i;
    }
    expect_same_bytes(to_host(alone.tail_kv[i]), to_host(device.tail_kv[i]), "tail");
  }
}

}  // namespace
}  // namespace hadal::test
