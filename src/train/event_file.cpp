#include "train/event_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <span>
#include <type_traits>

#include "core/digest.h"

namespace hadal::train {

namespace {

constexpr std::size_t kFlushBytes = std::size_t{256} << 10;

template <class T>
void append_little_endian(std::string& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    out += static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
  }
}

// --- protocol buffers: a field is a varint (number << 3 | wire type) and its value ---

enum class Wire : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

void append_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  out += static_cast<char>(value);
}
void append_key(std::string& out, std::uint32_t field, Wire wire) {
  append_varint(out, std::uint64_t{field} << 3 | static_cast<std::uint64_t>(wire));
}
std::string varint_field(std::uint32_t field, std::int64_t value) {
  std::string out;
  append_key(out, field, Wire::varint);
  append_varint(out, static_cast<std::uint64_t>(value));
  return out;
}
std::string double_field(std::uint32_t field, double value) {
  std::string out;
  append_key(out, field, Wire::fixed64);
  append_little_endian(out, std::bit_cast<std::uint64_t>(value));
  return out;
}
std::string float_field(std::uint32_t field, float value) {
  std::string out;
  append_key(out, field, Wire::fixed32);
  append_little_endian(out, std::bit_cast<std::uint32_t>(value));
  return out;
}
std::string bytes_field(std::uint32_t field, std::string_view value) {
  std::string out;
  append_key(out, field, Wire::bytes);
  append_varint(out, value.size());
  out += value;
  return out;
}

// Event: wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7.
std::string event_at(double time, std::int64_t step) {
  return double_field(1, time) + varint_field(2, step);
}
// Event.summary.value[0]: Summary.value = 1; Summary.Value: tag = 1.
std::string event_of_value(double time, std::int64_t step, std::string_view tag,
                           std::string_view rest) {
  const std::string value = bytes_field(1, tag) + std::string(rest);
  return event_at(time, step) + bytes_field(5, bytes_field(1, value));
}

std::uint32_t masked_crc(std::string_view bytes) {
  const std::uint32_t crc = crc32c(std::as_bytes(std::span(bytes)));
  return std::rotr(crc, 15) + 0xA282EAD8U;
}

double worst(const std::vector<double>& layers) {
  double most = std::nan("");
  for (const double v : layers) most = std::fmax(most, v);  // fmax passes NaN over
  return most;
}

}  // namespace

std::string tf_record(std::string_view data) {
  std::string out;
  append_little_endian(out, static_cast<std::uint64_t>(data.size()));
  append_little_endian(out, masked_crc(out));
  out += data;
  append_little_endian(out, masked_crc(data));
  return out;
}

EventFile::EventFile(FileSystem& fs, const Path& directory, const Options& options) {
  fs.create_directories(directory);
  const std::string unique = options.unique.empty() ? "hadal" : options.unique;
  const auto seconds = static_cast<std::int64_t>(options.time);
  // A name of its own, or the records of a program that began in the same second would go.
  for (int i = 0;; ++i) {
    path_ = directory / fmt::format("events.out.tfevents.{:010}.{}.{}", seconds, unique, i);
    if (!fs.exists(path_)) break;
  }
  file_ = fs.create(path_);
  add_event(double_field(1, options.time) + bytes_field(3, "brain.Event:2"));
  if (options.after) forget_after(*options.after, options.time);
  flush();
}

void EventFile::forget_after(std::int64_t step, double time) {
  // SessionLog.status = 1, START = 1: what readers have from this step on is of no session.
  add_event(event_at(time, step + 1) + bytes_field(7, varint_field(1, 1)));
}

void EventFile::add_event(std::string_view event) {
  pending_ += tf_record(event);
  if (pending_.size() >= kFlushBytes) flush();
}

void EventFile::scalar(std::int64_t step, double time, std::string_view tag, double value) {
  // Summary.Value.simple_value = 2.
  add_event(event_of_value(time, step, tag, float_field(2, static_cast<float>(value))));
}

