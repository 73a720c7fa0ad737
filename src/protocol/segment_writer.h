// Collects rendered text as runs of trusted and untrusted segments.
#pragma once

#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

#include "io/text_segment.h"

namespace hadal::protocol {

// Neighbours of one kind become one segment; nothing is cut inside a run, so that ordinary text is
// tokenised as the reference does. Source: serving notes §1.9.
class SegmentWriter {
 public:
  // Text of the template, which may become control tokens.
  void trusted(std::string_view text) { append(text, true); }
  // Text of clients, tools, schemas and models, which may not.
  void untrusted(std::string_view text) { append(text, false); }

  // What was written since the last call.
  [[nodiscard]] std::vector<io::TextSegment> take() {
    nbytes_ = 0;
    return std::exchange(segments_, {});
  }
  [[nodiscard]] std::size_t nbytes() const { return nbytes_; }  // since the last take()

 private:
  void append(std::string_view text, bool is_trusted) {
    if (text.empty()) return;
    if (segments_.empty() || segments_.back().trusted != is_trusted) {
      segments_.push_back({{}, is_trusted});
    }
    segments_.back().text += text;
    nbytes_ += text.size();
  }

  std::vector<io::TextSegment> segments_;
  std::size_t nbytes_ = 0;
};

}  // namespace hadal::protocol
