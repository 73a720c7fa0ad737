#include "model/accounting.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "model/kv_format.h"
#include "support/safetensors_bytes.h"

namespace hadal::model {
namespace {

constexpr std::int64_t kMillion = 1 << 20;

Config flash() {
  return load_config(HADAL_SOURCE_DIR "/configs/deepseek-v4-flash.json");
}
Config pro() {
  return load_config(HADAL_SOURCE_DIR "/configs/deepseek-v4-pro.json");
}

// Figures printed with n decimals agree with ours to half a unit of the last.
void expect_printed(double value, double printed, int decimals) {
  EXPECT_NEAR(value, printed, 0.5000001 * std::pow(10.0, -decimals));
}

// The table of architecture.md §4.3, column by column.
TEST(Accounting, FlopsOfFlashAtAMillionTokens) {
  const ActiveParameters p = active_parameters(flash());
  expect_printed(p.total() / 1e9, 13.27, 2);
  expect_printed(p.attention / 1e9, 4.60, 2);
  expect_printed(p.compressor / 1e9, 0.304, 3);
  expect_printed(p.indexer / 1e9, 0.182, 3);
  expect_printed(p.routed / 1e9, 6.49, 2);
  expect_printed(p.shared / 1e9, 1.08, 2);
  expect_printed(p.gate / 1e9, 0.045, 3);
  expect_printed(p.hyper_connection / 1e9, 0.034, 3);
  expect_printed(p.head / 1e9, 0.530, 3);
  const TokenFlops f = token_flops(flash(), kMillion);
  expect_printed(f.linear / 1e9, 26.54, 2);
  expect_printed(f.core / 1e9, 23.61, 2);
  expect_printed(f.indexer / 1e9, 90.19, 2);
  expect_printed(f.plain() / 1e9, 140.3, 1);
  expect_printed(f.fp8_equivalent() / 1e9, 118.8, 1);
}

TEST(Accounting, FlopsOfProAtAMillionTokens) {
  const ActiveParameters p = active_parameters(pro());
  expect_printed(p.total() / 1e9, 48.85, 2);
  expect_printed(p.attention / 1e9, 18.29, 2);
  expect_printed(p.compressor / 1e9, 0.778, 3);
  expect_printed(p.indexer / 1e9, 0.391, 3);
  expect_printed(p.routed / 1e9, 24.18, 2);
  expect_printed(p.shared / 1e9, 4.03, 2);
  expect_printed(p.head / 1e9, 0.927, 3);
  const TokenFlops f = token_flops(pro(), kMillion);
  expect_printed(f.linear / 1e9, 97.70, 2);
  expect_printed(f.core / 1e9, 76.67, 2);
  expect_printed(f.indexer / 1e9, 128.85, 2);
  expect_printed(f.plain() / 1e9, 303.2, 1);
  expect_printed(f.fp8_equivalent() / 1e9, 315.5, 1);
}

TEST(Accounting, FlopsOfV32AtAMillionTokens) {
  const ActiveParameters p = V32{}.active_parameters();
  expect_printed(p.total() / 1e9, 37.48, 2);
  expect_printed(p.attention / 1e9, 11.41, 2);
  const TokenFlops f = V32{}.token_flops(kMillion);
  expect_printed(f.linear / 1e9, 74.95, 2);
  expect_printed(f.core / 1e9, 34.80, 2);
  expect_printed(f.indexer / 1e9, 1047.97, 2);
  expect_printed(f.plain() / 1e9, 1157.7, 1);
  expect_printed(f.fp8_equivalent() / 1e9, 1192.5, 1);
}

// The paper's headline: 27 and 10 % of the FLOPs, 10 and 7 % of the KV cache.
TEST(Accounting, RatiosToV32) {
  const Inspection f = inspect(flash(), kMillion), p = inspect(pro(), kMillion);
  expect_printed(100 * f.flops_ratio(), 10.0, 1);
  expect_printed(100 * p.flops_ratio(), 26.5, 1);
  expect_printed(100 * f.kv_ratio(), 7.3, 1);
  expect_printed(100 * p.kv_ratio(), 10.5, 1);
}

// architecture.md §4.1 and §4.2.
TEST(Accounting, KvBytes) {
  const KvFormat official = KvFormat::of(flash(), Numerics::official);
  EXPECT_EQ(official.entry.row_bytes(), 584);
  EXPECT_EQ(official.index.row_bytes(), 68);
  EXPECT_EQ(KvFormat::of(flash(), Numerics::fp32).entry.row_bytes(), 2048);
  EXPECT_EQ(KvFormat::of(flash(), Numerics::fp32).index.row_bytes(), 512);

  const KvBytes f = kv_bytes(flash(), Numerics::official, kMillion);
  EXPECT_EQ(f.per_token, 3514.25);
  EXPECT_EQ(f.growing, static_cast<std::int64_t>(3514.25 * kMillion));
  EXPECT_EQ(f.fixed, 128 * 584 * 43);
  EXPECT_EQ(f.compressor_state, 12'206'080);
  EXPECT_EQ(f.total(), f.growing + f.fixed + f.compressor_state);
  const KvBytes p = kv_bytes(pro(), Numerics::official, kMillion);
  expect_printed(p.per_token, 5031.4, 1);
  EXPECT_EQ(p.compressor_state, 18'710'528);
  expect_printed(static_cast<double>(p.growing) / (1 << 30), 4.914, 3);
  EXPECT_EQ(V32{}.kv_bytes_per_token(), 48'068);

  // Entries appear when their window is complete.
  EXPECT_EQ(kv_bytes(flash(), Numerics::official, 3).growing, 0);
  EXPECT_EQ(kv_bytes(flash(), Numerics::official, 4).growing, 21 * (584 + 68));
  EXPECT_EQ(kv_bytes(flash(), Numerics::official, 128).growing, 21 * 32 * (584 + 68) + 20 * 584);
}

TEST(Accounting, ParametersAndStorage) {
  const Inspection f = inspect(flash(), kMillion);
  // 284.33 B as a public full load reports; the remainder is what that load counts as buffers.
  expect_printed(static_cast<double>(f.parameters) / 1e9, 284.33, 2);
  EXPECT_EQ(f.stored.at(0).format, "published");
  EXPECT_EQ(f.stored.at(0).n_tensors, 69'187);
  EXPECT_EQ(f.stored.at(0).bytes, 159'609'485'896);
  EXPECT_EQ(f.layers_csa, 21);
  EXPECT_EQ(f.layers_mtp, 1);
  const Inspection p = inspect(pro(), kMillion);
  EXPECT_EQ(p.stored.at(0).n_tensors, 145'116);
  EXPECT_EQ(p.stored.at(0).bytes, 864'704'792'696);
}

TEST(Accounting, ShortContextsCountWhatIsThere) {
  const Config c = flash();
  const double per_key = 2.0 * 2 * 512 * 64;
  EXPECT_EQ(token_flops(c, 1).core, 43 * per_key);  // itself alone
  EXPECT_EQ(token_flops(c, 1).indexer, 0.0);
  EXPECT_EQ(token_flops(c, 128).core, (43.0 * 128 + 21 * 32 + 20 * 1) * per_key);
  EXPECT_ERROR(inspect(c, 0), ErrorCode::invalid_argument, "the context is 0");
  EXPECT_ERROR(inspect(c, std::int64_t{1} << 33), ErrorCode::invalid_argument, "wanted 1 to");
}

TEST(Accounting, ReportsAreComplete) {
  const Inspection f = inspect(flash(), kMillion);
  const std::string text = format_inspection(f);
  for (const char* part : {"2 window, 21 CSA, 20 HCA; 1 MTP", "284.33 B", "13.27 B",
                           "159609485896 bytes, 69187 tensors", "3514.25 B", "10.0 %", "7.3 %"}) {
    EXPECT_THAT(text, testing::HasSubstr(part));
  }
  const auto j = nlohmann::json::parse(inspection_json(f));
  EXPECT_EQ(j["stored"]["published"]["bytes"], 159'609'485'896);
  EXPECT_EQ(j["kv_official"]["bytes_per_token"], 3514.25);
  EXPECT_NEAR(j["flops_ratio"].get<double>(), 0.0997, 1e-4);

  // A model whose sizes forbid the official formats says why instead of inventing figures.
  const Inspection tiny = inspect(load_config(HADAL_TEST_DATA_DIR "/golden/hf-tiny"), 4096);
  EXPECT_THAT(format_inspection(tiny),
              testing::HasSubstr("official numerics cannot run: head_dim"));
  EXPECT_TRUE(nlohmann::json::parse(inspection_json(tiny))["kv_official"].is_null());
}

}  // namespace
}  // namespace hadal::model
