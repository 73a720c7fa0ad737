// LoaderState as JSON.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/json_section.h"
#include "train/data_loader.h"

namespace hadal::train {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kVersion = 1;

std::int64_t count(const io::JsonSection& section, const char* key) {
  const std::int64_t n = section.required_integer(key);
  if (n < 0) section.fail(ErrorCode::corrupt_data, fmt::format("{} is {}", section.path(key), n));
  return n;
}

}  // namespace

std::string to_json(const LoaderState& state) {
  Json root;
  root["version"] = kVersion;
  root["seed"] = std::to_string(state.seed);  // 64 bits, which not every reader of numbers keeps
  root["documents"] = state.n_documents;
  root["tokens"] = state.n_tokens;
  root["alignment"] = state.alignment;
  root["window_documents"] = state.window_documents;
  root["window_tokens"] = state.window_tokens;
  root["epoch"] = state.epoch;
  root["next_document"] = state.next_document;
  root["windows"] = Json::array();
  for (const LoaderWindow& window : state.windows) {
    root["windows"].push_back({{"epoch", window.epoch},
                               {"begin", window.begin},
                               {"end", window.end},
                               {"sequence_length", window.sequence_length},
                               {"rows_taken", window.n_rows_taken}});
  }
  root["samples"] = state.n_samples;
  root["inputs"] = state.n_inputs;
  root["targets"] = state.n_targets;
  return root.dump();
}

LoaderState parse_loader_state(std::string_view json, const std::string& source) {
  const auto root = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  const auto bad = [&](const std::string& what) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: not the state of a data loader: {}", source, what));
  };
  if (!root.is_object()) bad("no JSON object");
  const io::JsonSection section(root, "", source);
  section.expect_integer("version", kVersion);
  LoaderState state;
  const std::string seed = section.text("seed").value_or("");
  if (seed.empty() || seed.size() > 20 ||
      seed.find_first_not_of("0123456789") != std::string::npos) {
    bad("seed is no number");
  }
  try {
    state.seed = std::stoull(seed);
  } catch (const std::out_of_range&) {
    bad("seed is no number of 64 bits");
  }
  state.n_documents = count(section, "documents");
  state.n_tokens = count(section, "tokens");
  state.alignment = count(section, "alignment");
  state.window_documents = count(section, "window_documents");
  state.window_tokens = count(section, "window_tokens");
  state.epoch = count(section, "epoch");
  state.next_document = count(section, "next_document");
  state.n_samples = count(section, "samples");
  state.n_inputs = count(section, "inputs");
  state.n_targets = count(section, "targets");
  const auto windows = root.find("windows");
  if (windows == root.end() || !windows->is_array()) bad("no \"windows\"");
  for (const auto& item : *windows) {
    if (!item.is_object()) bad("a window is no object");
    const io::JsonSection window(item, "windows.", source);
    state.windows.push_back({.epoch = count(window, "epoch"),
                             .begin = count(window, "begin"),
                             .end = count(window, "end"),
                             .sequence_length = count(window, "sequence_length"),
                             .n_rows_taken = count(window, "rows_taken")});
  }
  return state;
}

}  // namespace hadal::train
