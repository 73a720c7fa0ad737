#include "cli/run_config_file.h"

#include <fmt/format.h>

#include <toml++/toml.h>
#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "kernels/newton_schulz.h"

namespace hadal::cli {

namespace {

using train::RunConfig;

// One list of keys for reading, for printing and for knowing which keys there are.
template <class Visitor>
void visit(Visitor& v, RunConfig& c) {
  v.section("data");
  v.key("directory", c.data, "token shards, made by `hadal data build`");
  v.key("alignment", c.alignment, "samples begin at multiples of this inside a row");
  v.section("train");
  v.key("seed", c.seed, "of the initial weights and of the order of the data");
  v.choice(
      "compute", c.compute,
      {{"f32", train::Compute::f32}, {"bf16", train::Compute::bf16}, {"qat", train::Compute::qat}},
      "f32; bf16: official roundings; qat: FP4 experts and FP8 linears as published");
  v.key("qat_start", c.qat_start, "with qat: the fraction of the tokens before it, in bf16");
  v.key("total_tokens", c.schedule.total_tokens, "tokens to train on");
  v.key("batch_tokens", c.schedule.batch.tokens, "a step");
  v.key("first_batch_tokens", c.schedule.batch.first_tokens, "a step at the start; 0: the same");
  v.key("batch_ramp_fraction", c.schedule.batch.ramp_fraction, "of the tokens, from first to full");
  v.key("micro_batch_tokens", c.micro_batch_tokens, "in one forward pass; 0: the whole batch");
  v.key("recompute", c.recompute, "less memory for some time");
  v.key("expert_parallel", c.expert_parallel,
        "under mpirun: divide the experts over the processes");
  v.choice("on_non_finite", c.on_non_finite,
           {{"stop", train::OnNonFinite::stop}, {"rollback", train::OnNonFinite::rollback}},
           "NaN or infinity in a loss or a gradient: stop, or go back to a snapshot");
  v.section("lr");
  v.key("peak", c.schedule.lr.peak, "of Muon and AdamW alike");
  v.key("end", c.schedule.lr.end, "");
  v.key("warmup_steps", c.schedule.lr.warmup_steps, "linear");
  v.key("decay_fraction", c.schedule.lr.decay_fraction, "of the tokens, the last: half a cosine");
  v.section("muon");
  v.key("momentum", c.optimizer.muon.momentum, "");
  v.key("weight_decay", c.optimizer.muon.weight_decay, "times the learning rate");
  v.key("gamma", c.optimizer.muon.gamma, "RMS of an update over the learning rate");
  v.key("lr_scale", c.optimizer.muon.lr_scale, "");
  v.choice("newton_schulz", c.newton_schulz,
           {{"hybrid", "hybrid"}, {"quintic", "quintic"}, {"polar_express", "polar_express"}},
           "hybrid: 8 + 2 steps of DeepSeek-V4; quintic: 5; polar_express: 8");
  v.key("split_heads", c.groups.split_heads, "wq_b head by head");
  v.key("hyper_connections_on_adamw", c.groups.hyper_connections_on_adamw, "");
  v.key("matrices_on_adamw", c.groups.matrices_on_adamw, "no Muon at all: the control experiment");
  v.section("adamw");
  v.key("beta1", c.optimizer.adamw.beta1, "");
  v.key("beta2", c.optimizer.adamw.beta2, "");
  v.key("eps", c.optimizer.adamw.eps, "");
  v.key("weight_decay", c.optimizer.adamw.weight_decay, "times the learning rate");
  v.key("lr_scale", c.optimizer.adamw.lr_scale, "");
  v.key("clip_norm", c.optimizer.clip_norm, "of all gradients together; 0: never");
  v.section("moe");
  v.key("balance_weight", c.balance_weight, "of the loss within a sequence");
  v.key("bias_speed", c.schedule.bias_speed, "of the selection bias, a step");
  v.key("bias_stop_fraction", c.schedule.bias_stop_fraction, "of the tokens, the last: it rests");
  v.section("mtp");
  v.key("weight", c.schedule.mtp_weight, "");
  v.key("decay_weight", c.schedule.mtp_decay_weight, "from where the learning rate falls");
  v.section("indexer");
  v.key("warmup_steps", c.schedule.indexer.warmup_steps, "before the first sparse stage");
  v.key("warmup_lr", c.schedule.indexer.warmup_lr, "");
  v.key("loss_weight", c.schedule.indexer.loss_weight, "");
  v.section("anticipatory");
  v.key("enable", c.anticipatory.enable, "after a loss spike, choose experts some steps ahead");
  v.key("delay", c.anticipatory.delay, "steps");
  v.key("period", c.anticipatory.period, "steps that it stays on");
  v.key("loss_z", c.anticipatory.loss_z, "robust z-score of the log loss that is a spike");
  v.key("gradient_ratio", c.anticipatory.gradient_ratio, "to the median norm that is a spike");
  v.key("window", c.anticipatory.window, "steps of the statistics");
  v.key("snapshot_every", c.anticipatory.snapshot_every, "steps, in memory");
  v.key("rollback_steps", c.anticipatory.rollback_steps, "at least so far back");
  v.section("output");
  v.key("eval_every", c.eval_every, "steps; 0: never");
  v.key("eval_tokens", c.eval_tokens, "of the validation split");
  v.key("sample_every", c.sample_every, "steps; 0: never");
  v.key("sample_tokens", c.sample_tokens, "");
  v.key("sample_prompts", c.sample_prompts, "");
  v.key("checkpoint_every", c.checkpoint_every, "steps; 0: only at the end");
  v.key("keep_checkpoints", c.keep_checkpoints, "the newest ones");
  v.key("hash_every", c.hash_every, "steps between hashes of weights and state in the metrics");
}

[[noreturn]] void refuse(const std::string& source, const std::string& key,
                         const std::string& found, const std::string& wanted) {
  throw Error(ErrorCode::invalid_argument,
              fmt::format("{}: {} is {}; wanted {}", source, key, found, wanted));
}

std::string found_text(const toml::node& node) {
  std::ostringstream out;
  node.visit([&](const auto& value) { out << value; });
  return out.str();
}

class Reader {
 public:
  Reader(const toml::table& root, std::string source) : root_(root), source_(std::move(source)) {}

