#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

#include "cli/common.h"
#include "cli/progress.h"
#include "cli/subcommands.h"
#include "io/tokenizer.h"
#include "model/accounting.h"

namespace hadal::cli {

namespace {

struct Options {
  Path source;
  std::int64_t context = 0;  // 0: the config's own limit
  bool json = false, check_finite = false;
};

// What really lies in a checkpoint directory.
struct Stored {
  struct Format {
    std::int64_t n_tensors = 0;
    std::size_t bytes = 0;
  };
  std::map<std::string, Format> by_dtype;  // the file's own names, packed FP4 as "I8"
  std::size_t total_bytes = 0;
  std::vector<std::string> warnings;
  std::optional<std::int64_t> tokenizer_ids;
  std::size_t tokenizer_added = 0;
};

std::optional<Stored> look_into(const Path& directory, const model::Config& config,
                                bool check_finite) {
  if (!std::filesystem::is_directory(directory)) return std::nullopt;
  const bool has_weights = std::filesystem::exists(directory / "model.safetensors.index.json") ||
                           std::filesystem::exists(directory / "model.safetensors");
  if (!has_weights) return std::nullopt;
  const io::Checkpoint checkpoint = io::Checkpoint::open(directory);
  Stored stored;
  for (const std::string& name : checkpoint.names()) {
    const io::SafetensorsEntry& entry = *checkpoint.find(name);
    Stored::Format& format = stored.by_dtype[entry.dtype_name];
    format.n_tensors += 1;
    format.bytes += entry.nbytes;
  }
  stored.total_bytes = checkpoint.total_bytes();
  stored.warnings =
      model::BoundWeights::bind(checkpoint, config, {.check_finite = check_finite}).warnings();
  if (std::filesystem::exists(directory / "tokenizer.json")) {
    const io::Tokenizer tokenizer = io::Tokenizer::load(directory / "tokenizer.json");
    stored.tokenizer_ids = tokenizer.vocab_size();
    stored.tokenizer_added = tokenizer.n_added_tokens();
  }
  return stored;
}

std::string stored_text(const Stored& stored) {
  std::string out = "\nin this directory\n";
  for (const auto& [dtype, format] : stored.by_dtype) {
    out += fmt::format("  {:<28}{:>16}  {} bytes, {} tensors\n", dtype,
                       format_bytes(static_cast<double>(format.bytes)), format.bytes,
                       format.n_tensors);
  }
  out += fmt::format("  {:<28}{:>16}  {} bytes\n", "all weights",
                     format_bytes(static_cast<double>(stored.total_bytes)), stored.total_bytes);
  if (stored.tokenizer_ids) {
    out += fmt::format("  {:<28}{:>16}  {} of them added tokens\n", "tokenizer",
                       fmt::format("{} ids", *stored.tokenizer_ids), stored.tokenizer_added);
  } else {
    out += fmt::format("  {:<28}{:>16}\n", "tokenizer", "none");
  }
  for (const std::string& warning : stored.warnings) out += fmt::format("  warning: {}\n", warning);
  return out;
}

std::string with_stored(const std::string& inspection, const Stored& stored) {
  using Json = nlohmann::ordered_json;
  Json j = Json::parse(inspection);
  Json directory = Json::object();
  for (const auto& [dtype, format] : stored.by_dtype) {
    directory["formats"][dtype] = {{"tensors", format.n_tensors}, {"bytes", format.bytes}};
  }
  directory["bytes"] = stored.total_bytes;
  directory["tokenizer"] = stored.tokenizer_ids ? Json{{"ids", *stored.tokenizer_ids},
                                                       {"added_tokens", stored.tokenizer_added}}
                                                : Json();
  directory["warnings"] = stored.warnings;
  j["directory"] = std::move(directory);
  return j.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

int run(const Options& options) {
  const Path source = options.source.empty() ? default_model_directory() : options.source;
  const model::Config config = model::load_config(source);
  const model::Inspection inspection = model::inspect(
      config, options.context > 0 ? options.context : config.max_position_embeddings);
  const std::optional<Stored> stored = look_into(source, config, options.check_finite);
  if (options.json) {
    const std::string json = inspection_json(inspection);
    print(stored ? with_stored(json, *stored) : json);
  } else {
    print(format_inspection(inspection));
    if (stored) print(stored_text(*stored));
  }
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("SOURCE", options->source,
                 "checkpoint directory or config.json; without it, the model hadal comes with");
  app.add_option("--context", options->context,
                 "tokens of context to count for; without it, the config's own limit")
      ->check(CLI::PositiveNumber);
  app.add_flag("--check-finite", options->check_finite,
               "read every weight and refuse NaN and infinity");
  app.add_flag("--json", options->json, "print JSON");
  return [options] { return run(*options); };
}

}  // namespace

const Subcommand kInspect{"inspect",
                          "Count what a model costs: parameters, bytes, KV cache, FLOPs of a token",
                          "  hadal inspect configs/deepseek-v4-flash.json --context 1048576\n"
                          "  hadal inspect my-model\n"
                          "  hadal inspect my-model --check-finite --json\n"
                          "\n"
                          "A directory's weights are held against its config: a missing shard, a "
                          "lying header or a wrong\n"
                          "shape is an error.",
                          add};

}  // namespace hadal::cli
