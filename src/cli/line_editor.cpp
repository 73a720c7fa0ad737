#include "cli/line_editor.h"

#include <histedit.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cwchar>
#include <iostream>
#include <optional>
#include <utility>

#include "cli/interrupt.h"
#include "core/error.h"

namespace hadal::cli {

namespace {

constexpr int kHistorySize = 1000;
constexpr wchar_t kReplacement = L'\uFFFD';  // stands where bytes are no character

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
    el_set(
        editor, EL_GETCFN, +[](EditLine* e, wchar_t* character) {
          void* self = nullptr;
          el_get(e, EL_CLIENTDATA, &self);
          return static_cast<Terminal*>(self)->next_character(*character);
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

  // What libedit asks for a typed character: 1 and the character, 0 at the end of the input, -1
  // after Ctrl-C (with `interrupted` set) or an error. libedit's own function only looks at signals
  // that come inside its read(); one that falls between two reads would wait for the next key.
  int next_character(wchar_t& character) {
    for (;;) {
      char byte = 0;
      if (held) {
        byte = *std::exchange(held, std::nullopt);
      } else if (const int got = next_byte(byte); got != 1) {
        return got;
      }
      const bool begun = std::mbsinit(&decoding) == 0;
      const std::size_t length = std::mbrtowc(&character, &byte, 1, &decoding);
      if (length == static_cast<std::size_t>(-2)) continue;  // more bytes belong to it
      if (length == static_cast<std::size_t>(-1)) {
        decoding = {};
        if (begun) held = byte;  // it cut a character short, and may begin one of its own
        character = kReplacement;
      }
      return 1;
    }
  }

  int next_byte(char& byte) {
    for (;;) {
      pollfd waiting[] = {{STDIN_FILENO, POLLIN, 0}, {InterruptGuard::descriptor(), POLLIN, 0}};
      if (::poll(waiting, 2, -1) < 0 && errno != EINTR) return -1;
      if (InterruptGuard::flag().load() || (waiting[1].revents & POLLIN) != 0) {
        interrupted = true;
        decoding = {};
        held.reset();
        errno = EINTR;
        return -1;
      }
      if (waiting[0].revents == 0) continue;
      const ssize_t n = ::read(STDIN_FILENO, &byte, 1);
      if (n >= 0) return static_cast<int>(n);
      if (errno != EINTR && errno != EAGAIN) return -1;
    }
  }

  EditLine* editor = nullptr;
  History* past = nullptr;
  std::string prompt;
  bool interrupted = false;
  std::mbstate_t decoding{};
  std::optional<char> held;
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
    terminal_->interrupted = false;
    int length = 0;
    // Editing mode first, then the prompt: libedit would do it the other way round, and a key that
    // is typed as soon as the prompt shows would still meet the terminal's own line discipline.
    el_set(terminal_->editor, EL_PREP_TERM, 1);
    const char* text = el_gets(terminal_->editor, &length);
    if (text == nullptr || length <= 0) {
      if (!terminal_->interrupted) {
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
