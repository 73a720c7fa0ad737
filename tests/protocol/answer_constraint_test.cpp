// Answers under constraint: what is let through parses, what should be let through is.
#include "protocol/answer_constraint.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "core/rng.h"
#include "grammar/schema_check.h"
#include "protocol/chat_format.h"
#include "protocol/vectors.h"

namespace hadal::protocol {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const io::Tokenizer& tokenizer() {
  static const io::Tokenizer loaded =
      io::Tokenizer::load(HADAL_SOURCE_DIR "/models/hadal-bootstrap/tokenizer.json");
  return loaded;
}

grammar::GrammarCache& cache() {
  static grammar::GrammarCache kept(tokenizer());
  return kept;
}

TokenId id_of(std::string_view text) {
  return tokenizer().token_id(text).value();
}
const TokenId kEos = 1;

std::unique_ptr<grammar::Constraint> make(const ApiRequest& request) {
  const TokenId stops[] = {kEos, id_of("<｜User｜>")};
  return make_answer_constraint(request, tokenizer(), ChatProfile::v4_preview, stops, cache());
}

constexpr const char* kWeather = R"({"name": "weather", "parameters": {"type": "object",
  "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1,
  "maximum": 14}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
  "detail": {"type": ["object", "null"], "properties": {"wind": {"type": "boolean"}},
  "required": ["wind"], "additionalProperties": false}},
  "required": ["city", "days"], "additionalProperties": false}})";
constexpr const char* kPing = R"({"name": "ping"})";
constexpr const char* kOpen = R"({"name": "open", "parameters": {"type": "object", "properties":
  {"path": {"type": "string"}, "id": {"type": ["string", "integer"]}}}})";

ApiRequest chat(std::initializer_list<const char*> tools = {}, bool strict = false) {
  ApiRequest request;
  request.thinking_mode = ThinkingMode::chat;
  if (tools.size() > 0) request.tool_policy.mode = ToolMode::automatic;
  for (const char* tool : tools) {
    request.tools.push_back(Json::parse(tool));
    request.tool_policy.strict.push_back(strict);
  }
  return request;
}

ApiRequest json_schema(const char* schema, bool strict = true) {
  ApiRequest request = chat();
  request.format = {.kind = AnswerFormat::Kind::json_schema,
                    .name = "x",
                    .schema = Json::parse(schema),
                    .strict = strict};
  return request;
}

// How many tokens of the answer the masks let through; all of them is its number of tokens.
struct Reading {
  std::size_t n_tokens = 0, n_allowed = 0;
  std::string refused;  // from the first token that was not
  bool may_end = false;
};

Reading read(const ApiRequest& request, const std::string& answer) {
  const auto constraint = make(request);
  Reading reading;
  grammar::TokenMask mask(tokenizer().vocab_size());
  const std::vector<TokenId> ids = tokenizer().encode(answer);
  reading.n_tokens = ids.size();
  for (const TokenId id : ids) {
    if (constraint != nullptr && constraint->fill(mask) && !mask.allows(id)) {
      const std::span<const TokenId> rest(ids);
      reading.refused = tokenizer().decode(rest.subspan(reading.n_allowed));
      return reading;
    }
    if (constraint != nullptr) constraint->accept(id);
    ++reading.n_allowed;
  }
  reading.may_end = constraint == nullptr || !constraint->fill(mask) || mask.allows(kEos);
  return reading;
}

bool lets_through(const ApiRequest& request, const std::string& answer) {
  const Reading reading = read(request, answer);
  return reading.n_allowed == reading.n_tokens && reading.may_end;
}

std::string invoke(const std::string& name, const std::string& parameters) {
  return "<｜DSML｜invoke name=\"" + name + "\">\n" + parameters + "\n</｜DSML｜invoke>";
}
std::string parameter(const std::string& name, const char* is_string, const std::string& value) {
  return "<｜DSML｜parameter name=\"" + name + "\" string=\"" + is_string + "\">" + value +
         "</｜DSML｜parameter>";
}
std::string block(const std::string& invokes) {
  return "\n\n<｜DSML｜tool_calls>\n" + invokes + "\n</｜DSML｜tool_calls>";
}
const std::string kGoodCall =
    invoke("weather", parameter("city", "true", "Köln") + "\n" + parameter("days", "false", "3"));

