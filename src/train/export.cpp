#include "train/export.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/tokenizer.h"
#include "io/tokenizer_writer.h"
#include "train/checkpoint_layout.h"
#include "train/working_weights.h"

namespace hadal::train {

namespace {

using Json = nlohmann::ordered_json;

std::string generation_config(const model::Config& config) {
  Json j;
  j["_from_model_config"] = true;
  j["bos_token_id"] = config.bos_token_id;
  if (config.eos_token_id.size() == 1) {
    j["eos_token_id"] = config.eos_token_id[0];
  } else {
    j["eos_token_id"] = config.eos_token_id;
  }
  j["do_sample"] = true;
  j["temperature"] = 1.0;
  j["top_p"] = 1.0;
  return j.dump(1) + "\n";
}

// What Hugging Face's AutoTokenizer wants to know besides tokenizer.json.
std::string tokenizer_config(const io::Tokenizer& tokenizer, const model::Config& config) {
  Json j;
  j["tokenizer_class"] = "PreTrainedTokenizerFast";
  j["model_max_length"] = config.max_position_embeddings;
  j["add_bos_token"] = false;
  j["add_eos_token"] = false;
  j["clean_up_tokenization_spaces"] = false;
  const auto name = [&](const char* key, std::string_view text) {
    if (tokenizer.token_id(text)) j[key] = text;
  };
  name("bos_token", io::kBeginOfSentence);
  name("eos_token", io::kEndOfSentence);
  name("pad_token", io::kPadding);
  return j.dump(1) + "\n";
}

void expect_finite(const ParameterStore& store) {
  for (const Parameter& p : store.parameters()) {
    if (p.value.dtype() != DType::f32) continue;
    const auto* x = p.value.data<const float>();
    for (std::int64_t i = 0; i < p.value.numel(); ++i) {
      if (std::isfinite(x[i])) continue;
      throw Error(ErrorCode::corrupt_data,
                  fmt::format("{}: element {} is {}; a model with such weights computes nothing. "
                              "Export an earlier step",
                              p.info.name, i, x[i]));
    }
  }
}

class TokenizerFiles {
 public:
  TokenizerFiles(FileSystem& fs, const Path& directory, const model::Config& config) {
    const Path main = directory / "tokenizer.json";
    if (!fs.exists(main)) {
      throw Error(ErrorCode::not_found,
                  fmt::format("{} is missing; name the directory that has it", main.string()));
    }
    const auto bytes = fs.read_all(main);
    const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const io::Tokenizer tokenizer = [&] {
      try {
        return io::Tokenizer::parse(text);
      } catch (const Error& e) {
        throw Error(e.code, fmt::format("{}: {}", main.string(), e.what()));
      }
    }();
    if (tokenizer.vocab_size() > config.vocab_size) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{} has {} tokens, the model's vocab_size is {}; it belongs to "
                              "another model",
                              main.string(), tokenizer.vocab_size(), config.vocab_size));
    }
    files_.push_back({"tokenizer.json", text});
    for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
      if (!fs.exists(directory / name)) continue;
      const auto other = fs.read_all(directory / name);
      files_.push_back({name, {reinterpret_cast<const char*>(other.data()), other.size()}});
    }
    if (files_.size() == 1 || files_[1].name != "tokenizer_config.json") {
      files_.push_back({"tokenizer_config.json", tokenizer_config(tokenizer, config)});
    }
  }
  void write(io::CheckpointWriter& writer) const {
    for (const File& file : files_) writer.write_file(file.name, std::string_view(file.text));
  }

 private:
  struct File {
    std::string name, text;
  };
  std::vector<File> files_;
};

}  // namespace

SavedCheckpoint find_checkpoint(FileSystem& fs, const Path& path, std::optional<std::int64_t> step,
                                const Warn& warn) {
  Path directory = path.lexically_normal();
  if (directory.filename().empty()) directory = directory.parent_path();
  if (fs.exists(directory / kCheckpointManifestName)) {
    SavedCheckpoint saved = SavedCheckpoint::open(fs, directory);
    if (step && *step != saved.step()) {
      throw Error(ErrorCode::not_found,
                  fmt::format("{} is the checkpoint of step {}, not of {}; name its run to choose "
                              "a step",
                              path.string(), saved.step(), *step));
    }
    return saved;
  }
  if (fs.exists(directory / kCheckpointsName)) directory /= kCheckpointsName;
  const std::vector<std::int64_t> steps = checkpoint_steps(fs, directory);
  if (steps.empty()) {
    throw Error(ErrorCode::not_found,
                fmt::format("{} is neither a training run with checkpoints nor a checkpoint",
                            path.string()));
  }
  if (!step) return *latest_checkpoint(fs, directory, warn);  // throws rather than find none
  if (std::find(steps.begin(), steps.end(), *step) == steps.end()) {
    throw Error(ErrorCode::not_found, fmt::format("{} has no checkpoint of step {}; there is: {}",
                                                  path.string(), *step, fmt::join(steps, ", ")));
  }
  return SavedCheckpoint::open(fs, directory / checkpoint_name(*step));
}

ExportReport export_checkpoint(FileSystem& fs, ThreadPool& pool, const SavedCheckpoint& from,
                               const Path& to, const ExportOptions& options,
                               const model::ConvertProgress& progress) {
  const model::Config& config = from.state().model;
  std::optional<TokenizerFiles> tokenizer;
  if (!options.tokenizer.empty()) tokenizer.emplace(fs, options.tokenizer, config);

  const ParameterStore store(config);
  // Refused before the long part begins, if the directory may not be written.
  io::CheckpointWriter writer(fs, to, model::stored_tensors(config, options.format),
                              options.output);
  from.read_weights(store);
  expect_finite(store);
  WorkingWeights weights(store, options.format, pool);

  ExportReport report;
  report.n_lifted = weights.refresh(pool).n_lifted;
  weights.write(writer, progress);
  writer.write_file("generation_config.json", std::string_view(generation_config(config)));
  if (tokenizer) {
    tokenizer->write(writer);
  } else {
    report.notes.emplace_back(
        "without a tokenizer.json the model takes token ids, not text; --tokenizer names one");
  }
  if (progress) progress(writer.total_bytes(), writer.total_bytes());
  writer.finish();
  report.nbytes = writer.total_bytes();
  report.n_shards = writer.n_shards();
  if (const std::string why = config.official_numerics_obstacle(); !why.empty()) {
    report.notes.push_back(fmt::format("run it with --numerics fp32: {}", why));
  }
  if (report.n_lifted > 0) {
    report.notes.push_back(fmt::format(
        "{} FP4 tiles have a larger scale than their weights need, so that FP8 holds them exactly",
        report.n_lifted));
  }
  return report;
}

}  // namespace hadal::train
