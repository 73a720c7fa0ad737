// A completion written out by an API's writer, token by token.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/api.h"
#include "protocol/dsml_parser.h"
#include "vectors.h"

namespace hadal::protocol::test {

inline ResponseIdentity identity() {
  ResponseIdentity out;
  out.id = "R";
  out.model = "m";
  out.created = 1700000000;
  out.nonce = "0123456789abcdef";
  return out;
}

struct Played {
  std::vector<SseEvent> events;
  std::string body;
};

struct Play {
  std::string completion;  // without its end-of-sentence token
  AnswerEnd end = AnswerEnd::stop;
  std::string detail = {};
  std::size_t step = 1000000;  // bytes per token
  Usage usage = {.prompt_tokens = 100,
                 .cached_tokens = 30,
                 .cache_write_tokens = 50,
                 .completion_tokens = 7,
                 .reasoning_tokens = 2};
};

inline Played play(const ApiRequest& request, const Play& how) {
  const auto writer = make_writer(request, identity());
  Played out;
  const auto add = [&out](std::vector<SseEvent> events) {
    out.events.insert(out.events.end(), events.begin(), events.end());
  };
  Usage prompt = how.usage;
  prompt.completion_tokens = prompt.reasoning_tokens = 0;
  add(writer->begin(prompt));
  DsmlOptions options;
  options.thinking_mode = request.thinking_mode;
  options.tools = declared_tools(request.tools);
  DsmlParser parser(options);
  for (const std::string_view piece : chunks(how.completion, how.step)) {
    std::vector<DsmlEvent> events;
    parser.feed(piece, events);
    TokenLogprobText logprob{.bytes = std::string(piece), .logprob = -0.5, .top = {}};
    add(writer->events(0, events, request.logprobs ? &logprob : nullptr, false));
  }
  std::vector<DsmlEvent> events;
  parser.finish(events, how.end == AnswerEnd::length ? EndOfTurn::as_fed : EndOfTurn::eos);
  add(writer->events(0, events, nullptr, false));
  add(writer->finish(0, how.end, how.detail, how.usage));
  add(writer->end(how.usage));
  out.body = writer->body();
  return out;
}

// As it goes over the wire, an event a line.
inline std::vector<std::string> lines(const std::vector<SseEvent>& events) {
  std::vector<std::string> out;
  for (const SseEvent& event : events) out.push_back(event.event + " " + event.data);
  return out;
}

inline constexpr const char* kTwoCalls =
    "hm</think>Look:\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter "
    "name=\"a\" string=\"true\">x\"y</｜DSML｜parameter>\n<｜DSML｜parameter name=\"n\" "
    "string=\"false\">[1,2]</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke "
    "name=\"ping\">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
inline constexpr const char* kCutCall =
    "hm</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"ping\">\n\n</｜DSML｜invoke>\n"
    "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"true\">un";

// Completions of all kinds: every case of the parsers' vectors, and a few more.
inline std::vector<std::string> all_completions() {
  std::vector<std::string> out{"",
                               "hm",
                               "hm</think>",
                               "</think>hello",
                               "r</think>line\nline\u2028é你",
                               kTwoCalls,
                               kCutCall,
                               "a</think>b<｜DSML｜tool_calls>\nnonsense"};
  for (const char* file : {"parse_strict.json", "parse_tolerant.json", "official_parse.json"}) {
    const auto vectors = load_vectors(file);
    for (const char* list : {"ok", "error", "cases"}) {
      if (!vectors.contains(list)) continue;
      for (const auto& c : vectors[list]) out.push_back(text(c, "text"));
    }
  }
  return out;
}

}  // namespace hadal::protocol::test