TEST(AnswerConstraint, NothingIsDemandedNothingConstrains) {
  EXPECT_EQ(make(chat()), nullptr);
  ApiRequest none = chat({kPing});
  none.tool_policy.mode = ToolMode::none;
  EXPECT_EQ(make(none), nullptr);
  ApiRequest completion;
  completion.api = Api::completions;
  EXPECT_EQ(make(completion), nullptr);
}

TEST(AnswerConstraint, ToolBlocksAreHeldToTheirGrammar) {
  for (const bool strict : {false, true}) {
    const ApiRequest request = chat({kWeather, kPing}, strict);
    for (const std::string& answer :
         {std::string("no call"), "Let me see." + block(kGoodCall), block(invoke("ping", "")),
          block(kGoodCall + "\n" + invoke("ping", "") + "\n" + kGoodCall),
          block("<｜DSML｜invoke name=\"ping\">\n</｜DSML｜invoke>"),
          block(invoke("weather", parameter("days", "false", "14") + "\n" +
                                      parameter("unit", "true", "celsius") + "\n" +
                                      parameter("city", "true", "</x> \"<a>\" </\n") + "\n" +
                                      parameter("detail", "false", R"({"wind": true})")))}) {
      const Reading reading = read(request, answer);
      EXPECT_TRUE(reading.n_allowed == reading.n_tokens && reading.may_end)
          << answer << "\nrefused: " << reading.refused;
    }
    for (const std::string& answer :
         {block(invoke("pong", "")), block(kGoodCall) + "\n", block("\n" + kGoodCall), block(""),
          block(invoke("weather", parameter("city", "false", "\"Köln\""))),
          block(invoke("weather", parameter("days", "true", "3"))),
          block(invoke("weather", parameter("unit", "true", "kelvin"))),
          block(invoke("weather", parameter("town", "true", "x"))),
          block(invoke("weather",
                       parameter("city", "true", "x") + "\n" + parameter("city", "true", "y"))),
          block(invoke("weather", parameter("days", "false", "{]"))),
          std::string("\n\n<｜DSML｜invoke name=\"ping\">")}) {
      EXPECT_FALSE(lets_through(request, answer)) << answer;
    }
  }
}

TEST(AnswerConstraint, StrictMeansTheSchema) {
  const std::string without_days = block(invoke("weather", parameter("city", "true", "Köln")));
  const std::string too_many = block(
      invoke("weather", parameter("city", "true", "K") + "\n" + parameter("days", "false", "15")));
  for (const std::string& answer : {without_days, too_many}) {
    EXPECT_TRUE(lets_through(chat({kWeather}, false), answer)) << answer;
    EXPECT_FALSE(lets_through(chat({kWeather}, true), answer)) << answer;
  }
}

