#include "io/tokenizer_spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "core/error.h"
#include "io/pretokenizer.h"
#include "io/split_regex.h"

namespace hadal::io {
namespace {

// Not ordered_json: its objects look keys up one by one, which 128,000 of them make quadratic, and
// no order in this file means anything.
using Json = nlohmann::json;

constexpr std::uint64_t kMaxId = (1 << 24) - 1;
constexpr std::size_t kMaxStages = 32;
constexpr int kMaxSequenceDepth = 4;

template <class... Args>
[[noreturn]] void corrupt(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorCode::corrupt_data, fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
[[noreturn]] void unsupported(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorCode::unsupported, fmt::format(format, std::forward<Args>(args)...));
}

// The member, or null when it is absent or null: the format treats both alike.
const Json* member(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

const Json& expect(const Json& value, Json::value_t type, std::string_view name) {
  const bool ok = value.type() == type;
  if (!ok) corrupt("{}: found {}, wanted {}", name, value.type_name(), Json(type).type_name());
  return value;  // NOLINT(bugprone-return-const-ref-from-parameter): part of the caller's document
}

const std::string& expect_string(const Json& value, std::string_view name) {
  return expect(value, Json::value_t::string, name).get_ref<const std::string&>();
}

bool flag(const Json& object, const char* key, bool if_absent, std::string_view where) {
  const Json* value = member(object, key);
  if (value == nullptr) return if_absent;
  return expect(*value, Json::value_t::boolean, fmt::format("{}.{}", where, key)).get<bool>();
}

const std::string& type_of(const Json& object, std::string_view where) {
  expect(object, Json::value_t::object, where);
  const Json* type = member(object, "type");
  if (type == nullptr) corrupt("{}: no \"type\"", where);
  return expect_string(*type, fmt::format("{}.type", where));
}

// `describe` gives the id's name for a message; 128,000 names are not made to be thrown away.
template <class Describe>
TokenId expect_id(const Json& value, const Describe& describe) {
  if (!value.is_number_integer()) {
    corrupt("{}: id is {}, wanted integer", describe(), value.type_name());
  }
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kMaxId) {
    corrupt("{}: id {} is outside [0, {}]", describe(), value.dump(), kMaxId);
  }
  return static_cast<TokenId>(value.get<std::uint64_t>());
}

// ---- pre_tokenizer ------------------------------------------------------------------------------

// Collects the Split patterns in order; ByteLevel must come last, once.
class StageReader {
 public:
  std::vector<std::string> read(const Json& root) {
    const Json* pre_tokenizer = member(root, "pre_tokenizer");
    if (pre_tokenizer == nullptr) unsupported("pre_tokenizer: absent; hadal reads byte-level BPE");
    add(*pre_tokenizer, "pre_tokenizer", 0);
    if (!byte_level_) unsupported("pre_tokenizer: no ByteLevel stage; hadal reads byte-level BPE");
    return std::move(patterns_);
  }

 private:
  void add(const Json& stage, const std::string& where, int depth) {
    const std::string& type = type_of(stage, where);
    if (byte_level_) unsupported("{}: a {} stage after ByteLevel", where, type);
    if (type == "Sequence") {
      if (depth == kMaxSequenceDepth) unsupported("{}: Sequences nested too deeply", where);
      const Json* stages = member(stage, "pretokenizers");
      if (stages == nullptr) corrupt("{}: Sequence without \"pretokenizers\"", where);
      expect(*stages, Json::value_t::array, where + ".pretokenizers");
      for (std::size_t i = 0; i < stages->size(); ++i) {
        add((*stages)[i], fmt::format("{}.pretokenizers[{}]", where, i), depth + 1);
      }
    } else if (type == "Split") {
      add_split(stage, where);
    } else if (type == "ByteLevel") {
      if (flag(stage, "add_prefix_space", true, where)) {
        unsupported("{}.add_prefix_space: true; hadal does not change the text it encodes", where);
      }
      if (flag(stage, "use_regex", true, where)) add_pattern(std::string(kByteLevelPattern), where);
      byte_level_ = true;
    } else {
      unsupported("{}.type: \"{}\"; hadal has Sequence, Split and ByteLevel", where, type);
    }
  }

