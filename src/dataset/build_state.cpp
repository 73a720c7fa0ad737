#include "dataset/build_state.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/error.h"

namespace hadal::dataset {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;

Json json_of(const train::ShardInfo& shard) {
  return {{"file", shard.digest.file},
          {"bytes", shard.digest.nbytes},
          {"sha256", shard.digest.sha256},
          {"documents", shard.counts.n_documents},
          {"tokens", shard.counts.n_tokens},
          {"loss_tokens", shard.counts.n_loss_tokens},
          {"text_bytes", shard.counts.text_bytes},
          {"chat_documents", shard.counts.n_chat_documents},
          {"fim_documents", shard.counts.n_fim_documents}};
}

train::ShardInfo shard_of(const Json& json) {
  train::ShardInfo shard;
  json.at("file").get_to(shard.digest.file);
  json.at("bytes").get_to(shard.digest.nbytes);
  json.at("sha256").get_to(shard.digest.sha256);
  json.at("documents").get_to(shard.counts.n_documents);
  json.at("tokens").get_to(shard.counts.n_tokens);
  json.at("loss_tokens").get_to(shard.counts.n_loss_tokens);
  json.at("text_bytes").get_to(shard.counts.text_bytes);
  json.at("chat_documents").get_to(shard.counts.n_chat_documents);
  json.at("fim_documents").get_to(shard.counts.n_fim_documents);
  return shard;
}

}  // namespace

std::string to_json(const BuildState& state) {
  Json root;
  root["version"] = kVersion;
  root["recipe"] = Json::object();
  for (const auto& [key, value] : state.recipe) root["recipe"][key] = value;
  root["sources"] = state.sources;
  root["tokenizer"] = state.tokenizer_sha256;
  root["splits"] = Json::object();
  for (const auto& [name, split] : state.splits) {
    Json shards = Json::array();
    for (const train::ShardInfo& shard : split.shards) shards.push_back(json_of(shard));
    root["splits"][name] = {
        {"file", split.position.file},     {"offset", split.position.offset},
        {"lines", split.position.n_lines}, {"document", split.position.document},
        {"empty", split.n_empty},          {"bad", split.n_bad},
        {"shards", std::move(shards)}};
  }
  return root.dump(1) + "\n";
}

BuildState parse_build_state(std::string_view json, const std::string& source) {
  try {
    const Json root = Json::parse(json);
    if (root.at("version") != kVersion) {
      throw Error(ErrorCode::unsupported,
                  fmt::format("{} is of version {}; this hadal goes on with version {}", source,
                              root.at("version").dump(), kVersion));
    }
    BuildState state;
    for (const auto& [key, value] : root.at("recipe").items()) {
      state.recipe.emplace_back(key, value.get<std::string>());
    }
    root.at("sources").get_to(state.sources);
    root.at("tokenizer").get_to(state.tokenizer_sha256);
    for (const auto& [name, item] : root.at("splits").items()) {
      SplitProgress& split = state.splits[name];
      item.at("file").get_to(split.position.file);
      item.at("offset").get_to(split.position.offset);
      item.at("lines").get_to(split.position.n_lines);
      item.at("document").get_to(split.position.document);
      item.at("empty").get_to(split.n_empty);
      item.at("bad").get_to(split.n_bad);
      for (const Json& shard : item.at("shards")) split.shards.push_back(shard_of(shard));
    }
    return state;
  } catch (const Json::exception& error) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{} is not the state of a build ({}); remove the directory and build "
                            "again",
                            source, error.what()));
  }
}

}  // namespace hadal::dataset
