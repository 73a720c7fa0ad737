// The form of an answer's visible part as a grammar: tool calls, JSON, or one of both.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "grammar/grammar_cache.h"
#include "protocol/api.h"

namespace hadal::protocol {

// A tool that the answer may call.
struct CallableTool {
  std::string name;
  std::string parameters;  // JSON Schema; "" for none
  std::string param;       // its place in the request, for errors
  bool strict = false;
};

// Where reading begins.
enum class AnswerStart : std::uint8_t {
  after_mark,  // behind the '<' and the mark of a tool block: content before it is free
  block,       // a tool block, with the two line breaks before it
  json         // JSON, or a tool block if there are tools
};

struct AnswerForm {
  AnswerStart start = AnswerStart::after_mark;
  std::vector<CallableTool> tools;
  bool parallel = true;               // several calls
  std::optional<std::string> schema;  // of the JSON; none: any object
  bool strict_schema = false;
  std::string schema_param;  // its place in the request
};

// The grammar, whose root(0) reads it. Throws ApiException (400) that names the schema at fault.
// Arguments of tools that are not strict are held to their names and to whether they are strings;
// a schema of theirs that cannot be read then holds them to nothing.
// Source: serving notes §1.7, §4.5, §4.7.
[[nodiscard]] std::shared_ptr<const grammar::Grammar> answer_grammar(const AnswerForm& form,
                                                                     ChatProfile profile,
                                                                     grammar::GrammarCache& cache);

}  // namespace hadal::protocol
