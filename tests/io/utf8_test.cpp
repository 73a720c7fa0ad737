#include "io/utf8.h"

#include <gmock/gmock.h>

#include <string>

namespace hadal::io {
namespace {

using std::string_literals::operator""s;

std::string stream_whole(std::string_view bytes) {
  Utf8Stream stream;
  const std::string head = stream.feed(bytes);
  return head + stream.finish();
}

// The bit patterns of table 3-6, for surrogates too.
std::string bytes_of(unsigned code_point) {
  std::string text;
  const auto tail = [&](int shift) {
    text += static_cast<char>(0x80 | (code_point >> shift & 0x3F));
  };
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    text += static_cast<char>(0xC0 | code_point >> 6);
    tail(0);
  } else if (code_point < 0x10000) {
    text += static_cast<char>(0xE0 | code_point >> 12);
    tail(6), tail(0);
  } else {
    text += static_cast<char>(0xF0 | code_point >> 18);
    tail(12), tail(6), tail(0);
  }
  return text;
}

TEST(FindInvalidUtf8, AcceptsEveryCharacterThatIsNotASurrogate) {
  for (unsigned c = 0; c <= 0x10FFFF; ++c) {
    const std::string text = bytes_of(c);
    const bool surrogate = c >= 0xD800 && c <= 0xDFFF;
    ASSERT_EQ(find_invalid_utf8(text).has_value(), surrogate) << std::hex << c;
    ASSERT_EQ(stream_whole(text) == text, !surrogate) << std::hex << c;
  }
}

TEST(FindInvalidUtf8, SaysWhereTheFirstBadSequenceBegins) {
  EXPECT_EQ(find_invalid_utf8(""), std::nullopt);
  EXPECT_EQ(find_invalid_utf8("abc"), std::nullopt);
  EXPECT_EQ(find_invalid_utf8("plain text, long enough for words of eight \xFF"), 43u);
  EXPECT_EQ(find_invalid_utf8("\x80"), 0u);               // a continuation alone
  EXPECT_EQ(find_invalid_utf8("a\xC0\xAF"), 1u);          // overlong /
  EXPECT_EQ(find_invalid_utf8("ab\xE0\x80\xAF"), 2u);     // overlong in three bytes
  EXPECT_EQ(find_invalid_utf8("\xF0\x80\x80\xAF"), 0u);   // and in four
  EXPECT_EQ(find_invalid_utf8("é\xED\xA0\x80"), 2u);      // U+D800
  EXPECT_EQ(find_invalid_utf8("é\xF4\x90\x80\x80"), 2u);  // U+110000
  EXPECT_EQ(find_invalid_utf8("12345678\xF5\x80\x80\x80"), 8u);
  EXPECT_EQ(find_invalid_utf8("好\xE5\xA5"), 3u);   // cut off at the end
  EXPECT_EQ(find_invalid_utf8("好\xE5\xA5 "), 3u);  // cut off in the middle
}

// The Unicode Standard's own examples, tables 3-8 to 3-11: one U+FFFD per maximal subpart.
TEST(Utf8Stream, ReplacesMaximalSubparts) {
  const std::string r = "\uFFFD";
  EXPECT_EQ(stream_whole("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(stream_whole("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(stream_whole("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(stream_whole("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
}

TEST(Utf8Stream, HoldsBackAnUnfinishedCharacterOnly) {
  Utf8Stream stream;
  EXPECT_EQ(stream.feed("a\xF0"), "a");
  EXPECT_EQ(stream.feed("\x9F\x98"), "");
  EXPECT_EQ(stream.feed("\x80"
                        "b"),
            "😀b");
  EXPECT_EQ(stream.feed("\xE5\xA5"), "");
  EXPECT_EQ(stream.feed(""), "");
  EXPECT_EQ(stream.feed("x"), "\uFFFDx");  // it can no longer become a character
  EXPECT_EQ(stream.feed("\xE5"), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
  EXPECT_EQ(stream.feed("\xA5"), "\uFFFD");  // nothing is left over from before finish()
}

TEST(Utf8Stream, GivesTheSameTextHoweverTheBytesAreCut) {
  const std::string bytes =
      "aé好😀\xF0\x9F\xE2\x82"
      "b\xC0\xAF\xED\xA0\x80 \xF4\x90\x80\x80 好\xE5\xA5"s;
  const std::string whole = stream_whole(bytes);
  EXPECT_EQ(find_invalid_utf8(whole), std::nullopt);
  for (std::size_t first = 0; first <= bytes.size(); ++first) {
    for (std::size_t second = first; second <= bytes.size(); ++second) {
      Utf8Stream stream;
      std::string text = stream.feed(std::string_view(bytes).substr(0, first));
      text += stream.feed(std::string_view(bytes).substr(first, second - first));
      text += stream.feed(std::string_view(bytes).substr(second));
      text += stream.finish();
      ASSERT_EQ(text, whole) << "cut at " << first << " and " << second;
    }
  }
  Utf8Stream stream;
  std::string text;
  for (const char c : bytes) text += stream.feed(std::string_view(&c, 1));
  EXPECT_EQ(text + stream.finish(), whole);
}

}  // namespace
}  // namespace hadal::io
