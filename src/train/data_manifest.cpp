#include "train/data_manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/json_section.h"

namespace hadal::train {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "hadal token shards";
constexpr std::int64_t kVersion = 1;

Json json_of(const FileDigest& digest) {
  return {{"file", digest.file}, {"bytes", digest.nbytes}, {"sha256", digest.sha256}};
}

void add_counts(Json& object, const DataCounts& counts) {
  object["documents"] = counts.n_documents;
  object["tokens"] = counts.n_tokens;
  object["loss_tokens"] = counts.n_loss_tokens;
  object["text_bytes"] = counts.text_bytes;
  object["chat_documents"] = counts.n_chat_documents;
  object["fim_documents"] = counts.n_fim_documents;
}

Json json_of(const SplitInfo& split) {
  Json out = Json::object();
  add_counts(out, split.counts());
  out["frequencies"] = json_of(split.frequencies);
  Json shards = Json::array();
  for (const ShardInfo& shard : split.shards) {
    Json item = json_of(shard.digest);
    add_counts(item, shard.counts);
    shards.push_back(std::move(item));
  }
  out["shards"] = std::move(shards);
  return out;
}

std::int64_t count(const io::JsonSection& section, const char* key) {
  const std::int64_t n = section.required_integer(key);
  if (n < 0) {
    section.fail(ErrorCode::corrupt_data,
                 fmt::format("{} is {}, below zero", section.path(key), n));
  }
  return n;
}

io::JsonSection required_section(const io::JsonSection& section, const char* key) {
  auto inner = section.section(key);
  if (!inner) section.missing(key);
  return *inner;
}

std::string required_text(const io::JsonSection& section, const char* key) {
  auto text = section.text(key);
  if (!text) section.missing(key);
  return *text;
}

FileDigest digest_of(const io::JsonSection& section) {
  FileDigest digest{.file = required_text(section, "file"),
                    .nbytes = static_cast<std::uint64_t>(count(section, "bytes")),
                    .sha256 = required_text(section, "sha256")};
  if (digest.file.empty() || digest.file.find('/') != std::string::npos) {
    section.fail(ErrorCode::corrupt_data, fmt::format("{} is \"{}\", no name of a file beside it",
                                                      section.path("file"), digest.file));
  }
  return digest;
}

DataCounts counts_of(const io::JsonSection& section) {
  return {.n_documents = count(section, "documents"),
          .n_tokens = count(section, "tokens"),
          .n_loss_tokens = count(section, "loss_tokens"),
          .text_bytes = count(section, "text_bytes"),
          .n_chat_documents = count(section, "chat_documents"),
          .n_fim_documents = count(section, "fim_documents")};
}

SplitInfo split_of(const std::string& name, const nlohmann::json& value,
                   const std::string& source) {
  const std::string where = fmt::format("splits.{}.", name);
  const io::JsonSection section(value, where, source);
  SplitInfo split{.name = name, .shards = {}, .frequencies = {}};
  split.frequencies = digest_of(required_section(section, "frequencies"));
  const auto shards = value.find("shards");
  if (shards == value.end() || !shards->is_array()) section.missing("shards");
  for (std::size_t i = 0; i < shards->size(); ++i) {
    if (!(*shards)[i].is_object()) section.missing(fmt::format("shards[{}]", i));
    const io::JsonSection shard((*shards)[i], fmt::format("{}shards[{}].", where, i), source);
    split.shards.push_back({.digest = digest_of(shard), .counts = counts_of(shard)});
  }
  if (counts_of(section) != split.counts()) {
    section.fail(ErrorCode::corrupt_data,
                 fmt::format("the counts of split {} are not the sums over its shards", name));
  }
  return split;
}

}  // namespace

DataCounts& DataCounts::operator+=(const DataCounts& other) {
  n_documents += other.n_documents;
  n_tokens += other.n_tokens;
  n_loss_tokens += other.n_loss_tokens;
  text_bytes += other.text_bytes;
  n_chat_documents += other.n_chat_documents;
  n_fim_documents += other.n_fim_documents;
  return *this;
}

DataCounts SplitInfo::counts() const {
  DataCounts sum;
  for (const ShardInfo& shard : shards) sum += shard.counts;
  return sum;
}

const SplitInfo* DataManifest::find_split(std::string_view name) const {
  const auto found = std::ranges::find(splits, name, &SplitInfo::name);
  return found == splits.end() ? nullptr : &*found;
}

