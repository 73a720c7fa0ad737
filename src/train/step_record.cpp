#include "train/step_record.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace hadal::train {

namespace {

using Json = nlohmann::ordered_json;

// Every field by its name in the file, once, for reading and for writing.
template <class Record, class Visitor>
void visit_step(Record& r, Visitor& visit) {
  visit("step", r.step), visit("tokens", r.tokens), visit("time", r.time);
  visit("phase", r.phase), visit("stage", r.stage);
  visit("sequence_length", r.sequence_length), visit("batch_tokens", r.batch_tokens);
  visit("lr", r.lr), visit("loss", r.loss), visit("mtp_loss", r.mtp_loss);
  visit("index_loss", r.index_loss), visit("index_recall", r.index_recall);
  visit("index_recall_of_best", r.index_recall_of_best);
  visit("balance_loss", r.balance_loss);
  visit("grad_norm", r.grad_norm), visit("clipped_grad_norm", r.clipped_grad_norm);
  visit("clipped", r.clipped);
  visit("muon_update_rms", r.muon_update_rms), visit("adamw_update_rms", r.adamw_update_rms);
  visit("expert_load", r.expert_load), visit("dead_experts", r.dead_experts);
  visit("bias_spread", r.bias_spread), visit("gate_clamped", r.gate_clamped);
  visit("up_clamped_high", r.up_clamped_high), visit("up_clamped_low", r.up_clamped_low);
  visit("sink_mass", r.sink_mass), visit("fp4_scale_lift", r.scale_lifts);
  visit("amax_gain", r.amax_gain);
  visit("step_seconds", r.seconds.step), visit("data_seconds", r.seconds.data);
  visit("forward_seconds", r.seconds.forward), visit("backward_seconds", r.seconds.backward);
  visit("optimizer_seconds", r.seconds.optimizer);
  visit("newton_schulz_seconds", r.seconds.newton_schulz);
  visit("tokens_per_second", r.tokens_per_second), visit("executed_flops", r.executed_flops);
  visit("mfu", r.mfu), visit("peak_memory_bytes", r.peak_memory_bytes);
  visit("anticipatory", r.anticipatory), visit("qat", r.qat);
  visit("checkpoint_hash", r.checkpoint_hash), visit("values", r.values);
}

template <class Record, class Visitor>
void visit_eval(Record& r, Visitor& visit) {
  visit("step", r.step), visit("tokens", r.tokens), visit("time", r.time);
  visit("split", r.split), visit("loss", r.loss), visit("eval_tokens", r.eval_tokens);
}

template <class Record, class Visitor>
void visit_sample(Record& r, Visitor& visit) {
  visit("step", r.step), visit("tokens", r.tokens), visit("time", r.time);
  visit("prompt", r.prompt), visit("text", r.text);
}

template <class Record, class Visitor>
void visit_event(Record& r, Visitor& visit) {
  visit("step", r.step), visit("tokens", r.tokens), visit("time", r.time);
  visit("what", r.what), visit("sentence", r.sentence);
}

class Writer {
 public:
  explicit Writer(const char* kind) { out_["kind"] = kind; }
  [[nodiscard]] std::string text() const {
    // Samples may be cut within a character.
    return out_.dump(-1, ' ', false, Json::error_handler_t::replace);
  }

  void operator()(const char* name, std::int64_t v) { out_[name] = v; }
  void operator()(const char* name, bool v) { out_[name] = v; }
  void operator()(const char* name, double v) { out_[name] = number(v); }
  void operator()(const char* name, const std::string& v) {
    if (!v.empty()) out_[name] = v;
  }
  void operator()(const char* name, const std::optional<double>& v) {
    if (v) out_[name] = number(*v);
  }
  void operator()(const char* name, const std::optional<std::int64_t>& v) {
    if (v) out_[name] = *v;
  }
  void operator()(const char* name, const std::vector<double>& v) {
    if (v.empty()) return;
    Json list = Json::array();
    for (const double x : v) list.push_back(number(x));
    out_[name] = std::move(list);
  }
  void operator()(const char* name, const std::vector<std::int64_t>& v) {
    if (!v.empty()) out_[name] = v;
  }
  void operator()(const char* name, const std::map<std::string, double>& v) {
    for (const auto& [key, x] : v) out_[name][key] = number(x);
  }

 private:
  static Json number(double v) { return std::isfinite(v) ? Json(v) : Json(); }
  Json out_;
};

class Reader {
 public:
  Reader(const nlohmann::json& object, const std::string& where) : object_(object), where_(where) {}

