#include <fmt/format.h>

#include <array>
#include <optional>

#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/subcommands.h"
#include "core/error.h"
#include "dataset/tokenizer_training.h"
#include "train/data_shard_writer.h"

namespace hadal::cli {
namespace {

struct Options {
  dataset::TokenizerTrainingOptions training;
  Path out;
  std::string max_text;
  bool force = false;
};

int run(Options options) {
  std::error_code error;
  if (options.out.extension() != ".json") options.out /= "tokenizer.json";
  if (!options.force && std::filesystem::exists(options.out, error)) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} exists; choose another name, or --force to replace it",
                            options.out.string()));
  }
  if (!options.max_text.empty()) options.training.max_text_bytes = parse_size(options.max_text);
  dataset::TokenizerTraining result;
  {
    const InterruptGuard guard;
    std::optional<ProgressBar> bar;
    std::optional<dataset::TrainingPhase> shown;
    result = dataset::train_tokenizer(
        options.training, [&](dataset::TrainingPhase phase, std::size_t done, std::size_t total) {
          InterruptGuard::throw_if_interrupted();
          const bool reading = phase == dataset::TrainingPhase::reading;
          if (shown != phase) {
            bar.emplace(reading ? "reading" : "merging",
                        reading ? ProgressBar::Unit::bytes : ProgressBar::Unit::tokens);
            shown = phase;
          }
          bar->update(done, total);
        });
  }
  const Path directory = options.out.has_parent_path() ? options.out.parent_path() : Path(".");
  FileSystem::real().create_directories(directory);
  (void)train::write_atomically(FileSystem::real(), directory, options.out.filename().string(),
                                result.tokenizer_json);
  if (result.vocab_size < options.training.vocab_size) {
    remark(
        fmt::format("the text has no more pairs that occur often enough: {} tokens instead of "
                    "{}; more text, or a smaller --min-count, gives more",
                    result.vocab_size, options.training.vocab_size));
  }
  print(fmt::format("{}: {} tokens, {} merges of {} pieces in {} of text\n", options.out.string(),
                    result.vocab_size, result.n_merges, result.n_pieces,
                    format_bytes(static_cast<double>(result.text_bytes))));
  return 0;
}

Action add_train(CLI::App& app) {
  auto options = std::make_shared<Options>();
  dataset::TokenizerTrainingOptions& training = options->training;
  app.add_option("INPUT", training.inputs,
                 "files and directories, as hadal data build reads them: .txt, .md, .jsonl, also "
                 "with .zst behind it")
      ->required();
  app.add_option("--vocab-size", training.vocab_size,
                 "tokens to end up with: 256 bytes, 20 control tokens, the rest merges")
      ->required();
  app.add_option("-o,--out", options->out, "tokenizer.json to write, or a directory for it")
      ->required();
  app.add_option("--min-count", training.bpe.min_count, "a pair that is rarer is not merged")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--max-token-bytes", training.bpe.max_token_bytes, "longest token to make")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--max-text", options->max_text,
                 "read documents until there is this much text, such as 500MB; without it, all");
  app.add_option("--text-extension", training.text_extensions,
                 "extensions of files that are text, instead of txt and md")
      ->capture_default_str();
  app.add_option("--threads", training.n_threads, "threads to count with; 0 takes every core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_flag("--force", options->force, "replace the file when it exists");
  return [options] { return run(*options); };
}

Action add(CLI::App& app) {
  const std::array nested = {Subcommand{
      "train", "Learn a byte-level BPE tokenizer from text",
      "  hadal tokenizer train notes/ --vocab-size 4096 --out tokenizer.json\n"
      "  hadal tokenizer train books.jsonl.zst --vocab-size 32768 --max-text 2GB --out my-model\n"
      "\n"
      "It cuts text as DeepSeek's tokenizer does and has its control tokens. The file is one that\n"
      "hadal and Hugging Face's tokenizers read and encode alike with. The same text gives the\n"
      "same file, on any number of threads.",
      add_train}};
  return add_nested(app, nested);
}

}  // namespace

const Subcommand kTokenizer{
    "tokenizer", "Make tokenizers",
    "  hadal tokenizer train notes/ --vocab-size 4096 --out tokenizer.json\n"
    "  hadal tokenize --tokenizer tokenizer.json \"Hello, world!\"        # try it\n"
    "  hadal tokenize --tokenizer tokenizer.json --decode \"17 42 99\"",
    add};

}  // namespace hadal::cli
