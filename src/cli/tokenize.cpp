#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/common.h"
#include "cli/readable.h"
#include "cli/subcommands.h"
#include "core/error.h"
#include "io/tokenizer.h"

namespace hadal::cli {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  Path model, tokenizer, input;
  std::string text;
  bool has_text = false, json = false, decode = false, no_special = false;
};

std::string table(const io::Tokenizer& tokenizer, std::span<const TokenId> ids) {
  std::string out = fmt::format("{:>6} {:>8}  {}\n", "place", "id", "piece");
  for (std::size_t i = 0; i < ids.size(); ++i) {
    out +=
        fmt::format("{:>6} {:>8}  \"{}\"{}\n", i, ids[i], readable(tokenizer.token_bytes(ids[i])),
                    tokenizer.is_special(ids[i]) ? "  special" : "");
  }
  return out + fmt::format("{} token{}\n", ids.size(), ids.size() == 1 ? "" : "s");
}

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::invalid_argument, message);
}

// Lines of a file; the newline at its end begins no line.
std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    lines.push_back(text.substr(0, end));
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  return lines;
}

std::string text_of_line(std::string_view line, const std::string& where) {
  const Json value = Json::parse(line, nullptr, false);
  if (!value.is_string()) refuse(where + ": wanted one JSON string a line, with --json");
  return value.get<std::string>();
}

std::vector<TokenId> ids_of(std::string_view text, const std::string& where) {
  Json value = Json::parse(text, nullptr, false);
  if (!value.is_array()) {  // "1 2 3" and "1,2,3" are lists, too
    std::string list(text);
    for (char& c : list) c = c == '\n' || c == '\t' || c == '\r' || c == ',' ? ' ' : c;
    std::string joined;
    for (std::size_t at = list.find_first_not_of(' '); at != std::string::npos;) {
      const std::size_t end = std::min(list.find(' ', at), list.size());
      joined += (joined.empty() ? "" : ",") + list.substr(at, end - at);
      at = list.find_first_not_of(' ', end);
    }
    value = Json::parse("[" + joined + "]", nullptr, false);
  }
  if (!value.is_array()) refuse(where + ": wanted token ids, such as \"1 2 3\" or [1, 2, 3]");
  std::vector<TokenId> ids;
  for (const Json& id : value) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 ||
        id.get<std::int64_t>() > INT32_MAX) {
      refuse(fmt::format("{}: {} is no token id", where, id.dump()));
    }
    ids.push_back(id.get<TokenId>());
  }
  return ids;
}

int run(const Options& options) {
  const bool from_file = !options.input.empty();
  if (from_file == options.has_text) {
    throw CLI::RequiredError("one of TEXT and --input");
  }
  const Path path = !options.tokenizer.empty() ? options.tokenizer
                    : !options.model.empty()   ? options.model / "tokenizer.json"
                                               : default_model_directory() / "tokenizer.json";
  const io::Tokenizer tokenizer = io::Tokenizer::load(path);
  const auto special = options.no_special ? io::SpecialTokens::ignore : io::SpecialTokens::parse;

  std::string out;
  const auto one = [&](std::string_view text, const std::string& where) {
    const bool line_of_json = from_file && options.json;
    if (options.decode) {
      const std::string decoded = tokenizer.decode(ids_of(text, where), special);
      out += options.json
                 ? Json(decoded).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"
                 : decoded;
      return;
    }
    const std::vector<TokenId> ids =
        tokenizer.encode(line_of_json ? text_of_line(text, where) : std::string(text), special);
    out += options.json ? Json(ids).dump() + "\n" : table(tokenizer, ids);
  };
  const auto add_context = [](const std::string& where, const auto& action) {
    try {
      action();
    } catch (const Error& error) {
      if (std::string_view(error.what()).starts_with(where)) throw;
      throw Error(error.code, where + ": " + error.what());
    }
  };
  if (!from_file) {
    add_context("the text", [&] { one(options.text, "the text"); });
  } else {
    const std::string text = read_text(options.input);
    if (!options.json) {
      add_context(options.input.string(), [&] { one(text, options.input.string()); });
    } else {
      std::size_t number = 0;
      for (const std::string_view line : lines_of(text)) {
        const std::string where = fmt::format("{}:{}", options.input.string(), ++number);
        add_context(where, [&] { one(line, where); });
      }
    }
  }
  print(out);
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_model_directory(app, options->model);
  app.add_option("--tokenizer", options->tokenizer, "a tokenizer.json, instead of a model's")
      ->excludes("--model");
  CLI::Option* text = app.add_option("TEXT", options->text, "the text; with --decode, token ids");
  app.add_option("-i,--input", options->input,
                 "read a file instead; with --json, one JSON string (or array of ids) a line")
      ->excludes(text);
  app.add_flag("--json", options->json, "print an array of ids, or the text as a JSON string");
  app.add_flag("--decode", options->decode, "from ids to text");
  app.add_flag("--no-special", options->no_special,
               "take <｜User｜> and its kind as ordinary text; leave them out when decoding");
  return [options, text] {
    options->has_text = text->count() > 0;
    return run(*options);
  };
}

}  // namespace

const Subcommand kTokenize{
    "tokenize", "Show how a text becomes tokens, or tokens a text",
    "  hadal tokenize \"Hello, world!\"\n"
    "  hadal tokenize --json --input texts.jsonl    # one JSON string a line -> one array a line\n"
    "  hadal tokenize --decode \"17 42 99\"\n"
    "\n"
    "hadal tokenizer train makes a tokenizer of your own.",
    add};

}  // namespace hadal::cli