  void section(const char* name) {
    name_ = name;
    known_[name];
    table_ = nullptr;
    const toml::node* node = root_.get(name);
    if (node == nullptr) return;
    table_ = node->as_table();
    if (table_ == nullptr) refuse(source_, name, found_text(*node), fmt::format("[{}]", name));
  }

  template <class T>
  void key(const char* name, T& value, const char*) {
    known_[name_].insert(name);
    const toml::node* node = table_ == nullptr ? nullptr : table_->get(name);
    if (node == nullptr) return;
    const std::string path = fmt::format("{}.{}", name_, name);
    if constexpr (std::is_same_v<T, bool>) {
      value = take<bool>(*node, path, "true or false");
    } else if constexpr (std::is_same_v<T, std::string>) {
      value = take<std::string>(*node, path, "a string");
    } else if constexpr (std::is_integral_v<T>) {
      const auto n = take<std::int64_t>(*node, path, "a whole number");
      if (n < 0) refuse(source_, path, std::to_string(n), "0 or more");
      value = static_cast<T>(n);
    } else if constexpr (std::is_floating_point_v<T>) {
      value = take<double>(*node, path, "a number");
    } else {
      const toml::array* list = node->as_array();
      if (list == nullptr) refuse(source_, path, found_text(*node), "a list of strings");
      value.clear();
      for (const toml::node& item : *list) {
        value.push_back(take<std::string>(item, path, "a list of strings"));
      }
    }
  }

  template <class T>
  void choice(const char* name, T& value, std::vector<std::pair<std::string, T>> choices,
              const char*) {
    std::string text;
    key(name, text, "");
    if (text.empty()) return;
    std::string wanted;
    for (const auto& [label, meaning] : choices) {
      if (label == text) {
        value = meaning;
        return;
      }
      wanted += (wanted.empty() ? "" : ", ") + label;
    }
    refuse(source_, fmt::format("{}.{}", name_, name), '"' + text + '"', "one of " + wanted);
  }

