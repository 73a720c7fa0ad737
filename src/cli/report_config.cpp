#include "cli/report_config.h"

#include <fmt/format.h>

#include <toml++/toml.h>
#include <nlohmann/json.hpp>
#include <sstream>

namespace hadal::cli {

namespace {

using Rows = std::vector<std::pair<std::string, std::string>>;

std::string dotted(const std::string& prefix, std::string_view key) {
  return prefix.empty() ? std::string(key) : prefix + "." + std::string(key);
}

bool has_tables(const toml::array& list) {
  for (const toml::node& item : list) {
    if (item.is_table()) return true;
  }
  return false;
}

// As TOML; numbers with the digits that tell them apart and no more.
std::string value_text(const toml::node& node) {
  if (const toml::array* list = node.as_array()) {
    std::string text;
    for (const toml::node& item : *list) text += (text.empty() ? "" : ", ") + value_text(item);
    return "[" + text + "]";
  }
  if (const auto* number = node.as_floating_point()) return fmt::format("{}", number->get());
  if (const auto* word = node.as_string()) return word->get();
  std::ostringstream text;
  node.visit([&](const auto& value) { text << toml::toml_formatter{value}; });
  return text.str();
}

void add_toml(Rows& rows, const std::string& name, const toml::node& node) {
  if (const toml::table* table = node.as_table()) {
    for (const auto& [key, value] : *table) add_toml(rows, dotted(name, key.str()), value);
    return;
  }
  if (const toml::array* list = node.as_array(); list != nullptr && has_tables(*list)) {
    for (std::size_t i = 0; i < list->size(); ++i) {
      add_toml(rows, name + "[" + std::to_string(i) + "]", *list->get(i));
    }
    return;
  }
  rows.emplace_back(name, value_text(node));
}

void add_json(Rows& rows, const std::string& name, const nlohmann::ordered_json& value) {
  if (value.is_object()) {
    for (const auto& [key, item] : value.items()) add_json(rows, dotted(name, key), item);
    return;
  }
  constexpr auto kReplace = nlohmann::ordered_json::error_handler_t::replace;
  rows.emplace_back(name, value.dump(-1, ' ', false, kReplace));
}

}  // namespace

Rows config_rows(const Path& run) {
  Rows rows;
  std::error_code none;
  if (const Path file = run / "config.toml"; std::filesystem::is_regular_file(file, none)) {
    try {
      add_toml(rows, "", toml::parse(read_text(file), file.string()));
    } catch (const toml::parse_error&) {
      rows.clear();  // the report then shows the text
    }
  }
  if (const Path file = run / "config.json"; std::filesystem::is_regular_file(file, none)) {
    const auto config = nlohmann::ordered_json::parse(read_text(file), nullptr, false);
    if (config.is_object()) add_json(rows, "model", config);
  }
  return rows;
}

}  // namespace hadal::cli
