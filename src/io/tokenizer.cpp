#include "io/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "core/error.h"
#include "io/added_tokens.h"
#include "io/byte_alphabet.h"
#include "io/piece_encoder.h"
#include "io/pretokenizer.h"
#include "io/tokenizer_spec.h"
#include "io/utf8.h"
#include "io/vocabulary.h"

namespace hadal::io {
namespace {

struct Workspace {
  RegexScratch regex;
  PieceEncoder::Scratch pieces;
};

// As many workspaces as there ever were calls at once; a call takes the one used last, whose cache
// is warm.
class WorkspacePool {
 public:
  [[nodiscard]] std::unique_ptr<Workspace> take() {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        auto workspace = std::move(idle_.back());
        idle_.pop_back();
        return workspace;
      }
    }
    return std::make_unique<Workspace>();
  }
  void give_back(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(workspace));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> idle_;
};

// What each id stands for, and in what order a search by bytes prefers them.
struct VocabularyPlan {
  std::vector<std::string> bytes_by_id;
  std::vector<TokenId> find_first;  // added tokens, byte-level entries, the rest
  std::vector<TokenId> byte_level;  // ids that BPE can produce
  std::array<TokenId, 256> byte_ids;
};

VocabularyPlan plan_vocabulary(const TokenizerSpec& spec) {
  VocabularyPlan plan;
  plan.bytes_by_id.resize(spec.n_ids);
  plan.byte_ids.fill(-1);
  const auto bytes_of = [&](TokenId id) -> std::string& {
    return plan.bytes_by_id[static_cast<std::size_t>(id)];
  };
  std::vector<TokenId> raw;
  for (const VocabularyEntry& entry : spec.vocabulary) {
    if (auto bytes = bytes_of_spelling(entry.spelling)) {
      if (bytes->size() == 1) plan.byte_ids[static_cast<unsigned char>(bytes->front())] = entry.id;
      bytes_of(entry.id) = std::move(*bytes);
      plan.byte_level.push_back(entry.id);
    } else {
      bytes_of(entry.id) = entry.spelling;
      raw.push_back(entry.id);
    }
  }
  std::vector<bool> is_added(spec.n_ids, false);
  for (const AddedToken& token : spec.added_tokens) {
    std::string& bytes = bytes_of(token.id);
    if (!bytes.empty() && bytes != token.content) {
      throw Error(ErrorCode::unsupported,
                  fmt::format("added token \"{}\" (id {}) is also a piece of model.vocab, where it "
                              "spells other bytes; hadal gives a token one meaning",
                              token.content, token.id));
    }
    bytes = token.content;
    is_added[static_cast<std::size_t>(token.id)] = true;
    plan.find_first.push_back(token.id);
  }
  for (const auto* ids : {&plan.byte_level, &raw}) {
    for (const TokenId id : *ids) {
      if (!is_added[static_cast<std::size_t>(id)]) plan.find_first.push_back(id);
    }
  }
  return plan;
}

std::vector<SplitRegex> compile(const std::vector<std::string>& patterns) {
  std::vector<SplitRegex> stages;
  stages.reserve(patterns.size());
  for (const std::string& pattern : patterns) stages.emplace_back(pattern);
  return stages;
}

void expect_utf8(std::string_view text) {
  if (const auto at = find_invalid_utf8(text)) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("the text to encode is not valid UTF-8: byte {} of {} is 0x{:02X}, "
                            "which begins no complete character; convert it to UTF-8 first",
                            *at, text.size(), static_cast<unsigned char>(text[*at])));
  }
}

}  // namespace

struct Tokenizer::Tables {
  Tables(const TokenizerSpec& spec, const VocabularyPlan& plan);

  // Encodes `text`, looking for added tokens inside `trusted` (in order, apart, none empty).
  std::vector<TokenId> encode(std::string_view text, std::vector<TextSpan> trusted) const;

  void expect_token(TokenId id) const;

  Vocabulary vocabulary;
  PieceEncoder pieces;
  Pretokenizer pretokenizer;
  AddedTokenTrie verbatim;       // added tokens looked for first
  AddedTokenTrie normalized;     // and those looked for in what is left
  std::vector<bool> is_special;  // by id
  std::vector<bool> is_added;    // by id
  std::size_t n_added_tokens;
  mutable WorkspacePool workspaces;
};

