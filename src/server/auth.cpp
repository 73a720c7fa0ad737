#include "server/auth.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "core/digest.h"
#include "core/error.h"
#include "protocol/json_text.h"

namespace hadal::server {

using protocol::Json;

double TokenBucket::level(double now_seconds) {
  const std::lock_guard lock(mutex_);
  if (at_ >= 0) {
    level_ = std::min(per_minute_, level_ + (now_seconds - at_) * per_minute_ / 60);
  }
  at_ = now_seconds;
  return level_;
}

void TokenBucket::take(double n, double now_seconds) {
  (void)level(now_seconds);
  const std::lock_guard lock(mutex_);
  level_ -= n;
}

double TokenBucket::seconds_to_refill(double now_seconds) {
  const double now = level(now_seconds);
  return now >= 1 ? 0 : (1 - now) * 60 / per_minute_;
}

ApiKey::ApiKey(std::string key_name, std::string key_secret, KeyLimits key_limits)
    : name(std::move(key_name)), secret(std::move(key_secret)), limits(std::move(key_limits)) {
  if (limits.input_tokens_per_minute) {
    input = std::make_unique<TokenBucket>(*limits.input_tokens_per_minute);
  }
  if (limits.output_tokens_per_minute) {
    output = std::make_unique<TokenBucket>(*limits.output_tokens_per_minute);
  }
}

KeyRing::KeyRing() : anonymous_(std::make_unique<ApiKey>("", "", KeyLimits{.max_priority = 100})) {}

void KeyRing::add(std::string name, std::string secret, KeyLimits limits) {
  keys_.push_back(std::make_unique<ApiKey>(std::move(name), std::move(secret), std::move(limits)));
}

namespace {

// One member of a key's entry: a whole number above zero.
std::optional<std::int64_t> positive(const Json& entry, const char* name,
                                     const std::string& where) {
  const Json* value = entry.find(name);
  if (value == nullptr || value->is_null()) return std::nullopt;
  std::int64_t n = 0;
  if (const auto* integer = value->as<Json::Integer>()) {
    const char* end = integer->digits.data() + integer->digits.size();
    const auto [rest, error] = std::from_chars(integer->digits.data(), end, n);
    if (error == std::errc() && rest == end && n > 0) return n;
  }
  throw Error(ErrorCode::corrupt_data, fmt::format("{}.{}: wanted a whole number above 0, found {}",
                                                   where, name, value->dump().substr(0, 40)));
}

const std::string& text_of(const Json& entry, const char* name, const std::string& where) {
  const Json* value = entry.find(name);
  const auto* text = value == nullptr ? nullptr : value->as<std::string>();
  if (text == nullptr || text->empty()) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}.{}: wanted a string that is not empty", where, name));
  }
  return *text;
}

}  // namespace

void KeyRing::add_file(const Path& file) {
  const std::string text = read_text(file);
  const std::optional<Json> json = Json::try_parse(text);
  const Json* keys = json ? json->find("keys") : nullptr;
  if (keys == nullptr || keys->as<Json::Array>() == nullptr) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: wanted {{\"keys\": [{{\"name\": ..., \"key\": ...}}, ...]}}",
                            file.string()));
  }
  const Json::Array& entries = *keys->as<Json::Array>();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Json& entry = entries[i];
    const std::string where = fmt::format("{}: keys[{}]", file.string(), i);
    static constexpr std::string_view kKnown[] = {
        "name",   "key",        "concurrent", "queued",      "input_tokens_per_minute",
        "models", "max_output", "priority",   "max_context", "output_tokens_per_minute"};
    if (const auto* members = entry.as<Json::Object>()) {
      for (const Json::Member& member : *members) {
        if (std::ranges::find(kKnown, member.key) != std::end(kKnown)) continue;
        throw Error(ErrorCode::corrupt_data,
                    fmt::format("{}: there is no limit \"{}\"", where, member.key));
      }
    }
    KeyLimits limits;
    limits.concurrent = positive(entry, "concurrent", where);
    limits.queued = positive(entry, "queued", where);
    limits.input_tokens_per_minute = positive(entry, "input_tokens_per_minute", where);
    limits.output_tokens_per_minute = positive(entry, "output_tokens_per_minute", where);
    limits.max_context = positive(entry, "max_context", where);
    limits.max_output = positive(entry, "max_output", where);
    limits.max_priority = static_cast<std::int32_t>(
        std::min<std::int64_t>(1000, positive(entry, "priority", where).value_or(0)));
    if (const Json* models = entry.find("models"); models != nullptr && !models->is_null()) {
      const auto* list = models->as<Json::Array>();
      if (list == nullptr) {
        throw Error(ErrorCode::corrupt_data, where + ".models: wanted an array of names");
      }
      for (const Json& model : *list) {
        const auto* model_name = model.as<std::string>();
        if (model_name == nullptr) {
          throw Error(ErrorCode::corrupt_data, where + ".models: wanted an array of names");
        }
        limits.models.push_back(*model_name);
      }
    }
    add(text_of(entry, "name", where), text_of(entry, "key", where), std::move(limits));
  }
}

ApiKey* KeyRing::find(const HttpRequest& request) const {
  if (keys_.empty()) return anonymous_.get();
  std::string_view given;
  if (const auto header = request.header("authorization")) {
    constexpr std::string_view kBearer = "bearer ";
    const std::string_view value = *header;
    bool is_bearer = value.size() > kBearer.size();
    for (std::size_t i = 0; is_bearer && i < kBearer.size(); ++i) {
      is_bearer = (value[i] | 0x20) == (kBearer[i] | 0x20);
    }
    if (is_bearer) given = value.substr(kBearer.size());
  }
  if (given.empty()) given = request.header("x-api-key").value_or("");
  while (given.ends_with(' ')) given.remove_suffix(1);
  ApiKey* found = nullptr;
  for (const auto& key : keys_) {
    if (constant_time_equal(given, key->secret)) found = key.get();
  }
  return found;
}

ApiKey* KeyRing::by_name(const std::string& name) const {
  if (keys_.empty()) return name.empty() ? anonymous_.get() : nullptr;
  for (const auto& key : keys_) {
    if (key->name == name) return key.get();
  }
  return nullptr;
}

}  // namespace hadal::server
