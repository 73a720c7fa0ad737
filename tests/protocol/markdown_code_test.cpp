#include "protocol/markdown_code.h"

#include <gtest/gtest.h>

namespace hadal::protocol {
namespace {

bool in_code(std::string_view text, std::string_view separator = "") {
  MarkdownCode markdown;
  markdown.feed(text);
  return markdown.in_code_after(separator);
}

TEST(MarkdownCode, Fences) {
  EXPECT_FALSE(in_code("text"));
  EXPECT_TRUE(in_code("```\ncode"));
  EXPECT_TRUE(in_code("```", "\n"));
  EXPECT_TRUE(in_code("a\n   ~~~~ python\ncode\n~~~\n"));  // three do not close four
  EXPECT_FALSE(in_code("~~~~\ncode\n~~~~ \nafter"));
  EXPECT_TRUE(in_code("```\ncode\n``` not a closer\n"));
  EXPECT_TRUE(in_code("```\n~~~\n"));  // nor does the other kind
  EXPECT_FALSE(in_code("    ```\nindented"));
  EXPECT_FALSE(in_code("```\r\ncode\r\n```\r\n"));
}

TEST(MarkdownCode, InlineCode) {
  EXPECT_TRUE(in_code("see `"));
  EXPECT_TRUE(in_code("`"));
  EXPECT_FALSE(in_code("see `x` and "));
  EXPECT_TRUE(in_code("see ``x` and "));
  EXPECT_FALSE(in_code("see ``x` y`` "));
  EXPECT_FALSE(in_code("a stray ` here\n"));  // a line later it counts no more
}

TEST(MarkdownCode, LineStart) {
  MarkdownCode markdown;
  EXPECT_TRUE(markdown.at_line_start());
  markdown.feed("a");
  EXPECT_FALSE(markdown.at_line_start());
  markdown.feed("\n");
  EXPECT_TRUE(markdown.at_line_start());
  markdown.feed(" ");
  EXPECT_FALSE(markdown.at_line_start());
}

}  // namespace
}  // namespace hadal::protocol
