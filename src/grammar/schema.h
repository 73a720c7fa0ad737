// JSON Schema as rules of a grammar.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "grammar/grammar.h"
#include "grammar/json_rules.h"

namespace hadal::grammar {

// What a value may be, in parts that a caller may want to write in its own way.
struct ValueForms {
  std::vector<RuleId> others;              // JSON values that are no strings
  std::vector<RuleId> strings;             // JSON strings
  bool any_string = false;                 // whether `strings` is more than the next
  std::vector<std::string> string_values;  // strings of an enum, decoded

  [[nodiscard]] std::vector<RuleId> all() const;
};

// What the arguments of a call may be.
struct ObjectSchema {
  struct Property {
    std::string name;
    bool required = false;
    ValueForms forms;
  };
  std::vector<Property> properties;
  std::optional<ValueForms> additional;  // of undeclared members, where they may be
};

enum class SchemaMode : std::uint8_t {
  strict,   // what cannot be enforced is an error
  tolerant  // what cannot be enforced is ignored
};

// Reads one schema document and adds its rules to `builder`, which must outlive this.
//
// Enforced: type (one or several), properties, required, additionalProperties, enum, const, anyOf,
// oneOf (read as anyOf), allOf (merged), $ref inside the document (also recursive), items,
// prefixItems, minItems, maxItems, minLength, maxLength, and minimum, maximum and their exclusive
// forms for integers; for other numbers only a bound of 0 from below. Without a type, keywords of
// one type imply it, as schemas for models are written. Members may come in any order; members
// that additionalProperties admits may repeat.
//
// Throws Error: invalid_argument for a schema that is none, refers nowhere or is too complex;
// unsupported, in strict mode, for a keyword that is not enforced. The message names the place.
// Source: JSON Schema 2020-12; serving notes §4.5, §4.7.
class SchemaCompiler {
 public:
  SchemaCompiler(GrammarBuilder& builder, const JsonRules& json, std::string_view schema,
                 SchemaMode mode);
  ~SchemaCompiler();
  SchemaCompiler(const SchemaCompiler&) = delete;
  SchemaCompiler& operator=(const SchemaCompiler&) = delete;

  // The document's values. Call finish() when all is asked for.
  [[nodiscard]] ValueForms root();
  // The document as an object with members; throws invalid_argument when it cannot be one alone.
  [[nodiscard]] ObjectSchema object();
  // Gives every rule its body.
  void finish();

 private:
  class Compiler;
  std::unique_ptr<Compiler> compiler_;
};

}  // namespace hadal::grammar
