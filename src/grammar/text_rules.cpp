#include "grammar/text_rules.h"

#include <algorithm>
#include <limits>

namespace hadal::grammar {
namespace {

using Style = TextForm::Style;

struct CharEdge {
  unsigned first, last;
  CharPart to;
};

// What may follow inside characters. Source: The Unicode Standard 15.0, table 3-7; RFC 8259 §7.
std::vector<CharEdge> char_edges(Style style, CharPart part) {
  switch (part) {
    case CharPart::boundary:
      break;
    case CharPart::last:
      return {{0x80, 0xBF, CharPart::boundary}};
    case CharPart::last_two:
      return {{0x80, 0xBF, CharPart::last}};
    case CharPart::last_three:
      return {{0x80, 0xBF, CharPart::last_two}};
    case CharPart::after_e0:
      return {{0xA0, 0xBF, CharPart::last}};
    case CharPart::after_ed:
      return {{0x80, 0x9F, CharPart::last}};
    case CharPart::after_f0:
      return {{0x90, 0xBF, CharPart::last_two}};
    case CharPart::after_f4:
      return {{0x80, 0x8F, CharPart::last_two}};
    case CharPart::after_escape: {
      std::vector<CharEdge> edges;
      for (const unsigned char c : std::string_view("\"\\bfnrt")) {
        edges.push_back({c, c, CharPart::boundary});
      }
      // In a key no character has two spellings, so that no key does.
      if (style == Style::json) edges.push_back({'/', '/', CharPart::boundary});
      return edges;
    }
  }
  std::vector<CharEdge> edges{{0xC2, 0xDF, CharPart::last},       {0xE0, 0xE0, CharPart::after_e0},
                              {0xE1, 0xEC, CharPart::last_two},   {0xED, 0xED, CharPart::after_ed},
                              {0xEE, 0xEF, CharPart::last_two},   {0xF0, 0xF0, CharPart::after_f0},
                              {0xF1, 0xF3, CharPart::last_three}, {0xF4, 0xF4, CharPart::after_f4}};
  const auto ascii = [&](unsigned first, unsigned last, std::string_view but) {
    for (unsigned c = first; c <= last; ++c) {
      if (but.find(static_cast<char>(c)) != std::string_view::npos) continue;
      if (!edges.empty() && edges.back().to == CharPart::boundary && edges.back().last + 1 == c) {
        edges.back().last = c;
      } else {
        edges.push_back({c, c, CharPart::boundary});
      }
    }
  };
  switch (style) {
    case Style::json:
    case Style::json_key:
      ascii(0x20, 0x7F, "\"\\");
      edges.push_back({'\\', '\\', CharPart::after_escape});
      break;
    case Style::raw:
      ascii(0x00, 0x7F, "");
      break;
    case Style::raw_key:
      ascii(0x20, 0x7E, "\"<>\\");
      break;
  }
  return edges;
}

}  // namespace

TextStates::TextStates(GrammarBuilder& builder, const TextForm& form)
    : builder_(builder), form_(form), borders_(form.forbidden.size() + 1, 0) {
  for (std::size_t i = 1; i < form_.forbidden.size(); ++i) {
    borders_[i + 1] = advanced(borders_[i], static_cast<unsigned char>(form_.forbidden[i]));
  }
}

// How much of the forbidden text the bytes now end with. Source: Knuth, Morris, Pratt (1977).
std::size_t TextStates::advanced(std::size_t matched, unsigned byte) const {
  if (form_.forbidden.empty()) return 0;
  while (matched > 0 && static_cast<unsigned char>(form_.forbidden[matched]) != byte) {
    matched = borders_[matched];
  }
  return static_cast<unsigned char>(form_.forbidden[matched]) == byte ? matched + 1 : 0;
}

StateId TextStates::at(const Key& key, std::optional<StateId> like) {
  const auto found = states_.find(key);
  if (found != states_.end()) return found->second;
  const StateId state =
      form_.key_bytes ? builder_.guarded_state({.key_byte = true}) : builder_.state();
  states_.emplace(key, state);
  if (like && !builder_.is_known(*like)) like.reset();
  todo_.push_back({.key = key, .state = state, .like = like});
  if (like) {
    // A byte completes a character at most.
    constexpr std::size_t kMost = std::numeric_limits<std::uint32_t>::max();
    const std::size_t length = std::get<2>(key);
    const std::size_t left = form_.max_length ? *form_.max_length - length : kMost;
    builder_.bounded({.state = state,
                      .like = *like,
                      .n_bytes = static_cast<std::uint32_t>(std::min(left, kMost)),
                      .may_end = length >= form_.min_length});
  }
  return state;
}

void TextStates::build(const Place& place) {
  const auto& [part, matched, length] = place.key;
  const StateId state = place.state;
  const bool counts = form_.min_length > 0 || form_.max_length;
  // Beyond what is asked for, lengths are all the same.
  const std::size_t longest = form_.max_length.value_or(form_.min_length);
  if (part == CharPart::boundary && length >= form_.min_length) ends_.push_back(state);
  if (part == CharPart::boundary && form_.max_length && length >= *form_.max_length) return;

  const auto after = [&](CharPart to, unsigned byte) {
    const std::size_t longer =
        counts && to == CharPart::boundary ? std::min(length + 1, longest) : length;
    return Key{to, advanced(matched, byte), longer};
  };
  for (const CharEdge& edge : char_edges(form_.style, part)) {
    for (unsigned first = edge.first; first <= edge.last;) {
      const Key to = after(edge.to, first);
      unsigned last = first;
      while (last < edge.last && after(edge.to, last + 1) == to) ++last;
      const bool is_forbidden =
          !form_.forbidden.empty() && std::get<1>(to) == form_.forbidden.size();
      if (!is_forbidden) {
        const auto like = place.like ? builder_.known_target(*place.like, first) : std::nullopt;
        builder_.edge(state, first, last, at(to, like));
      }
      first = last + 1;
    }
  }
  if (part == CharPart::after_escape && form_.style == Style::json) {
    unicode_escape(state, after(CharPart::boundary, 'u'));
  }
}

// u and four digits; a high surrogate only with a low one behind it.
void TextStates::unicode_escape(StateId from, const Key& after) {
  const auto digits = [&](StateId at, std::string_view allowed, StateId to) {
    for (const char digit : allowed) builder_.edge(at, digit, to);
  };
  constexpr std::string_view kHex = "0123456789abcdefABCDEF";
  const StateId end = at(after, std::nullopt);
  const StateId u = builder_.state(), three = builder_.state(), two = builder_.state(),
                one = builder_.state();
  builder_.edge(from, 'u', u);
  digits(u, "0123456789abcefABCEF", three);
  digits(three, kHex, two);
  digits(two, kHex, one);
  digits(one, kHex, end);
  const StateId d = builder_.state(), high_two = builder_.state(), high_one = builder_.state(),
                high = builder_.state();
  digits(u, "dD", d);
  digits(d, "01234567", two);
  digits(d, "89abAB", high_two);
  digits(high_two, kHex, high_one);
  digits(high_one, kHex, high);
  const StateId low = builder_.text(high, "\\u");
  const StateId low_d = builder_.state();
  digits(low, "dD", low_d);
  digits(low_d, "cdefCDEF", two);
}

std::vector<StateId> TextStates::finish() {
  while (!todo_.empty()) {
    const Place place = todo_.back();
    todo_.pop_back();
    build(place);
  }
  return std::move(ends_);
}

namespace {

class KeyTrie {
 public:
  KeyTrie(GrammarBuilder& builder, const KeyForm& form) : builder_(builder), form_(form) {
    if (!form.extra) return;
    TextForm rest = form.extra->form;  // behind a first character, so never too short
    rest.min_length = 0;
    extra_.emplace(builder, rest);
  }

