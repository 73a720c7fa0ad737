#include "protocol/answer_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "core/error.h"
#include "protocol/answer_log.h"

namespace hadal::protocol {
namespace {

using ShortDigest = PromptDigest::Key;

// Tokens of one link of the chain.
constexpr std::size_t kBlock = 1024;
// The file is written anew when it is this much larger than what is still remembered.
constexpr std::size_t kMaxGarbage = std::size_t{1} << 20;
// What an answer or a name takes in memory beside its bytes: nodes and pointers, about.
constexpr std::size_t kOverhead = 160;

ShortDigest shortened(const Sha256Digest& digest) {
  ShortDigest out;
  std::copy_n(digest.begin(), out.size(), out.begin());
  return out;
}
ShortDigest short_digest(std::string_view text) {
  return shortened(sha256(text));
}

// Spaces and line breaks at the ends get lost between clients and mean nothing.
std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const std::size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

// The same value, the same text: members sorted, whole numbers as their digits.
void make_normal(Json& json) {
  if (auto* object = std::get_if<Json::Object>(&json.value)) {
    for (Json::Member& member : *object) make_normal(member.value);
    std::ranges::sort(*object, {}, &Json::Member::key);
  } else if (auto* array = std::get_if<Json::Array>(&json.value)) {
    for (Json& element : *array) make_normal(element);
  } else if (auto* integer = std::get_if<Json::Integer>(&json.value)) {
    if (integer->digits == "-0") integer->digits = "0";
  } else if (const auto* number = std::get_if<double>(&json.value)) {
    if (std::isfinite(*number) && std::trunc(*number) == *number) {
      json.value = Json::Integer{*number == 0 ? "0" : fmt::format("{:.0f}", *number)};
    }
  }
}

std::string normal_arguments(std::string_view arguments) {
  if (trimmed(arguments).empty()) return "{}";
  std::optional<Json> json = Json::try_parse(arguments);
  if (!json) return std::string(arguments);
  if (json->is_null()) return "{}";
  make_normal(*json);
  return json->dump();
}

// Names in the one table: which kind, then the name itself.
std::string call_name(std::string_view id) {
  return fmt::format("c{}", id);
}
std::string pointer_name(std::string_view pointer) {
  return fmt::format("p{}", pointer);
}
std::string turn_name(const ShortDigest& key) {
  return std::string("t").append(reinterpret_cast<const char*>(key.data()), key.size());
}

void put_u32(std::string& out, std::size_t value) {
  const auto narrow = static_cast<std::uint32_t>(value);
  HADAL_CHECK(narrow == value);
  char bytes[4];
  std::memcpy(bytes, &narrow, 4);
  out.append(bytes, 4);
}
void put_text(std::string& out, std::string_view text) {
  put_u32(out, text.size());
  out.append(text);
}
void put_digest(std::string& out, const ShortDigest& digest) {
  out.append(reinterpret_cast<const char*>(digest.data()), digest.size());
}

// Takes a record apart. Whoever reads past the end gets zeros and `ok` turns false.
struct RecordReader {
  std::string_view rest;
  bool ok = true;

  std::string_view bytes(std::size_t n) {
    if (n > rest.size()) {
      ok = false;
      return {};
    }
    const std::string_view out = rest.substr(0, n);
    rest.remove_prefix(n);
    return out;
  }
  std::uint32_t u32() {
    const std::string_view from = bytes(4);
    std::uint32_t value = 0;
    if (ok) std::memcpy(&value, from.data(), 4);
    return value;
  }
  std::string text() { return std::string(bytes(u32())); }
  ShortDigest digest() {
    ShortDigest out{};
    const std::string_view from = bytes(out.size());
    if (ok) std::memcpy(out.data(), from.data(), out.size());
    return out;
  }
};

}  // namespace

// Texts are kept as digests: they are only ever compared.
struct AnswerMemory::Answer {
  struct Call {
    std::string id, name;
    ShortDigest arguments;
  };
  std::vector<TokenId> tokens;
  ThinkingMode mode = ThinkingMode::thinking;
  ShortDigest content{}, reasoning{};
  std::vector<Call> calls;
  std::vector<std::string> names;

  [[nodiscard]] std::size_t nbytes() const {
    std::size_t n = kOverhead + tokens.size() * sizeof(TokenId);
    for (const Call& call : calls) n += kOverhead + call.id.size() + call.name.size();
    for (const std::string& name : names) n += kOverhead + name.size();
    return n;
  }

