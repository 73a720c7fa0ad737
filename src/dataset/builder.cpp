#include "dataset/builder.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

#include "core/digest.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "dataset/build_state.h"
#include "dataset/document_reader.h"
#include "dataset/source_files.h"
#include "train/data_set.h"
#include "train/data_shard_writer.h"

namespace hadal::dataset {
namespace {

constexpr std::size_t kBatchBytesPerThread = std::size_t{2} << 20, kBatchDocuments = 4096;
constexpr std::size_t kBadDocumentsTold = 10;
constexpr std::string_view kLockName = "build.lock", kTokenizerName = "tokenizer.json";
constexpr std::array kSplits = {train::kTrainSplit, train::kValidationSplit};

std::vector<std::pair<std::string, std::string>> recipe_of(const BuildOptions& options) {
  std::vector<std::string> inputs;
  for (const Path& input : options.inputs) inputs.push_back(input.string());
  const char* modes[] = {"auto", "chat", "thinking"};
  return {{"inputs", fmt::format("{}", fmt::join(inputs, " "))},
          {"text_extensions", fmt::format("{}", fmt::join(options.text_extensions, " "))},
          {"document_separator", options.separator},
          {"seed", fmt::format("{}", options.encode.seed)},
          {"fim_rate", fmt::format("{}", options.encode.fim_rate)},
          {"split_rate", fmt::format("{}", options.encode.split_rate)},
          {"chat_mode", modes[static_cast<std::size_t>(options.encode.chat_mode)]},
          {"chat_profile", to_string(options.encode.profile)},
          {"validation", fmt::format("{}", options.validation)},
          {"shard_tokens", fmt::format("{}", options.shard_tokens)},
          {"bad_documents", options.bad == BadDocuments::skip ? "skip" : "stop"}};
}

// A document in the works.
struct Work {
  RawDocument raw;
  std::size_t split = 0;
  bool settled = false;  // by an earlier run
  std::optional<train::TokenDocument> document;
  std::optional<Error> error;
};

struct Split {
  Split(std::string_view split_name, std::int64_t vocab_size, std::string_view tokenizer_sha256)
      : name(split_name),
        builder(vocab_size, tokenizer_sha256),
        frequencies(static_cast<std::size_t>(vocab_size)) {}
  std::string name;
  SplitProgress saved;    // what build.json says of it
  SplitProgress current;  // without the shards: where it stands now
  train::ShardBuilder builder;
  std::vector<std::uint64_t> frequencies;
};

class Builder {
 public:
  Builder(FileSystem& fs, const BuildOptions& options,
          const std::function<void(const BuildProgress&)>& progress)
      : fs_(fs),
        options_(options),
        progress_(progress),
        sources_(find_sources(options.inputs, options.text_extensions)),
        tokenizer_json_(read_text(options.tokenizer)),
        tokenizer_(io::Tokenizer::load(options.tokenizer)),
        encoder_(tokenizer_, options.encode),
        pool_(options.n_threads) {
    state_.recipe = recipe_of(options);
    state_.sources = digest_of(sources_);
    state_.tokenizer_sha256 = to_hex(sha256(tokenizer_json_));
    for (const std::string_view name : kSplits) {
      splits_.emplace_back(name, tokenizer_.vocab_size(), state_.tokenizer_sha256);
    }
    for (const SourceFile& source : sources_) counters_.n_bytes += source.nbytes;
    counters_.n_files = sources_.size();
  }

  BuildResult run() {
    open_directory();
    ReaderPosition begin = splits_.front().saved.position;
    for (const Split& split : splits_) {
      if (split.saved.position.document < begin.document) begin = split.saved.position;
    }
    DocumentReader reader(sources_, options_.separator, begin);
    std::vector<Work> batch;
    while (read_batch(reader, batch)) {
      encode(batch);
      for (Work& work : batch) take(work);
      tell(reader);
    }
    for (Split& split : splits_) {
      if (split.builder.counts().n_documents > 0) close_shard(split);
    }
    finish();
    return std::move(result_);
  }

