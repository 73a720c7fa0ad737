#include "train/checkpoint_state.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/digest.h"
#include "core/error.h"
#include "io/json_section.h"
#include "model/convert.h"

namespace hadal::train {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "hadal training checkpoint";
constexpr std::int64_t kVersion = 1;

// JSON has no word for what is not finite. A dump of a finite double reads back to the same bits.
Json number(double x) {
  if (std::isfinite(x)) return x;
  return std::isnan(x) ? "nan" : x > 0 ? "inf" : "-inf";
}

Json numbers(const std::vector<double>& values) {
  Json list = Json::array();
  for (const double x : values) list.push_back(number(x));
  return list;
}

std::vector<double> parse_numbers(const nlohmann::json& list, const io::JsonSection& section,
                                  const char* key) {
  std::vector<double> values;
  const auto bad = [&] {
    section.fail(ErrorCode::corrupt_data, section.path(key) + " is no list of numbers");
  };
  if (!list.is_array()) bad();
  for (const auto& item : list) {
    if (item.is_number()) {
      values.push_back(item.get<double>());
    } else if (item == "nan") {
      values.push_back(std::nan(""));
    } else if (item == "inf" || item == "-inf") {
      values.push_back(item == "inf" ? HUGE_VAL : -HUGE_VAL);
    } else {
      bad();
    }
  }
  return values;
}

Json numbers_json(const TrainerState& s) {
  Json root;
  root["progress"] = {{"tokens", s.progress.tokens},
                      {"step", s.progress.step},
                      {"indexer_steps", s.progress.indexer_steps}};
  root["loader"] = Json::parse(to_json(s.loader));
  root["spikes"] = {{"log_losses", numbers(s.spikes.log_losses)},
                    {"gradient_norms", numbers(s.spikes.gradient_norms)},
                    {"was_high", s.spikes.was_high}};
  root["anticipatory_steps"] = s.anticipatory_steps;
  root["choices_ahead"] = s.choices_ahead;
  root["in_warmup"] = s.in_warmup;
  return root;
}

io::JsonSection required_section(const io::JsonSection& section, const char* key) {
  auto inner = section.section(key);
  if (!inner) section.missing(key);
  return *inner;
}

std::int64_t count(const io::JsonSection& section, const char* key) {
  const std::int64_t n = section.required_integer(key);
  if (n < 0) section.fail(ErrorCode::corrupt_data, fmt::format("{} is {}", section.path(key), n));
  return n;
}

bool required_bool(const io::JsonSection& section, const char* key) {
  const auto value = section.boolean(key);
  if (!value) section.missing(key);
  return *value;
}

std::map<std::string, std::string> texts(const nlohmann::json& root, const char* key,
                                         const io::JsonSection& section) {
  std::map<std::string, std::string> out;
  const auto object = root.find(key);
  if (object == root.end() || !object->is_object()) section.missing(key);
  for (const auto& [name, value] : object->items()) {
    if (!value.is_string()) {
      section.fail(ErrorCode::corrupt_data, fmt::format("{}.{} is no text", key, name));
    }
    out[name] = value.get<std::string>();
  }
  return out;
}

model::WeightFormat weight_format_of(const io::JsonSection& section) {
  using model::WeightFormat;
  const std::string name = section.text("weight_format").value_or("");
  for (const auto format :
       {WeightFormat::published, WeightFormat::fp8, WeightFormat::bf16, WeightFormat::f32}) {
    if (name == model::to_string(format)) return format;
  }
  section.fail(ErrorCode::corrupt_data,
               fmt::format("weight_format is \"{}\", wanted published, fp8, bf16 or f32", name));
}

// "rope_scaling": {"factor": 16} -> "model.rope_scaling.factor": "16".
void flatten(const std::string& prefix, const Json& value, RunIdentity& into) {
  if (value.is_object()) {
    for (const auto& [key, inner] : value.items()) flatten(prefix + "." + key, inner, into);
  } else {
    into[prefix] = value.is_string() ? value.get<std::string>() : value.dump();
  }
}

}  // namespace