TEST(AnswerConstraint, UndeclaredParametersWhereTheSchemaLetsThemBe) {
  const ApiRequest request = chat({kOpen, kPing});
  const auto call = [](const std::string& parameters) { return block(invoke("open", parameters)); };
  EXPECT_TRUE(lets_through(
      request,
      call(parameter("mode", "true", "rw") + "\n" + parameter("id", "false", "7") + "\n" +
           parameter("pat", "false", "[1]") + "\n" + parameter("paths", "false", "null"))));
  EXPECT_TRUE(lets_through(request, call(parameter("id", "true", "seven"))));
  EXPECT_FALSE(lets_through(request, call(parameter("path", "false", "1"))));
  EXPECT_FALSE(lets_through(request, call(parameter("", "true", "x"))));
  EXPECT_FALSE(lets_through(
      request, call(parameter("mode", "true", "r") + "\n" + parameter("mode", "true", "w"))));
  // No schema at all: any parameters.
  EXPECT_TRUE(lets_through(request, block(invoke("ping", parameter("n", "false", "1")))));
  // A schema that cannot be read holds a tool that is not strict to nothing.
  EXPECT_TRUE(lets_through(chat({R"({"name":"f","parameters":{"$ref":"#/x"}})"}),
                           block(invoke("f", parameter("n", "false", "1")))));
}

TEST(AnswerConstraint, TheMarkIsOneTokenInTags) {
  const auto constraint = make(chat({kPing}));
  for (const TokenId id : tokenizer().encode("\n\n<｜DSML｜tool_calls>\n<")) constraint->accept(id);
  grammar::TokenMask mask(tokenizer().vocab_size());
  ASSERT_TRUE(constraint->fill(mask));
  std::vector<TokenId> allowed;
  for (TokenId id = 0; id < mask.vocab_size(); ++id) {
    if (mask.allows(id)) allowed.push_back(id);
  }
  EXPECT_THAT(allowed, ElementsAre(id_of("｜DSML｜")));
}

TEST(AnswerConstraint, ABlockSpeltByOtherTokensIsHeldToo) {
  const auto constraint = make(chat({kPing}));
  const auto ids = tokenizer().encode("x\n\n<｜DSML｜tool_calls>\n<", io::SpecialTokens::ignore);
  for (const TokenId id : ids) constraint->accept(id);
  grammar::TokenMask mask(tokenizer().vocab_size());
  ASSERT_TRUE(constraint->fill(mask));
  EXPECT_TRUE(mask.allows(id_of("｜DSML｜")));
  EXPECT_FALSE(mask.allows(kEos));
}

TEST(AnswerConstraint, OneCallWhenTheyMayNotBeParallel) {
  ApiRequest request = chat({kPing});
  EXPECT_TRUE(lets_through(request, block(invoke("ping", "") + "\n" + invoke("ping", ""))));
  request.tool_policy.parallel = false;
  EXPECT_TRUE(lets_through(request, block(invoke("ping", ""))));
  EXPECT_FALSE(lets_through(request, block(invoke("ping", "") + "\n" + invoke("ping", ""))));
}

TEST(AnswerConstraint, RequiredCallsComeAtOnce) {
  ApiRequest request = chat({kWeather, kPing});
  request.tool_policy.mode = ToolMode::required;
  EXPECT_TRUE(lets_through(request, block(invoke("ping", ""))));
  EXPECT_FALSE(lets_through(request, "Sure." + block(invoke("ping", ""))));
  EXPECT_FALSE(lets_through(request, ""));
  request.tool_policy.allowed = {"weather"};
  EXPECT_FALSE(lets_through(request, block(invoke("ping", ""))));
  EXPECT_TRUE(lets_through(request, block(kGoodCall)));

  request.thinking_mode = ThinkingMode::thinking;
  EXPECT_TRUE(lets_through(request, "Hm, <b>\n\n</think>" + block(kGoodCall)));
  EXPECT_FALSE(lets_through(request, "Hm"));  // would end without a call
  EXPECT_FALSE(lets_through(request, "Hm</think>Sure." + block(kGoodCall)));
  EXPECT_FALSE(lets_through(request, "Hm" + block(kGoodCall) + "</think>" + block(kGoodCall)));
}

TEST(AnswerConstraint, AllowedNamesHoldForFreeCallsToo) {
  ApiRequest request = chat({kWeather, kPing});
  request.tool_policy.allowed = {"ping"};
  EXPECT_TRUE(lets_through(request, "x" + block(invoke("ping", ""))));
  EXPECT_FALSE(lets_through(request, "x" + block(kGoodCall)));
}

TEST(AnswerConstraint, JsonIsTheWholeContent) {
  ApiRequest request = chat();
  request.format.kind = AnswerFormat::Kind::json_object;
  EXPECT_TRUE(lets_through(request, R"({"a": [1, "</b> <｜"]})"));
  for (const char* answer : {"", "[1]", "\n{}", " {}", "Sure: {}", "{} ", "{\"a\": ", "{}\n"}) {
    EXPECT_FALSE(lets_through(request, answer)) << answer;
  }
  request.thinking_mode = ThinkingMode::thinking;
  EXPECT_TRUE(lets_through(request, "free </ think> text</think>{}"));
  EXPECT_FALSE(lets_through(request, "{}"));  // is reasoning: the answer would be empty
  EXPECT_FALSE(lets_through(request, "x</think>\n{}"));

  const ApiRequest typed = json_schema(
      R"({"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],
          "additionalProperties":false})");
  EXPECT_TRUE(lets_through(typed, R"({"n": 3})"));
  EXPECT_FALSE(lets_through(typed, R"({"n": "3"})"));
  EXPECT_FALSE(lets_through(typed, "{}"));
}

TEST(AnswerConstraint, JsonOrABlockWhenThereAreTools) {
  ApiRequest request = chat({kPing});
  request.format.kind = AnswerFormat::Kind::json_object;
  EXPECT_TRUE(lets_through(request, "{}"));
  EXPECT_TRUE(lets_through(request, block(invoke("ping", ""))));
  EXPECT_FALSE(lets_through(request, "{}" + block(invoke("ping", ""))));
  EXPECT_FALSE(lets_through(request, "text"));
}

