// What several APIs ask for in the same words, read into the neutral request.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "core/error.h"
#include "protocol/api_fields.h"

namespace hadal::protocol {

// The fields of an API's body; each of these reads its members and leaves the rest alone.

// `model`: required, not empty.
void read_model(Fields& body, ApiRequest& request);
// temperature, top_p, top_k, min_p, the penalties, logit_bias, seed. Source: serving notes §4.2.
void read_sampling(Fields& body, ApiRequest& request);
// `key`: a string or an array of at most 16, each of 1 to 256 bytes.
void read_stop(Fields& body, std::string_view key, ApiRequest& request);
// `stream` and `stream_options`.
void read_stream(Fields& body, ApiRequest& request);
// user_id (or user), priority, stream_id, resumable, ignore_eos, min_tokens, thinking_budget: ours
// and those that several servers have. Reads max_tokens of the request, so call it afterwards.
void read_extensions(Fields& body, ApiRequest& request);

// Whether, and how much, the model is to think. What is unset is decided by `defaults`.
struct ThinkingWish {
  std::optional<bool> enabled = {};
  std::string effort = {};       // the client's word; "" for none given
  std::string effort_path = {};  // where it stands
};
// Sets thinking_mode and effort. The word "none" asks for no thinking whatever else is said.
void apply_thinking(const ThinkingWish& wish, const ApiDefaults& defaults, ApiRequest& request);

// Where the client wrote message i of the conversation: "messages[3]".
using MessagePath = std::function<std::string(std::size_t)>;

// The last step of parsing a conversation, when messages, tools, format and thinking mode are set:
// refuses what the model must not be asked (serving notes §4.6); gives system and developer
// messages behind the head to the user (or refuses them); joins those at the head by a blank line;
// attaches tools and answer format to the head; sets continues_answer and continues_reasoning from
// a last message with wo_eos. Keeps cache_marks on their messages.
// Source: serving notes §1.2, §1.3, §1.5, §4.8.
void finish_conversation(ApiRequest& request, const ApiDefaults& defaults,
                         const MessagePath& path_of);

// `error` as what is wrong with the member at `path`.
[[nodiscard]] ApiException api_exception(const Error& error, std::string_view path);

// `prefix` and 24 base62 characters made of the response's nonce, a kind of thing and its place:
// nobody who does not know the nonce can guess them, and they are the same in every replay.
[[nodiscard]] std::string derived_id(std::string_view prefix, const ResponseIdentity& identity,
                                     std::string_view kind, std::int32_t choice, std::size_t index);

}  // namespace hadal::protocol