  void add_split(const Json& stage, const std::string& where) {
    const Json* behavior = member(stage, "behavior");
    if (behavior == nullptr) corrupt("{}: Split without \"behavior\"", where);
    const std::string& name = expect_string(*behavior, where + ".behavior");
    if (name != "Isolated") {
      unsupported("{}.behavior: \"{}\"; hadal has Isolated", where, name);
    }
    // Inverting swaps matches with what lies between them; isolation treats the two alike.
    (void)flag(stage, "invert", false, where);

    const Json* pattern = member(stage, "pattern");
    if (pattern == nullptr) corrupt("{}: Split without \"pattern\"", where);
    expect(*pattern, Json::value_t::object, where + ".pattern");
    if (const Json* regex = member(*pattern, "Regex")) {
      add_pattern(expect_string(*regex, where + ".pattern.Regex"), where);
    } else if (const Json* text = member(*pattern, "String")) {
      add_pattern(escape_regex(expect_string(*text, where + ".pattern.String")), where);
    } else {
      corrupt("{}.pattern: neither \"Regex\" nor \"String\"", where);
    }
  }

  void add_pattern(std::string pattern, std::string_view where) {
    if (patterns_.size() == kMaxStages) unsupported("{}: more than {} stages", where, kMaxStages);
    patterns_.push_back(std::move(pattern));
  }

