// Runs of characters: what stands inside JSON strings, raw values and undeclared keys.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "grammar/grammar.h"

namespace hadal::grammar {

// Where in a character the text stands.
enum class CharPart : std::uint8_t {
  boundary,
  last,  // one continuation byte is missing
  last_two,
  last_three,
  after_e0,     // second byte A0-BF
  after_ed,     // 80-9F: no surrogates
  after_f0,     // 90-BF
  after_f4,     // 80-8F: nothing above U+10FFFF
  after_escape  // behind a backslash
};

struct TextForm {
  enum class Style : std::uint8_t {
    json,      // the inside of a JSON string
    json_key,  // the same, each character in one spelling only
    raw,       // any UTF-8
    raw_key    // neither controls nor any of " < > \ (backslash)
  } style = Style::raw;
  std::string forbidden = {};  // never spelt, not even across characters
  std::size_t min_length = 0;  // in characters
  std::optional<std::size_t> max_length = {};
  // The state of the base where a text of this style and `forbidden`, but of any length, begins:
  // what is known of its states serves those of this one.
  std::optional<StateId> unbounded = {};
  bool key_bytes = false;  // states are guarded by Guard::key_byte
};

// States that read a text of `form`, made as they are asked for.
class TextStates {
 public:
  TextStates(GrammarBuilder& builder, const TextForm& form);

  // The state where `part` of a first character has been read.
  [[nodiscard]] StateId at(CharPart part = CharPart::boundary) {
    return at({part, 0, 0}, part == CharPart::boundary ? form_.unbounded : std::nullopt);
  }
  // Builds everything that can be reached. Returns the states in which the text may end.
  [[nodiscard]] std::vector<StateId> finish();

 private:
  using Key = std::tuple<CharPart, std::size_t, std::size_t>;  // part, matched, length

  struct Place {
    Key key;
    StateId state;
    std::optional<StateId> like;  // of the unbounded text
  };

  [[nodiscard]] StateId at(const Key& key, std::optional<StateId> like);
  void build(const Place& place);
  void unicode_escape(StateId from, const Key& after);
  [[nodiscard]] std::size_t advanced(std::size_t matched, unsigned byte) const;

  GrammarBuilder& builder_;
  TextForm form_;
  std::vector<std::size_t> borders_;  // of the prefixes of `forbidden`
  std::map<Key, StateId> states_;
  std::vector<Place> todo_;
  std::vector<StateId> ends_;
};

// The keys of an object. Declared ones are properties 0, 1, ... of the rule: `names`, as they are
// spelt, sorted by byte, none twice; a quote behind name i leads to ends[i], behind any other key
// (where `extra` is set) to extra->end. Returns the state behind the quote that opens a key.
struct KeyForm {
  std::vector<std::string> names;
  std::vector<StateId> ends;
  struct Extra {
    StateId end;
    std::int32_t need;  // of their values, in the rule
    TextForm form;      // min_length: 0 or 1
  };
  std::optional<Extra> extra;
};
[[nodiscard]] StateId add_keys(GrammarBuilder& builder, const KeyForm& form);

// From `from`, one of `texts` and then `last`, arriving in `to`.
void add_choice(GrammarBuilder& builder, StateId from, std::vector<std::string> texts, char last,
                StateId to);

}  // namespace hadal::grammar
