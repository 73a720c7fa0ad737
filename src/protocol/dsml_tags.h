// The tags of tolerant mode in all their spellings. Internal to the DSML parser.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/chat_format.h"
#include "protocol/dsml_text.h"

namespace hadal::protocol {

enum class TagKind : std::uint8_t { calls, invoke, parameter };

struct DsmlTag {
  std::string text;       // whole, but for invoke and parameter openers: up to the name
  std::string_view mark;  // as spelt here
  TagKind kind;
  bool closing;
  bool is_dialect;  // the mark is not the model's token (R9)
  bool is_legacy;   // function_calls for tool_calls (R19)
};

struct TagMatch {
  Match match;
  const DsmlTag* tag;  // of a full match
};

class DsmlTags {
 public:
  explicit DsmlTags(const ChatFormat& format);

  // The tag that `view` begins with. `may_grow`: more text may follow the view.
  [[nodiscard]] TagMatch match(std::string_view view, bool may_grow) const {
    return match(view, may_grow, all_);
  }
  // Only tags that open a block.
  [[nodiscard]] TagMatch match_block_open(std::string_view view, bool may_grow) const {
    return match(view, may_grow, block_openers_);
  }

  // The tag that closes a `kind` opened with `mark`.
  [[nodiscard]] std::string closer(std::string_view mark, TagKind kind) const;

 private:
  static TagMatch match(std::string_view view, bool may_grow, const std::vector<DsmlTag>& tags);
  [[nodiscard]] std::string_view name(TagKind kind) const;

  const ChatFormat& format_;
  std::vector<DsmlTag> all_, block_openers_;
};

}  // namespace hadal::protocol
