#include <fmt/format.h>
#include <unistd.h>

#include <optional>

#include "cli/chat_session.h"
#include "cli/common.h"
#include "cli/generation.h"
#include "cli/interrupt.h"
#include "cli/line_editor.h"
#include "cli/subcommands.h"
#include "core/error.h"
#include "protocol/chat_format.h"
#include "protocol/message_json.h"

namespace hadal::cli {

namespace {

struct Options {
  ModelOptions model;
  GenerationOptions generation;
  std::string prompt, system, think = "off", profile = "v4-preview";
  Path tools;
  bool has_prompt = false;
};

constexpr const char* kCommands =
    "/think off|high|max   answer at once, or reason first (max: at length)\n"
    "/system TEXT          set the system prompt (empty: none) and begin anew\n"
    "/reset                begin anew\n"
    "/stats                speeds, drafts, context and cache so far\n"
    "/help                 this list\n"
    "/quit                 leave, as Ctrl-D does\n"
    "Ctrl-C stops an answer; what was said so far stays in the conversation.\n";

// Prints an answer as it comes: reasoning dimmed, calls on lines of their own.
class AnswerPrinter {
 public:
  explicit AnswerPrinter(bool colour) : colour_(colour) {}

  void operator()(const protocol::DsmlEvent& event) {
    if (const auto* reasoning = std::get_if<protocol::ReasoningDelta>(&event)) {
      enter(Part::reasoning);
      put(reasoning->text);
    } else if (const auto* content = std::get_if<protocol::ContentDelta>(&event)) {
      enter(Part::content);
      put(content->text);
    } else if (const auto* begin = std::get_if<protocol::ToolCallBegin>(&event)) {
      enter(Part::none);
      enter(Part::call);
      put(fmt::format("-> {} ", begin->name));
    } else if (const auto* argument = std::get_if<protocol::ArgumentDelta>(&event)) {
      put(argument->text);
    } else if (const auto* malformed = std::get_if<protocol::Malformed>(&event)) {
      enter(Part::content);
      put(malformed->text);
    }
    flush_stdout();
  }
  void finish() {
    enter(Part::none);
    flush_stdout();
  }

 private:
  enum class Part : std::uint8_t { none, reasoning, content, call };

  void enter(Part part) {
    if (part == part_) return;
    if (part_ == Part::reasoning) print(colour_ ? "\x1b[0m" : at_line_start_ ? "" : "\n");
    if (part_ == Part::reasoning && !colour_) print("</think>"), at_line_start_ = false;
    if (!at_line_start_) put("\n");
    if (part == Part::reasoning) print(colour_ ? "\x1b[2m" : "<think>\n");
    part_ = part;
  }
  void put(const std::string& text) {
    if (text.empty()) return;
    print(text);
    at_line_start_ = text.back() == '\n';
  }

