#include "io/pretokenizer.h"

#include "io/utf8.h"

namespace hadal::io {

Pretokenizer::Pretokenizer(std::vector<SplitRegex> stages) : stages_(std::move(stages)) {}

void Pretokenizer::split(std::string_view text, RegexScratch& scratch, const Sink& sink) const {
  split_from(0, text, scratch, sink);
}

void Pretokenizer::split_from(std::size_t stage, std::string_view text, RegexScratch& scratch,
                              const Sink& sink) const {
  if (text.empty()) return;
  if (stage == stages_.size()) {
    sink(text);
    return;
  }
  const auto pass_on = [&](std::size_t begin, std::size_t end) {
    split_from(stage + 1, text.substr(begin, end - begin), scratch, sink);
  };
  std::size_t done = 0;  // everything before is handed on
  std::size_t from = 0;
  while (from < text.size()) {
    const auto match = stages_[stage].find(text, from, scratch);
    if (!match) break;
    pass_on(done, match->begin);
    pass_on(match->begin, match->end);
    done = match->end;
    // A match of nothing only cuts; the next one may begin a character later.
    from = match->end > match->begin
               ? match->end
               : match->end +
                     (match->end < text.size() ? scan_utf8(text.substr(match->end)).nbytes : 1);
  }
  pass_on(done, text.size());
}

}  // namespace hadal::io
