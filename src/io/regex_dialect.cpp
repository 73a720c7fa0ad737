// translate_regex: what differs between Oniguruma's Ruby syntax and PCRE2, met in Split patterns.
#include <fmt/format.h>

#include "core/error.h"
#include "io/split_regex.h"

namespace hadal::io {
namespace {

// White_Space of the Unicode Character Database. PCRE2's own \s also takes U+180E, which lost the
// property in Unicode 6.3.
constexpr std::string_view kSpace =
    R"(\x{9}-\x{D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
constexpr std::string_view kNotSpace =
    R"(\x{0}-\x{8}\x{E}-\x{1F}\x{21}-\x{84}\x{86}-\x{9F}\x{A1}-\x{167F}\x{1681}-\x{1FFF})"
    R"(\x{200B}-\x{2027}\x{202A}-\x{202E}\x{2030}-\x{205E}\x{2060}-\x{2FFF}\x{3001}-\x{10FFFF})";

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  std::string run() {
    while (at_ < in_.size()) {
      switch (in_[at_]) {
        case '\\':
          escape(/*in_class=*/false);
          break;
        case '[':
          character_class();
          break;
        case '(':
          group();
          break;
        case '{':
          // Oniguruma reads {,n} as {0,n}, PCRE2 10.42 as text.
          if (peek(1) == ',') refuse("{,n}");
          copy(1);
          break;
        case '}':
          // Possessive in PCRE2, a second quantifier in Ruby syntax; likewise the lazy form.
          if (peek(1) == '+' || peek(1) == '?') refuse(fmt::format("{{n}}{}", peek(1)));
          copy(1);
          break;
        default:
          copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  [[nodiscard]] char peek(std::size_t ahead) const {
    return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0';
  }
  [[nodiscard]] bool ahead(std::string_view text) const {
    return in_.substr(at_).starts_with(text);
  }

  void copy(std::size_t n) {
    out_ += in_.substr(at_, n);
    at_ = std::min(at_ + n, in_.size());
  }

  [[noreturn]] void refuse(std::string_view construct) const {
    throw Error(ErrorCode::unsupported,
                fmt::format("Split pattern {}: no translation for `{}` at byte {}, which PCRE2 and "
                            "the tokenizers library's regex engine read differently",
                            in_, construct, at_));
  }

  // At a backslash.
  void escape(bool in_class) {
    const char letter = peek(1);
    switch (letter) {
      case 's':
        out_ += in_class ? std::string(kSpace) : fmt::format("[{}]", kSpace);
        at_ += 2;
        return;
      case 'S':
        out_ += in_class ? std::string(kNotSpace) : fmt::format("[^{}]", kSpace);
        at_ += 2;
        return;
      case 'p':
      case 'P':
        if (peek(2) != '{') refuse(in_.substr(at_, 2));
        copy(std::min(in_.find('}', at_), in_.size() - 1) + 1 - at_);
        return;
      case 'x':
        // Two digits are a byte to Oniguruma and a code point to PCRE2; below 0x80 that is one.
        if (peek(2) == '{') {
          copy(std::min(in_.find('}', at_), in_.size() - 1) + 1 - at_);
        } else if (peek(2) >= '0' && peek(2) <= '7' && is_hex(peek(3))) {
          copy(4);
        } else {
          refuse(in_.substr(at_, 4));
        }
        return;
      case 'u':
        for (std::size_t i = 2; i < 6; ++i) {
          if (!is_hex(peek(i))) refuse(in_.substr(at_, 2));
        }
        out_ += fmt::format("\\x{{{}}}", in_.substr(at_ + 2, 4));
        at_ += 6;
        return;
      case 'A':
      case 'z':
      case 'Z':
        if (in_class) refuse(in_.substr(at_, 2));
        copy(2);
        return;
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        copy(2);
        return;
      default:
        if (is_alphanumeric(letter)) refuse(in_.substr(at_, 2));
        copy(2);
    }
  }

  // At the opening bracket.
  void character_class() {
    copy(peek(1) == '^' ? 2 : 1);
    if (peek(0) == ']') refuse("[]");
    while (at_ < in_.size() && peek(0) != ']') {
      if (peek(0) == '[') refuse("[ inside [ ]");
      if (ahead("&&")) refuse("&&");
      if (peek(0) == '\\') {
        escape(/*in_class=*/true);
      } else {
        copy(1);
      }
    }
    copy(1);
  }

  // At the opening parenthesis.
  void group() {
    if (peek(1) == '*') refuse("(*");
    if (peek(1) == '?') {
      bool known = false;
      for (const std::string_view form :
           {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?-i:", "(?i)", "(?-i)"}) {
        if (ahead(form)) known = true;
      }
      if (!known) refuse(in_.substr(at_, 3));
    }
    copy(peek(1) == '?' ? 2 : 1);
  }

  static bool is_hex(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
  }
  static bool is_alphanumeric(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  }

  std::string_view in_;
  std::size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string translate_regex(std::string_view pattern) {
  return Translator(pattern).run();
}

std::string escape_regex(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (std::string_view(R"(\^$.|?*+()[]{})").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace hadal::io