  StateId build() {
    const auto n = static_cast<std::uint32_t>(form_.names.size());
    std::vector<Node> path{node(0, n, CharPart::boundary)};
    const StateId root = path.front().state;
    for (std::uint32_t i = 0; i < n; ++i) {
      const std::string& name = form_.names[i];
      const std::string_view before = i == 0 ? std::string_view() : form_.names[i - 1];
      const auto shared = std::mismatch(name.begin(), name.end(), before.begin(), before.end());
      close_to(path, static_cast<std::size_t>(shared.first - name.begin()) + 1);
      for (std::size_t at = path.size() - 1; at < name.size(); ++at) {
        const std::string_view prefix = std::string_view(name).substr(0, at + 1);
        const auto end = std::partition_point(
            form_.names.begin() + i, form_.names.end(),
            [&](const std::string& other) { return other.starts_with(prefix); });
        const auto byte = static_cast<unsigned char>(name[at]);
        const Node child = node(i, static_cast<std::uint32_t>(end - form_.names.begin()),
                                part_after(path.back().part, byte));
        builder_.edge(path.back().state, byte, byte, child.state);
        path.back().taken.set(byte);
        path.push_back(child);
      }
      builder_.edge(path.back().state, '"', form_.ends[i]);
      path.back().is_name = true;
    }
    close_to(path, 0);
    if (extra_) {
      for (const StateId end : extra_->finish()) builder_.edge(end, '"', form_.extra->end);
    }
    return root;
  }

