#include "dataset/document_encoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/digest.h"
#include "core/error.h"
#include "core/rng.h"
#include "dataset/chat_document.h"
#include "io/tokenizer_writer.h"
#include "io/utf8.h"
#include "protocol/json_text.h"
#include "train/data_shard_format.h"

namespace hadal::dataset {
namespace {

// What the random bits of a document are for; apart from each other under one seed.
enum class Draw : std::uint32_t { fim = 0x46494D, split = 0x53504C };

std::array<std::uint32_t, 4> draw(Draw purpose, std::uint64_t seed, std::uint64_t key,
                                  std::uint32_t n) {
  return philox4x32({n, static_cast<std::uint32_t>(purpose), static_cast<std::uint32_t>(key),
                     static_cast<std::uint32_t>(key >> 32)},
                    seed);
}

[[noreturn]] void bad(const std::string& place, const std::string& what) {
  throw Error(ErrorCode::corrupt_data, place + ": " + what);
}

TokenId required(const io::Tokenizer& tokenizer, std::string_view name, const char* purpose) {
  const auto id = tokenizer.token_id(name);
  if (!id) {
    throw Error(ErrorCode::unsupported,
                fmt::format("the tokenizer has no {}, which {} needs", name, purpose));
  }
  return *id;
}

void expect_text(std::string_view text, const std::string& place, std::uint64_t offset) {
  if (const auto at = text.find('\0'); at != std::string_view::npos) {
    bad(place, fmt::format("byte {} is NUL: this is no text; leave the file out", offset + at));
  }
  if (const auto at = io::find_invalid_utf8(text)) {
    bad(place, fmt::format("byte {} is 0x{:02X}, which begins no complete character of UTF-8; "
                           "convert the file to UTF-8 first",
                           offset + *at, static_cast<unsigned char>(text[*at])));
  }
}

// The nearest place at or before `at` where no character is cut.
std::size_t character_begin(std::string_view text, std::size_t at) {
  while (at > 0 && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

// Checks a document and hands it on: its text, or the conversation that it is. Every complaint is
// of the document's place.
template <class Result, class OnText, class OnChat>
Result visit_content(const RawDocument& document, const std::string& place,
                     const EncodeOptions& options, const OnText& on_text, const OnChat& on_chat) {
  if (document.text.empty() && document.line == 0) bad(place, "is empty; leave the file out");
  expect_text(document.text, place, document.offset);
  try {
    if (document.kind == SourceKind::text) return on_text(document.text);
    const auto json = protocol::Json::parse(document.text);
    if (json.find("messages") != nullptr) return on_chat(chat_from_json(json, options));
    const protocol::Json* text = json.find("text");
    const auto* value = text != nullptr ? text->as<std::string>() : nullptr;
    if (value == nullptr) {
      bad(place, "wanted an object with \"text\" (a string) or \"messages\" (an array)");
    }
    if (value->find('\0') != std::string::npos) bad(place, "\"text\" has a NUL character");
    return on_text(*value);
  } catch (const Error& error) {
    if (std::string_view(error.what()).starts_with(place)) throw;
    bad(place, error.what());
  }
}

}  // namespace

std::uint64_t content_key(std::string_view text) {
  const Sha256Digest digest = sha256(text);
  std::uint64_t key = 0;
  for (std::size_t i = 0; i < 8; ++i) key = key << 8 | std::to_integer<std::uint64_t>(digest[i]);
  return key;
}

double unit_of(std::uint64_t key) {
  return static_cast<double>(key >> 11) * 0x1p-53;
}

DocumentEncoder::DocumentEncoder(io::Tokenizer tokenizer, const EncodeOptions& options)
    : tokenizer_(std::move(tokenizer)),
      options_(options),
      begin_(required(tokenizer_, io::kBeginOfSentence, "every document")),
      end_(required(tokenizer_, io::kEndOfSentence, "every document")),
      pad_(tokenizer_.token_id(io::kPadding).value_or(end_)) {
  if (options.fim_rate > 0) {
    for (const std::string_view name : {io::kFimBegin, io::kFimHole, io::kFimEnd}) {
      (void)required(tokenizer_, name, "filling in the middle");
    }
  }
  if (options.split_rate > 0) find_split_tokens();
}

std::optional<train::TokenDocument> DocumentEncoder::encode(const RawDocument& document,
                                                            const std::string& place,
                                                            std::uint64_t key) const {
  return visit_content<std::optional<train::TokenDocument>>(
      document, place, options_,
      [&](std::string_view text) -> std::optional<train::TokenDocument> {
        if (is_blank(text)) return std::nullopt;
        return encode_text(text, key);
      },
      [&](const ChatDocument& chat) -> std::optional<train::TokenDocument> {
        return encode_chat(tokenizer_, chat);
      });
}

std::vector<std::string> plain_texts(const RawDocument& document, const std::string& place) {
  return visit_content<std::vector<std::string>>(
      document, place, {},
      [](std::string_view text) { return std::vector<std::string>{std::string(text)}; },
      [](const ChatDocument& chat) {
        std::vector<std::string> texts;
        for (io::TextSegment& segment : protocol::render(chat.conversation, chat.render)) {
          if (!segment.trusted) texts.push_back(std::move(segment.text));
        }
        return texts;
      });
}

train::TokenDocument DocumentEncoder::encode_text(std::string_view text, std::uint64_t key) const {
  train::TokenDocument out;
  out.text_bytes = std::ssize(text);
  const bool is_fim =
      options_.fim_rate > 0 &&
      unit_of(std::uint64_t{draw(Draw::fim, options_.seed, key, 0)[0]} << 32) < options_.fim_rate;
  out.tokens = is_fim ? encode_fim(text, key) : tokenizer_.encode(text, io::SpecialTokens::ignore);
  if (is_fim) out.flags |= train::kFimDocument;
  if (!split_tokens_.empty()) out.tokens = split_some(out.tokens, key);
  out.tokens.insert(out.tokens.begin(), begin_);
  out.tokens.push_back(end_);
  return out;
}

// Prefix, suffix, middle: two places between characters, all pairs of bytes alike.
std::vector<TokenId> DocumentEncoder::encode_fim(std::string_view text, std::uint64_t key) const {
  const auto bits = draw(Draw::fim, options_.seed, key, 1);
  const auto place = [&](std::size_t i) {
    const double at = unit_of(std::uint64_t{bits[i]} << 32 | bits[i + 1]);
    return character_begin(text,
                           static_cast<std::size_t>(at * static_cast<double>(text.size() + 1)));
  };
  auto [first, second] = std::minmax({place(0), place(2)});
  const auto trusted = [](std::string_view name) {
    return io::TextSegment{std::string(name), true};
  };
  const auto untrusted = [](std::string_view part) {
    return io::TextSegment{std::string(part), false};
  };
  const std::array segments = {
      trusted(io::kFimBegin), untrusted(text.substr(0, first)),
      trusted(io::kFimHole),  untrusted(text.substr(second)),
      trusted(io::kFimEnd),   untrusted(text.substr(first, second - first))};
  return tokenizer_.encode(segments);
}

void DocumentEncoder::find_split_tokens() {
  for (TokenId id = 0; id < tokenizer_.vocab_size(); ++id) {
    std::string_view bytes;
    try {
      bytes = tokenizer_.token_bytes(id);
    } catch (const Error&) {
      continue;  // an id that is not in use
    }
    if (tokenizer_.is_added(id)) continue;
    const std::size_t last = bytes.find_last_not_of("\r\n");
    if (last == std::string_view::npos || last + 1 == bytes.size()) continue;
    // The pre-tokenizer lets nothing but punctuation and symbols share a token with line breaks
    // behind them. Half a character cannot be encoded by itself.
    const std::string_view mark = bytes.substr(0, last + 1);
    if (mark.find_first_not_of(" \t") == std::string_view::npos || io::find_invalid_utf8(mark)) {
      continue;
    }
    SplitToken split{id, tokenizer_.encode(mark, io::SpecialTokens::ignore)};
    for (const TokenId part :
         tokenizer_.encode(bytes.substr(last + 1), io::SpecialTokens::ignore)) {
      split.parts.push_back(part);
    }
    split_tokens_.push_back(std::move(split));
  }
}

const DocumentEncoder::SplitToken* DocumentEncoder::find_split(TokenId token) const {
  const auto found = std::ranges::lower_bound(split_tokens_, token, {}, &SplitToken::token);
  return found != split_tokens_.end() && found->token == token ? &*found : nullptr;
}

std::vector<TokenId> DocumentEncoder::split_some(const std::vector<TokenId>& tokens,
                                                 std::uint64_t key) const {
  std::vector<TokenId> out;
  out.reserve(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const SplitToken* split = find_split(tokens[i]);
    if (split != nullptr &&
        unit_of(
            std::uint64_t{draw(Draw::split, options_.seed, key, static_cast<std::uint32_t>(i))[0]}
            << 32) < options_.split_rate) {
      out.insert(out.end(), split->parts.begin(), split->parts.end());
    } else {
      out.push_back(tokens[i]);
    }
  }
  return out;
}

}  // namespace hadal::dataset
