// The work behind SchemaCompiler. Internal to it.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "grammar/schema.h"
#include "grammar/schema_document.h"

namespace hadal::grammar {

class SchemaCompiler::Compiler {
 public:
  Compiler(GrammarBuilder& builder, const JsonRules& json, std::string_view schema, SchemaMode mode)
      : builder_(builder), json_(json), document_(schema), mode_(mode) {}

  ValueForms root() { return forms(document_.root(), "#"); }
  ObjectSchema object();
  void finish();

 private:
  const ValueForms& forms(const SchemaJson& schema, const std::string& place);
  // Adds what values `schema` admits; `depth` counts references and unions on the way here.
  void resolve(const SchemaJson& schema, const std::string& place, int depth, ValueForms& out);
  // One step towards a schema without references and unions: the schemas that it is a union of, or
  // nothing when it is plain.
  std::vector<const SchemaJson*> parts(const SchemaJson& schema, const std::string& place);
  void add_plain(const SchemaJson& schema, const std::string& place, ValueForms& out);
  void add_literals(const SchemaJson& values, const std::vector<std::string>& types,
                    ValueForms& out);
  void add_typed(const SchemaJson& schema, const std::string& type, const std::string& place,
                 ValueForms& out);
  RuleId number(const SchemaJson& schema, const std::string& place);
  RuleId integer(const SchemaJson& schema, const std::string& place);
  RuleId string(const SchemaJson& schema, const std::string& place);
  RuleId array(const SchemaJson& schema, const std::string& place);
  RuleId object(const SchemaJson& schema, const std::string& place);
  RuleId literal(const SchemaJson& value);

  struct Member {
    std::string name;
    const SchemaJson* schema;
    bool required;
  };
  struct Members {
    std::vector<Member> declared;
    const SchemaJson* additional = nullptr;  // null where there may be none
  };
  Members members(const SchemaJson& schema, const std::string& place);

  [[nodiscard]] std::vector<std::string> types_of(const SchemaJson& schema,
                                                  const std::string& place) const;
  void check_keywords(const SchemaJson& schema, const std::string& place) const;
  void not_enforced(const std::string& keyword, const std::string& place) const;
  [[nodiscard]] std::optional<std::size_t> count(const SchemaJson& schema, const char* keyword,
                                                 const std::string& place) const;
  [[nodiscard]] std::optional<double> bound(const SchemaJson& schema, const char* keyword,
                                            const std::string& place) const;
  [[noreturn]] static void bad(const std::string& place, const std::string& sentence);

  GrammarBuilder& builder_;
  JsonRules json_;
  SchemaDocument document_;
  SchemaMode mode_;
  std::map<const SchemaJson*, ValueForms> known_;
  std::vector<const SchemaJson*> resolving_;
  std::deque<std::function<void()>> bodies_;  // of rules that have only a number yet
  SchemaJson anything_ = true;
};

}  // namespace hadal::grammar
