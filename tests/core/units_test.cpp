#include "core/units.h"

#include <gtest/gtest.h>

namespace hadal {
namespace {

TEST(Units, CountsKeepThreeDigitsAcrossEveryPowerOfAThousand) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(7), "7");
  EXPECT_EQ(format_count(0.25), "0.25");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1000), "1.00k");
  EXPECT_EQ(format_count(9994), "9.99k");
  EXPECT_EQ(format_count(9996), "10.0k");
  EXPECT_EQ(format_count(99'949), "99.9k");
  EXPECT_EQ(format_count(99'951), "100k");
  EXPECT_EQ(format_count(999'499), "999k");
  EXPECT_EQ(format_count(999'501), "1.00M");
  EXPECT_EQ(format_count(-75.5e6), "-75.5M");
  EXPECT_EQ(format_count(32e12), "32.0T");
  EXPECT_EQ(format_count(5e21), "5000E");
}

TEST(Units, BytesAndSeconds) {
  EXPECT_EQ(format_bytes(512), "512 B");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(3.0 * 1024 * 1024 * 1024), "3.00 GiB");
  EXPECT_EQ(format_seconds(4.21), "4.2 s");
  EXPECT_EQ(format_seconds(185), "3m05s");
  EXPECT_EQ(format_seconds(3720), "1h02m");
}

}  // namespace
}  // namespace hadal
