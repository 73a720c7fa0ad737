#include <fmt/format.h>

#include <chrono>

#include "cli/data.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "core/error.h"
#include "dataset/builder.h"

namespace hadal::cli {
namespace {

struct Options {
  dataset::BuildOptions build;
  Path model;
  std::string chat_mode = "auto", chat_profile = "v4-preview";
  bool skip_bad = false;
};

// \n, \t and \\ as a shell lets one write them.
std::string unescaped(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char next = text[i] == '\\' && i + 1 < text.size() ? text[i + 1] : '\0';
    if (next == 'n' || next == 't' || next == '\\') {
      out += next == 'n' ? '\n' : next == 't' ? '\t' : '\\';
      ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::string millions(double n) {
  return n < 1e4 ? fmt::format("{:.0f}", n) : fmt::format("{:.2f} M", n / 1e6);
}

std::string summary(const dataset::BuildResult& result, const Path& out, double seconds) {
  const train::DataManifest& manifest = result.manifest;
  std::string text = fmt::format("{}: {} files, {} in {}\n", out.string(), manifest.n_source_files,
                                 format_bytes(static_cast<double>(manifest.source_bytes)),
                                 format_seconds(seconds));
  for (const train::SplitInfo& split : manifest.splits) {
    const train::DataCounts counts = split.counts();
    text += fmt::format("{:<11} {} documents, {} tokens ({:.2f} bytes each) in {} shard{}",
                        split.name + ":", counts.n_documents, counts.n_tokens,
                        static_cast<double>(counts.text_bytes) /
                            static_cast<double>(std::max<std::int64_t>(counts.n_tokens, 1)),
                        split.shards.size(), split.shards.size() == 1 ? "" : "s");
    if (counts.n_chat_documents > 0) {
      text +=
          fmt::format("; {} conversations, {:.1f} % of tokens with a loss", counts.n_chat_documents,
                      100 * static_cast<double>(counts.n_loss_tokens) /
                          static_cast<double>(std::max<std::int64_t>(counts.n_tokens, 1)));
    }
    if (counts.n_fim_documents > 0) text += fmt::format("; {} FIM", counts.n_fim_documents);
    text += "\n";
  }
  if (manifest.n_empty_documents > 0) {
    text += fmt::format("{} empty documents left out\n", manifest.n_empty_documents);
  }
  return text;
}

dataset::BuildResult build_with_progress(const dataset::BuildOptions& options) {
  const InterruptGuard guard;
  ProgressBar bar("data build", ProgressBar::Unit::bytes);
  const auto begin = std::chrono::steady_clock::now();
  return dataset::build_data(FileSystem::real(), options, [&](const auto& progress) {
    if (InterruptGuard::flag()) {
      throw Error(ErrorCode::cancelled,
                  fmt::format("interrupted; {} shard{} complete: run the same command again to go "
                              "on from there",
                              progress.n_shards, progress.n_shards == 1 ? " is" : "s are"));
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    // The rate first: 80 columns have room for little more.
    bar.update(
        progress.n_bytes_done, progress.n_bytes,
        fmt::format("{} tokens/s, {} so far, file {} of {}",
                    millions(static_cast<double>(progress.n_tokens_now) / std::max(seconds, 1e-3)),
                    millions(static_cast<double>(progress.n_tokens)),
                    std::min(progress.n_files_done + 1, progress.n_files), progress.n_files));
  });
}

int run(Options options) {
  dataset::BuildOptions& build = options.build;
  if (build.tokenizer.empty()) {
    build.tokenizer = options.model.empty() ? default_model_directory() : options.model;
  }
  if (std::filesystem::is_directory(build.tokenizer)) build.tokenizer /= "tokenizer.json";
  build.separator = unescaped(build.separator);
  build.encode.profile = protocol::chat_profile_from(options.chat_profile);
  build.encode.chat_mode = options.chat_mode == "auto"   ? dataset::ChatMode::automatic
                           : options.chat_mode == "chat" ? dataset::ChatMode::chat
                                                         : dataset::ChatMode::thinking;
  build.bad = options.skip_bad ? dataset::BadDocuments::skip : dataset::BadDocuments::stop;

  const auto begin = std::chrono::steady_clock::now();
  const dataset::BuildResult result = build_with_progress(build);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (result.resumed) remark("went on with the shards of an earlier run");
  for (const std::string& sentence : result.bad_documents) remark("left out: " + sentence);
  if (const auto n = result.manifest.n_bad_documents; n > 0) {
    remark(fmt::format("{} document{} left out", n, n == 1 ? " was" : "s were"));
  }
  if (build.validation > 0 && result.manifest.find_split(train::kValidationSplit) == nullptr) {
    remark("no document fell to the validation split; give --validation a larger part");
  }
  print(summary(result, build.out, seconds));
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  dataset::BuildOptions& build = options->build;
  app.add_option("INPUT", build.inputs,
                 "files and directories: .txt and .md are text, .jsonl has {\"text\": ...} or "
                 "{\"messages\": [...]} a line; also with .zst behind it")
      ->required();
  app.add_option("-o,--out", build.out, "directory to write; an unfinished build is gone on with")
      ->required();
  app.add_option("--tokenizer", build.tokenizer, "a tokenizer.json, or a directory with one")
      ->excludes(app.add_option("-m,--model", options->model,
                                "take a checkpoint's tokenizer; without either, that of the model "
                                "that hadal comes with"));
  app.add_option("--document-separator", build.separator,
                 "text that stands between the documents of a text file (\\n is a line break); "
                 "without it, a file is a document");
  app.add_option("--text-extension", build.text_extensions,
                 "extensions of files that are text, instead of txt and md")
      ->capture_default_str();
  app.add_option("--validation", build.validation,
                 "part of the documents to keep for validation, chosen by content")
      ->check(CLI::Range(0.0, 0.999))
      ->capture_default_str();
  app.add_option(
         "--fim-rate", build.encode.fim_rate,
         "part of the text documents to turn into prefix, suffix, middle; 0.1 is DeepSeek's")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--split-rate", build.encode.split_rate,
                 "part of the tokens of punctuation and line breaks to cut in two; 0.1 is usual")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--seed", build.encode.seed, "of what is random; the same seed, the same bytes")
      ->capture_default_str();
  app.add_option(
         "--chat-mode", options->chat_mode,
         "how conversations are rendered: thinking, chat, or auto (thinking where they have "
         "reasoning); \"thinking_mode\" in a line wins")
      ->check(CLI::IsMember({"auto", "chat", "thinking"}))
      ->capture_default_str();
  app.add_option("--chat-profile", options->chat_profile, "the generation of the prompt format")
      ->check(CLI::IsMember({"v4-preview", "v4-0731"}))
      ->capture_default_str();
  app.add_option("--shard-tokens", build.shard_tokens, "largest number of tokens of a shard")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 32))
      ->capture_default_str();
  app.add_flag("--skip-bad", options->skip_bad,
               "leave out documents that cannot be read instead of stopping at the first");
  app.add_option("--threads", build.n_threads, "threads to tokenise with; 0 takes every core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  return [options] { return run(*options); };
}

}  // namespace

const Subcommand kDataBuild{
    "build", "Turn text and conversations into token shards to train on",
    "  hadal data build notes/ --tokenizer tokenizer.json --validation 0.01 --out data/notes\n"
    "  hadal data build books.jsonl.zst --fim-rate 0.1 --split-rate 0.1 --out data/books\n"
    "  hadal data build stories.txt --document-separator '<|endoftext|>' --out data/stories\n"
    "  hadal data build chats.jsonl --model models/mine --out data/chats\n"
    "\n"
    "A line of chats.jsonl is a conversation as the chat API takes it, in one line:\n"
    "  {\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\",\n"
    "   \"reasoning_content\": \"A greeting.\", \"content\": \"Hello!\"}], \"tools\": [...]}\n"
    "It becomes the prompt that hadal serve would make of it, and a loss is taken on what the\n"
    "assistant wrote: reasoning, text, tool calls and the end of its turn.\n"
    "\n"
    "Stopped by Ctrl-C, a kill or a full disk, the same command goes on where it was.",
    add};

}  // namespace hadal::cli
