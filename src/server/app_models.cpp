// What a client may want to know of the model and of its own prompt.
#include <fmt/format.h>

#include "core/error.h"
#include "io/utf8.h"
#include "protocol/api_json.h"
#include "server/api_errors.h"
#include "server/app.h"

namespace hadal::server {

using namespace protocol;  // requests

std::string App::model_json(const std::string& id) const {
  const ServedModel& model = backend_->model;
  JsonWriter out;
  out.begin_object().member("id", id).member("object", "model").member("created", model.created);
  out.member("owned_by", "local");
  out.member("context_length", model.context_length);
  out.member("max_output_tokens", model.max_output_tokens);
  out.member("chat_profile", to_string(model.profile));
  out.key("capabilities").begin_object();
  const bool fim = model.tokenizer.token_id("<｜fim▁begin｜>").has_value();
  for (const char* name : {"thinking", "tools", "json_schema"}) {
    out.key(name).boolean(model.can_chat);
  }
  out.key("fim").boolean(fim).end_object();
  // Anthropic's clients read these two.
  out.member("type", "model").member("display_name", id);
  out.end_object();
  return out.take();
}

void App::list_models(Call& call) {
  const ServedModel& model = backend().model;
  JsonWriter out;
  out.begin_object().member("object", "list").key("data").begin_array();
  out.raw(model_json(model.id));
  for (const std::string& alias : model.aliases) out.raw(model_json(alias));
  out.end_array().key("has_more").boolean(false);
  out.member("first_id", model.id);
  out.member("last_id", model.aliases.empty() ? model.id : model.aliases.back());
  out.end_object();
  respond(call, 200, out.take());
}

void App::get_model(Call& call) {
  const ServedModel& model = backend().model;
  if (!resolve_model(model, call.id, false).known) {
    throw not_found(fmt::format("there is no model \"{}\" here; there is \"{}\"",
                                call.id.substr(0, 200), model.id),
                    "model_not_found");
  }
  respond(call, 200, model_json(call.id));
}

namespace {

std::string ids_json(const std::vector<TokenId>& ids) {
  std::string out = "[";
  for (const TokenId id : ids) out += fmt::format("{}{}", out.size() > 1 ? "," : "", id);
  return out + "]";
}

// Bytes of a token as text, U+FFFD for what is no character by itself.
std::string token_text(const io::Tokenizer& tokenizer, TokenId id) {
  io::Utf8Stream utf8;
  std::string text = utf8.feed(tokenizer.token_bytes(id));
  return text + utf8.finish();
}

bool flag(const Json& body, const char* name, bool otherwise) {
  const Json* value = body.find(name);
  if (value == nullptr || value->is_null()) return otherwise;
  if (const bool* set = value->as<bool>()) return *set;
  throw invalid_request(fmt::format("{}: wanted true or false", name), name);
}

}  // namespace

// {"prompt" (or "text", "content"): "...", "add_special_tokens": false, "parse_special": true},
// or {"messages": [...]} as a chat request has them.
void App::tokenize(Call& call) {
  const ServedModel& model = backend().model;
  Json body = parse_body(call.request().body);
  std::vector<TokenId> ids;
  if (body.find("messages") != nullptr) {
    call.api = Api::chat_completions;
    if (body.find("model") == nullptr) {
      if (auto* object = std::get_if<Json::Object>(&body.value)) {
        object->push_back({"model", Json(Json::Value(model.id))});
      }
    }
    ids = encode_chat(parse(call, body), model, generation_, backend().memory, {}).tokens;
  } else {
    const std::string* text = nullptr;
    for (const char* name : {"prompt", "text", "content"}) {
      if (const Json* value = body.find(name); value != nullptr && text == nullptr) {
        text = value->as<std::string>();
        if (text == nullptr) throw invalid_request(fmt::format("{}: wanted a string", name), name);
      }
    }
    if (text == nullptr) {
      throw invalid_request("wanted \"prompt\", a text, or \"messages\", a conversation", "prompt");
    }
    const auto special =
        flag(body, "parse_special", true) ? io::SpecialTokens::parse : io::SpecialTokens::ignore;
    ids = model.tokenizer.encode(*text, special);
    if (flag(body, "add_special_tokens", false)) ids.insert(ids.begin(), model.bos);
  }
  JsonWriter out;
  out.begin_object().member("count", static_cast<std::int64_t>(ids.size()));
  out.member("max_model_len", model.context_length).key("tokens").raw(ids_json(ids));
  out.key("token_strs").begin_array();
  for (const TokenId id : ids) out.text(token_text(model.tokenizer, id));
  out.end_array().end_object();
  respond(call, 200, out.take());
}

void App::detokenize(Call& call) {
  const ServedModel& model = backend().model;
  const Json body = parse_body(call.request().body);
  const Json* tokens = body.find("tokens");
  const auto* list = tokens == nullptr ? nullptr : tokens->as<Json::Array>();
  if (list == nullptr) throw invalid_request("tokens: wanted an array of ids", "tokens");
  std::vector<TokenId> ids;
  for (const Json& entry : *list) {
    const auto* integer = entry.as<Json::Integer>();
    TokenId id = -1;
    if (integer != nullptr && integer->digits.size() < 9) id = std::stoi(integer->digits);
    if (id < 0 || id >= model.tokenizer.vocab_size()) {
      throw invalid_request(
          fmt::format("tokens: wanted ids from 0 to {}, found {}", model.tokenizer.vocab_size() - 1,
                      entry.dump().substr(0, 40)),
          "tokens");
    }
    ids.push_back(id);
  }
  std::string bytes;
  try {
    bytes = model.tokenizer.decode(ids);
  } catch (const Error& error) {
    throw invalid_request(error.what(), "tokens");
  }
  io::Utf8Stream utf8;
  std::string text = utf8.feed(bytes);
  text += utf8.finish();
  JsonWriter out;
  out.begin_object().member("prompt", text).member("text", text).end_object();
  respond(call, 200, out.take());
}

// The prompt that a chat request becomes, as text and as tokens.
void App::render_chat(Call& call) {
  const ServedModel& model = backend().model;
  call.api = Api::chat_completions;
  Json body = parse_body(call.request().body);
  const ApiRequest request = parse(call, body);
  const std::string domain = cache_domain(generation_, *call.key, request.user_id);
  const EncodedPrompt prompt = encode_chat(request, model, generation_, backend().memory, domain);
  JsonWriter out;
  out.begin_object();
  io::Utf8Stream utf8;
  std::string text = utf8.feed(model.tokenizer.decode(prompt.tokens));
  text += utf8.finish();
  out.member("prompt", text).key("tokens").raw(ids_json(prompt.tokens));
  out.member("count", static_cast<std::int64_t>(prompt.tokens.size()));
  out.member("end_of_system", prompt.end_of_system_position);
  out.member("answers", static_cast<std::int64_t>(prompt.n_answers));
  out.member("remembered_answers", static_cast<std::int64_t>(prompt.n_remembered));
  out.end_object();
  respond(call, 200, out.take());
}

void App::count_tokens(Call& call) {
  const ServedModel& model = backend().model;
  call.api = Api::messages;
  Json body = parse_body(call.request().body);
  // The one member that a count does not need.
  if (auto* object = std::get_if<Json::Object>(&body.value);
      object != nullptr && body.find("max_tokens") == nullptr) {
    object->push_back({"max_tokens", Json(Json::Value(Json::Integer{"1"}))});
  }
  const ApiRequest request = parse(call, body);
  const std::string domain = cache_domain(generation_, *call.key, request.user_id);
  const EncodedPrompt prompt = encode_chat(request, model, generation_, backend().memory, domain);
  respond(call, 200,
          fmt::format("{{\"input_tokens\": {}}}", static_cast<std::int64_t>(prompt.tokens.size())));
}

}  // namespace hadal::server