TEST(AnswerConstraint, AnAnswerMayHaveABeginning) {
  ApiRequest request = json_schema(R"({"type":"object","properties":{"n":{"type":"integer"}},
      "required":["n"],"additionalProperties":false})");
  request.continues_answer = true;
  request.thinking_mode = ThinkingMode::thinking;  // its reasoning is over
  Message prefix;
  prefix.role = Role::assistant;
  prefix.content = R"({"n": 1)";
  request.conversation.messages.push_back(prefix);
  EXPECT_TRUE(lets_through(request, "2}"));
  EXPECT_FALSE(lets_through(request, R"(, "m": 2})"));
  request.conversation.messages.back().content = "Here: {";
  try {
    (void)make(request);
    FAIL();
  } catch (const ApiException& e) {
    EXPECT_EQ(e.error.status, 400);
    EXPECT_EQ(e.error.param, "messages[0].content");
  }

  ApiRequest call = chat({kPing});
  call.tool_policy.mode = ToolMode::required;
  call.continues_answer = true;
  call.conversation.messages.push_back(prefix);
  for (const char* text : {"", "Let me.", "Let me.\n", "Let me.\n\n"}) {
    call.conversation.messages.back().content = text;
    const std::string whole = block(invoke("ping", ""));
    EXPECT_TRUE(lets_through(call, whole.substr(static_cast<std::size_t>(
                                       std::count(text, text + std::strlen(text), '\n')))))
        << text;
  }

  ApiRequest thought = chat({kPing});
  thought.tool_policy.mode = ToolMode::required;
  thought.thinking_mode = ThinkingMode::thinking;
  thought.continues_answer = thought.continues_reasoning = true;
  prefix.content = "";
  prefix.reasoning_content = "Well, ";
  thought.conversation.messages.push_back(prefix);
  EXPECT_TRUE(lets_through(thought, "yes</think>" + block(invoke("ping", ""))));
}

TEST(AnswerConstraint, ReasoningEndsWithItsBudget) {
  ApiRequest request = chat();
  request.thinking_mode = ThinkingMode::thinking;
  request.thinking_budget = 3;
  const auto constraint = make(request);
  grammar::TokenMask mask(tokenizer().vocab_size());
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(constraint->fill(mask));
    constraint->accept(id_of("a"));
  }
  ASSERT_TRUE(constraint->fill(mask));
  EXPECT_TRUE(mask.allows(id_of("</think>")));
  EXPECT_FALSE(mask.allows(id_of("a")));
  constraint->accept(id_of("</think>"));
  for (int i = 0; i < 5; ++i) {
    EXPECT_FALSE(constraint->fill(mask));
    constraint->accept(id_of("a"));
  }
  request.thinking_mode = ThinkingMode::chat;  // nothing to end
  EXPECT_EQ(make(request), nullptr);
}

TEST(AnswerConstraint, NoEndBeforeTheLeastNumberOfTokens) {
  ApiRequest request = chat();
  request.min_tokens = 2;
  auto constraint = make(request);
  grammar::TokenMask mask(tokenizer().vocab_size());
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(constraint->fill(mask));
    EXPECT_FALSE(mask.allows(kEos));
    EXPECT_TRUE(mask.allows(id_of("a")));
    constraint->accept(id_of("a"));
  }
  EXPECT_FALSE(constraint->fill(mask));

  // Where the form has ended, nothing but the end is left.
  request = json_schema(R"({"const":1})");
  request.min_tokens = 100;
  constraint = make(request);
  constraint->accept(id_of("1"));
  ASSERT_TRUE(constraint->fill(mask));
  EXPECT_TRUE(mask.allows(kEos));
}

TEST(AnswerConstraint, AForbiddenTokenEndsTheForm) {
  ApiRequest request = chat();
  request.format.kind = AnswerFormat::Kind::json_object;
  const auto constraint = make(request);
  grammar::TokenMask mask(tokenizer().vocab_size());
  ASSERT_TRUE(constraint->fill(mask));
  constraint->accept(id_of("a"));
  EXPECT_FALSE(constraint->fill(mask));
  constraint->accept(id_of("{"));
  EXPECT_FALSE(constraint->fill(mask));
}

