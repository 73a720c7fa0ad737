// The figures of an Inspection as a table and as JSON.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "model/accounting.h"

namespace hadal::model {

namespace {

std::string count(double n) {
  if (n >= 1e12) return fmt::format("{:.2f} T", n / 1e12);
  if (n >= 1e9) return fmt::format("{:.2f} B", n / 1e9);
  if (n >= 1e6) return fmt::format("{:.2f} M", n / 1e6);
  return fmt::format("{:.0f}", n);
}

std::string size(double bytes) {
  constexpr double kKiB = 1024.0;
  if (bytes >= kKiB * kKiB * kKiB) return fmt::format("{:.3f} GiB", bytes / (kKiB * kKiB * kKiB));
  if (bytes >= kKiB * kKiB) return fmt::format("{:.2f} MiB", bytes / (kKiB * kKiB));
  if (bytes >= kKiB) return fmt::format("{:.1f} KiB", bytes / kKiB);
  return fmt::format("{:.0f} B", bytes);
}
std::string size(std::int64_t bytes) {
  return size(static_cast<double>(bytes));
}

std::string flops(double n) {
  return n >= 1e9 ? fmt::format("{:.2f} GFLOP", n / 1e9) : fmt::format("{:.3f} MFLOP", n / 1e6);
}

void row(std::string& out, std::string_view label, std::string_view value,
         std::string_view remark = {}) {
  const std::string line = fmt::format("  {:<28}{:>16}  {}", label, value, remark);
  out.append(line.substr(0, line.find_last_not_of(' ') + 1)).push_back('\n');
}

void kv_rows(std::string& out, std::string_view numerics, const KvBytes& kv) {
  out += fmt::format("\nKV cache, one sequence, {} numerics\n", numerics);
  row(out, "growth per token", fmt::format("{:.2f} B", kv.per_token));
  row(out, "compressed entries", size(kv.growing));
  row(out, "sliding windows", size(kv.fixed), "fixed");
  row(out, "compressor state", size(kv.compressor_state), "fixed");
  row(out, "total", size(kv.total()));
}

}  // namespace

std::string format_inspection(const Inspection& r) {
  std::string out = fmt::format("{}\n", r.source);
  row(out, "layers", fmt::format("{}", r.layers_window + r.layers_csa + r.layers_hca),
      fmt::format("{} window, {} CSA, {} HCA; {} MTP", r.layers_window, r.layers_csa, r.layers_hca,
                  r.layers_mtp));
  row(out, "context", fmt::format("{}", r.context), "tokens; figures below are for this");

  out += "\nparameters\n";
  row(out, "total", count(static_cast<double>(r.parameters)), "without MTP");
  if (r.parameters_mtp > 0) row(out, "MTP", count(static_cast<double>(r.parameters_mtp)));
  row(out, "active per token", count(r.active.total()), "multiplied ones, output head included");
  row(out, "  attention", count(r.active.attention));
  row(out, "  compressors", count(r.active.compressor));
  row(out, "  indexer", count(r.active.indexer));
  row(out, "  routed experts", count(r.active.routed));
  row(out, "  shared expert", count(r.active.shared));
  row(out, "  gate", count(r.active.gate));
  row(out, "  hyper-connections", count(r.active.hyper_connection));
  row(out, "  head", count(r.active.head));

  out += "\nweights on disk\n";
  for (const StoredBytes& s : r.stored) {
    row(out, s.format, size(s.bytes), fmt::format("{} bytes, {} tensors", s.bytes, s.n_tensors));
  }

  if (r.official_obstacle.empty()) {
    kv_rows(out, "official", r.kv_official);
    row(out, "against DeepSeek-V3.2", fmt::format("{:.1f} %", 100.0 * r.kv_ratio()),
        "growth per token; its FP8 cache");
  } else {
    out += fmt::format("\nofficial numerics cannot run: {}\n", r.official_obstacle);
  }
  kv_rows(out, "fp32", r.kv_fp32);

  out += "\nFLOPs of one token\n";
  row(out, "linear", flops(r.flops.linear));
  row(out, "core attention", flops(r.flops.core), "bf16, counts double");
  row(out, "indexer", flops(r.flops.indexer), "FP4, counts half");
  row(out, "total", flops(r.flops.plain()));
  row(out, "total, FP8 equivalent", flops(r.flops.fp8_equivalent()));
  row(out, "against DeepSeek-V3.2", fmt::format("{:.1f} %", 100.0 * r.flops_ratio()),
      "FP8 equivalents");

  out += "\nDeepSeek-V3.2 at this context\n";
  row(out, "active per token", count(V32{}.active_parameters().total()), "multiplied ones");
  row(out, "KV cache per token", fmt::format("{} B", V32{}.kv_bytes_per_token()), "FP8");
  row(out, "KV cache", size(r.v32_kv_bytes));
  row(out, "linear", flops(r.v32_flops.linear));
  row(out, "core attention", flops(r.v32_flops.core), "bf16, counts double");
  row(out, "indexer", flops(r.v32_flops.indexer),
      fmt::format("counts {:.1f}", r.v32_flops.indexer_weight));
  row(out, "total", flops(r.v32_flops.plain()));
  row(out, "total, FP8 equivalent", flops(r.v32_flops.fp8_equivalent()));
  if (!r.notes.empty()) out += "\nnotes\n";
  for (const std::string& note : r.notes) out += fmt::format("  {}\n", note);
  return out;
}

std::string inspection_json(const Inspection& r) {
  using Json = nlohmann::ordered_json;
  const auto kv = [](const KvBytes& b) {
    return Json{{"bytes_per_token", b.per_token},
                {"window_bytes", b.fixed},
                {"compressor_state_bytes", b.compressor_state},
                {"compressed_bytes", b.growing},
                {"total_bytes", b.total()}};
  };
  const auto token = [](const TokenFlops& f) {
    return Json{{"linear", f.linear},
                {"core_attention", f.core},
                {"indexer", f.indexer},
                {"total", f.plain()},
                {"fp8_equivalent", f.fp8_equivalent()}};
  };
  Json j;
  j["source"] = r.source;
  j["context"] = r.context;
  j["layers"] = {{"window", r.layers_window},
                 {"csa", r.layers_csa},
                 {"hca", r.layers_hca},
                 {"mtp", r.layers_mtp}};
  j["parameters"] = {{"total", r.parameters}, {"mtp", r.parameters_mtp}};
  j["active_parameters"] = {{"total", r.active.total()},
                            {"attention", r.active.attention},
                            {"compressor", r.active.compressor},
                            {"indexer", r.active.indexer},
                            {"routed_experts", r.active.routed},
                            {"shared_expert", r.active.shared},
                            {"gate", r.active.gate},
                            {"hyper_connection", r.active.hyper_connection},
                            {"head", r.active.head}};
  j["stored"] = Json::object();
  for (const StoredBytes& s : r.stored) {
    j["stored"][s.format] = {{"tensors", s.n_tensors}, {"bytes", s.bytes}};
  }
  j["kv_official"] = r.official_obstacle.empty() ? kv(r.kv_official) : Json();
  j["kv_fp32"] = kv(r.kv_fp32);
  j["token_flops"] = token(r.flops);
  j["deepseek_v32"] = {{"token_flops", token(r.v32_flops)}, {"kv_bytes", r.v32_kv_bytes}};
  j["flops_ratio"] = r.flops_ratio();
  j["kv_ratio"] = r.official_obstacle.empty() ? Json(r.kv_ratio()) : Json();
  j["official_numerics_obstacle"] = r.official_obstacle;
  j["notes"] = r.notes;
  // Names come from the file system, which owes nobody UTF-8.
  return j.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace hadal::model
