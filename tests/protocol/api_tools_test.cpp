#include "protocol/api_tools.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api_support.h"

namespace hadal::protocol {
namespace {

using test::refusal;
using testing::ElementsAre;
using testing::HasSubstr;

std::string schema_refusal(const std::string& schema) {
  return refusal([&] { check_strict_schema(Json::parse(schema), "s"); });
}

// A strict object with one property of that schema.
std::string with_property(const std::string& schema) {
  return R"({"type": "object", "properties": {"p": )" + schema +
         R"(}, "required": ["p"], "additionalProperties": false})";
}

TEST(StrictSchema, TakesItsSubset) {
  for (const char* schema :
       {R"({"type": "string", "description": "d", "title": "t", "default": "x"})",
        R"({"type": "number"})", R"({"type": "integer", "const": 4})", R"({"type": "boolean"})",
        R"({"type": ["string", "null"]})", R"({"enum": ["a", 1, null]})",
        R"({"type": "array", "items": {"type": "string"}})",
        R"({"anyOf": [{"type": "string"}, {"type": "null"}]})",
        R"({"type": "object", "additionalProperties": false})"}) {
    EXPECT_EQ(schema_refusal(with_property(schema)), "accepted") << schema;
  }
}

TEST(StrictSchema, KnowsReferencesIntoItself) {
  const auto with_ref = [](const std::string& ref) {
    return R"({"type": "object", "properties": {"next": {"$ref": ")" + ref +
           R"("}}, "required": ["next"], "additionalProperties": false, "$defs": {
             "a/b~": {"type": "object", "additionalProperties": false}}})";
  };
  EXPECT_EQ(schema_refusal(with_ref("#")), "accepted");
  EXPECT_EQ(schema_refusal(with_ref("#/$defs/a~1b~0")), "accepted");
  EXPECT_EQ(schema_refusal(with_ref("#/$defs/c")),
            "400 s.properties.next.$ref | s.properties.next.$ref: found \"#/$defs/c\", wanted a "
            "reference to a schema of this document");
  EXPECT_THAT(schema_refusal(with_ref("#/type")), HasSubstr("wanted a reference to a schema"));
  EXPECT_THAT(schema_refusal(with_ref("#x")), HasSubstr("wanted a reference to a schema"));
  EXPECT_THAT(schema_refusal(with_ref("http://x/y")), HasSubstr("begins with '#'"));
}

TEST(StrictSchema, NamesTheKeywordThatItDoesNotTake) {
  for (const char* keyword : {"minLength", "maxLength", "pattern", "format", "minimum", "maximum",
                              "multipleOf", "patternProperties", "minItems", "maxItems", "oneOf",
                              "allOf", "not", "if", "uniqueItems", "exclusiveMinimum"}) {
    const std::string schema = fmt::format(R"({{"type": "string", "{}": 1}})", keyword);
    EXPECT_EQ(schema_refusal(with_property(schema)),
              fmt::format("400 s.properties.p.{0} | s.properties.p.{0}: the keyword '{0}' is not "
                          "supported in strict schemas; leave it out or do without \"strict\": "
                          "true",
                          keyword));
  }
}

TEST(StrictSchema, ObjectsAreClosedAndComplete) {
  EXPECT_EQ(schema_refusal(R"({"type": "string"})"),
            "400 s.type | s.type: the type of a strict schema as a whole must be \"object\"");
  EXPECT_EQ(
      schema_refusal(R"({"type": "object", "properties": {}})"),
      "400 s.additionalProperties | s.additionalProperties: must be false in a strict schema");
  EXPECT_THAT(schema_refusal(R"({"type": "object", "additionalProperties": true})"),
              HasSubstr("must be false"));
  EXPECT_EQ(schema_refusal(R"({"type": "object", "properties": {"a": {"type": "null"}, "b":
                {"type": "null"}}, "required": ["a"], "additionalProperties": false})"),
            "400 s.required | s.required: a strict schema must require every property, and 'b' is "
            "missing");
  EXPECT_THAT(schema_refusal(R"({"type": "object", "required": ["a"],
                "additionalProperties": false})"),
              HasSubstr("there is no property 'a'"));
  EXPECT_THAT(schema_refusal(with_property(R"({"type": "object", "properties": {}})")),
              HasSubstr("s.properties.p.additionalProperties: must be false"));
  EXPECT_THAT(schema_refusal(with_property(R"({"type": "array", "items": {"type": "object"}})")),
              HasSubstr("s.properties.p.items.additionalProperties"));
}

