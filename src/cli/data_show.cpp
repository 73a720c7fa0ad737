#include <fmt/format.h>
#include <unistd.h>

#include "cli/data.h"
#include "cli/readable.h"
#include "core/error.h"
#include "io/tokenizer.h"
#include "train/data_set.h"

namespace hadal::cli {
namespace {

struct Options {
  Path directory;
  std::string split = std::string(train::kTrainSplit);
  std::int64_t document = 0;
  bool table = false;
};

int run(const Options& options) {
  const auto data = train::DataSet::open(options.directory, train::VerifyData::sizes);
  const io::Tokenizer tokenizer =
      io::Tokenizer::load(options.directory / data.manifest().tokenizer.file);
  const train::DocumentSet& documents = data.split(options.split);
  if (options.document >= documents.n_documents()) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("there is no document {}; split {} has {}, counted from 0",
                            options.document, options.split, documents.n_documents()));
  }
  std::vector<TokenId> tokens(static_cast<std::size_t>(documents.n_tokens(options.document)));
  documents.copy_tokens(options.document, 0, tokens);

  const bool is_terminal = ::isatty(STDOUT_FILENO) == 1;
  std::string out;
  if (options.table) out += fmt::format("{:>7} {:>8}  {:<4}  {}\n", "place", "id", "loss", "piece");
  bool dim = false;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const bool loss = documents.has_loss(options.document, static_cast<std::int64_t>(i));
    const std::string_view bytes = tokenizer.token_bytes(tokens[i]);
    if (options.table) {
      out += fmt::format("{:>7} {:>8}  {:<4}  \"{}\"\n", i, tokens[i], loss ? "yes" : "",
                         readable(bytes));
      continue;
    }
    if (is_terminal && dim == loss) {
      out += loss ? "\x1b[0m" : "\x1b[2m";
      dim = !loss;
    }
    out += bytes;
  }
  if (dim) out += "\x1b[0m";
  if (!out.ends_with('\n')) out += '\n';
  print(out);
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("DIRECTORY", options->directory, "what hadal data build wrote")->required();
  app.add_option("--split", options->split, "train or validation")->capture_default_str();
  app.add_option("--document", options->document, "which document, from 0")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_flag("--table", options->table, "a token a line, with whether a loss is taken on it");
  return [options] { return run(*options); };
}

}  // namespace

const Subcommand kDataShow{
    "show", "Show a document as the model will see it; on a terminal, what has no loss is dim",
    "  hadal data show data/chats --document 3\n"
    "  hadal data show data/notes --split validation --table",
    add};

}  // namespace hadal::cli
