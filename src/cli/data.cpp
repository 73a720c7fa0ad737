#include "cli/data.h"

#include <array>

namespace hadal::cli {

namespace {

Action add(CLI::App& app) {
  const std::array nested = {kDataBuild, kDataStats, kDataShow};
  return add_nested(app, nested);
}

}  // namespace

const Subcommand kData{"data", "Build and look at the data that a model is trained on",
                       "  hadal data build notes/ --validation 0.01 --out data/notes\n"
                       "  hadal data stats data/notes --sequence-length 1024\n"
                       "  hadal data show data/notes --document 3",
                       add};

}  // namespace hadal::cli
