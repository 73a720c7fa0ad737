// cli: options in, sentences and tables out. What is done happens in the layers below.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/file.h"
#include "core/numerics.h"
#include "engine/loaded_model.h"
#include "engine/session.h"

namespace hadal::cli {

// Adds a subcommand's options to `app` and returns what to do when it is chosen: the exit status.
// A broken input throws hadal::Error (exit 1), a broken command line CLI::ParseError (exit 2).
using Action = std::function<int()>;

struct Subcommand {
  const char* name;
  const char* description;  // a line
  const char* examples;     // shown under the options
  Action (*add)(CLI::App& app);
};

// Options of whatever computes.
struct RunOptions {
  int threads = 0;  // 0: all cores
  std::string isa = "best";
  void apply() const;  // throws unsupported when this machine lacks the instruction set
};
void add_run_options(CLI::App& app, RunOptions& options);

// Where a model runs or is trained: "cpu", "cuda" or "cuda:1".
struct DeviceOption {
  std::string text = "cpu";
  [[nodiscard]] std::optional<int> gpu() const;  // its number; nothing: the CPU
};
void add_device_option(CLI::App& app, DeviceOption& option, const std::string& what);

// Options of whatever runs a model.
struct ModelOptions {
  Path directory;  // empty: the embedded model
  std::string numerics = "official";
  bool check_finite = false;
  DeviceOption device;
  RunOptions run;

  [[nodiscard]] Path resolved_directory() const;
  [[nodiscard]] Numerics resolved_numerics() const;
  // Threads and kernels of the chosen device. Throws Error device when there is none such.
  [[nodiscard]] std::unique_ptr<engine::Runtime> runtime() const;
  // Sets the instruction set and loads; warnings go to stderr. To run it, give the runtime, which
  // must outlive the model.
  [[nodiscard]] std::unique_ptr<engine::LoadedModel> load(engine::Runtime* runtime = nullptr) const;
};
void add_model_options(CLI::App& app, ModelOptions& options);
// Only --model.
void add_model_directory(CLI::App& app, Path& directory);

// The model that hadal comes with: beside the executable, or where it was built. Throws not_found
// with the places looked at.
[[nodiscard]] Path default_model_directory();

// A warning or a remark for people, on stderr: "hadal: ...".
void remark(const std::string& text);

// Writes to stdout. Throws io when that fails (a full disk, a closed pipe), so that a cut-off
// result never looks like success.
void print(std::string_view text);
void flush_stdout();

// "15MiB", "4GB", "1000000" -> bytes. For CLI::Option::transform; throws CLI::ValidationError.
[[nodiscard]] std::size_t parse_size(const std::string& text);

}  // namespace hadal::cli
