#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/data.h"
#include "cli/progress.h"
#include "cli/readable.h"
#include "dataset/statistics.h"
#include "io/tokenizer.h"
#include "io/utf8.h"

namespace hadal::cli {
namespace {

using Json = nlohmann::ordered_json;
using dataset::SplitStatistics;

constexpr int kBarWidth = 40;

struct Options {
  Path directory;
  dataset::StatisticsOptions statistics;
  bool json = false, no_verify = false;
};

double part(std::int64_t n, std::int64_t of) {
  return of == 0 ? 0 : static_cast<double>(n) / static_cast<double>(of);
}

std::string percent(std::int64_t n, std::int64_t of) {
  return fmt::format("{:.1f} %", 100 * part(n, of));
}

// 5 of 40 characters, the last one in eighths.
std::string bar(double share) {
  static constexpr const char* kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int eighths = static_cast<int>(share * kBarWidth * 8 + 0.5);
  std::string out;
  for (int i = 0; i < eighths / 8; ++i) out += "█";
  out += kEighths[eighths % 8];
  return out.empty() && share > 0 ? kEighths[1] : out;
}

std::string packing_text(const dataset::PackingReport& packing) {
  return fmt::format("packed in rows of {}: {} rows, {} empty, {} documents cut\n",
                     packing.sequence_length, packing.n_rows,
                     percent(packing.n_rows * packing.sequence_length - packing.n_inputs,
                             packing.n_rows * packing.sequence_length),
                     packing.n_cut_documents);
}

std::string text_of(const SplitStatistics& split, const io::Tokenizer& tokenizer) {
  const train::DataCounts& counts = split.counts;
  std::string out = fmt::format(
      "\n{}\n  {} documents, {} tokens, {:.2f} bytes a token\n"
      "  documents of {} to {} tokens, half of them up to {}\n"
      "  {} conversations, {} of tokens masked from the loss; FIM: {} of text documents\n",
      split.name, counts.n_documents, counts.n_tokens, part(counts.text_bytes, counts.n_tokens),
      split.shortest, split.longest, split.median, counts.n_chat_documents,
      percent(counts.n_tokens - counts.n_loss_tokens, counts.n_tokens),
      percent(counts.n_fim_documents, counts.n_documents - counts.n_chat_documents));
  if (split.packing) out += "  " + packing_text(*split.packing);
  std::int64_t most = 1;
  for (const auto& bin : split.lengths) most = std::max(most, bin.n_documents);
  out += fmt::format("\n  {:>9} {:>11}  {:>8}\n", "tokens", "documents", "of all");
  for (const auto& bin : split.lengths) {
    out +=
        fmt::format("  {:>9} {:>11}  {:>8}  {}\n", fmt::format("{}+", bin.begin), bin.n_documents,
                    percent(bin.n_tokens, counts.n_tokens), bar(part(bin.n_documents, most)));
  }
  if (split.frequent.empty()) return out;
  out += fmt::format("\n  most frequent of {} tokens in use\n", split.n_distinct_tokens);
  for (const auto& [token, count] : split.frequent) {
    out += fmt::format("  {:>8} {:>12}  {:>7}  \"{}\"\n", token, count,
                       percent(static_cast<std::int64_t>(count), counts.n_tokens),
                       readable(tokenizer.token_bytes(token)));
  }
  return out;
}

Json json_of(const SplitStatistics& split, const io::Tokenizer& tokenizer) {
  const train::DataCounts& counts = split.counts;
  Json out = {{"documents", counts.n_documents},
              {"tokens", counts.n_tokens},
              {"loss_tokens", counts.n_loss_tokens},
              {"text_bytes", counts.text_bytes},
              {"bytes_per_token", part(counts.text_bytes, counts.n_tokens)},
              {"masked_share", part(counts.n_tokens - counts.n_loss_tokens, counts.n_tokens)},
              {"chat_documents", counts.n_chat_documents},
              {"fim_documents", counts.n_fim_documents},
              {"shortest", split.shortest},
              {"median", split.median},
              {"longest", split.longest},
              {"distinct_tokens", split.n_distinct_tokens}};
  out["lengths"] = Json::array();
  for (const auto& bin : split.lengths) {
    out["lengths"].push_back({{"begin", bin.begin},
                              {"end", bin.end},
                              {"documents", bin.n_documents},
                              {"tokens", bin.n_tokens}});
  }
  out["frequent"] = Json::array();
  for (const auto& [token, count] : split.frequent) {
    out["frequent"].push_back(
        {{"token", token}, {"count", count}, {"piece", readable(tokenizer.token_bytes(token))}});
  }
  if (split.packing) {
    out["packing"] = {{"sequence_length", split.packing->sequence_length},
                      {"rows", split.packing->n_rows},
                      {"inputs", split.packing->n_inputs},
                      {"cut_documents", split.packing->n_cut_documents}};
  }
  return out;
}

int run(const Options& options) {
  const auto data =
      train::DataSet::open(options.directory, options.no_verify ? train::VerifyData::sizes
                                                                : train::VerifyData::checksums);
  const train::DataManifest& manifest = data.manifest();
  const io::Tokenizer tokenizer = io::Tokenizer::load(options.directory / manifest.tokenizer.file);
  const std::vector<SplitStatistics> splits = dataset::statistics_of(data, options.statistics);
  if (options.json) {
    Json out = {{"vocab_size", manifest.vocab_size},
                {"source_files", manifest.n_source_files},
                {"source_bytes", manifest.source_bytes},
                {"empty_documents", manifest.n_empty_documents},
                {"bad_documents", manifest.n_bad_documents},
                {"splits", Json::object()}};
    for (const SplitStatistics& split : splits) {
      out["splits"][split.name] = json_of(split, tokenizer);
    }
    print(out.dump(2) + "\n");
    return 0;
  }
  std::string out = fmt::format("{}: {} files, {}; vocabulary of {}, {} bytes a token\n",
                                options.directory.string(), manifest.n_source_files,
                                format_bytes(static_cast<double>(manifest.source_bytes)),
                                manifest.vocab_size, manifest.token_bytes());
  if (manifest.n_empty_documents > 0 || manifest.n_bad_documents > 0) {
    out += fmt::format("left out: {} empty documents, {} that could not be read\n",
                       manifest.n_empty_documents, manifest.n_bad_documents);
  }
  for (const SplitStatistics& split : splits) out += text_of(split, tokenizer);
  print(out);
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("DIRECTORY", options->directory, "what hadal data build wrote")->required();
  app.add_option("--top", options->statistics.n_frequent, "how many of the most frequent tokens")
      ->capture_default_str();
  app.add_option("--sequence-length", options->statistics.sequence_length,
                 "also tell how the documents fit into rows of this length")
      ->check(CLI::PositiveNumber);
  app.add_flag("--json", options->json, "print JSON");
  app.add_flag("--no-verify", options->no_verify, "do not compare the files with their checksums");
  return [options] { return run(*options); };
}

}  // namespace

const Subcommand kDataStats{
    "stats", "Show documents, tokens, lengths and masks of built data; checks its checksums",
    "  hadal data stats data/notes\n"
    "  hadal data stats data/notes --sequence-length 1024 --json",
    add};

}  // namespace hadal::cli
