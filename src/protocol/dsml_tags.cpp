#include "protocol/dsml_tags.h"

#include <fmt/format.h>

namespace hadal::protocol {
namespace {

// Seen in the wild instead of ｜DSML｜: doubled, ASCII and double-line bars, a lost first bar.
constexpr std::string_view kDialects[] = {"｜｜DSML｜｜", "|DSML|", "‖DSML‖", "DSML｜"};
constexpr std::string_view kLegacyCallsTag = "function_calls";  // DeepSeek-V3.2

}  // namespace

std::string_view DsmlTags::name(TagKind kind) const {
  switch (kind) {
    case TagKind::calls:
      return format_.calls_tag;
    case TagKind::invoke:
      return format_.invoke_tag;
    case TagKind::parameter:
      return format_.parameter_tag;
  }
  return {};
}

DsmlTags::DsmlTags(const ChatFormat& format) : format_(format) {
  const auto add = [&](std::string_view mark, bool is_dialect) {
    for (const TagKind kind : {TagKind::calls, TagKind::invoke, TagKind::parameter}) {
      const char* past = kind == TagKind::calls ? ">" : "";  // the others have attributes
      all_.push_back(
          {fmt::format("<{}{}{}", mark, name(kind), past), mark, kind, false, is_dialect, false});
      all_.push_back({closer(mark, kind), mark, kind, true, is_dialect, false});
    }
    for (const bool closing : {false, true}) {
      all_.push_back({fmt::format("<{}{}{}>", closing ? "/" : "", mark, kLegacyCallsTag), mark,
                      TagKind::calls, closing, is_dialect, true});
    }
  };
  add(format.dsml_mark, false);
  for (const std::string_view dialect : kDialects) add(dialect, true);
  for (const DsmlTag& tag : all_) {
    if (tag.kind == TagKind::calls && !tag.closing) block_openers_.push_back(tag);
  }
}

std::string DsmlTags::closer(std::string_view mark, TagKind kind) const {
  return fmt::format("</{}{}>", mark, name(kind));
}

TagMatch DsmlTags::match(std::string_view view, bool may_grow, const std::vector<DsmlTag>& tags) {
  Match best = Match::none;
  for (const DsmlTag& tag : tags) {
    const Match match = match_prefix(view, tag.text, may_grow);
    if (match == Match::full)
      return {.match = match, .tag = &tag};  // no tag is the beginning of another
    if (match == Match::partial) best = match;
  }
  return {.match = best, .tag = nullptr};
}

}  // namespace hadal::protocol
