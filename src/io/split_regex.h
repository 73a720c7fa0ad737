// One Split pattern of a tokenizer.json, compiled by PCRE2 and read as its authors' engine
// (Oniguruma, Ruby syntax) reads it.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

// PCRE2's own types, so that its header stays out of ours.
struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace hadal::io {

// What a match needs to write to. One per thread; serves any number of patterns.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class SplitRegex;
  pcre2_real_match_data_8* match_data_;
  pcre2_real_match_context_8* match_context_;
  pcre2_real_jit_stack_8* jit_stack_;
};

// Immutable after construction and shared between threads freely.
class SplitRegex {
 public:
  // Throws Error unsupported when the pattern does not compile, or uses a construct that PCRE2 and
  // Oniguruma read differently and that has no translation here (\w, \b, \h, nested classes, ...).
  explicit SplitRegex(std::string_view pattern);

  struct Span {
    std::size_t begin, end;  // bytes; begin == end for a match of nothing
  };
  // The leftmost match at or after byte `from` of `subject`, which must be valid UTF-8 and is all
  // that lookarounds see. Throws Error unsupported when the pattern exhausts the match limits.
  [[nodiscard]] std::optional<Span> find(std::string_view subject, std::size_t from,
                                         RegexScratch& scratch) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::string pattern_;  // as written in the file, for messages
  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
  bool has_jit_;
};

// A pattern that matches exactly `text`.
[[nodiscard]] std::string escape_regex(std::string_view text);

// `pattern`, an Oniguruma regex, as PCRE2 must be told it: \s and \S become Unicode White_Space
// spelt out, \uHHHH becomes \x{HHHH}. Throws Error unsupported as SplitRegex does.
[[nodiscard]] std::string translate_regex(std::string_view pattern);

}  // namespace hadal::io