  [[nodiscard]] bool has_calls(const std::vector<ToolCall>& others) const {
    return std::ranges::equal(calls, others, [](const Call& mine, const ToolCall& other) {
      return mine.name == other.name &&
             mine.arguments == short_digest(normal_arguments(other.arguments));
    });
  }
  [[nodiscard]] bool has_ids(const std::vector<ToolCall>& others) const {
    return std::ranges::equal(calls, others, {}, &Call::id, &ToolCall::id);
  }
  [[nodiscard]] bool says(const Message& message) const {
    const std::string_view text = trimmed(message.content);
    const std::string_view thought = trimmed(message.reasoning_content);
    return ((text.empty() && !calls.empty()) || content == short_digest(text)) &&
           (thought.empty() || reasoning == short_digest(thought));
  }

  [[nodiscard]] std::string encoded() const {
    std::string out;
    put_u32(out, mode == ThinkingMode::thinking ? 1 : 0);
    put_digest(out, content), put_digest(out, reasoning);
    put_u32(out, calls.size());
    for (const Call& call : calls) {
      put_text(out, call.id), put_text(out, call.name), put_digest(out, call.arguments);
    }
    put_u32(out, names.size());
    for (const std::string& name : names) put_text(out, name);
    put_u32(out, tokens.size());
    const auto raw = std::as_bytes(std::span(tokens));
    out.append(reinterpret_cast<const char*>(raw.data()), raw.size());
    return out;
  }

  // Null when the record is not one of ours.
  static std::shared_ptr<const Answer> decoded(std::string_view record) {
    RecordReader in{record};
    auto out = std::make_shared<Answer>();
    out->mode = in.u32() == 1 ? ThinkingMode::thinking : ThinkingMode::chat;
    out->content = in.digest(), out->reasoning = in.digest();
    for (std::uint32_t n = in.u32(); in.ok && n > 0; --n) {
      Call call;
      call.id = in.text(), call.name = in.text(), call.arguments = in.digest();
      out->calls.push_back(std::move(call));
    }
    for (std::uint32_t n = in.u32(); in.ok && n > 0; --n) out->names.push_back(in.text());
    const std::size_t n_tokens = in.u32();
    const std::string_view raw = in.bytes(n_tokens * sizeof(TokenId));
    if (!in.ok || !in.rest.empty() || n_tokens == 0 || out->names.empty()) return nullptr;
    out->tokens.resize(n_tokens);
    std::memcpy(out->tokens.data(), raw.data(), raw.size());
    return out;
  }
};

PromptDigest::PromptDigest(std::string_view domain) : chain_(sha256(domain)) {}

void PromptDigest::extend(std::span<const TokenId> tokens) {
  while (!tokens.empty()) {
    const std::size_t n = std::min(tokens.size(), kBlock - unfinished_.size());
    unfinished_.insert(unfinished_.end(), tokens.begin(), tokens.begin() + std::ptrdiff_t(n));
    tokens = tokens.subspan(n);
    if (unfinished_.size() < kBlock) return;
    Sha256 hash;
    hash.update(chain_);
    hash.update(std::as_bytes(std::span(unfinished_)));
    chain_ = hash.finish();
    unfinished_.clear();
  }
}

PromptDigest::Key PromptDigest::answer_key(std::string_view content,
                                           const std::vector<ToolCall>& calls) const {
  std::string head;  // lengths first: no two answers have the same bytes
  put_u32(head, unfinished_.size());
  put_text(head, trimmed(content));
  put_u32(head, calls.size());
  for (const ToolCall& call : calls) {
    put_text(head, call.name), put_text(head, normal_arguments(call.arguments));
  }
  Sha256 hash;
  hash.update(chain_);
  hash.update(head);
  hash.update(std::as_bytes(std::span(unfinished_)));
  return shortened(hash.finish());
}

bool same_arguments(std::string_view a, std::string_view b) {
  return a == b || normal_arguments(a) == normal_arguments(b);
}

AnswerMemory::AnswerMemory(AnswerMemoryOptions options) : options_(std::move(options)) {
  if (options_.file.empty()) return;
  FileSystem& files = options_.file_system != nullptr ? *options_.file_system : FileSystem::real();
  log_ = std::make_unique<AnswerLog>(files, options_.file, options_.fingerprint);
  counters_.skipped_bytes = log_->open([&](std::string_view record) {
    if (auto answer = Answer::decoded(record)) insert(std::move(answer));
  });
}

AnswerMemory::~AnswerMemory() = default;

void AnswerMemory::remember(const RememberedAnswer& answer, std::span<const TokenId> prompt,
                            std::string_view domain) {
  if (answer.tokens.empty()) return;
  auto out = std::make_shared<Answer>();
  out->tokens = answer.tokens;
  out->mode = answer.mode;
  out->content = short_digest(trimmed(answer.content));
  out->reasoning = short_digest(trimmed(answer.reasoning));
  for (const ToolCall& call : answer.calls) {
    out->calls.push_back({call.id, call.name, short_digest(normal_arguments(call.arguments))});
    if (!call.id.empty()) out->names.push_back(call_name(call.id));
  }
  if (!answer.pointer.empty()) out->names.push_back(pointer_name(answer.pointer));
  PromptDigest digest(domain);
  digest.extend(prompt);
  out->names.push_back(turn_name(digest.answer_key(answer.content, answer.calls)));

  const std::scoped_lock lock(mutex_);
  insert(out);
  write(*out);
}

std::shared_ptr<const std::vector<TokenId>> AnswerMemory::find(const Message& message,
                                                               ThinkingMode mode,
                                                               const PromptDigest& prompt) {
  // By the strongest name first. A name of our own making finds exactly one answer; what was
  // answered to the same prompt in the same words is as good.
  std::vector<std::string> names;
  if (!message.tool_calls.empty() && !message.tool_calls.front().id.empty()) {
    names.push_back(call_name(message.tool_calls.front().id));
  }
  if (!message.answer_pointer.empty()) names.push_back(pointer_name(message.answer_pointer));
  names.push_back(turn_name(prompt.answer_key(message.content, message.tool_calls)));

  for (const std::string& name : names) {
    const std::shared_ptr<const Answer> answer = look_up(name);
    if (!answer || answer->mode != mode || !answer->has_calls(message.tool_calls)) continue;
    if (name.front() == 'c' && !answer->has_ids(message.tool_calls)) continue;
    if (!answer->says(message)) continue;
    const std::scoped_lock lock(mutex_);
    ++counters_.hits;
    return {answer, &answer->tokens};
  }
  const std::scoped_lock lock(mutex_);
  ++counters_.misses;
  return nullptr;
}

std::shared_ptr<const AnswerMemory::Answer> AnswerMemory::look_up(const std::string& name) {
  const std::scoped_lock lock(mutex_);
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) return nullptr;
  answers_.splice(answers_.begin(), answers_, found->second);
  return *found->second;
}

