// A schema document: where its references lead, and what several schemas say together. Internal to
// the schema compiler.
#pragma once

#include <deque>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace hadal::grammar {

using SchemaJson = nlohmann::ordered_json;

class SchemaDocument {
 public:
  // Throws Error{invalid_argument} when `text` is not JSON or nests deeper than 256.
  explicit SchemaDocument(std::string_view text);

  [[nodiscard]] const SchemaJson& root() const { return root_; }
  // What "#/..." means. Throws Error{invalid_argument} that names it.
  [[nodiscard]] const SchemaJson& target(const std::string& reference) const;
  // The schema of values that satisfy both. References and unions inside stay what they are, as
  // members of an allOf. Lives as long as the document.
  [[nodiscard]] const SchemaJson& both(const SchemaJson& a, const SchemaJson& b);
  // A schema made from others, kept.
  [[nodiscard]] const SchemaJson& keep(SchemaJson schema);

 private:
  SchemaJson root_;
  std::deque<SchemaJson> made_;
};

}  // namespace hadal::grammar
