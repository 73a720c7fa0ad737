#include "grammar/grammar_cache.h"

namespace hadal::grammar {

void TagCloser::add(GrammarBuilder& builder, StateId from, StateId to) const {
  StateId at = builder.text(from, before);
  if (mark_token) {
    const StateId marked = builder.state();
    builder.token(at, *mark_token, marked);
    at = marked;
  } else {
    at = builder.text(at, mark);
  }
  builder.text(at, after, to);
}

namespace {

CommonRules make_common(const TagCloser& closer, const std::shared_ptr<const TokenTrie>& trie) {
  // Readers of the text look for the closer without its first character and its bracket.
  std::string forbidden = closer.before.substr(1) + closer.mark + closer.after;
  if (forbidden.ends_with('>')) forbidden.pop_back();

  GrammarBuilder builder;
  CommonRules common{.grammar = nullptr,
                     .json = add_json_rules(builder, ""),
                     .json_in_tags = add_json_rules(builder, forbidden),
                     .text_in_tags = 0};
  TextStates text(builder, {.style = TextForm::Style::raw, .forbidden = forbidden});
  const StateId start = text.at();
  const StateId closing = builder.state();  // behind the first character of the closer
  TagCloser rest = closer;
  rest.before.erase(0, 1);
  const StateId end = builder.state();
  builder.accept(end);
  rest.add(builder, closing, end);
  for (const StateId s : text.finish()) builder.edge(s, closer.before[0], closing);
  common.text_in_tags = builder.rule(start);

  Tables tables = builder.finish({});
  const StateId busy[] = {start, common.json.in_string, common.json_in_tags.in_string};
  common.grammar = std::make_shared<const Grammar>(
      std::move(tables), std::vector{common.json.object, common.text_in_tags}, trie);
  // Most of a text is spent in these, and most of the vocabulary is allowed there.
  for (const StateId state : busy) (void)common.grammar->state_mask(state);
  return common;
}

}  // namespace

GrammarCache::GrammarCache(const io::Tokenizer& tokenizer, std::size_t capacity)
    : trie_(std::make_shared<const TokenTrie>(tokenizer)), capacity_(capacity) {}

const CommonRules& GrammarCache::common(const TagCloser& closer) {
  const std::string key = closer.before + '\0' + closer.mark + '\0' + closer.after;
  const std::lock_guard lock(mutex_);
  const auto found = common_.find(key);
  if (found != common_.end()) return found->second;
  return common_.emplace(key, make_common(closer, trie_)).first->second;
}

std::shared_ptr<const Grammar> GrammarCache::get(const std::string& key, const Make& make) {
  const auto find = [&]() -> std::shared_ptr<const Grammar> {
    const auto found = by_key_.find(key);
    if (found == by_key_.end()) return nullptr;
    entries_.splice(entries_.begin(), entries_, found->second);
    return entries_.front().grammar;
  };
  {
    const std::lock_guard lock(mutex_);
    if (auto grammar = find()) return grammar;
  }
  std::shared_ptr<const Grammar> made = make();  // two threads may, once
  const std::lock_guard lock(mutex_);
  if (auto grammar = find()) return grammar;
  if (capacity_ == 0) return made;
  if (entries_.size() >= capacity_) {
    by_key_.erase(entries_.back().key);
    entries_.pop_back();
  }
  entries_.push_front({.key = key, .grammar = std::move(made)});
  by_key_.emplace(entries_.front().key, entries_.begin());
  return entries_.front().grammar;
}

std::size_t GrammarCache::size() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace hadal::grammar
