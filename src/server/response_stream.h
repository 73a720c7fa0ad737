// Tokens -> text -> events -> JSON or SSE: one reading of one response.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/request.h"
#include "protocol/api.h"
#include "server/answer_reader.h"

namespace hadal::server {

// A drawn token as it is kept for replays.
struct LoggedToken {
  TokenId token = 0;
  std::int32_t choice = 0;  // over all prompts of the request
  float logprob = 0;
  bool is_stop_token = false;
};

// How far a client has read: all that the first n_tokens tokens (over all choices, in log order)
// caused, and n_events of the events behind that. Printed as "12" or "12.3"; what an event's id is
// called behind the stream's name. A client that comes back with it gets exactly the rest.
struct StreamPosition {
  std::uint64_t n_tokens = 0;
  std::uint32_t n_events = 0;
  auto operator<=>(const StreamPosition&) const = default;

  [[nodiscard]] std::string to_string() const;
  // "12", "12.3", or either behind "NAME:".
  [[nodiscard]] static std::optional<StreamPosition> parse(std::string_view text);
};

struct PositionedEvent {
  StreamPosition position;
  std::uint64_t sequence = 0;  // counts the events of the response from 0
  protocol::SseEvent sse;
};

// What is said about a response before and beside its tokens; the same for every reading.
struct ResponsePlan {
  protocol::ApiRequest request;
  protocol::ResponseIdentity identity;
  std::shared_ptr<const AnswerForm> form;
  io::Tokenizer tokenizer;
  TokenId end_of_sentence = -1;
  std::int32_t n_choices = 1;                 // prompts times n
  std::vector<std::vector<TokenId>> prompts;  // in order
};

// A pure function of the plan, the prompt's usage, the tokens and the ends: whoever reads again
// from the beginning gets the same bytes. For one thread at a time.
class ResponseStream {
 public:
  // `stream` in place of the request's, where given: how a re-attached client wants it.
  explicit ResponseStream(std::shared_ptr<const ResponsePlan> plan,
                          std::optional<bool> stream = std::nullopt);

  using Events = std::vector<PositionedEvent>;
  void begin(const protocol::Usage& prompt, Events& out);
  void token(const LoggedToken& token, const std::vector<engine::TopLogprob>* top, Events& out);
  // All choices, in their order; once, after the last token.
  void finish(const std::vector<engine::Finish>& ends, Events& out);

  [[nodiscard]] std::string body() const { return writer_->body(); }
  [[nodiscard]] std::uint64_t n_tokens() const { return position_.n_tokens; }
  [[nodiscard]] const std::vector<AnswerReader>& readers() const { return readers_; }
  // Sums of the choices; the prompt's part is what begin() was told.
  [[nodiscard]] const protocol::Usage& usage() const { return usage_; }

 private:
  void add(std::vector<protocol::SseEvent> events, Events& out);
  void echo(Events& out);

  const std::shared_ptr<const ResponsePlan> plan_;
  std::unique_ptr<protocol::ResponseWriter> writer_;
  std::vector<AnswerReader> readers_;
  StreamPosition position_;
  std::uint64_t sequence_ = 0;
  protocol::Usage usage_;
};

// The answer of one choice as a message, for a conversation that goes on from it.
struct ReadAnswer {
  protocol::Message message;  // calls with the ids that the client was given
  bool is_whole = false;      // ended by itself
  protocol::DsmlRecoveries recoveries{};
};
[[nodiscard]] ReadAnswer read_answer(const ResponsePlan& plan, std::int32_t choice,
                                     const std::vector<LoggedToken>& tokens);

}  // namespace hadal::server