 private:
  struct Node {
    StateId state;
    std::optional<CharPart> part;  // none: inside an escape that only names spell
    bool is_name = false, is_root = false;
    std::bitset<256> taken = {};
  };

  Node node(std::uint32_t first, std::uint32_t last, std::optional<CharPart> part) {
    Guard guard{.first = first, .last = last, .any_left = true};
    if (extra_) guard.extra = form_.extra->need;
    const bool is_root = first == 0 && last == form_.names.size() && n_nodes_ == 0;
    guard.key_byte = extra_ && form_.extra->form.key_bytes && !is_root;
    ++n_nodes_;
    return {.state = builder_.guarded_state(guard), .part = part, .is_root = is_root};
  }

  [[nodiscard]] std::optional<CharPart> part_after(std::optional<CharPart> part,
                                                   unsigned byte) const {
    if (!part) return std::nullopt;
    const Style style = extra_ ? form_.extra->form.style : Style::raw;
    for (const CharEdge& edge : char_edges(style, *part)) {
      if (edge.first <= byte && byte <= edge.last) return edge.to;
    }
    return std::nullopt;
  }

  // Where no name goes on, an undeclared key may.
  void close_to(std::vector<Node>& path, std::size_t size) {
    for (; path.size() > size; path.pop_back()) {
      const Node& node = path.back();
      if (!extra_ || !node.part) continue;
      for (const CharEdge& edge : char_edges(form_.extra->form.style, *node.part)) {
        for (unsigned first = edge.first; first <= edge.last; ++first) {
          if (node.taken.test(first)) continue;
          unsigned last = first;
          while (last < edge.last && !node.taken.test(last + 1)) ++last;
          builder_.edge(node.state, first, last, extra_->at(edge.to));
          first = last;
        }
      }
      const bool may_end = *node.part == CharPart::boundary && !node.is_name &&
                           !(node.is_root && form_.extra->form.min_length > 0);
      if (may_end) builder_.edge(node.state, '"', form_.extra->end);
    }
  }

  GrammarBuilder& builder_;
  const KeyForm& form_;
  std::optional<TextStates> extra_;
  std::size_t n_nodes_ = 0;
};

}  // namespace

StateId add_keys(GrammarBuilder& builder, const KeyForm& form) {
  return KeyTrie(builder, form).build();
}

void add_choice(GrammarBuilder& builder, StateId from, std::vector<std::string> texts, char last,
                StateId to) {
  std::sort(texts.begin(), texts.end());
  texts.erase(std::unique(texts.begin(), texts.end()), texts.end());
  std::vector<StateId> path{from};
  std::string_view before;
  for (const std::string& text : texts) {
    const auto shared = std::mismatch(text.begin(), text.end(), before.begin(), before.end());
    path.resize(static_cast<std::size_t>(shared.first - text.begin()) + 1);
    for (std::size_t at = path.size() - 1; at < text.size(); ++at) {
      const StateId child = builder.state();
      builder.edge(path.back(), text[at], child);
      path.push_back(child);
    }
    builder.edge(path.back(), last, to);
    before = text;
  }
}

}  // namespace hadal::grammar