std::string to_json(const DataManifest& manifest) {
  Json root;
  root["format"] = kFormat;
  root["version"] = kVersion;
  root["vocab_size"] = manifest.vocab_size;
  root["token_bytes"] = manifest.token_bytes();
  root["begin_token"] = manifest.begin_token;
  root["end_token"] = manifest.end_token;
  root["pad_token"] = manifest.pad_token;
  root["tokenizer"] = json_of(manifest.tokenizer);
  root["sources"] = {{"files", manifest.n_source_files},
                     {"bytes", manifest.source_bytes},
                     {"empty_documents", manifest.n_empty_documents},
                     {"bad_documents", manifest.n_bad_documents}};
  root["recipe"] = Json::object();
  for (const auto& [key, value] : manifest.recipe) root["recipe"][key] = value;
  root["splits"] = Json::object();
  for (const SplitInfo& split : manifest.splits) root["splits"][split.name] = json_of(split);
  return root.dump(1) + "\n";
}

DataManifest parse_manifest(std::string_view json, const std::string& source) {
  const auto root = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object() || !root.contains("format") || root["format"] != kFormat) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: not a manifest of token shards (no JSON object with \"format\": "
                            "\"{}\"); build the data again with `hadal data build`",
                            source, kFormat));
  }
  const io::JsonSection section(root, "", source);
  if (const std::int64_t version = section.required_integer("version"); version != kVersion) {
    section.fail(ErrorCode::unsupported,
                 fmt::format("version is {}; this hadal reads version {}", version, kVersion));
  }
  DataManifest manifest;
  manifest.vocab_size = count(section, "vocab_size");
  if (manifest.vocab_size < 1 || manifest.vocab_size > INT32_MAX) {
    section.fail(ErrorCode::corrupt_data,
                 fmt::format("vocab_size is {}, no size of a vocabulary", manifest.vocab_size));
  }
  section.expect_integer("token_bytes", manifest.token_bytes());
  const auto token = [&](const char* key) {
    const std::int64_t id = section.required_integer(key);
    if (id < -1 || id >= manifest.vocab_size) {
      section.fail(ErrorCode::corrupt_data, fmt::format("{} is {}, no token", key, id));
    }
    return static_cast<TokenId>(id);
  };
  manifest.begin_token = token("begin_token");
  manifest.end_token = token("end_token");
  manifest.pad_token = token("pad_token");
  manifest.tokenizer = digest_of(required_section(section, "tokenizer"));
  const io::JsonSection sources = required_section(section, "sources");
  manifest.n_source_files = count(sources, "files");
  manifest.source_bytes = count(sources, "bytes");
  manifest.n_empty_documents = count(sources, "empty_documents");
  manifest.n_bad_documents = count(sources, "bad_documents");
  // In the order it was written, which the reader above does not keep.
  const Json ordered = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (const auto recipe = ordered.find("recipe"); recipe != ordered.end() && recipe->is_object()) {
    for (const auto& [key, value] : recipe->items()) {
      if (value.is_string()) manifest.recipe.emplace_back(key, value.get<std::string>());
    }
  }
  const auto splits = root.find("splits");
  if (splits == root.end() || !splits->is_object()) section.missing("splits");
  for (const auto& [name, value] : splits->items()) {
    if (!value.is_object()) section.missing("splits." + name);
    manifest.splits.push_back(split_of(name, value, source));
  }
  return manifest;
}

DataManifest load_manifest(const Path& directory) {
  const Path path = directory / kManifestName;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    const bool unfinished = std::filesystem::exists(directory / "build.json", error);
    throw Error(
        ErrorCode::not_found,
        fmt::format("{} has no {}: {}", directory.string(), kManifestName,
                    unfinished ? "its `hadal data build` has not finished; run that command again "
                                 "and it goes on where it stopped"
                               : "it is no directory of token shards; make one with `hadal data "
                                 "build`"));
  }
  return parse_manifest(read_text(path), path.string());
}

void expect_vocabulary(const DataManifest& manifest, const Path& directory,
                       std::int64_t model_vocab_size) {
  if (manifest.vocab_size <= model_vocab_size) return;
  throw Error(
      ErrorCode::invalid_argument,
      fmt::format("{} holds tokens of a vocabulary of {}, the model's vocab_size is {}: ids "
                  "from {} on have no embedding; build the data with the model's "
                  "tokenizer, or give the model vocab_size {}",
                  directory.string(), manifest.vocab_size, model_vocab_size, model_vocab_size,
                  manifest.vocab_size));
}

}  // namespace hadal::train