  void operator()(const char* name, std::int64_t& v) {
    if (const auto* j = get(name)) v = integer(*j, name);
  }
  void operator()(const char* name, bool& v) {
    const auto* j = get(name);
    if (j == nullptr) return;
    if (!j->is_boolean()) wrong(*j, name, "true or false");
    v = j->get<bool>();
  }
  void operator()(const char* name, double& v) {
    if (const auto* j = get(name)) v = number(*j, name);
  }
  void operator()(const char* name, std::string& v) {
    const auto* j = get(name);
    if (j == nullptr) return;
    if (!j->is_string()) wrong(*j, name, "a string");
    v = j->get<std::string>();
  }
  void operator()(const char* name, std::optional<double>& v) {
    if (const auto* j = get(name)) v = number(*j, name);
  }
  void operator()(const char* name, std::optional<std::int64_t>& v) {
    if (const auto* j = get(name)) v = integer(*j, name);
  }
  void operator()(const char* name, std::vector<double>& v) {
    const auto* j = list(name);
    if (j == nullptr) return;
    v.reserve(j->size());
    for (const auto& x : *j) v.push_back(number(x, name));
  }
  void operator()(const char* name, std::vector<std::int64_t>& v) {
    const auto* j = list(name);
    if (j == nullptr) return;
    v.reserve(j->size());
    for (const auto& x : *j) v.push_back(integer(x, name));
  }
  void operator()(const char* name, std::map<std::string, double>& v) {
    const auto* j = get(name);
    if (j == nullptr) return;
    if (!j->is_object()) wrong(*j, name, "an object of numbers");
    for (const auto& [key, x] : j->items()) v[key] = number(x, name);
  }

 private:
  [[nodiscard]] const nlohmann::json* get(const char* name) const {
    const auto found = object_.find(name);
    return found == object_.end() ? nullptr : &*found;
  }
  [[nodiscard]] const nlohmann::json* list(const char* name) const {
    const auto* j = get(name);
    if (j != nullptr && !j->is_array()) wrong(*j, name, "a list of numbers");
    return j;
  }
  [[nodiscard]] double number(const nlohmann::json& j, const char* name) const {
    if (j.is_null()) return std::numeric_limits<double>::quiet_NaN();
    if (!j.is_number()) wrong(j, name, "a number");
    return j.get<double>();
  }
  [[nodiscard]] std::int64_t integer(const nlohmann::json& j, const char* name) const {
    if (j.is_number_unsigned() && j.get<std::uint64_t>() > INT64_MAX) {
      wrong(j, name, "a whole number below 2^63");
    }
    if (!j.is_number_integer()) wrong(j, name, "a whole number");
    return j.get<std::int64_t>();
  }
  [[noreturn]] void wrong(const nlohmann::json& j, const char* name, const char* wanted) const {
    throw Error(
        ErrorCode::corrupt_data,
        fmt::format("{}: {} is {}, which should be {}", where_, name,
                    j.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).substr(0, 60),
                    wanted));
  }

  const nlohmann::json& object_;
  const std::string& where_;
};

}  // namespace

std::string to_json_line(const RunRecord& record) {
  struct Print {
    std::string operator()(const StepRecord& r) const {
      Writer w("step");
      visit_step(r, w);
      return w.text();
    }
    std::string operator()(const EvalRecord& r) const {
      Writer w("eval");
      visit_eval(r, w);
      return w.text();
    }
    std::string operator()(const SampleRecord& r) const {
      Writer w("sample");
      visit_sample(r, w);
      return w.text();
    }
    std::string operator()(const EventRecord& r) const {
      Writer w("event");
      visit_event(r, w);
      return w.text();
    }
  };
  return std::visit(Print{}, record);
}

std::optional<RunRecord> parse_record(std::string_view line, const std::string& where) {
  const auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  const auto kind = object.is_object() ? object.find("kind") : object.end();
  if (!object.is_object() || kind == object.end() || !kind->is_string()) {
    throw Error(
        ErrorCode::corrupt_data,
        fmt::format("{}: not a record of a training run (a JSON object with a \"kind\")", where));
  }
  const auto name = kind->get<std::string>();
  if (name != "step" && name != "eval" && name != "sample" && name != "event") return std::nullopt;
  if (!object.contains("step")) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: the record of kind \"{}\" has no step", where, name));
  }
  Reader reader(object, where);
  if (name == "step") {
    StepRecord r;
    visit_step(r, reader);
    return r;
  }
  if (name == "eval") {
    EvalRecord r;
    visit_eval(r, reader);
    return r;
  }
  if (name == "sample") {
    SampleRecord r;
    visit_sample(r, reader);
    return r;
  }
  EventRecord r;
  visit_event(r, reader);
  return r;
}

std::int64_t step_of(const RunRecord& record) {
  return std::visit([](const auto& r) { return r.step; }, record);
}

}  // namespace hadal::train
