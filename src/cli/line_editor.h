#pragma once

#include <memory>
#include <optional>
#include <string>

namespace hadal::cli {

// Lines from stdin: edited, with a history, where it is a terminal; else as they come.
class LineEditor {
 public:
  LineEditor();
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  [[nodiscard]] bool interactive() const { return terminal_ != nullptr; }
  // The next line without its end; nothing at the end of the input (Ctrl-D). Ctrl-C drops what was
  // typed and asks again.
  [[nodiscard]] std::optional<std::string> read(const std::string& prompt);

 private:
  struct Terminal;
  std::unique_ptr<Terminal> terminal_;  // null where stdin is no terminal
};

}  // namespace hadal::cli