  bool colour_;
  Part part_ = Part::none;
  bool at_line_start_ = true;
};

// Answers, and asks for the results of the calls until there are none.
void answer(ChatSession& chat, LineEditor* editor) {
  for (;;) {
    AnswerPrinter printer(::isatty(STDOUT_FILENO) == 1);
    const ChatSession::Outcome outcome = chat.answer([&](const auto& event) { printer(event); });
    printer.finish();
    if (outcome.note) remark(*outcome.note);
    if (outcome.calls.empty() || editor == nullptr) return;
    for (const protocol::ToolCall& call : outcome.calls) {
      const auto result = editor->read(fmt::format("result of {}> ", call.name));
      chat.add_result(call, result.value_or(""));
    }
  }
}

enum class Next : std::uint8_t { go_on, leave };

Next run_command(const std::string& line, ChatSession& chat) {
  const std::size_t space = line.find(' ');
  const std::string command = line.substr(0, space);
  const std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
  if (command == "/quit" || command == "/exit") return Next::leave;
  if (command == "/help") {
    print(kCommands);
  } else if (command == "/reset") {
    chat.reset();
    print("a new conversation\n");
  } else if (command == "/system") {
    chat.set_system(rest);
    print(rest.empty() ? "no system prompt; a new conversation\n"
                       : "the system prompt is set; a new conversation\n");
  } else if (command == "/stats") {
    print(stats_text(chat.session()) + "\n");
  } else if (command == "/think" && (rest == "off" || rest == "high" || rest == "max")) {
    chat.set_thinking(rest);
    print(fmt::format("thinking: {}\n", rest));
  } else if (command == "/think") {
    print("wanted /think off, /think high or /think max\n");
  } else {
    print(fmt::format("there is no command {}; these are:\n{}", command, kCommands));
  }
  flush_stdout();
  return Next::go_on;
}

int run(const Options& options) {
  const auto runtime = options.model.runtime();
  const auto loaded = options.model.load(runtime.get());
  const auto profile = protocol::chat_profile_from(options.profile);
  std::vector<protocol::Json> tools;
  if (!options.tools.empty()) {
    tools = protocol::functions_from_json(protocol::Json::parse(read_text(options.tools)),
                                          options.tools.string());
  }
  ChatSession chat(*runtime, *loaded, options.generation, options.model.resolved_numerics(),
                   profile, std::move(tools));
  chat.set_thinking(options.think);
  chat.set_system(options.system);

  const InterruptGuard guard;
  if (options.has_prompt) {
    chat.add_user(options.prompt);
    answer(chat, nullptr);
    if (options.generation.stats) fmt::print(stderr, "{}\n", stats_text(chat.session()));
    return 0;
  }
  LineEditor editor;
  if (editor.interactive()) {
    print(fmt::format("{}, {} tokens of context. /help lists the commands.\n",
                      loaded->directory.filename().string(), chat.session().context_limit()));
  }
  while (const auto line = editor.read("> ")) {
    if (line->empty()) continue;
    if (line->front() == '/') {
      if (run_command(*line, chat) == Next::leave) break;
      continue;
    }
    chat.add_user(*line);
    try {
      answer(chat, &editor);
    } catch (const Error& error) {
      if (!editor.interactive() || error.code == ErrorCode::io) throw;
      remark(error.what());  // too long a message, say; the conversation goes on without it
      chat.drop_unanswered();
    }
  }
  if (options.generation.stats) fmt::print(stderr, "{}\n", stats_text(chat.session()));
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::Option* prompt =
      app.add_option("-p,--prompt", options->prompt, "answer this message and leave");
  app.add_option("--system", options->system, "system prompt");
  app.add_option("--think", options->think, "reasoning before the answer")
      ->check(CLI::IsMember({"off", "high", "max"}))
      ->capture_default_str();
  app.add_option("--tools", options->tools,
                 "JSON file with the tools the model may call, as OpenAI's API has them; you are "
                 "asked for the results");
  app.add_option("--profile", options->profile, "generation of the checkpoint's prompt format")
      ->check(CLI::IsMember({"v4-preview", "v4-0731"}))
      ->capture_default_str();
  app.add_flag("--stats", options->generation.stats, "print speeds to stderr at the end");
  add_model_options(app, options->model);
  add_generation_options(app, options->generation);
  return [options, prompt] {
    options->has_prompt = prompt->count() > 0;
    return run(*options);
  };
}

}  // namespace

const Subcommand kChat{
    "chat", "Talk to a model",
    "  hadal chat\n"
    "  hadal chat --model DeepSeek-V4-Flash --think high\n"
    "  hadal chat -p \"Who are you?\" -t 0\n"
    "  printf 'Hello\\nWhat is 2 + 3?\\n' | hadal chat     # a message a line\n"
    "\n"
    "In the conversation: /think off|high|max, /system TEXT, /reset, /stats, /help, /quit.\n"
    "Ctrl-C stops the answer, Ctrl-D leaves.",
    add};

}  // namespace hadal::cli
