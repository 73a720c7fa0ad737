#include "protocol/dsml_writer.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "protocol/chat_format.h"
#include "vectors.h"

namespace hadal::protocol {
namespace {

using test::TestJson;

std::string written(const std::string& arguments) {
  return tool_calls_text({{"", "f", arguments}}, chat_format(ChatProfile::v4_preview));
}

std::size_t n_characters(std::string_view utf8) {
  std::size_t n = 0;
  for (const char c : utf8) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

TEST(DsmlWriter, RoundTrip) {
  const auto vectors = test::load_vectors("roundtrip.json");
  ASSERT_EQ(vectors["cases"].size(), 10u);
  DsmlOptions options;
  options.mode = DsmlMode::strict;
  options.thinking_mode = ThinkingMode::chat;
  for (const auto& c : vectors["cases"]) {
    SCOPED_TRACE(test::text(c, "id"));
    const std::string sampled = test::text(c, "sampled");
    const ParsedMessage parsed = parse_completion(sampled, options);
    EXPECT_FALSE(parsed.error.has_value());
    ASSERT_EQ(parsed.tool_calls.size(), c["arguments"].size());
    for (std::size_t i = 0; i < parsed.tool_calls.size(); ++i) {
      EXPECT_EQ(parsed.tool_calls[i].arguments, c["arguments"][i].get<std::string>());
    }
    const std::string again =
        parsed.content + "\n\n" +
        tool_calls_text(parsed.tool_calls, chat_format(ChatProfile::v4_preview));
    EXPECT_EQ(again, test::text(c, "canonical_rendering"));
    EXPECT_EQ(again == sampled, c["stable"].get<bool>());
  }
}

TEST(DsmlWriter, PrefixStability) {
  const auto vectors = test::load_vectors("roundtrip.json");
  ASSERT_EQ(vectors["prefix_cases"].size(), 4u);
  for (const auto& c : vectors["prefix_cases"]) {
    SCOPED_TRACE(test::text(c, "id"));
    const RenderOptions options = test::reference_options(c);
    const std::string first = render_text(test::conversation(c["first_messages"]), options);
    const std::string second = render_text(test::conversation(c["second_messages"]), options);
    EXPECT_EQ(first, test::text(c, "first_prompt"));
    EXPECT_EQ(second, test::text(c, "second_prompt"));
    const std::string turn = first + test::text(c, "completion");
    EXPECT_EQ(second.starts_with(turn), c["whole_first_turn_reusable"].get<bool>());
    const auto differs = std::mismatch(turn.begin(), turn.end(), second.begin(), second.end());
    const std::string common(turn.begin(), differs.first);
    EXPECT_EQ(n_characters(common), c["common_prefix_chars"].get<std::size_t>());
  }
}

TEST(DsmlWriter, ArgumentsThatAreNoObject) {
  const std::string empty =
      "<｜DSML｜tool_calls>\n<｜DSML｜invoke "
      "name=\"f\">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
  EXPECT_EQ(written("{}"), empty);
  EXPECT_EQ(written(""), empty);
  EXPECT_EQ(written("null"), empty);
  EXPECT_NE(
      written("oops {").find("<｜DSML｜parameter name=\"arguments\" string=\"true\">oops {</"),
      std::string::npos);
  for (const char* arguments : {"[1]", "1", "\"x\"", "true"}) {
    EXPECT_THROW(static_cast<void>(written(arguments)), Error) << arguments;
  }
}

}  // namespace
}  // namespace hadal::protocol
