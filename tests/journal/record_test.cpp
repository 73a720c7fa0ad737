#include "journal/record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "core/error.h"
#include "core/rng.h"
#include "journal/segment.h"

namespace hadal::journal {
namespace {

using ::testing::HasSubstr;

OpenRecord full_open() {
  OpenRecord open;
  open.local = 7;
  open.name = std::string(kMaxNameBytes, 'n');
  open.api = "messages";
  open.response_id = "abc";
  open.nonce.fill(std::byte{9});
  open.created = 1'700'000'123;
  open.n_choices = 3;
  open.seed = 0xfedcba9876543210u;
  open.resumable = true;
  open.keep_logprobs = true;
  open.principal = "key-1/user\0x";
  open.request_sha256 = sha256("request");
  open.fingerprint = sha256("model");
  open.fingerprint_text = "hadal-bootstrap, official, cpu";
  for (TokenId t = 0; t < 5000; ++t) open.prompt.push_back(t * 17 % 129280);
  open.request = R"({"messages":[]})";
  return open;
}

TEST(Record, EveryTypeReadsBackAsWritten) {
  const OpenRecord open = full_open();
  EXPECT_EQ(decode_open(encode(open)), open);
  OpenRecord empty;
  empty.local = 1;
  empty.name = "n";
  EXPECT_EQ(decode_open(encode(empty)), empty);

  StepRecord step;
  step.tokens.push_back(
      {.local = 1, .choice = 0, .index = 0, .token = 5, .logprob = {}, .top = {}});
  step.tokens.push_back({.local = 2,
                         .choice = 1,
                         .is_stop_token = true,
                         .index = 9,
                         .token = 6,
                         .logprob = -0.25f,
                         .top = {}});
  step.tokens.push_back({.local = 0xffffffff,
                         .choice = 65535,
                         .index = 400000,
                         .token = 129279,
                         .logprob = -1.5f,
                         .top = {{1, -0.5f}, {2, -2.5f}}});
  EXPECT_EQ(decode_step(encode(step)), step);
  EXPECT_EQ(decode_step(encode(StepRecord{})), StepRecord{});

  const SnapRecord snap{.local = 3, .position = 1u << 20, .file = "ab/cd.kvs", .checksum = 77};
  EXPECT_EQ(decode_snap(encode(snap)), snap);
  const CloseRecord close{.local = 3,
                          .choice = 2,
                          .reason = CloseReason::error,
                          .n_tokens = 12,
                          .closed = 1'700'000'000,
                          .tokens_sha256 = sha256("t"),
                          .detail = "why"};
  EXPECT_EQ(decode_close(encode(close)), close);
  const CancelRecord cancel{.local = 3, .reason = "gone"};
  EXPECT_EQ(decode_cancel(encode(cancel)), cancel);
  const TableRecord table{
      {{.local = 1, .name = "a", .n_tokens = {4}}, {.local = 9, .name = "b", .n_tokens = {0, 3}}}};
  EXPECT_EQ(decode_table(encode(table)), table);
}

TEST(Record, AStepCostsSixteenBytesAToken) {
  StepRecord step;
  for (std::uint32_t i = 0; i < 16; ++i) step.tokens.push_back({.local = i, .logprob = {}});
  EXPECT_EQ(encode(step).size(), 4u + 16u * 16u);
}

TEST(Record, LongPromptsAreStoredSmall) {
  OpenRecord open = full_open();
  open.prompt.assign(100'000, 42);
  EXPECT_LT(encode(open).size(), 2000u);
}

TEST(Record, PayloadsCutAnywhereAreRefusedByName) {
  const auto refuses = [](const std::vector<std::byte>& payload, auto decode, const char* type) {
    for (std::size_t n = 0; n < payload.size(); ++n) {
      try {
        (void)decode(std::span(payload).first(n));
        ADD_FAILURE() << type << " of " << n << " bytes";
      } catch (const Error& error) {
        ASSERT_EQ(error.code, ErrorCode::corrupt_data);
        ASSERT_THAT(error.what(), HasSubstr(type));
      }
    }
    std::vector<std::byte> longer = payload;
    longer.push_back(std::byte{0});
    EXPECT_THROW((void)decode(longer), Error) << type;
  };
  OpenRecord open = full_open();
  open.prompt.resize(30);
  refuses(encode(open), decode_open, "OPEN");
  refuses(encode(StepRecord{{{.local = 1, .logprob = 1.f, .top = {{1, 2.f}}}}}), decode_step,
          "STEP");
  refuses(encode(SnapRecord{.local = 1, .file = "f"}), decode_snap, "SNAP");
  refuses(encode(CloseRecord{.local = 1, .detail = "d"}), decode_close, "CLOSE");
  refuses(encode(CancelRecord{.local = 1, .reason = "r"}), decode_cancel, "CANCEL");
  refuses(encode(TableRecord{{{.local = 1, .name = "a", .n_tokens = {4}}}}), decode_table, "TABLE");
}

TEST(Record, LiesAboutSizesDoNotAllocate) {
  auto payload = encode(StepRecord{{{.local = 1, .logprob = {}}}});
  const std::uint32_t many = 0xffffffff;
  std::memcpy(payload.data(), &many, 4);
  EXPECT_THROW((void)decode_step(payload), Error);

  OpenRecord open = full_open();
  open.prompt.assign(100'000, 42);  // compressed
  payload = encode(open);
  const std::uint32_t plain = 400'000, lie = 256u << 20;
  bool found = false;
  for (std::size_t i = 0; i + 4 <= payload.size(); ++i) {
    if (std::memcmp(payload.data() + i, &plain, 4) != 0) continue;
    std::memcpy(payload.data() + i, &lie, 4);
    found = true;
    break;
  }
  ASSERT_TRUE(found);
  EXPECT_THROW((void)decode_open(payload), Error);
}

TEST(Fingerprint, DependsOnEveryPartAndWhereItEnds) {
  const auto of = [](std::vector<std::string> parts) { return fingerprint(parts); };
  EXPECT_EQ(of({"a", "b"}), of({"a", "b"}));
  EXPECT_NE(of({"a", "b"}), of({"ab", ""}));
  EXPECT_NE(of({"a", "b"}), of({"b", "a"}));
  EXPECT_NE(of({"a"}), of({"a", ""}));
}

TEST(Segment, HeadersReadBackAndEveryFlippedBitShows) {
  SegmentHeader header{.number = 12, .first_lsn = 34, .log = {}, .created_ns = 56};
  header.log.fill(std::byte{3});
  auto bytes = encode(header);
  ASSERT_EQ(bytes.size(), kSegmentHeaderBytes);
  EXPECT_EQ(*decode_header(bytes).header, header);
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    EXPECT_FALSE(decode_header(bytes).header) << bit;
    EXPECT_FALSE(decode_header(bytes).reason.empty());
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
  }
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_FALSE(decode_header(std::span(bytes).first(n)).header);
  }
}

TEST(Segment, NamesAreNumbersOfTwentyDigits) {
  EXPECT_EQ(segment_name(42), "00000000000000000042.seg");
  EXPECT_EQ(segment_number(segment_name(42)), 42u);
  EXPECT_EQ(segment_number(segment_name(~0ull)), ~0ull);
  for (const char* other : {"42.seg", "LOCK", "0000000000000000004x.seg", "",
                            "00000000000000000042.seg.damaged", "99999999999999999999.seg"}) {
    EXPECT_FALSE(segment_number(other)) << other;
  }
}

class Scanner : public ::testing::Test {
 protected:
  void SetUp() override {
    header.log.fill(std::byte{0x5a});
    header.number = 3;
    header.first_lsn = 10;
    for (Lsn lsn = 10; lsn < 15; ++lsn) {
      ends.push_back(bytes.size());
      const std::vector<std::byte> payload(lsn, static_cast<std::byte>(lsn));
      append_record(bytes, header, RecordType::step, 0, lsn, payload);
    }
  }
  [[nodiscard]] SegmentScanner scan(const SegmentHeader& as) const {
    return {as, bytes, kSegmentHeaderBytes, as.first_lsn};
  }
  static int count(SegmentScanner& scanner) {
    int n = 0;
    while (scanner.next()) ++n;
    return n;
  }
  SegmentHeader header;
  std::vector<std::byte> bytes;
  std::vector<std::size_t> ends;
};

TEST_F(Scanner, EndsCleanlyAtTheEndAndBeforeUnwrittenSpace) {
  for (const std::size_t zeros : {0u, 8u, 24u, 1000u}) {
    bytes.resize(bytes.size() + zeros);
    SegmentScanner scanner = scan(header);
    EXPECT_EQ(count(scanner), 5);
    EXPECT_EQ(scanner.tail(), SegmentScanner::Tail::clean) << scanner.reason();
  }
}

TEST_F(Scanner, NothingOfARecycledSegmentReadsAsARecord) {
  SegmentHeader next = header;
  next.number = 4;  // the same log, the same bytes, another number
  SegmentScanner scanner = scan(next);
  EXPECT_EQ(count(scanner), 0);
  EXPECT_EQ(scanner.tail(), SegmentScanner::Tail::torn);
  EXPECT_FALSE(scanner.skip_damage());
  next = header;
  next.log[0] ^= std::byte{1};  // another log
  scanner = scan(next);
  EXPECT_EQ(count(scanner), 0);
}

TEST_F(Scanner, EveryFlippedBitStopsItAtThatRecord) {
  for (std::size_t bit = 0; bit < 8 * bytes.size(); bit += 3) {
    std::size_t record = 0;
    while (record + 1 < ends.size() && ends[record + 1] <= bit / 8) ++record;
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    SegmentScanner scanner = scan(header);
    EXPECT_EQ(count(scanner), static_cast<int>(record)) << bit;
    EXPECT_EQ(scanner.tail(), SegmentScanner::Tail::torn);
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
  }
}

TEST_F(Scanner, SkipsDamageToTheNextRecordThatIsOne) {
  bytes[ends[1] + 30] ^= std::byte{1};
  SegmentScanner scanner = scan(header);
  EXPECT_EQ(count(scanner), 1);
  ASSERT_TRUE(scanner.skip_damage());
  EXPECT_EQ(scanner.next()->lsn, 12u);
  EXPECT_EQ(count(scanner), 2);
}

TEST_F(Scanner, ALostRecordShowsInTheNumbers) {
  bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(ends[2]),
              bytes.begin() + static_cast<std::ptrdiff_t>(ends[3]));
  SegmentScanner scanner = scan(header);
  EXPECT_EQ(count(scanner), 2);
  EXPECT_THAT(scanner.reason(), HasSubstr("number 13 where 12 was due"));
}

}  // namespace
}  // namespace hadal::journal