TEST(StrictSchema, WrongShapesHaveAPath) {
  EXPECT_THAT(schema_refusal(with_property("true")), HasSubstr("s.properties.p: found true"));
  EXPECT_THAT(schema_refusal(with_property("{}")), HasSubstr("s.properties.p: a strict schema"));
  EXPECT_THAT(schema_refusal(with_property(R"({"type": "text"})")),
              HasSubstr("found \"text\", wanted one of string, number"));
  EXPECT_THAT(schema_refusal(with_property(R"({"type": []})")), HasSubstr("p.type: is empty"));
  EXPECT_THAT(schema_refusal(with_property(R"({"enum": []})")), HasSubstr("p.enum: is empty"));
  EXPECT_THAT(schema_refusal(with_property(R"({"anyOf": []})")), HasSubstr("p.anyOf: is empty"));
  EXPECT_THAT(schema_refusal(with_property(R"({"anyOf": [{"type": "string", "format": "x"}]})")),
              HasSubstr("s.properties.p.anyOf[0].format"));
  EXPECT_THAT(schema_refusal(R"({"type": "object", "properties": [], "additionalProperties":
                false})"),
              HasSubstr("s.properties: found an array, wanted an object"));
  EXPECT_THAT(schema_refusal(R"({"type": "object", "required": [1], "additionalProperties":
                false})"),
              HasSubstr("s.required: found 1, wanted a string"));
  EXPECT_THAT(schema_refusal("7"), HasSubstr("s.type"));
}

ApiRequest with_tools(std::initializer_list<const char*> names) {
  ApiRequest request;
  for (const char* name : names) {
    add_tool(request, Json::parse(fmt::format(R"({{"name": "{}"}})", name)), "f");
  }
  return request;
}

TEST(Tools, NamesAreOfASet) {
  const auto add = [](const std::string& name) {
    ApiRequest request;
    return refusal(
        [&] { add_tool(request, Json(Json::Object{{"name", Json(name)}}), "tools[0].function"); });
  };
  for (const char* good : {"f", "get_weather", "mcp.server:tool-1", "0"}) {
    EXPECT_EQ(add(good), "accepted") << good;
  }
  EXPECT_EQ(add(std::string(64, 'a')), "accepted");
  for (const std::string& bad :
       {std::string(), std::string(65, 'a'), std::string("a b"), std::string("a\"b"),
        std::string("a\n"), std::string("é"), std::string("a/b")}) {
    EXPECT_THAT(add(bad), HasSubstr("400 tools[0].function.name | tools[0].function.name: found"))
        << bad;
  }
  EXPECT_THAT(add("a b"), HasSubstr("wanted 1 to 64 letters, digits or any of _ - . :"));
}

TEST(Tools, KeepTheirObjectsAsTheyAre) {
  ApiRequest request;
  const Json tools = Json::parse(R"([
      {"type": "function", "function": {"strict": false, "parameters": {"z": 1, "a": 1.50},
       "name": "f", "x": null}},
      {"function": {"name": "g", "strict": true, "parameters": {"type": "object",
       "properties": {}, "additionalProperties": false}}}])");
  add_function_tools(request, tools, "tools");
  ASSERT_EQ(request.tools.size(), 2u);
  EXPECT_EQ(request.tools[0].dump(),
            R"({"strict": false, "parameters": {"z": 1, "a": 1.5}, "name": "f", "x": null})");
  EXPECT_THAT(request.tool_policy.strict, ElementsAre(false, true));
  EXPECT_THAT(request.unknown_fields, ElementsAre("tools[].function.x"));
}

TEST(Tools, RefusalsNameTheMember) {
  const auto add = [](const std::string& tools) {
    ApiRequest request;
    return refusal([&] { add_function_tools(request, Json::parse(tools), "tools"); });
  };
  EXPECT_EQ(add("{}"), "400 tools | tools: found an object, wanted an array");
  EXPECT_EQ(add("[3]"), "400 tools[0] | tools[0]: found 3, wanted an object");
  EXPECT_EQ(add(R"([{"type": "custom", "custom": {}}])"),
            "400 tools[0].type | tools[0].type: found \"custom\", wanted \"function\"; other tools "
            "are not offered here");
  EXPECT_EQ(add(R"([{"type": "function"}])"),
            "400 tools[0].function | tools[0].function: is missing");
  EXPECT_EQ(add(R"([{"function": {"description": "d"}}])"),
            "400 tools[0].function.name | tools[0].function.name: is missing");
  EXPECT_THAT(add(R"([{"function": {"name": "f"}}, {"function": {"name": "f"}}])"),
              HasSubstr("tools[1].function.name: another tool is called 'f' already"));
  EXPECT_THAT(add(R"([{"function": {"name": "f", "description": 1}}])"), HasSubstr("description"));
  EXPECT_THAT(add(R"([{"function": {"name": "f", "parameters": []}}])"),
              HasSubstr("tools[0].function.parameters: found an array, wanted an object"));
  EXPECT_THAT(add(R"([{"function": {"name": "f", "strict": 1}}])"), HasSubstr("strict: found 1"));
  EXPECT_THAT(add(R"([{"function": {"name": "f", "strict": true, "parameters": {"type": "object",
      "properties": {"a": {"type": "string", "minLength": 1}}, "required": ["a"],
      "additionalProperties": false}}}])"),
              HasSubstr("400 tools[0].function.parameters.properties.a.minLength | "));
  std::string many = "[";
  for (int i = 0; i < 129; ++i) {
    many += fmt::format(R"({}{{"function": {{"name": "f{}"}}}})", i > 0 ? "," : "", i);
  }
  EXPECT_EQ(add(many + "]"),
            "400 tools[128].function | tools[128].function: there are more than 128 tools");
}