Tokenizer::Tables::Tables(const TokenizerSpec& spec, const VocabularyPlan& plan)
    : vocabulary(plan.bytes_by_id, plan.find_first),
      pieces(vocabulary, plan.byte_level, Bpe(plan.byte_ids, spec.merges), spec.ignore_merges),
      pretokenizer(compile(spec.split_patterns)),
      is_special(spec.n_ids, false),
      is_added(spec.n_ids, false),
      n_added_tokens(spec.added_tokens.size()) {
  for (const AddedToken& token : spec.added_tokens) {
    (token.normalized ? normalized : verbatim).add(token.content, token.id);
    is_special[static_cast<std::size_t>(token.id)] = token.special;
    is_added[static_cast<std::size_t>(token.id)] = true;
  }
}

std::vector<TokenId> Tokenizer::Tables::encode(std::string_view text,
                                               std::vector<TextSpan> trusted) const {
  expect_utf8(text);
  std::vector<TokenMatch> matches;
  for (const AddedTokenTrie* trie : {&verbatim, &normalized}) {
    if (trie->empty()) continue;
    std::vector<TextSpan> rest;
    for (const TextSpan& span : trusted) trie->find_all(text, span, matches, rest);
    trusted = std::move(rest);
  }
  std::sort(matches.begin(), matches.end(),
            [](const TokenMatch& a, const TokenMatch& b) { return a.span.begin < b.span.begin; });

  std::vector<TokenId> ids;
  auto workspace = workspaces.take();
  const Pretokenizer::Sink encode_piece = [&](std::string_view piece) {
    pieces.encode(piece, workspace->pieces, ids);
  };
  std::size_t done = 0;
  for (const TokenMatch& match : matches) {
    pretokenizer.split(text.substr(done, match.span.begin - done), workspace->regex, encode_piece);
    ids.push_back(match.id);
    done = match.span.end;
  }
  pretokenizer.split(text.substr(done), workspace->regex, encode_piece);
  workspaces.give_back(std::move(workspace));
  return ids;
}

void Tokenizer::Tables::expect_token(TokenId id) const {
  if (id < 0 || id >= vocabulary.size() || vocabulary.bytes(id).empty()) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("token id {} is {}; ids go from 0 to {}", id,
                            id < 0 || id >= vocabulary.size() ? "out of range" : "not in use",
                            vocabulary.size() - 1));
  }
}

Tokenizer::Tokenizer(std::shared_ptr<const Tables> tables) : tables_(std::move(tables)) {}

Tokenizer Tokenizer::load(const Path& tokenizer_json) {
  const std::string json = read_text(tokenizer_json);
  try {
    return parse(json);
  } catch (const Error& e) {
    throw Error(e.code, fmt::format("{}: {}", tokenizer_json.string(), e.what()));
  }
}

Tokenizer Tokenizer::parse(std::string_view json) {
  const TokenizerSpec spec = parse_tokenizer_spec(json);
  return Tokenizer(std::make_shared<const Tables>(spec, plan_vocabulary(spec)));
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, SpecialTokens special) const {
  std::vector<TextSpan> trusted;
  if (special == SpecialTokens::parse && !text.empty()) trusted.push_back({0, text.size()});
  return tables_->encode(text, std::move(trusted));
}

std::vector<TokenId> Tokenizer::encode(std::span<const TextSegment> segments) const {
  std::string text;
  std::vector<TextSpan> trusted;
  for (const TextSegment& segment : segments) {
    if (segment.text.empty()) continue;
    const std::size_t begin = text.size();
    text += segment.text;
    if (!segment.trusted) continue;
    if (!trusted.empty() && trusted.back().end == begin) {
      trusted.back().end = text.size();
    } else {
      trusted.push_back({begin, text.size()});
    }
  }
  return tables_->encode(text, std::move(trusted));
}

std::string Tokenizer::decode(std::span<const TokenId> ids, SpecialTokens special) const {
  std::string text;
  for (const TokenId id : ids) {
    if (special == SpecialTokens::ignore && is_special(id)) continue;
    text += token_bytes(id);
  }
  return text;
}

std::string_view Tokenizer::token_bytes(TokenId id) const {
  tables_->expect_token(id);
  return tables_->vocabulary.bytes(id);
}

std::optional<TokenId> Tokenizer::token_id(std::string_view text) const {
  return tables_->vocabulary.find(text);
}

bool Tokenizer::is_special(TokenId id) const {
  return id >= 0 && id < vocab_size() && tables_->is_special[static_cast<std::size_t>(id)];
}

bool Tokenizer::is_added(TokenId id) const {
  return id >= 0 && id < vocab_size() && tables_->is_added[static_cast<std::size_t>(id)];
}

std::int64_t Tokenizer::vocab_size() const {
  return tables_->vocabulary.size();
}

std::size_t Tokenizer::n_added_tokens() const {
  return tables_->n_added_tokens;
}

}  // namespace hadal::io