  std::vector<std::string> patterns_;
  bool byte_level_ = false;
};

// ---- the parts around the model -----------------------------------------------------------------

void check_normalizer(const Json& root) {
  const Json* normalizer = member(root, "normalizer");
  if (normalizer == nullptr) return;
  const std::string& type = type_of(*normalizer, "normalizer");
  if (type == "Sequence") {
    const Json* parts = member(*normalizer, "normalizers");
    if (parts == nullptr) corrupt("normalizer: Sequence without \"normalizers\"");
    if (expect(*parts, Json::value_t::array, "normalizer.normalizers").empty()) return;
    unsupported("normalizer.normalizers[0]: \"{}\"; hadal does not change the text it encodes",
                type_of(parts->front(), "normalizer.normalizers[0]"));
  }
  unsupported("normalizer: \"{}\"; hadal does not change the text it encodes", type);
}

void check_decoder(const Json& root) {
  const Json* decoder = member(root, "decoder");
  if (decoder == nullptr) return;
  const std::string& type = type_of(*decoder, "decoder");
  if (type != "ByteLevel") unsupported("decoder: \"{}\"; hadal has ByteLevel", type);
}

void check_model_options(const Json& model) {
  if (const Json* type = member(model, "type")) {
    const std::string& name = expect_string(*type, "model.type");
    if (name != "BPE") unsupported("model.type: \"{}\"; hadal has BPE", name);
  }
  if (const Json* dropout = member(model, "dropout")) {
    if (!dropout->is_number()) corrupt("model.dropout: found {}", dropout->type_name());
    if (dropout->get<double>() != 0) {
      unsupported("model.dropout: {}; hadal encodes deterministically", dropout->get<double>());
    }
  }
  for (const char* key : {"unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* value = member(model, key);
    if (value == nullptr) continue;
    const std::string& text = expect_string(*value, fmt::format("model.{}", key));
    if (!text.empty()) {
      unsupported("model.{}: \"{}\"; byte-level BPE as hadal reads it has none", key, text);
    }
  }
  if (flag(model, "byte_fallback", false, "model")) {
    unsupported(
        "model.byte_fallback: true; hadal has byte-level BPE, where every byte has a token");
  }
}

// ---- vocabulary and merges ----------------------------------------------------------------------

using IdOfSpelling = std::unordered_map<std::string_view, TokenId>;

std::pair<std::string_view, std::string_view> merge_parts(const Json& merge, std::size_t rank) {
  if (merge.is_array()) {
    if (merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) {
      corrupt("model.merges[{}]: wanted two strings", rank);
    }
    return {merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>()};
  }
  if (!merge.is_string()) {
    corrupt("model.merges[{}]: found {}, wanted \"left right\" or [\"left\", \"right\"]", rank,
            merge.type_name());
  }
  const std::string_view text = merge.get_ref<const std::string&>();
  const std::size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
    corrupt("model.merges[{}]: \"{}\" is not two pieces with a space between", rank, text);
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

std::vector<Merge> read_merges(const Json& merges, const IdOfSpelling& ids) {
  expect(merges, Json::value_t::array, "model.merges");
  const auto id_of = [&](std::string_view spelling, std::size_t rank) {
    const auto it = ids.find(spelling);
    if (it == ids.end()) {
      corrupt("model.merges[{}]: \"{}\" is not in model.vocab", rank, spelling);
    }
    return it->second;
  };
  std::vector<Merge> result;
  result.reserve(merges.size());
  std::string both;
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right] = merge_parts(merges[rank], rank);
    both.assign(left).append(right);
    result.push_back({id_of(left, rank), id_of(right, rank), id_of(both, rank)});
  }
  return result;
}

AddedToken read_added_token(const Json& token, const std::string& where) {
  expect(token, Json::value_t::object, where);
  const Json* content = member(token, "content");
  if (content == nullptr) corrupt("{}: no \"content\"", where);
  const Json* id = member(token, "id");
  if (id == nullptr) corrupt("{}: no \"id\"", where);
  AddedToken result{expect_string(*content, where + ".content"),
                    expect_id(*id, [&] { return where; }), flag(token, "special", false, where),
                    flag(token, "normalized", true, where)};
  if (result.content.empty()) corrupt("{}.content: empty", where);
  for (const char* key : {"single_word", "lstrip", "rstrip"}) {
    if (flag(token, key, false, where)) {
      unsupported("{}.{}: true (\"{}\"); hadal matches added tokens exactly", where, key,
                  result.content);
    }
  }
  return result;
}

// The table of ids is as long as the highest one, so a file must have about as many tokens.
void check_density(const TokenizerSpec& spec, std::size_t n_tokens) {
  if (spec.n_ids > 16 * n_tokens + 4096) {
    corrupt("the highest token id is {}, but there are only {} tokens", spec.n_ids - 1, n_tokens);
  }
}

TokenizerSpec read_spec(const Json& root) {
  expect(root, Json::value_t::object, "the top level");
  const Json* model = member(root, "model");
  if (model == nullptr) corrupt("no \"model\"");
  expect(*model, Json::value_t::object, "model");
  check_model_options(*model);
  check_normalizer(root);
  check_decoder(root);

  TokenizerSpec spec;
  spec.split_patterns = StageReader().read(root);
  spec.ignore_merges = flag(*model, "ignore_merges", false, "model");

  const Json* vocab = member(*model, "vocab");
  const Json* merges = member(*model, "merges");
  if (vocab == nullptr) corrupt("model: no \"vocab\"");
  if (merges == nullptr) corrupt("model: no \"merges\"");
  expect(*vocab, Json::value_t::object, "model.vocab");

  IdOfSpelling id_of;                                         // views into `root`
  std::unordered_map<TokenId, std::string_view> spelling_of;  // likewise
  id_of.reserve(vocab->size());
  spelling_of.reserve(vocab->size());
  spec.vocabulary.reserve(vocab->size());
  for (auto entry = vocab->begin(); entry != vocab->end(); ++entry) {
    const std::string& spelling = entry.key();
    if (spelling.empty()) corrupt("model.vocab: an empty piece");
    const TokenId id =
        expect_id(*entry, [&] { return fmt::format("model.vocab[\"{}\"]", spelling); });
    const auto [other, is_new] = spelling_of.try_emplace(id, spelling);
    if (!is_new) corrupt("model.vocab: \"{}\" and \"{}\" share id {}", other->second, spelling, id);
    id_of.emplace(spelling, id);
    spec.vocabulary.push_back({spelling, id});
    spec.n_ids = std::max(spec.n_ids, static_cast<std::size_t>(id) + 1);
  }
  spec.merges = read_merges(*merges, id_of);

  std::size_t n_tokens = spec.vocabulary.size();
  if (const Json* added = member(root, "added_tokens")) {
    expect(*added, Json::value_t::array, "added_tokens");
    std::unordered_set<std::string_view> contents;
    for (std::size_t i = 0; i < added->size(); ++i) {
      const std::string where = fmt::format("added_tokens[{}]", i);
      const AddedToken token = read_added_token((*added)[i], where);
      const std::string_view content = (*added)[i]["content"].get_ref<const std::string&>();
      if (!contents.insert(content).second) corrupt("{}: \"{}\" appears twice", where, content);
      const auto [holder, is_new] = spelling_of.try_emplace(token.id, content);
      if (!is_new && holder->second != content) {
        corrupt("{}: \"{}\" and \"{}\" share id {}", where, holder->second, content, token.id);
      }
      if (const auto in_vocab = id_of.find(content);
          in_vocab != id_of.end() && in_vocab->second != token.id) {
        corrupt("{}: \"{}\" has id {}, but {} in model.vocab", where, content, token.id,
                in_vocab->second);
      }
      n_tokens += is_new ? 1 : 0;
      spec.n_ids = std::max(spec.n_ids, static_cast<std::size_t>(token.id) + 1);
      spec.added_tokens.push_back(token);
    }
  }
  check_density(spec, n_tokens);
  return spec;
}

}  // namespace

TokenizerSpec parse_tokenizer_spec(std::string_view json) {
  Json root;
  try {
    root = Json::parse(json);
  } catch (const Json::exception& e) {
    corrupt("not JSON: {}", e.what());
  }
  return read_spec(root);
}

}  // namespace hadal::io
