#include "protocol/api_dispatch.h"

#include "core/error.h"

namespace hadal::protocol {

ApiRequest parse_request(Api api, const Json& body, const ApiDefaults& defaults) {
  switch (api) {
    case Api::chat_completions:
      return parse_chat_completions(body, defaults);
    case Api::completions:
      return parse_completions(body, defaults);
    case Api::responses:
      return parse_responses(body, defaults);
    case Api::messages:
      return parse_messages(body, defaults);
  }
  throw Error(ErrorCode::invalid_argument, "no such API");
}

std::unique_ptr<ResponseWriter> make_writer(const ApiRequest& request,
                                            const ResponseIdentity& identity) {
  switch (request.api) {
    case Api::chat_completions:
      return make_chat_writer(request, identity);
    case Api::completions:
      return make_completions_writer(request, identity);
    case Api::responses:
      return make_responses_writer(request, identity);
    case Api::messages:
      return make_messages_writer(request, identity);
  }
  throw Error(ErrorCode::invalid_argument, "no such API");
}

}  // namespace hadal::protocol
