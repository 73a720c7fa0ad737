#include "cli/line_editor.h"

#include <histedit.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <iostream>

#include "cli/interrupt.h"
#include "core/error.h"

namespace hadal::cli {

namespace {

constexpr int kHistorySize = 1000;

}  // namespace

struct LineEditor::Terminal {
  Terminal() {
    // Characters of more than one byte need a UTF-8 locale; what the environment says is no
    // matter, hadal speaks nothing else.
    if (std::setlocale(LC_CTYPE, "C.UTF-8") == nullptr) std::setlocale(LC_CTYPE, "");
    editor = el_init("hadal", stdin, stdout, stderr);
    if (editor == nullptr)
      throw Error(ErrorCode::io, "cannot set up line editing on this terminal");
    el_set(editor, EL_CLIENTDATA, this);
    el_set(
        editor, EL_PROMPT, +[](EditLine* e) {
          void* self = nullptr;
          el_get(e, EL_CLIENTDATA, &self);
          return static_cast<Terminal*>(self)->prompt.data();
        });
    el_set(editor, EL_EDITOR, "emacs");
    past = history_init();
    HistEvent event;
    history(past, &event, H_SETSIZE, kHistorySize);
    history(past, &event, H_SETUNIQUE, 1);
    el_set(editor, EL_HIST, history, past);
  }
  ~Terminal() {
    if (past != nullptr) history_end(past);
    if (editor != nullptr) el_end(editor);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  EditLine* editor = nullptr;
  History* past = nullptr;
  std::string prompt;
};

LineEditor::LineEditor() {
  if (::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1) {
    terminal_ = std::make_unique<Terminal>();
  }
}

LineEditor::~LineEditor() = default;

std::optional<std::string> LineEditor::read(const std::string& prompt) {
  if (!terminal_) {
    std::string line;
    if (!std::getline(std::cin, line)) return std::nullopt;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    return line;
  }
  terminal_->prompt = prompt;
  for (;;) {
    InterruptGuard::clear();
    int length = 0;
    // Editing mode first, then the prompt: libedit would do it the other way round, and a key that
    // is typed as soon as the prompt shows would still meet the terminal's own line discipline.
    el_set(terminal_->editor, EL_PREP_TERM, 1);
    const char* text = el_gets(terminal_->editor, &length);
    if (text == nullptr || length <= 0) {
      if (!InterruptGuard::flag().load()) {
        std::fputs("\n", stdout);
        return std::nullopt;
      }
      el_reset(terminal_->editor);  // Ctrl-C: forget the line
      std::fputs("\n", stdout);
      continue;
    }
    std::string line(text, static_cast<std::size_t>(length));
    while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
    if (!line.empty()) {
      HistEvent event;
      history(terminal_->past, &event, H_ENTER, line.c_str());
    }
    return line;
  }
}

}  // namespace hadal::cli