TEST(AnswerConstraint, ClonesLookAheadAlone) {
  ApiRequest request = chat();
  request.format.kind = AnswerFormat::Kind::json_object;
  const auto constraint = make(request);
  constraint->accept(id_of("{"));
  const auto ahead = constraint->clone();
  ahead->accept(id_of("}"));
  grammar::TokenMask mask(tokenizer().vocab_size());
  ASSERT_TRUE(ahead->fill(mask));
  EXPECT_TRUE(mask.allows(kEos));
  ASSERT_TRUE(constraint->fill(mask));
  EXPECT_FALSE(mask.allows(kEos));
  EXPECT_TRUE(mask.allows(id_of("}")));
}

TEST(AnswerConstraint, SchemasAtFaultAreNamed) {
  const auto error_of = [](const ApiRequest& request) {
    try {
      (void)make(request);
    } catch (const ApiException& e) {
      return e.error;
    }
    return ApiError{.status = 0};
  };
  const char* tool = R"({"name": "f", "parameters": {"type": "object", "properties":
      {"s": {"type": "string", "pattern": "a+"}}}})";
  ApiRequest request = chat({kPing, tool}, true);
  EXPECT_EQ(error_of(request).status, 400);
  EXPECT_EQ(error_of(request).param, "tools[1].function.parameters");
  EXPECT_THAT(error_of(request).message, AllOf(HasSubstr("'pattern'"), HasSubstr("strict")));
  request.api = Api::messages;
  EXPECT_EQ(error_of(request).param, "tools[1].input_schema");
  EXPECT_EQ(error_of(chat({kPing, tool}, false)).status, 0);

  EXPECT_EQ(error_of(json_schema(R"({"type":"strnig"})", false)).param,
            "response_format.json_schema.schema");
  EXPECT_THAT(error_of(json_schema(R"({"allOf":[{"$ref":"#"},{"type":"null"}]})")).message,
              HasSubstr("schema too complex"));
  EXPECT_THAT(error_of(json_schema("false")).message, HasSubstr("admits no value"));
  EXPECT_EQ(error_of(json_schema(R"({"type":"string","pattern":"a"})", false)).status, 0);
}

// The published vectors: what the model was trained to write is let through, under tools as open as
// can be.
TEST(AnswerConstraint, OfficialBlocksAreLetThrough) {
  const test::TestJson strict = test::load_vectors("parse_strict.json");
  const test::TestJson official = test::load_vectors("official_parse.json");
  std::size_t n_blocks = 0;
  for (const test::TestJson* list : {&strict.at("ok"), &official.at("cases")}) {
    for (const test::TestJson& c : *list) {
      const std::string id = test::text(c, "id");
      // JSON over several lines, and tags of the vocabulary inside a value: read, not written.
      if (id == "p12-json-raw-kept-verbatim" || id == "p15-tag-like-text-in-value") continue;
      std::string answer = test::text(c, "text");
      DsmlOptions options;
      test::declare_called(answer, options);
      ApiRequest request = chat();
      request.thinking_mode = thinking_mode_from(test::text(c, "thinking_mode"));
      if (!options.tools.empty()) request.tool_policy.mode = ToolMode::automatic;
      for (const DeclaredTool& tool : options.tools) {
        request.tools.push_back(
            Json::parse(fmt::format(R"({{"name":{}}})", json_string(tool.name))));
      }
      const std::string eos(chat_format(ChatProfile::v4_preview).eos);
      if (answer.ends_with(eos)) answer.resize(answer.size() - eos.size());
      const Reading reading = read(request, answer);
      EXPECT_TRUE(reading.n_allowed == reading.n_tokens && reading.may_end)
          << id << ", refused: " << reading.refused;
      n_blocks += options.tools.empty() ? 0 : 1;
    }
  }
  EXPECT_GT(n_blocks, 15U);
}

// One answer of a model to which all allowed tokens are alike, but for a liking for ends.
std::string drawn(const ApiRequest& request, std::uint64_t seed, const std::string& begin) {
  Rng rng(seed);
  const auto constraint = make(request);
  grammar::TokenMask mask(tokenizer().vocab_size());
  std::string text = begin;
  for (const TokenId id : tokenizer().encode(begin)) constraint->accept(id);
  const TokenId ends[] = {id_of("｜DSML｜"), id_of("</"), id_of("\""), id_of("}"), id_of("]")};
  for (std::size_t n = 0; n < 6000; ++n) {
    if (!constraint->fill(mask)) {
      ADD_FAILURE() << "free behind " << text;
      return "";
    }
    if (mask.allows(kEos)) return text;
    std::vector<TokenId> allowed;
    for (TokenId id = 0; id < mask.vocab_size(); ++id) {
      if (mask.allows(id)) allowed.push_back(id);
    }
    if (allowed.empty()) {
      ADD_FAILURE() << "stuck behind " << text;
      return "";
    }
    TokenId id = allowed[rng.next_below(static_cast<std::uint32_t>(allowed.size()))];
    const TokenId end = ends[rng.next_below(5)];
    if (n > 20 && rng.next_below(n > 300 ? 8 : 2) != 1 && mask.allows(end)) id = end;
    text += tokenizer().token_bytes(id);
    constraint->accept(id);
  }
  ADD_FAILURE() << "no end in sight: " << text.substr(0, 600);
  return "";
}

ParsedMessage parsed(const std::string& answer) {
  DsmlOptions options;
  options.mode = DsmlMode::strict;
  options.thinking_mode = ThinkingMode::chat;
  return parse_completion(answer, options);
}

TEST(AnswerConstraint, WalksAreCallsThatTheStrictParserReads) {
  for (const bool strict : {false, true}) {
    ApiRequest request = chat({kWeather, kPing, kOpen}, strict);
    const grammar::SchemaCheck weather(nlohmann::json::parse(kWeather).at("parameters").dump());
    std::size_t n_weather = 0;
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
      const std::string answer = drawn(request, seed, "Hi.\n\n<｜DSML｜");
      const ParsedMessage message = parsed(answer);
      EXPECT_FALSE(message.error) << to_string(*message.error) << " in " << answer;
      EXPECT_EQ(message.content, "Hi.");
      EXPECT_FALSE(message.tool_calls.empty());
      for (const ToolCall& call : message.tool_calls) {
        const auto arguments = grammar::SchemaCheck::Json::parse(call.arguments, nullptr, false);
        ASSERT_TRUE(arguments.is_object()) << call.arguments;
        EXPECT_TRUE(Json::try_parse(call.arguments)) << call.arguments;
        if (call.name != "weather") continue;
        ++n_weather;
        EXPECT_TRUE(!strict || weather.valid(arguments)) << call.arguments;
        for (const auto& [key, value] : arguments.items()) {
          EXPECT_EQ(value.is_string(), key == "city" || key == "unit") << call.arguments;
        }
      }
    }
    EXPECT_GT(n_weather, 2U);
  }
}

