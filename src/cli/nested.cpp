#include <fmt/format.h>

#include <utility>
#include <vector>

#include "cli/subcommands.h"

namespace hadal::cli {

Action add_nested(CLI::App& app, std::span<const Subcommand> nested) {
  app.require_subcommand(1);
  std::vector<std::pair<CLI::App*, Action>> actions;
  for (const Subcommand& subcommand : nested) {
    CLI::App* sub = app.add_subcommand(subcommand.name, subcommand.description);
    sub->configurable();
    sub->fallthrough();  // --print-config is the group's
    sub->footer(fmt::format("Examples:\n{}", subcommand.examples));
    actions.emplace_back(sub, subcommand.add(*sub));
  }
  return [actions = std::move(actions)] {
    for (const auto& [sub, action] : actions) {
      if (sub->parsed()) return action();
    }
    return 0;  // not reached: one is required
  };
}

}  // namespace hadal::cli
