#include "cli/common.h"

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cli/preload.h"
#include "cli/progress.h"
#include "core/error.h"
#include "kernels/cpu/isa.h"

namespace hadal::cli {

void RunOptions::apply() const {
  if (isa != "best") kernels::cpu::set_isa(*kernels::cpu::parse_isa(isa));
}

void add_run_options(CLI::App& app, RunOptions& options) {
  app.add_option("--threads", options.threads, "threads to compute with; 0 takes every core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--isa", options.isa,
                 "instruction set of the dot products: best takes the largest this machine has")
      ->check(CLI::IsMember({"best", "portable", "avx2", "avx512", "avx512_bf16"}))
      ->capture_default_str();
}

std::optional<int> DeviceOption::gpu() const {
  if (text == "cpu") return std::nullopt;
  return text == "cuda" ? 0 : std::stoi(text.substr(5));
}

void add_device_option(CLI::App& app, DeviceOption& option, const std::string& what) {
  app.add_option("--device", option.text, what + ": cpu, cuda or cuda:N (an H100, H200 or GH200)")
      ->check([](const std::string& text) -> std::string {
        const bool numbered = text.starts_with("cuda:") && text.size() > 5 && text.size() < 9 &&
                              text.find_first_not_of("0123456789", 5) == std::string::npos;
        return text == "cpu" || text == "cuda" || numbered
                   ? ""
                   : fmt::format("\"{}\" is no device; wanted cpu, cuda or cuda:N", text);
      })
      ->capture_default_str();
}

void add_model_directory(CLI::App& app, Path& directory) {
  app.add_option("-m,--model", directory,
                 "checkpoint directory (config.json, *.safetensors, tokenizer.json); without it, "
                 "the small model that hadal comes with");
}

void add_model_options(CLI::App& app, ModelOptions& options) {
  add_model_directory(app, options.directory);
  app.add_option("--numerics", options.numerics,
                 "official: every rounding the checkpoint was trained for; fp32: plain f32 maths, "
                 "to compare with other implementations")
      ->check(CLI::IsMember({"official", "fp32"}))
      ->capture_default_str();
  app.add_flag("--check-finite", options.check_finite,
               "read every weight first and refuse NaN and infinity");
  add_device_option(app, options.device, "where the model runs");
  add_run_options(app, options.run);
}

Path default_model_directory() {
  std::vector<Path> places;
  std::error_code error;
  const Path executable = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    const Path bin = executable.parent_path();
    places.push_back(bin / "../share/hadal/models/hadal-bootstrap");
    places.push_back(bin / "models/hadal-bootstrap");
  }
  places.emplace_back(HADAL_DEFAULT_MODEL_DIR);
  std::string looked_at;
  for (const Path& place : places) {
    if (std::filesystem::exists(place / "config.json")) return place.lexically_normal();
    looked_at += "\n  " + place.lexically_normal().string();
  }
  throw Error(ErrorCode::not_found,
              "no --model was given, and the model that hadal comes with is in none of these "
              "places; name a checkpoint directory with --model" +
                  looked_at);
}

Path ModelOptions::resolved_directory() const {
  return directory.empty() ? default_model_directory() : directory;
}

Numerics ModelOptions::resolved_numerics() const {
  return numerics == "fp32" ? Numerics::fp32 : Numerics::official;
}

std::unique_ptr<engine::Runtime> ModelOptions::runtime() const {
  return std::make_unique<engine::Runtime>(run.threads, device.gpu());
}

std::unique_ptr<engine::LoadedModel> ModelOptions::load(engine::Runtime* runtime) const {
  run.apply();
  engine::LoadOptions options{.check_finite = check_finite};
  std::optional<ProgressBar> bar;
  if (runtime != nullptr && runtime->gpu() != nullptr) {
    preload(resolved_directory());
    options.stream = &runtime->stream();
    bar.emplace("weights to the GPU", ProgressBar::Unit::bytes);
    options.progress = [&](std::size_t done, std::size_t total) { bar->update(done, total); };
  }
  auto loaded = engine::load_model(resolved_directory(), options);
  bar.reset();
  if (options.stream == nullptr) preload(loaded->directory);
  for (const std::string& warning : loaded->weights.warnings()) remark("warning: " + warning);
  return loaded;
}

void remark(const std::string& text) {
  fmt::print(stderr, "hadal: {}\n", text);
}

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) {
    throw Error(ErrorCode::io, fmt::format("cannot write to stdout: {}", std::strerror(errno)));
  }
}

void flush_stdout() {
  if (std::fflush(stdout) != 0) {
    throw Error(ErrorCode::io, fmt::format("cannot write to stdout: {}", std::strerror(errno)));
  }
}

std::size_t parse_size(const std::string& text) {
  struct Unit {
    std::string_view name;
    std::size_t bytes;
  };
  constexpr std::array<Unit, 11> kUnits = {{{"", 1},
                                            {"B", 1},
                                            {"K", 1000},
                                            {"KB", 1000},
                                            {"KiB", 1u << 10},
                                            {"M", 1'000'000},
                                            {"MB", 1'000'000},
                                            {"MiB", 1u << 20},
                                            {"G", 1'000'000'000},
                                            {"GB", 1'000'000'000},
                                            {"GiB", 1u << 30}}};
  std::size_t digits = 0;
  while (digits < text.size() && text[digits] >= '0' && text[digits] <= '9') ++digits;
  for (const Unit& unit : kUnits) {
    if (digits == 0 || digits > 12 || text.substr(digits) != unit.name) continue;
    const std::size_t n = std::stoull(text.substr(0, digits));
    if (n > 0 && n <= (std::size_t{1} << 50) / unit.bytes) return n * unit.bytes;
  }
  throw CLI::ValidationError("size", fmt::format("\"{}\" is no size; wanted a number and a unit "
                                                 "such as 15MiB, 4GB or 2000000",
                                                 text));
}

}  // namespace hadal::cli