struct Chosen {
  ToolMode mode;
  std::vector<std::string> allowed;
  std::size_t n_tools;
  bool operator==(const Chosen&) const = default;
};
void PrintTo(const Chosen& c, std::ostream* os) {
  *os << int(c.mode) << " of " << c.allowed.size() << ", " << c.n_tools << " tools";
}

Chosen choose(const char* choice, std::initializer_list<const char*> names = {"f", "g"}) {
  ApiRequest request = with_tools(names);
  const Json json = choice == nullptr ? Json() : Json::parse(choice);
  read_tool_choice(request, choice == nullptr ? nullptr : &json, "tool_choice");
  return {request.tool_policy.mode, request.tool_policy.allowed, request.tools.size()};
}

TEST(ToolChoice, IsAWordOrNames) {
  EXPECT_EQ(choose(nullptr), (Chosen{ToolMode::automatic, {}, 2}));
  EXPECT_EQ(choose(nullptr, {}), (Chosen{ToolMode::none, {}, 0}));
  EXPECT_EQ(choose("\"auto\""), (Chosen{ToolMode::automatic, {}, 2}));
  EXPECT_EQ(choose("\"auto\"", {}), (Chosen{ToolMode::none, {}, 0}));
  EXPECT_EQ(choose("\"none\""), (Chosen{ToolMode::none, {}, 0}));
  EXPECT_EQ(choose("\"required\""), (Chosen{ToolMode::required, {}, 2}));
  const Chosen g{ToolMode::required, {"g"}, 2};
  EXPECT_EQ(choose(R"({"type": "function", "function": {"name": "g"}})"), g);
  EXPECT_EQ(choose(R"({"type": "function", "name": "g"})"), g);
  const Chosen either{ToolMode::automatic, {"g", "f"}, 2};
  EXPECT_EQ(choose(R"({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [
      {"type": "function", "function": {"name": "g"}},
      {"type": "function", "function": {"name": "f"}}]}})"),
            either);
  EXPECT_EQ(choose(R"({"type": "allowed_tools", "mode": "auto", "tools": [
      {"type": "function", "name": "g"}, {"type": "function", "name": "f"}]})"),
            either);
  EXPECT_EQ(choose(R"({"type": "allowed_tools", "mode": "required", "tools": [
      {"type": "function", "name": "g"}]})"),
            g);
}

TEST(ToolChoice, RefusesWhatNoToolCanDo) {
  const auto refuse = [](const char* choice, std::initializer_list<const char*> names = {"f"}) {
    return refusal([&] { (void)choose(choice, names); });
  };
  EXPECT_EQ(refuse("\"required\"", {}),
            "400 tool_choice | tool_choice: a tool call is required, but the request has no tools");
  EXPECT_THAT(refuse("\"any\""), HasSubstr("found \"any\", wanted \"none\", \"auto\""));
  EXPECT_THAT(refuse("3"), HasSubstr("found 3"));
  EXPECT_THAT(refuse("[]"), HasSubstr("found an array"));
  EXPECT_EQ(refuse(R"({"type": "function", "function": {"name": "h"}})"),
            "400 tool_choice | tool_choice: there is no tool 'h' among the tools");
  EXPECT_THAT(refuse(R"({"type": "function"})"), HasSubstr("tool_choice.name: is missing"));
  EXPECT_THAT(refuse(R"({"function": {"name": "f"}})"), HasSubstr("tool_choice.type: is missing"));
  EXPECT_THAT(refuse(R"({"type": "custom", "custom": {"name": "f"}})"),
              HasSubstr("wanted \"function\""));
  EXPECT_THAT(refuse(R"({"type": "allowed_tools", "mode": "auto", "tools": []})"),
              HasSubstr("tool_choice.tools: is empty"));
  EXPECT_THAT(refuse(R"({"type": "allowed_tools", "tools": []})"), HasSubstr("mode: is missing"));
  EXPECT_THAT(refuse(R"({"type": "allowed_tools", "mode": "none", "tools": []})"),
              HasSubstr("found \"none\", wanted one of auto, required"));
  EXPECT_THAT(refuse(R"({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools":
      [{"type": "function", "function": {"name": 1}}]}})"),
              HasSubstr("tool_choice.allowed_tools.tools[0].function.name: found 1"));
}

}  // namespace
}  // namespace hadal::protocol
