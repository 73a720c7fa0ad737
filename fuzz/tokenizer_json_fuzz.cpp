// Any text as tokenizer.json: refused with an Error, or a tokenizer that gives back every text it
// encodes, however the text is cut into segments.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "io/tokenizer.h"

namespace {

constexpr std::string_view kText =
    "<s>Hello, world!  12345 <｜User｜>aaaaaaaaab\r\n\t x = {1.5e-3}; é好😀 \xC2\xA0.<s></s> ";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace hadal;
  using namespace hadal::io;
  try {
    const Tokenizer t = Tokenizer::parse({reinterpret_cast<const char*>(data), size});
    HADAL_CHECK(t.vocab_size() >= 0 && t.vocab_size() <= std::int64_t{1} << 24);
    try {
      const auto ids = t.encode(kText);
      HADAL_CHECK(t.decode(ids) == kText);
      const std::string text(kText);
      const std::vector<TextSegment> trusted = {{text.substr(0, 7), true}, {text.substr(7), true}};
      HADAL_CHECK(t.encode(trusted) == ids);
      const std::vector<TextSegment> untrusted = {{text.substr(0, 2), false},
                                                  {text.substr(2), false}};
      HADAL_CHECK(t.encode(untrusted) == t.encode(kText, SpecialTokens::ignore));
    } catch (const Error& e) {
      // A byte without a token, or a pattern that backtracks without end.
      if (e.code != ErrorCode::unsupported) throw;
    }
  } catch (const Error& e) {
    if (e.code != ErrorCode::corrupt_data && e.code != ErrorCode::unsupported) throw;
  }
  return 0;
}
