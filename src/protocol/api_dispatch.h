// The two functions that every API brings. Internal to parse_request() and make_writer().
#pragma once

#include <memory>

#include "protocol/api.h"

namespace hadal::protocol {

[[nodiscard]] ApiRequest parse_chat_completions(const Json& body, const ApiDefaults& defaults);
[[nodiscard]] ApiRequest parse_completions(const Json& body, const ApiDefaults& defaults);
[[nodiscard]] ApiRequest parse_responses(const Json& body, const ApiDefaults& defaults);
[[nodiscard]] ApiRequest parse_messages(const Json& body, const ApiDefaults& defaults);

[[nodiscard]] std::unique_ptr<ResponseWriter> make_chat_writer(const ApiRequest& request,
                                                               const ResponseIdentity& identity);
[[nodiscard]] std::unique_ptr<ResponseWriter> make_completions_writer(
    const ApiRequest& request, const ResponseIdentity& identity);
[[nodiscard]] std::unique_ptr<ResponseWriter> make_responses_writer(
    const ApiRequest& request, const ResponseIdentity& identity);
[[nodiscard]] std::unique_ptr<ResponseWriter> make_messages_writer(
    const ApiRequest& request, const ResponseIdentity& identity);

}  // namespace hadal::protocol