AnswerMemory::Stats AnswerMemory::stats() const {
  const std::scoped_lock lock(mutex_);
  Stats out = counters_;
  out.n_answers = answers_.size();
  out.n_ids = by_name_.size();
  out.nbytes = nbytes_;
  return out;
}

void AnswerMemory::insert(std::shared_ptr<const Answer> answer) {
  nbytes_ += answer->nbytes();
  answers_.push_front(std::move(answer));
  const Answers::iterator newest = answers_.begin();
  for (const std::string& name : (*newest)->names) {
    const auto [place, is_new] = by_name_.try_emplace(name, newest);
    if (is_new || place->second == newest) continue;
    // The name means the newer answer now; the older one may still have others.
    const Answers::iterator older = std::exchange(place->second, newest);
    const bool has_others = std::ranges::any_of((*older)->names, [&](const std::string& other) {
      const auto found = by_name_.find(other);
      return found != by_name_.end() && found->second == older;
    });
    if (!has_others) forget(older);
  }
  while (answers_.size() > 1 &&
         (by_name_.size() > options_.max_ids || nbytes_ > options_.max_bytes)) {
    forget(std::prev(answers_.end()));
  }
}

void AnswerMemory::forget(Answers::iterator answer) {
  for (const std::string& name : (*answer)->names) {
    const auto found = by_name_.find(name);
    if (found != by_name_.end() && found->second == answer) by_name_.erase(found);
  }
  nbytes_ -= (*answer)->nbytes();
  answers_.erase(answer);
}

void AnswerMemory::write(const Answer& answer) {
  if (!log_) return;
  try {
    // A remembered answer takes more memory than space in the file.
    if (log_->nbytes() > 2 * nbytes_ + kMaxGarbage) {
      log_->rewrite([&](const auto& put) {
        for (auto it = answers_.rbegin(); it != answers_.rend(); ++it) put((*it)->encoded());
      });
    } else {
      log_->append(answer.encoded());
    }
  } catch (const Error& e) {
    // A full disk costs the next start some answers, and this one nothing.
    counters_.file_error = e.what();
    log_.reset();
  }
}

}  // namespace hadal::protocol
