// The text of a completion while it is being read, and the ways of looking at its beginning.
// Internal to the DSML parser.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace hadal::protocol {

enum class Match : std::uint8_t {
  none,
  partial,  // the text ends inside what may yet become the pattern
  full
};

// Whether `view` begins with `pattern`. `may_grow`: more text may follow the view.
[[nodiscard]] inline Match match_prefix(std::string_view view, std::string_view pattern,
                                        bool may_grow) {
  if (view.substr(0, pattern.size()) == pattern) return Match::full;
  const bool may_become = may_grow && pattern.substr(0, view.size()) == view;
  return may_become ? Match::partial : Match::none;
}

// A cursor over text that is still arriving. Offsets count from the beginning of the turn and stay
// valid when old text is released. Reading is linear in the text: what was looked at is dropped in
// portions of at least half the buffer.
class DsmlText {
 public:
  void append(std::string_view text) { bytes_ += text; }
  void end() { ended_ = true; }
  [[nodiscard]] bool ended() const { return ended_; }

  [[nodiscard]] std::uint64_t offset() const { return base_ + at_; }
  // What lies ahead. Valid until append() or release().
  [[nodiscard]] std::string_view rest() const { return std::string_view(bytes_).substr(at_); }
  [[nodiscard]] std::string_view between(std::uint64_t begin, std::uint64_t past) const {
    return std::string_view(bytes_).substr(begin - base_, past - begin);
  }
  void advance(std::size_t n) { at_ += n; }
  void rewind(std::uint64_t offset) { at_ = offset - base_; }

  // Nothing before `offset` will be asked for again.
  void release(std::uint64_t offset) {
    const std::size_t n = offset - base_;
    if (n == 0 || n < bytes_.size() - n) return;
    bytes_.erase(0, n);
    base_ = offset, at_ -= n;
  }

  // Whether `view`, which reaches to the end of the text so far, begins with `pattern`.
  [[nodiscard]] Match match(std::string_view view, std::string_view pattern) const {
    return match_prefix(view, pattern, !ended_);
  }

 private:
  std::string bytes_;
  std::uint64_t base_ = 0;  // offset of bytes_[0]
  std::size_t at_ = 0;
  bool ended_ = false;
};

// A search for a pattern in text that grows: every byte is looked at a constant number of times.
struct Searched {
  std::size_t n = 0;  // bytes of the view in which no pattern of this search begins

  // The first position of `pattern` in `view`, which begins where the last call's view began; npos
  // when it is not there yet.
  std::size_t find(std::string_view view, std::string_view pattern) {
    const std::size_t found = view.find(pattern, n);
    if (found == std::string_view::npos && view.size() >= pattern.size()) {
      n = view.size() - pattern.size() + 1;
    }
    return found;
  }
};

constexpr std::string_view kAsciiWhitespace = " \t\n\r\f\v";

// The number of ASCII whitespace characters that `view` begins with.
[[nodiscard]] inline std::size_t whitespace_prefix(std::string_view view) {
  const std::size_t n = view.find_first_not_of(kAsciiWhitespace);
  return n == std::string_view::npos ? view.size() : n;
}
[[nodiscard]] inline std::string_view trimmed(std::string_view view) {
  view.remove_prefix(whitespace_prefix(view));
  const std::size_t last = view.find_last_not_of(kAsciiWhitespace);
  return view.substr(0, last == std::string_view::npos ? 0 : last + 1);
}

}  // namespace hadal::protocol
