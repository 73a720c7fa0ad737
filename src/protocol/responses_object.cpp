#include "protocol/responses_object.h"

#include "protocol/openai_parts.h"

namespace hadal::protocol {
namespace {

// Through the writer, so that what a client wrote cannot break a line of an event.
void write_json(JsonWriter& out, const Json& json) {
  if (const auto* text = json.as<std::string>()) {
    out.text(*text);
  } else if (const auto* array = json.as<Json::Array>()) {
    out.begin_array();
    for (const Json& element : *array) write_json(out, element);
    out.end_array();
  } else if (const auto* object = json.as<Json::Object>()) {
    out.begin_object();
    for (const Json::Member& member : *object) write_json(out.key(member.key), member.value);
    out.end_object();
  } else {
    out.raw(json.dump());
  }
}

const char* to_string(ItemStatus status) {
  switch (status) {
    case ItemStatus::in_progress:
      return "in_progress";
    case ItemStatus::completed:
      return "completed";
    case ItemStatus::incomplete:
      return "incomplete";
  }
  return "?";
}

void write_call(JsonWriter& out, const ResponsesItem& item, bool is_empty) {
  const std::string_view text = is_empty ? std::string_view() : std::string_view(item.text);
  out.member("call_id", item.call_id).member("name", item.tool.name);
  if (!item.tool.name_space.empty()) out.member("namespace", item.tool.name_space);
  if (item.tool.is_custom) {
    // Half of the JSON around an input is no input.
    const bool has_input = !is_empty && item.is_complete;
    out.member("input", has_input ? custom_input(text) : std::string());
  } else {
    out.member("arguments", text);
  }
}

void write_responses_usage(JsonWriter& out, const Usage& usage) {
  out.begin_object().member("input_tokens", usage.prompt_tokens);
  out.key("input_tokens_details").begin_object();
  out.member("cached_tokens", usage.cached_tokens);
  out.member("cache_write_tokens", usage.cache_write_tokens).end_object();
  out.member("output_tokens", usage.completion_tokens);
  out.key("output_tokens_details").begin_object();
  out.member("reasoning_tokens", usage.reasoning_tokens).end_object();
  out.member("total_tokens", usage.prompt_tokens + usage.completion_tokens).end_object();
}

}  // namespace

void write_part(JsonWriter& out, const ResponsesItem& item, bool is_empty) {
  const std::string_view text = is_empty ? std::string_view() : std::string_view(item.text);
  out.begin_object();
  if (item.kind == ResponsesItem::Kind::reasoning) {
    out.member("type", "reasoning_text").member("text", text);
  } else {
    out.member("type", "output_text").key("annotations").begin_array().end_array();
    out.key("logprobs").raw(is_empty ? "[]" : "[" + item.logprobs + "]").member("text", text);
  }
  out.end_object();
}

void write_item(JsonWriter& out, const ResponsesItem& item, ItemStatus status, bool is_empty,
                const std::string& pointer) {
  out.begin_object().member("id", item.id);
  const auto content = [&] {
    out.key("content").begin_array();
    if (!is_empty) write_part(out, item, false);
    out.end_array();
  };
  switch (item.kind) {
    case ResponsesItem::Kind::reasoning:
      out.member("type", "reasoning").key("summary").begin_array().end_array();
      content();
      out.member("encrypted_content", pointer);
      break;
    case ResponsesItem::Kind::message:
      out.member("type", "message").member("role", "assistant");
      content();
      break;
    case ResponsesItem::Kind::call:
      out.member("type", item.tool.is_custom ? "custom_tool_call" : "function_call");
      write_call(out, item, is_empty);
      break;
  }
  out.member("status", to_string(status)).end_object();
}

void write_response(JsonWriter& out, const ResponseIdentity& identity, const Json& echoed,
                    bool background, const std::vector<ResponsesItem>& items,
                    const ResponsesOutcome& outcome, const std::string& pointer) {
  out.begin_object().member("id", "resp_" + identity.id).member("object", "response");
  out.member("created_at", identity.created).member("status", outcome.status);
  out.key("background").boolean(background).key("error");
  if (outcome.error) {
    out.begin_object().member("code", "server_error");
    out.member("message", outcome.error->message).end_object();
  } else {
    out.null();
  }
  out.key("incomplete_details");
  if (outcome.incomplete_reason != nullptr) {
    out.begin_object().member("reason", outcome.incomplete_reason).end_object();
  } else {
    out.null();
  }
  out.member("model", identity.model).key("output").begin_array();
  // A text is whole unless a limit cut the last one.
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is_complete) continue;
    const bool is_cut = outcome.incomplete_reason != nullptr && i + 1 == items.size() &&
                        items[i].kind != ResponsesItem::Kind::call;
    write_item(out, items[i], is_cut ? ItemStatus::incomplete : ItemStatus::completed, false,
               pointer);
  }
  out.end_array();
  if (const auto* members = echoed.as<Json::Object>()) {
    for (const Json::Member& member : *members) write_json(out.key(member.key), member.value);
  }
  out.key("usage");
  if (outcome.usage) {
    write_responses_usage(out, *outcome.usage);
  } else {
    out.null();
  }
  out.end_object();
}

}  // namespace hadal::protocol