RunIdentity run_identity(const RunConfig& config, const DataManifest& data) {
  Json model = Json::parse(model::to_json(config.model));
  // How a checkpoint stores weights; the masters are f32 whatever the config announces.
  for (const char* key : {"architectures", "torch_dtype", "quantization_config", "expert_dtype"}) {
    model.erase(key);
  }
  RunIdentity identity;
  flatten("model", model, identity);
  identity["data.manifest"] = to_hex(sha256(to_json(data)));
  identity["data.seed"] = std::to_string(config.seed);
  identity["data.alignment"] = std::to_string(config.alignment);
  const auto flag = [](bool on) { return std::string(on ? "true" : "false"); };
  identity["muon.split_heads"] = flag(config.groups.split_heads);
  identity["muon.hyper_connections_on_adamw"] = flag(config.groups.hyper_connections_on_adamw);
  identity["muon.matrices_on_adamw"] = flag(config.groups.matrices_on_adamw);
  return identity;
}

std::string to_json(const CheckpointState& state) {
  Json root;
  root["format"] = kFormat;
  root["version"] = kVersion;
  root["step"] = state.trainer.n_steps();
  root["weight_format"] = model::to_string(state.weight_format);
  root.update(numbers_json(state.trainer));
  root["identity"] = Json(Json::object_t());
  for (const auto& [key, value] : state.identity) root["identity"][key] = value;
  root["extra"] = Json(Json::object_t());
  for (const auto& [key, value] : state.extra) root["extra"][key] = value;
  try {
    return root.dump(1) + "\n";
  } catch (const Json::type_error&) {  // dump refuses what is not UTF-8
    throw Error(ErrorCode::invalid_argument,
                "a checkpoint's identity or extra text is not UTF-8; give it another");
  }
}

CheckpointState parse_checkpoint_state(std::string_view json, const std::string& source) {
  const auto root = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object() || root.value("format", nlohmann::json()) != kFormat) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: not the state of a training run (no JSON object with \"format\": "
                            "\"{}\")",
                            source, kFormat));
  }
  const io::JsonSection section(root, "", source);
  if (const std::int64_t version = section.required_integer("version"); version != kVersion) {
    section.fail(ErrorCode::unsupported,
                 fmt::format("version is {}; this hadal reads version {}", version, kVersion));
  }
  CheckpointState state;
  state.weight_format = weight_format_of(section);
  TrainerState& s = state.trainer;
  const io::JsonSection progress = required_section(section, "progress");
  s.progress = {.tokens = count(progress, "tokens"),
                .step = count(progress, "step"),
                .indexer_steps = count(progress, "indexer_steps")};
  if (const std::int64_t step = count(section, "step"); step != s.n_steps()) {
    section.fail(ErrorCode::corrupt_data,
                 fmt::format("step is {}, its progress says {}", step, s.n_steps()));
  }
  static_cast<void>(required_section(section, "loader"));
  s.loader = parse_loader_state(root["loader"].dump(), source);
  const io::JsonSection spikes = required_section(section, "spikes");
  const auto list = [&](const char* key) {
    const auto found = root["spikes"].find(key);
    if (found == root["spikes"].end()) spikes.missing(key);
    return parse_numbers(*found, spikes, key);
  };
  s.spikes.log_losses = list("log_losses");
  s.spikes.gradient_norms = list("gradient_norms");
  s.spikes.was_high = required_bool(spikes, "was_high");
  s.anticipatory_steps = count(section, "anticipatory_steps");
  s.choices_ahead = count(section, "choices_ahead");
  s.in_warmup = required_bool(section, "in_warmup");
  state.identity = texts(root, "identity", section);
  state.extra = texts(root, "extra", section);
  return state;
}

std::string state_hash(const TrainerState& state) {
  Sha256 digest;
  const auto put = [&](std::uint64_t n) {
    std::array<std::byte, 8> bytes;
    for (int i = 0; i < 8; ++i) bytes[static_cast<std::size_t>(i)] = std::byte(n >> (8 * i));
    digest.update(bytes);
  };
  const auto put_text = [&](std::string_view text) {
    put(text.size());
    digest.update(text);
  };
  for (const NamedTensor& t : state.tensors) {
    put_text(t.name);
    put_text(to_string(t.tensor.dtype()));
    put(t.tensor.shape().rank());
    for (const std::int64_t d : t.tensor.shape().dims()) put(static_cast<std::uint64_t>(d));
    const Tensor bytes = t.on_host();
    digest.update(std::span<const std::byte>(bytes.bytes(), bytes.nbytes()));
  }
  put_text(numbers_json(state).dump());
  return to_hex(digest.finish());
}

}  // namespace hadal::train
