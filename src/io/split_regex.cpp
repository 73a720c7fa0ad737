#include "io/split_regex.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "core/error.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace hadal::io {
namespace {

// Far above any pattern in use, far below what PCRE2 would spend minutes compiling.
constexpr std::size_t kMaxPatternBytes = 16 * 1024;
// Backtracking of ordinary patterns needs a few KiB however long the text; the maximum is only
// address space until it is used.
constexpr std::size_t kJitStackStartBytes = 32 * 1024;
constexpr std::size_t kJitStackMaxBytes = 8 * 1024 * 1024;

// How often a match may backtrack: enough for any pattern that is linear in its text, such as \s+
// giving up a long run of spaces one by one, and not for one that is exponential.
std::uint32_t match_limit(std::size_t subject_size) {
  constexpr std::uint64_t kBase = 1'000'000, kPerByte = 16;
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(kBase + kPerByte * subject_size, UINT32_MAX));
}

std::string pcre2_message(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

template <class T>
T* check_allocated(T* pointer) {
  if (pointer == nullptr) throw Error(ErrorCode::out_of_memory, "PCRE2 could not allocate memory");
  return pointer;
}

}  // namespace

RegexScratch::RegexScratch()
    : match_data_(pcre2_match_data_create(1, nullptr)),
      match_context_(pcre2_match_context_create(nullptr)),
      jit_stack_(pcre2_jit_stack_create(kJitStackStartBytes, kJitStackMaxBytes, nullptr)) {
  check_allocated(match_data_);
  check_allocated(match_context_);
  // Without JIT there is no JIT stack, and none is needed.
  if (jit_stack_ != nullptr) pcre2_jit_stack_assign(match_context_, nullptr, jit_stack_);
}

RegexScratch::~RegexScratch() {
  pcre2_jit_stack_free(jit_stack_);
  pcre2_match_context_free(match_context_);
  pcre2_match_data_free(match_data_);
}

void SplitRegex::FreeCode::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}

SplitRegex::SplitRegex(std::string_view pattern) : pattern_(pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    throw Error(ErrorCode::unsupported,
                fmt::format("Split pattern of {} bytes; hadal compiles up to {}", pattern.size(),
                            kMaxPatternBytes));
  }
  const std::string translated = translate_regex(pattern);
  // Ruby syntax: ^ and $ match at every line, and only \n ends one. \C could stop inside a
  // character.
  constexpr std::uint32_t kOptions =
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  pcre2_compile_context* context = check_allocated(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                            kOptions, &error, &offset, context));
  pcre2_compile_context_free(context);
  if (!code_) {
    throw Error(ErrorCode::unsupported,
                fmt::format("Split pattern {}: {} (byte {} of its PCRE2 form {})", pattern_,
                            pcre2_message(error), offset, translated));
  }
  has_jit_ = pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE) == 0;
}

std::optional<SplitRegex::Span> SplitRegex::find(std::string_view subject, std::size_t from,
                                                 RegexScratch& scratch) const {
  const auto* text = reinterpret_cast<PCRE2_SPTR>(subject.data());
  pcre2_set_match_limit(scratch.match_context_, match_limit(subject.size()));
  // Where PCRE2 has no JIT for this machine its interpreter gives the same matches, only slower.
  const int rc = has_jit_ ? pcre2_jit_match(code_.get(), text, subject.size(), from, 0,
                                            scratch.match_data_, scratch.match_context_)
                          : pcre2_match(code_.get(), text, subject.size(), from, PCRE2_NO_UTF_CHECK,
                                        scratch.match_data_, scratch.match_context_);
  if (rc == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (rc < 0) {
    throw Error(ErrorCode::unsupported,
                fmt::format("Split pattern {}: gave up on a text of {} bytes: {}", pattern_,
                            subject.size(), pcre2_message(rc)));
  }
  const PCRE2_SIZE* ovector = pcre2_get_ovector_pointer(scratch.match_data_);
  return Span{ovector[0], ovector[1]};
}

}  // namespace hadal::io