void EventFile::text(std::int64_t step, double time, std::string_view tag,
                     std::string_view markdown) {
  constexpr std::int64_t kDtString = 7, kDataClassTensor = 2;
  // SummaryMetadata: plugin_data = 1 {plugin_name = 1}, data_class = 4.
  const std::string metadata =
      bytes_field(1, bytes_field(1, "text")) + varint_field(4, kDataClassTensor);
  // TensorProto: dtype = 1, tensor_shape = 2 {dim = 2 {size = 1}}, string_val = 8.
  const std::string tensor = varint_field(1, kDtString) +
                             bytes_field(2, bytes_field(2, varint_field(1, 1))) +
                             bytes_field(8, markdown);
  // Summary.Value: tensor = 8, metadata = 9.
  add_event(event_of_value(time, step, tag, bytes_field(8, tensor) + bytes_field(9, metadata)));
}

void EventFile::record(const RunRecord& record) {
  const auto add = [this](const auto& r, std::string_view tag, double v) {
    scalar(r.step, r.time, tag, v);
  };
  const auto add_if = [this](const auto& r, std::string_view tag, const auto& v) {
    if (v) scalar(r.step, r.time, tag, static_cast<double>(*v));
  };
  std::visit(
      [&](const auto& r) {
        using Record = std::decay_t<decltype(r)>;
        if constexpr (std::is_same_v<Record, StepRecord>) {
          add(r, "loss/train", r.loss), add_if(r, "loss/mtp", r.mtp_loss);
          add_if(r, "loss/balance", r.balance_loss), add_if(r, "indexer/loss", r.index_loss);
          add_if(r, "indexer/recall", r.index_recall);
          add_if(r, "indexer/recall_of_best", r.index_recall_of_best);
          add(r, "optimizer/lr", r.lr), add(r, "optimizer/grad_norm", r.grad_norm);
          add(r, "optimizer/clipped", r.clipped ? 1 : 0);
          add_if(r, "optimizer/muon_update_rms", r.muon_update_rms);
          add_if(r, "optimizer/adamw_update_rms", r.adamw_update_rms);
          const auto add_worst = [&](const char* tag, const std::vector<double>& layers) {
            if (!layers.empty()) add(r, tag, worst(layers));
          };
          add_worst("experts/load_max", r.expert_load);
          for (std::size_t layer = 0; layer < r.expert_load.size(); ++layer) {
            if (std::isnan(r.expert_load[layer])) continue;
            add(r, fmt::format("expert_load/layer_{:02}", layer), r.expert_load[layer]);
          }
          if (!r.dead_experts.empty()) {
            std::int64_t dead = 0;
            for (const std::int64_t n : r.dead_experts) dead += n;
            add(r, "experts/dead", static_cast<double>(dead));
          }
          add_worst("experts/bias_spread", r.bias_spread);
          add_worst("clamp/gate", r.gate_clamped), add_worst("clamp/up_high", r.up_clamped_high);
          add_worst("clamp/up_low", r.up_clamped_low), add_worst("attention/sink", r.sink_mass);
          add_if(r, "quantization/scale_lifts", r.scale_lifts);
          add_if(r, "hyper_connections/amax_gain", r.amax_gain);
          add(r, "data/tokens", static_cast<double>(r.tokens));
          add(r, "data/batch_tokens", static_cast<double>(r.batch_tokens));
          add(r, "data/sequence_length", static_cast<double>(r.sequence_length));
          add(r, "speed/tokens_per_second", r.tokens_per_second);
          add(r, "speed/step_seconds", r.seconds.step), add_if(r, "speed/mfu", r.mfu);
          add(r, "memory/peak_bytes", static_cast<double>(r.peak_memory_bytes));
          for (const auto& [name, v] : r.values) add(r, "values/" + name, v);
        } else if constexpr (std::is_same_v<Record, EvalRecord>) {
          add(r, "loss/" + r.split, r.loss);
        } else if constexpr (std::is_same_v<Record, SampleRecord>) {
          // Indented, Markdown shows it as it is.
          std::string code = "    " + r.prompt + r.text;
          for (std::size_t at = 0; (at = code.find('\n', at)) != std::string::npos; at += 5) {
            code.insert(at + 1, "    ");
          }
          text(r.step, r.time, "samples", code);
        } else {
          text(r.step, r.time, "events", fmt::format("**{}**: {}", r.what, r.sentence));
        }
      },
      record);
}

void EventFile::flush() {
  if (pending_.empty()) return;
  file_->append(pending_);
  pending_.clear();
}

void EventFile::close() {
  flush();
  file_->sync();
  file_->close();
}

}  // namespace hadal::train