  // A key that nobody reads is a typing error.
  void refuse_unknown(const std::set<std::string>& other_sections) const {
    for (const auto& [name, node] : root_) {
      const std::string section(name.str());
      if (other_sections.contains(section)) continue;
      const auto known = known_.find(section);
      if (known == known_.end()) {
        refuse(source_, section, "no section of a training run",
               "one of data, train, model, stages, lr, muon, adamw, moe, mtp, indexer, "
               "anticipatory, output");
      }
      for (const auto& [key, value] : *node.as_table()) {
        if (!known->second.contains(std::string(key.str()))) {
          std::string wanted;
          for (const std::string& k : known->second) wanted += (wanted.empty() ? "" : ", ") + k;
          refuse(source_, fmt::format("{}.{}", section, key.str()), "unknown", "one of " + wanted);
        }
      }
    }
  }

 private:
  template <class T>
  T take(const toml::node& node, const std::string& path, const char* wanted) {
    const std::optional<T> value = node.value<T>();
    if (!value) refuse(source_, path, found_text(node), wanted);
    return *value;
  }

  const toml::table& root_;
  std::string source_;
  const toml::table* table_ = nullptr;
  std::string name_;
  std::map<std::string, std::set<std::string>> known_;
};

class Printer {
 public:
  void section(const char* name) { text_ += fmt::format("\n[{}]\n", name); }
  template <class T>
  void key(const char* name, const T& value, const char* meaning) {
    const std::string line = fmt::format("{} = {}", name, literal(value));
    text_ += *meaning == '\0' ? line + "\n" : fmt::format("{:<34} # {}\n", line, meaning);
  }
  template <class T>
  void choice(const char* name, const T& value, std::vector<std::pair<std::string, T>> choices,
              const char* meaning) {
    const auto found = std::find_if(choices.begin(), choices.end(),
                                    [&](const auto& c) { return c.second == value; });
    key(name, found->first, meaning);
  }
  [[nodiscard]] const std::string& text() const { return text_; }

  static std::string literal(bool v) { return v ? "true" : "false"; }
  static std::string literal(std::int64_t v) { return std::to_string(v); }
  static std::string literal(std::uint64_t v) { return std::to_string(v); }
  static std::string literal(double v) {
    const std::string s = fmt::format("{}", v);
    return s.find_first_of(".en") == std::string::npos ? s + ".0" : s;
  }
  static std::string literal(const std::string& v) {
    std::ostringstream out;
    out << toml::value<std::string>(v);
    return out.str();
  }
  static std::string literal(const std::vector<std::string>& v) {
    std::string out;
    for (const std::string& item : v) out += (out.empty() ? "" : ", ") + literal(item);
    return "[" + out + "]";
  }

