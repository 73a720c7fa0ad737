#include "server/response_stream.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

namespace hadal::server {

using namespace protocol;  // requests and events

std::string StreamPosition::to_string() const {
  return n_events == 0 ? fmt::format("{}", n_tokens) : fmt::format("{}.{}", n_tokens, n_events);
}

std::optional<StreamPosition> StreamPosition::parse(std::string_view text) {
  if (const std::size_t colon = text.rfind(':'); colon != std::string_view::npos) {
    text.remove_prefix(colon + 1);
  }
  StreamPosition position;
  const char* end = text.data() + text.size();
  auto [at, error] = std::from_chars(text.data(), end, position.n_tokens);
  if (error != std::errc()) return std::nullopt;
  if (at != end) {
    if (*at != '.') return std::nullopt;
    const auto [rest, bad] = std::from_chars(at + 1, end, position.n_events);
    if (bad != std::errc() || rest != end) return std::nullopt;
  }
  return position;
}

namespace {

std::unique_ptr<ResponseWriter> writer_for(const ResponsePlan& plan, std::optional<bool> stream) {
  if (!stream || *stream == plan.request.stream) return make_writer(plan.request, plan.identity);
  ApiRequest request = plan.request;
  request.stream = *stream;
  return make_writer(request, plan.identity);
}

TokenLogprobText logprob_text(const io::Tokenizer& tokenizer, const LoggedToken& token,
                              const std::vector<engine::TopLogprob>* top) {
  TokenLogprobText text{std::string(tokenizer.token_bytes(token.token)), token.logprob, {}};
  if (top == nullptr) return text;
  text.top.reserve(top->size());
  for (const engine::TopLogprob& other : *top) {
    text.top.push_back({std::string(tokenizer.token_bytes(other.token)), other.logprob});
  }
  return text;
}

}  // namespace

ResponseStream::ResponseStream(std::shared_ptr<const ResponsePlan> plan, std::optional<bool> stream)
    : plan_(std::move(plan)), writer_(writer_for(*plan_, stream)) {
  readers_.reserve(static_cast<std::size_t>(plan_->n_choices));
  for (std::int32_t c = 0; c < plan_->n_choices; ++c) {
    readers_.emplace_back(*plan_->form, plan_->tokenizer);
  }
}

void ResponseStream::add(std::vector<SseEvent> events, Events& out) {
  for (SseEvent& event : events) {
    ++position_.n_events;
    out.push_back({position_, sequence_++, std::move(event)});
  }
}

void ResponseStream::begin(const Usage& prompt, Events& out) {
  usage_ = prompt;
  add(writer_->begin(prompt), out);
  if (plan_->request.echo) echo(out);
}

// The prompt as the beginning of every choice's text.
void ResponseStream::echo(Events& out) {
  const std::int32_t n = plan_->request.n;
  for (std::int32_t c = 0; c < plan_->n_choices; ++c) {
    const auto& prompt = plan_->prompts.at(static_cast<std::size_t>(c / n));
    if (plan_->request.logprobs) {
      // Token by token, so that offsets and logprobs belong together.
      io::Utf8Stream utf8;
      for (const TokenId id : prompt) {
        const std::string_view bytes =
            plan_->tokenizer.is_special(id) ? std::string_view() : plan_->tokenizer.token_bytes(id);
        const TokenLogprobText text{std::string(bytes), std::nan(""), {}};
        add(writer_->events(c, {ContentDelta{utf8.feed(bytes)}}, &text, false), out);
      }
      continue;
    }
    io::Utf8Stream utf8;
    std::string text = utf8.feed(plan_->tokenizer.decode(prompt, io::SpecialTokens::ignore));
    text += utf8.finish();
    add(writer_->events(c, {ContentDelta{std::move(text)}}, nullptr, false), out);
  }
}

void ResponseStream::token(const LoggedToken& token, const std::vector<engine::TopLogprob>* top,
                           Events& out) {
  AnswerReader& reader = readers_.at(static_cast<std::size_t>(token.choice));
  const bool was_reasoning = reader.in_reasoning();
  std::vector<DsmlEvent> events;
  reader.feed(token.token, token.is_stop_token, events);
  ++usage_.completion_tokens;
  std::optional<TokenLogprobText> logprob;
  if (plan_->request.logprobs && !token.is_stop_token) {
    logprob = logprob_text(plan_->tokenizer, token, top);
  }
  const std::size_t first = out.size();
  if (!events.empty() || logprob) {
    add(writer_->events(token.choice, events, logprob ? &*logprob : nullptr, was_reasoning), out);
  }
  position_ = {position_.n_tokens + 1, 0};
  // The last event of a token says that all of it was sent.
  if (out.size() > first) out.back().position = position_;
}

void ResponseStream::finish(const std::vector<engine::Finish>& ends, Events& out) {
  for (std::size_t c = 0; c < readers_.size(); ++c) {
    AnswerReader& reader = readers_[c];
    const engine::Finish& finish = ends.at(c);
    const auto choice = static_cast<std::int32_t>(c);
    std::vector<DsmlEvent> events;
    reader.finish(events);
    if (!events.empty()) add(writer_->events(choice, events, nullptr, reader.in_reasoning()), out);
    AnswerEnd end = AnswerEnd::stop;
    std::string detail;
    switch (finish.reason) {
      case engine::FinishReason::stop:
        if (!reader.matched_stop().empty()) {
          end = AnswerEnd::stop_string;
          detail = reader.matched_stop();
        } else if (reader.has_complete_call()) {
          end = AnswerEnd::tool_calls;
        }
        break;
      case engine::FinishReason::length:
        end = AnswerEnd::length;
        break;
      case engine::FinishReason::cancelled:
        end = AnswerEnd::cancelled;
        break;
      case engine::FinishReason::error:
        end = AnswerEnd::error;
        detail = finish.error;
        break;
    }
    Usage usage;
    usage.completion_tokens = reader.n_tokens();
    usage.reasoning_tokens = reader.n_reasoning_tokens();
    usage_.reasoning_tokens += usage.reasoning_tokens;
    add(writer_->finish(choice, end, detail, usage), out);
  }
  add(writer_->end(usage_), out);
}

ReadAnswer read_answer(const ResponsePlan& plan, std::int32_t choice,
                       const std::vector<LoggedToken>& tokens) {
  AnswerReader reader(*plan.form, plan.tokenizer);
  std::vector<DsmlEvent> events;
  TokenId last = -1;
  for (const LoggedToken& token : tokens) {
    if (token.choice != choice) continue;
    reader.feed(token.token, token.is_stop_token, events);
    last = token.is_stop_token ? token.token : -1;
  }
  reader.finish(events);
  MessageBuilder builder(DsmlMode::tolerant);
  for (const DsmlEvent& event : events) builder.add(event);
  ParsedMessage parsed = builder.finish();
  ReadAnswer answer;
  answer.message.role = Role::assistant;
  answer.message.content = std::move(parsed.content);
  answer.message.reasoning_content = std::move(parsed.reasoning_content);
  answer.message.tool_calls = std::move(parsed.tool_calls);
  for (std::size_t i = 0; i < answer.message.tool_calls.size(); ++i) {
    answer.message.tool_calls[i].id = tool_call_id(plan.request.api, plan.identity, choice, i);
  }
  // Only the end-of-sentence token ends a turn; the header of another one is runaway output.
  answer.is_whole = last >= 0 && last == plan.end_of_sentence && reader.matched_stop().empty() &&
                    !parsed.call_cut_off;
  if (const auto* recoveries = reader.recoveries()) answer.recoveries = *recoveries;
  return answer;
}

}  // namespace hadal::server