 private:
  void open_directory() {
    const Path& out = options_.out;
    const Path state_path = out / kBuildStateName;
    if (fs_.exists(out / train::kManifestName)) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{} holds a finished data set; choose another directory, or remove "
                              "this one",
                              out.string()));
    }
    const bool unfinished = fs_.exists(state_path);
    if (!unfinished && fs_.exists(out)) {
      for (const FileSystem::Entry& entry : fs_.list(out)) {
        if (entry.name == kLockName || entry.name.ends_with(".tmp")) continue;
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("{} is not empty (it has {}) and no unfinished build; choose "
                                "another directory",
                                out.string(), entry.name));
      }
    }
    fs_.create_directories(out);
    lock_ = fs_.lock(out / kLockName);
    if (unfinished) {
      resume(state_path);
      return;
    }
    for (const Split& split : splits_) state_.splits[split.name] = {};
    save_state();
    (void)write(kTokenizerName, tokenizer_json_);
  }

  void resume(const Path& state_path) {
    const auto bytes = fs_.read_all(state_path);
    const std::string json(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    BuildState found = parse_build_state(json, state_path.string());
    expect_same(found);
    for (Split& split : splits_) {
      split.saved = split.current = found.splits[split.name];
      split.current.shards.clear();
      for (const train::ShardInfo& shard : split.saved.shards) {
        const auto shard_bytes = fs_.read_all(options_.out / shard.digest.file);
        if (to_hex(sha256(std::span(shard_bytes))) != shard.digest.sha256) {
          throw Error(
              ErrorCode::corrupt_data,
              fmt::format("{} was changed since it was written; remove {} and build again",
                          (options_.out / shard.digest.file).string(), options_.out.string()));
        }
        train::count_tokens(shard_bytes, split.frequencies);
        count(shard.counts);
        ++counters_.n_shards;
      }
      result_.resumed |= !split.saved.shards.empty();
    }
    state_.splits = std::move(found.splits);
    (void)write(kTokenizerName, tokenizer_json_);
  }

  void expect_same(const BuildState& found) const {
    const auto refuse = [&](const std::string& what) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{} holds an unfinished build {}; run it as it was begun, choose "
                              "another directory, or remove this one",
                              options_.out.string(), what));
    };
    for (std::size_t i = 0; i < state_.recipe.size(); ++i) {
      const auto& [key, value] = state_.recipe[i];
      if (i >= found.recipe.size() || found.recipe[i].first != key) refuse("of another hadal");
      if (found.recipe[i].second != value) {
        refuse(
            fmt::format("with {} \"{}\", this one has \"{}\"", key, found.recipe[i].second, value));
      }
    }
    if (found.tokenizer_sha256 != state_.tokenizer_sha256) refuse("with another tokenizer");
    if (found.sources != state_.sources) {
      refuse("of other inputs: a file was added, removed or changed since");
    }
  }

  // The next documents to work on; false when there are none.
  bool read_batch(DocumentReader& reader, std::vector<Work>& batch) const {
    batch.clear();
    const std::size_t wanted = kBatchBytesPerThread * static_cast<std::size_t>(pool_.size());
    for (std::size_t nbytes = 0; nbytes < wanted && batch.size() < kBatchDocuments;) {
      auto raw = reader.next();
      if (!raw) break;
      nbytes += raw->text.size();
      batch.push_back(
          {.raw = std::move(*raw), .split = 0, .settled = false, .document = {}, .error = {}});
    }
    return !batch.empty();
  }

  void encode(std::vector<Work>& batch) {
    pool_.parallel_for(std::ssize(batch), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        Work& work = batch[static_cast<std::size_t>(i)];
        const std::uint64_t key = content_key(work.raw.text);
        work.split = unit_of(key) < options_.validation ? 1 : 0;
        work.settled = work.raw.index < splits_[work.split].saved.position.document;
        if (work.settled) continue;
        try {
          work.document = encoder_.encode(work.raw, place_of(work.raw, sources_), key);
        } catch (const Error& error) {  // the first one in order is the one to report
          work.error.emplace(error);
        }
      }
    });
  }

  void take(Work& work) {
    Split& split = splits_[work.split];
    if (work.settled) return;
    if (work.error) {
      if (options_.bad == BadDocuments::stop) throw Error(*work.error);
      ++split.current.n_bad;
      if (result_.bad_documents.size() < kBadDocumentsTold) {
        result_.bad_documents.emplace_back(work.error->what());
      }
    } else if (!work.document) {
      ++split.current.n_empty;
    } else {
      const train::DataCounts& open = split.builder.counts();
      const std::int64_t n_tokens = std::ssize(work.document->tokens);
      if (open.n_documents > 0 && open.n_tokens + n_tokens > options_.shard_tokens) {
        close_shard(split);
      }
      split.builder.add(*work.document);
      for (const TokenId id : work.document->tokens) {
        ++split.frequencies[static_cast<std::size_t>(id)];
      }
      ++counters_.n_documents;
      counters_.n_tokens += n_tokens;
      counters_.n_tokens_now += n_tokens;
    }
    split.current.position = work.raw.after;
  }

  void close_shard(Split& split) {
    std::vector<train::ShardInfo> shards = std::move(split.saved.shards);
    const std::string name = fmt::format("{}-{:05}.tok", split.name, shards.size());
    split.saved = split.current;  // everything of the split in front of here
    split.saved.shards = std::move(shards);
    with_way_out([&] {
      split.saved.shards.push_back(split.builder.write(fs_, options_.out, name));
      state_.splits[split.name] = split.saved;
      save_state();
    });
    ++counters_.n_shards;
  }

  void finish() {
    train::DataManifest& manifest = result_.manifest;
    manifest.vocab_size = tokenizer_.vocab_size();
    manifest.begin_token = encoder_.begin_token();
    manifest.end_token = encoder_.end_token();
    manifest.pad_token = encoder_.pad_token();
    manifest.recipe = state_.recipe;
    manifest.n_source_files = std::ssize(sources_);
    manifest.source_bytes = static_cast<std::int64_t>(counters_.n_bytes);
    with_way_out([&] {
      manifest.tokenizer = write(kTokenizerName, tokenizer_json_);
      for (Split& split : splits_) {
        manifest.n_empty_documents += split.current.n_empty;
        manifest.n_bad_documents += split.current.n_bad;
        if (split.saved.shards.empty()) continue;
        const std::span<const std::byte> counts = std::as_bytes(std::span(split.frequencies));
        manifest.splits.push_back(
            {.name = split.name,
             .shards = split.saved.shards,
             .frequencies = train::write_atomically(fs_, options_.out, split.name + ".frequencies",
                                                    std::span(&counts, 1))});
      }
      if (manifest.splits.empty()) {
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("none of {} files holds a document: all are empty or were left out",
                                sources_.size()));
      }
      std::ranges::sort(manifest.splits, {}, &train::SplitInfo::name);
      (void)write(train::kManifestName, to_json(manifest));
    });
    fs_.remove(options_.out / kBuildStateName);
    lock_.reset();
    fs_.remove(options_.out / kLockName);
    fs_.sync_directory(options_.out);
  }

  void save_state() { (void)write(kBuildStateName, to_json(state_)); }

  train::FileDigest write(std::string_view name, std::string_view text) {
    return train::write_atomically(fs_, options_.out, std::string(name), text);
  }

  // A disk that is full is no reason to lose what is on it.
  template <class Action>
  void with_way_out(const Action& action) const {
    try {
      action();
    } catch (const Error& error) {
      if (error.code != ErrorCode::io) throw;
      throw Error(
          error.code,
          fmt::format("{}; the {} complete shards stay: run the same command again to go on",
                      error.what(), counters_.n_shards));
    }
  }

  void count(const train::DataCounts& counts) {
    counters_.n_documents += counts.n_documents;
    counters_.n_tokens += counts.n_tokens;
  }

  void tell(const DocumentReader& reader) {
    if (!progress_) return;
    counters_.n_files_done = static_cast<std::size_t>(reader.position().file);
    counters_.n_bytes_done = std::min(reader.n_file_bytes(), counters_.n_bytes);
    progress_(counters_);
  }

  FileSystem& fs_;
  const BuildOptions& options_;
  const std::function<void(const BuildProgress&)>& progress_;
  std::vector<SourceFile> sources_;
  std::string tokenizer_json_;
  io::Tokenizer tokenizer_;
  DocumentEncoder encoder_;
  ThreadPool pool_;
  std::shared_ptr<void> lock_;
  BuildState state_;
  std::vector<Split> splits_;
  BuildProgress counters_;
  BuildResult result_;
};

}  // namespace

BuildResult build_data(FileSystem& fs, const BuildOptions& options,
                       const std::function<void(const BuildProgress&)>& progress) {
  if (!(options.validation >= 0 && options.validation < 1)) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("validation is {}; wanted a part of the documents, from 0 to below 1",
                            options.validation));
  }
  if (options.shard_tokens < 1) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("shard_tokens is {}; wanted 1 or more", options.shard_tokens));
  }
  return Builder(fs, options, progress).run();
}

}  // namespace hadal::dataset
