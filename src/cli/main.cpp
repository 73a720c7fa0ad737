// The program: a table of subcommands, and the one place where errors become sentences.
#include <fmt/format.h>

#include <csignal>
#include <exception>
#include <new>
#include <utility>
#include <vector>

#include "cli/common.h"
#include "cli/interrupt.h"
#include "cli/subcommands.h"
#include "core/error.h"
#include "kernels/cpu/isa.h"
#include "parallel/communicator.h"

namespace hadal::cli {

namespace {

constexpr int kFailure = 1, kUsage = 2;

const Subcommand* const kSubcommands[] = {
    &kChat,  &kServe,  &kGenerate, &kLogits,    &kTokenize, &kInspect, &kQuantize, &kSynthesize,
    &kBench, &kReplay, &kData,     &kTokenizer, &kTrain,    &kReport,  &kExport};

std::string version_text() {
  std::string text = fmt::format("hadal {}\nbackends: cpu\ninstruction sets:", HADAL_VERSION);
  using kernels::cpu::Isa;
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16}) {
    if (kernels::cpu::has_isa(isa)) text += fmt::format(" {}", to_string(isa));
  }
  return text + fmt::format("\nmpi: {}\nembedded model: {}", parallel::describe_mpi(),
                            HADAL_DEFAULT_MODEL_DIR);
}

// The first word that is no option, when no subcommand has that name.
std::string unknown_subcommand(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--options") ++i;
    if (word.starts_with("-")) continue;
    for (const Subcommand* known : kSubcommands) {
      if (word == known->name) return {};
    }
    return std::string(word);
  }
  return {};
}

// What a usage error says: the sentence, and where to read more.
int usage_error(const CLI::App& app, const CLI::ParseError& error) {
  std::string command = "hadal";
  for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
    at = at->get_subcommands().front();
    command += " " + at->get_name();
  }
  fmt::print(stderr, "hadal: {}\nSee {} --help.\n", error.what(), command);
  return kUsage;
}

int run(int argc, char** argv) {
  CLI::App app(
      "hadal runs DeepSeek-V4 models: their published checkpoints, and the small one it comes "
      "with.",
      "hadal");
  app.require_subcommand(1);
  app.set_version_flag("--version", version_text, "print version, backends and instruction sets");
  app.set_config("--options", "",
                 "read options from a TOML file: a [subcommand] section with the long names; flags "
                 "on the command line win");
  app.footer("A subcommand explains itself: hadal generate --help");
  app.get_formatter()->column_width(28);

  bool print_config = false;
  std::vector<std::pair<CLI::App*, Action>> actions;
  for (const Subcommand* subcommand : kSubcommands) {
    CLI::App* sub = app.add_subcommand(subcommand->name, subcommand->description);
    sub->configurable();
    sub->footer(fmt::format("Examples:\n{}", subcommand->examples));
    actions.emplace_back(sub, subcommand->add(*sub));
    sub->add_flag("--print-config", print_config,
                  "print the options in effect, as --options reads them, and stop")
        ->configurable(false);
  }

  if (const std::string word = unknown_subcommand(argc, argv); !word.empty()) {
    std::string known;
    for (const Subcommand* subcommand : kSubcommands) known += fmt::format(" {}", subcommand->name);
    fmt::print(stderr, "hadal: there is no subcommand \"{}\"; there is:{}\n", word, known);
    return kUsage;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    return usage_error(app, error);
  }
  for (const auto& [sub, action] : actions) {
    if (!app.got_subcommand(sub)) continue;
    if (print_config) {
      print(fmt::format("[{}]\n{}", sub->get_name(), sub->config_to_str(true, false)));
      flush_stdout();
      return 0;
    }
    try {
      const int status = action();
      flush_stdout();
      return status;
    } catch (const CLI::ParseError& error) {
      return usage_error(app, error);
    }
  }
  return kUsage;
}

}  // namespace

}  // namespace hadal::cli

int main(int argc, char** argv) {
  // A reader that goes away (hadal ... | head) is an error to report, not a reason to die silently.
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return hadal::cli::run(argc, argv);
  } catch (const hadal::Error& error) {
    fmt::print(stderr, "hadal: {}\n", error.what());
    if (error.code == hadal::ErrorCode::cancelled) return hadal::cli::kInterruptedStatus;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "hadal: out of memory; a smaller context, chunk or model needs less\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "hadal: {}\n", error.what());
  }
  return hadal::cli::kFailure;
}
