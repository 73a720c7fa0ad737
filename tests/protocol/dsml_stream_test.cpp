#include <gtest/gtest.h>

#include <chrono>

#include "io/utf8.h"
#include "vectors.h"

namespace hadal::protocol {
namespace {

using test::TestJson;

// The events of one chunk in the form of the vectors.
TestJson delta_json(const std::vector<DsmlEvent>& events) {
  TestJson delta = TestJson::object();
  TestJson tools = TestJson::array();
  const auto tool = [&](std::size_t index) -> TestJson& {
    if (tools.empty() || tools.back()["index"] != index) tools.push_back({{"index", index}});
    return tools.back();
  };
  const auto add = [](TestJson& object, const char* key, const std::string& text) {
    object[key] = object.value(key, std::string()) + text;
  };
  for (const DsmlEvent& event : events) {
    if (const auto* reasoning = std::get_if<ReasoningDelta>(&event)) {
      add(delta, "reasoning", reasoning->text);
    } else if (const auto* content = std::get_if<ContentDelta>(&event)) {
      add(delta, "content", content->text);
    } else if (const auto* begin = std::get_if<ToolCallBegin>(&event)) {
      tool(begin->index)["name"] = begin->name;
    } else if (const auto* argument = std::get_if<ArgumentDelta>(&event)) {
      add(tool(argument->index), "args", argument->text);
    } else if (const auto* end = std::get_if<ToolCallEnd>(&event)) {
      tool(end->index)["end"] = true;
    } else {
      delta["malformed"] = true;
    }
  }
  if (!tools.empty()) delta["tools"] = tools;
  return delta;
}

// A case of any file with the modes to read it in.
struct Completion {
  std::string id, text;
  DsmlOptions options;
};

std::vector<Completion> completions() {
  std::vector<Completion> out;
  const auto add = [&](const TestJson& c, DsmlMode mode) {
    Completion completion{test::text(c, "id"), test::text(c, "text"), test::parse_options(c, mode)};
    if (c.contains("declared_tools")) {
      for (const auto& signature : c["declared_tools"]) {
        completion.options.tools.push_back(test::tool_from_signature(signature.get<std::string>()));
      }
    } else {
      test::declare_called(completion.text, completion.options);
    }
    completion.id += mode == DsmlMode::strict ? " strict" : " tolerant";
    out.push_back(std::move(completion));
  };
  for (const DsmlMode mode : {DsmlMode::strict, DsmlMode::tolerant}) {
    const auto strict = test::load_vectors("parse_strict.json");
    const auto official = test::load_vectors("official_parse.json");
    const auto tolerant = test::load_vectors("parse_tolerant.json");
    for (const auto& c : strict["ok"]) add(c, mode);
    for (const auto& c : strict["error"]) add(c, mode);
    for (const auto& c : official["cases"]) add(c, mode);
    for (const auto& c : tolerant["cases"]) add(c, mode);
  }
  return out;
}

TEST(DsmlStream, EmitsNoByteEarlierAndNoneLater) {
  const auto vectors = test::load_vectors("stream.json");
  ASSERT_EQ(vectors["steps"].size(), 7u);
  for (const auto& c : vectors["steps"]) {
    SCOPED_TRACE(test::text(c, "id"));
    DsmlOptions options = test::parse_options(c, DsmlMode::tolerant);
    for (const char* name : {"ping", "w", "f", "a", "b"}) options.tools.push_back({name, {}});
    DsmlParser parser(options);
    ASSERT_EQ(c["deltas"].size(), c["chunks"].size() + 1);
    for (std::size_t i = 0; i <= c["chunks"].size(); ++i) {
      std::vector<DsmlEvent> events;
      if (i < c["chunks"].size()) {
        parser.feed(c["chunks"][i].get<std::string>(), events);
      } else {
        parser.finish(events);
      }
      EXPECT_EQ(delta_json(events), c["deltas"][i]) << "after chunk " << i;
    }
  }
}

TEST(DsmlStream, EveryTwoWaySplitGivesTheSameEvents) {
  const std::vector<Completion> cases = completions();
  ASSERT_EQ(cases.size(), 2u * (24 + 19 + 4 + 22));
  for (const Completion& c : cases) {
    SCOPED_TRACE(c.id);
    const std::vector<DsmlEvent> whole = test::parse_pieces({c.text}, c.options);
    const std::string_view text = c.text;
    for (std::size_t at = 0; at <= text.size(); ++at) {
      const auto events = test::parse_pieces({text.substr(0, at), text.substr(at)}, c.options);
      ASSERT_EQ(events, whole) << "split at " << at << "\n"
                               << test::describe(events) << "\n"
                               << test::describe(whole);
    }
    for (const std::size_t size : {1u, 2u, 3u, 7u}) {
      const auto events = test::parse_pieces(test::chunks(text, size), c.options);
      ASSERT_EQ(events, whole) << "chunks of " << size << "\n"
                               << test::describe(events) << "\n"
                               << test::describe(whole);
    }
  }
}

// The bound on the length of an invoke's header is one of the text, not of what has arrived.
TEST(DsmlStream, TheLongestHeaderDoesNotDependOnTheSplit) {
  DsmlOptions options;
  options.thinking_mode = ThinkingMode::chat;
  std::size_t n_calls = 0;
  for (std::size_t n_name = 480; n_name < 540; ++n_name) {
    const std::string name(n_name, 'n');
    options.tools = {{name, {}}};
    const std::string text = "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"" + name +
                             "\">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    const auto whole = test::parse_pieces({text}, options);
    EXPECT_EQ(test::parse_pieces(test::chunks(text, 1), options), whole) << n_name;
    n_calls += test::message_of(whole, DsmlMode::tolerant).tool_calls.size();
  }
  EXPECT_GT(n_calls, 0u);
  EXPECT_LT(n_calls, 60u);
}

TEST(DsmlStream, NoDeltaEndsInsideACharacter) {
  for (const Completion& c : completions()) {
    SCOPED_TRACE(c.id);
    DsmlParser parser(c.options);
    for (const std::string_view byte : test::chunks(c.text, 1)) {
      std::vector<DsmlEvent> events;
      parser.feed(byte, events);
      for (const DsmlEvent& event : events) {
        EXPECT_FALSE(io::find_invalid_utf8(test::describe({event})).has_value());
      }
    }
  }
}

TEST(DsmlStream, ASampledEosMayBeToldInsteadOfFed) {
  DsmlOptions options;
  options.mode = DsmlMode::strict;
  options.thinking_mode = ThinkingMode::chat;
  for (const EndOfTurn end : {EndOfTurn::as_fed, EndOfTurn::eos}) {
    DsmlParser parser(options);
    std::vector<DsmlEvent> events;
    parser.feed("Hi.", events);
    parser.finish(events, end);
    EXPECT_EQ(test::message_of(events, DsmlMode::strict).error.has_value(),
              end == EndOfTurn::as_fed);
  }
}

TEST(DsmlStream, BrokenBytesBecomeReplacementCharacters) {
  DsmlOptions options;
  options.thinking_mode = ThinkingMode::chat;
  EXPECT_EQ(parse_completion("a\xff"
                             "b\xE4\xBD",
                             options)
                .content,
            "a\uFFFDb\uFFFD");
}

// Each of these is quadratic in a parser that looks at held text again with every byte: 1 MB would
// take hours. The bound is a hundred times what a linear parser needs.
TEST(DsmlStream, LongTextsTakeLinearTime) {
  constexpr std::size_t kSize = 1 << 20;
  const std::string open = "\n\n<｜DSML｜tool_calls>\n";
  const std::string invoke = "<｜DSML｜invoke name=\"f\">\n";
  const std::string parameter = "<｜DSML｜parameter name=\"a\" string=";
  const std::string near_misses = "</｜DSML｜parameter</｜DSML｜\n\n<";
  std::string misses;
  while (misses.size() < kSize) misses += near_misses;
  const std::string letters(kSize, 'x'), blanks(kSize, ' '), newlines(kSize, '\n');
  std::string closers;
  while (closers.size() < kSize) closers += "</｜DSML｜invoke>\n";
  std::string false_starts;
  while (false_starts.size() < kSize)
    false_starts += "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke na";

  const std::string texts[] = {
      letters,
      newlines,
      misses,
      closers + "x",
      false_starts,
      open + blanks + "x",
      open + invoke + blanks + "x",
      open + invoke + letters,
      open + "<｜DSML｜invoke name=\"" + letters,
      open + invoke + "{" + letters,
      open + invoke + "<｜DSML｜parameter name=\"" + letters,
      open + invoke + parameter + "\"true\">" + letters,
      open + invoke + parameter + "\"true\">" + misses,
      open + invoke + parameter + "\"false\">" + letters,
      open + invoke + parameter + "\"false\">" + misses,
  };
  for (const DsmlMode mode : {DsmlMode::strict, DsmlMode::tolerant}) {
    for (std::size_t i = 0; i < std::size(texts); ++i) {
      SCOPED_TRACE(i);
      DsmlOptions options;
      options.mode = mode;
      options.thinking_mode = ThinkingMode::chat;
      options.tools = {{"f", {}}};
      DsmlParser parser(options);
      std::vector<DsmlEvent> events;
      const auto start = std::chrono::steady_clock::now();
      for (const std::string_view byte : test::chunks(texts[i], 3)) parser.feed(byte, events);
      parser.finish(events);
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      EXPECT_LT(elapsed.count(), 60.0);
      RecordProperty("seconds", std::to_string(elapsed.count()));
    }
  }
}

}  // namespace
}  // namespace hadal::protocol