TEST(AnswerConstraint, WalksOfAFormatAreJson) {
  const char* schema = R"({"type":"object","properties":{"tags":{"type":"array","items":
      {"type":"string"}},"n":{"type":"number"},"sub":{"$ref":"#"}},"required":["n"],
      "additionalProperties":false})";
  const grammar::SchemaCheck check(schema);
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const std::string answer = drawn(json_schema(schema), seed, "");
    const auto value = grammar::SchemaCheck::Json::parse(answer, nullptr, false);
    ASSERT_FALSE(value.is_discarded()) << answer;
    EXPECT_TRUE(check.valid(value)) << answer;
    EXPECT_TRUE(Json::try_parse(answer)) << answer;
  }
}

// The model's own JSON, in both spellings, is let through token by token.
TEST(AnswerConstraint, RenderedCallsAreLetThrough) {
  const char* arguments =
      R"({"city": "São Paulo\n\"x\"", "days": 7, "unit": "celsius", "detail": {"wind": false}})";
  for (const bool strict : {false, true}) {
    Conversation conversation;
    Message call;
    call.role = Role::assistant;
    call.tool_calls = {{.id = "", .name = "weather", .arguments = arguments},
                       {.id = "", .name = "ping", .arguments = "{}"}};
    conversation.messages.push_back(call);
    std::string text = render_text(conversation, {.thinking_mode = ThinkingMode::chat});
    text = text.substr(text.find("\n\n<"));
    text = text.substr(0, text.find("<｜end"));
    const Reading reading = read(chat({kWeather, kPing}, strict), text);
    EXPECT_TRUE(reading.n_allowed == reading.n_tokens && reading.may_end) << reading.refused;
  }
}

}  // namespace
}  // namespace hadal::protocol
