// `hadal report`: looks at training runs.
#include "train/report.h"

#include <fmt/format.h>
#include <unistd.h>

#include "cli/common.h"
#include "cli/progress.h"
#include "cli/report_config.h"
#include "cli/subcommands.h"
#include "core/units.h"
#include "train/event_file.h"

namespace hadal::cli {

namespace {

struct Options {
  std::vector<Path> runs;
  Path output = "report.html", tensorboard;
  bool text = false;
};

std::vector<train::RunHistory> load(const Options& options) {
  std::vector<train::RunHistory> runs;
  for (const Path& path : options.runs) {
    train::RunHistory run = train::load_run(FileSystem::real(), path);
    run.config = config_rows(run.directory);
    // Two runs may lie in directories of one name.
    for (const train::RunHistory& other : runs) {
      if (other.name == run.name) run.name = path.lexically_normal().string();
    }
    for (const std::string& warning : run.warnings) remark(warning + "; passed over");
    runs.push_back(std::move(run));
  }
  return runs;
}

void write_page(const Path& path, const std::string& page) {
  FileSystem& fs = FileSystem::real();
  if (path.has_parent_path()) fs.create_directories(path.parent_path());
  Path temporary = path;
  temporary += ".new";
  const auto file = fs.create(temporary);
  file->append(page);
  file->close();
  fs.rename(temporary, path);
}

// A directory of events a run, as TensorBoard wants it.
void write_events(const Path& directory, const std::vector<train::RunHistory>& runs) {
  for (const train::RunHistory& run : runs) {
    const Path into = directory / Path(run.name).filename();
    train::EventFile events(FileSystem::real(), into,
                            {.time = run.steps.front().time, .unique = "report", .after = 0});
    for (const auto& record : run.steps) events.record(record);
    for (const auto& record : run.evals) events.record(record);
    for (const auto& record : run.samples) events.record(record);
    for (const auto& record : run.events) events.record(record);
    events.close();
    print(fmt::format("{}: events of {}\n", events.path().string(), run.name));
  }
}

int run(const Options& options) {
  const std::vector<train::RunHistory> runs = load(options);
  if (!options.tensorboard.empty()) write_events(options.tensorboard, runs);
  if (options.text) {
    print(train::text_report(runs, terminal_columns(STDOUT_FILENO)));
    return 0;
  }
  if (!options.tensorboard.empty()) return 0;
  const std::string page = train::html_report(runs);
  write_page(options.output, page);
  print(fmt::format("{}: {} of {} run{}\n", options.output.string(),
                    format_bytes(static_cast<double>(page.size())), runs.size(),
                    runs.size() == 1 ? "" : "s"));
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("RUN", options->runs, "directories that hadal train wrote; several are compared")
      ->required();
  app.add_option("-o,--out", options->output, "the page to write")->capture_default_str();
  app.add_flag("--text", options->text, "print a summary here instead");
  app.add_option(
      "--tensorboard", options->tensorboard,
      "write TensorBoard's event files into this directory instead, one directory a run");
  return [options] { return run(*options); };
}

}  // namespace

const Subcommand kReport{"report", "Show how training runs went: one HTML file, or text",
                         "  hadal report runs/nano                       writes report.html\n"
                         "  hadal report runs/muon runs/adamw -o compare.html\n"
                         "  hadal report runs/nano --text\n",
                         add};

}  // namespace hadal::cli