 private:
  std::string text_;
};

void read_stages(const toml::table& root, const std::string& source, RunConfig& config) {
  const toml::node* node = root.get("stages");
  if (node == nullptr) return;
  const toml::array* list = node->as_array();
  if (list == nullptr) refuse(source, "stages", found_text(*node), "[[stages]] tables");
  for (const toml::node& item : *list) {
    const toml::table* table = item.as_table();
    if (table == nullptr) refuse(source, "stages", found_text(item), "[[stages]] tables");
    train::LengthStage stage;
    for (const auto& [key, value] : *table) {
      const std::string path = fmt::format("stages.{}", key.str());
      if (key == "sequence_length" && value.is_integer()) {
        stage.sequence_length = *value.value<std::int64_t>();
      } else if (key == "fraction" && value.is_number()) {
        stage.fraction = *value.value<double>();
      } else if (key == "sparse" && value.is_boolean()) {
        stage.sparse = *value.value<bool>();
      } else {
        refuse(source, path, found_text(value),
               "sequence_length (whole number), fraction (number) or sparse (true or false)");
      }
    }
    config.schedule.stages.push_back(stage);
  }
}

// [model]: the keys of a config.json, or config = "FILE".
model::Config read_model(const toml::table& root, const std::string& source, const Path& base) {
  const toml::node* node = root.get("model");
  const toml::table* table = node == nullptr ? nullptr : node->as_table();
  if (table == nullptr) {
    refuse(source, "model", "missing",
           "a section [model] with config = \"FILE\" or the keys of a config.json");
  }
  if (const auto file = (*table)["config"].value<std::string>()) {
    if (table->size() != 1) {
      refuse(source, "model.config", "beside other keys", "either a file or the keys themselves");
    }
    return model::load_config(base / *file);
  }
  std::ostringstream json;
  json << toml::json_formatter(*table);
  return model::parse_config(json.str(), source + " [model]");
}

std::vector<NewtonSchulzStep> newton_schulz_steps(const std::string& name) {
  if (name == "quintic") return {kQuinticSchedule.begin(), kQuinticSchedule.end()};
  if (name == "polar_express") return {kPolarExpressSchedule.begin(), kPolarExpressSchedule.end()};
  return {kHybridSchedule.begin(), kHybridSchedule.end()};
}

toml::table parse_toml(std::string_view text, const std::string& source) {
  try {
    return toml::parse(text, source);
  } catch (const toml::parse_error& e) {
    throw Error(ErrorCode::corrupt_data, fmt::format("{}:{}:{}: {}", source, e.source().begin.line,
                                                     e.source().begin.column, e.description()));
  }
}

void apply_override(toml::table& root, const std::string& text) {
  const std::size_t equals = text.find('='), dot = text.find('.');
  if (equals == std::string::npos || dot == std::string::npos || dot > equals) {
    refuse("--set", text, "no assignment", "SECTION.KEY=VALUE, such as lr.peak=1e-3");
  }
  const std::string section = text.substr(0, dot), key = text.substr(dot + 1, equals - dot - 1);
  const toml::table value = parse_toml(fmt::format("v = {}", text.substr(equals + 1)), "--set");
  if (root.get(section) == nullptr) root.insert(section, toml::table{});
  toml::table* table = root.get(section)->as_table();
  if (table == nullptr) refuse("--set", section, "no section", "SECTION.KEY=VALUE");
  value.get("v")->visit([&](const auto& v) { table->insert_or_assign(key, v); });
}

}  // namespace

RunConfig parse_run_config(std::string_view text, const Path& source,
                           std::span<const std::string> overrides) {
  toml::table root = parse_toml(text, source.string());
  for (const std::string& o : overrides) apply_override(root, o);
  RunConfig config;
  config.source = source.string();
  const Path base = source.parent_path();
  config.model = read_model(root, config.source, base);
  Reader reader(root, config.source);
  visit(reader, config);
  reader.refuse_unknown({"model", "stages"});
  read_stages(root, config.source, config);
  if (config.schedule.batch.first_tokens == 0) {
    config.schedule.batch.first_tokens = config.schedule.batch.tokens;
  }
  if (!config.model.has_csa()) config.schedule.indexer.warmup_steps = 0;
  config.optimizer.muon.schedule = newton_schulz_steps(config.newton_schulz);
  if (!config.data.empty()) {
    config.data = std::filesystem::absolute(base / config.data).lexically_normal().string();
  }
  check(config);
  return config;
}

RunConfig load_run_config(const Path& path, std::span<const std::string> overrides) {
  return parse_run_config(read_text(path), path, overrides);
}

std::string to_toml(const RunConfig& config) {
  RunConfig copy = config;
  Printer printer;
  visit(printer, copy);
  std::string out = printer.text().substr(1);
  for (const train::LengthStage& s : config.schedule.stages) {
    out += fmt::format("\n[[stages]]\nsequence_length = {}\nfraction = {}\nsparse = {}\n",
                       s.sequence_length, Printer::literal(s.fraction), s.sparse);
  }
  // The config.json lies beside the file.
  out += "\n[model]\nconfig = \"config.json\"\n";
  return out;
}

}  // namespace hadal::cli
