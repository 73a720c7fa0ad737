#include "cli/chat_session.h"

#include <fmt/format.h>

#include <utility>

#include "cli/interrupt.h"
#include "cli/progress.h"
#include "protocol/chat_format.h"
#include "protocol/chat_template.h"

namespace hadal::cli {

using protocol::Role;

ChatSession::ChatSession(engine::Runtime& runtime, const engine::LoadedModel& loaded,
                         const GenerationOptions& options, Numerics numerics,
                         protocol::ChatProfile profile, std::vector<protocol::Json> tools)
    : loaded_(loaded),
      options_(options),
      session_(runtime, loaded, options.session(numerics)),
      profile_(profile),
      tools_(std::move(tools)),
      declared_(protocol::declared_tools(tools_)) {
  expect_chat_tokens(loaded.require_tokenizer(), profile);
  if (!options.ignore_eos) stop_tokens_ = stop_tokens(loaded, profile);
  reset();
}

void ChatSession::set_thinking(const std::string& effort) {
  if (effort == "off") {
    thinking_ = protocol::ThinkingMode::chat;
    effort_ = protocol::ReasoningEffort::none;
  } else {
    thinking_ = protocol::ThinkingMode::thinking;
    effort_ = protocol::reasoning_effort_from(effort, profile_);
  }
}

void ChatSession::set_system(const std::string& text) {
  system_ = text;
  reset();
}

void ChatSession::reset() {
  conversation_.messages.clear();
  if (!system_.empty()) {
    conversation_.messages.push_back(message_of(Role::system, system_));
  }
  if (!tools_.empty()) protocol::attach_tools(conversation_, tools_);
}

void ChatSession::add_user(const std::string& text) {
  conversation_.messages.push_back(message_of(Role::user, text));
}

void ChatSession::add_result(const protocol::ToolCall& call, const std::string& result) {
  conversation_.messages.push_back(message_of(Role::tool, result));
  conversation_.messages.back().tool_call_id = call.id;
}

void ChatSession::drop_unanswered() {
  auto& messages = conversation_.messages;
  while (!messages.empty() &&
         (messages.back().role == Role::user || messages.back().role == Role::tool)) {
    messages.pop_back();
  }
}

ChatSession::Outcome ChatSession::answer(
    const std::function<void(const protocol::DsmlEvent&)>& on_event) {
  const io::Tokenizer& tokenizer = loaded_.require_tokenizer();
  InterruptGuard::clear();
  engine::GenerationRequest request{
      .prompt = tokenizer.encode(protocol::render(
          conversation_, {.thinking_mode = thinking_, .effort = effort_, .profile = profile_})),
      .sampling = options_.sampling(loaded_),
      .max_tokens = options_.max_tokens,
      .stop_tokens = stop_tokens_,
      .cancel = &InterruptGuard::flag(),
  };
  request.sampling.seed += n_answers_++;  // asked again, it may say something else

  const protocol::DsmlOptions dsml{
      .thinking_mode = thinking_, .profile = profile_, .tools = declared_};
  protocol::DsmlParser parser(dsml);
  protocol::MessageBuilder builder(dsml.mode);
  const auto pass_on = [&](const std::vector<protocol::DsmlEvent>& events) {
    for (const protocol::DsmlEvent& event : events) {
      builder.add(event);
      on_event(event);
    }
  };
  const auto feed = [&](const std::string& text) {
    std::vector<protocol::DsmlEvent> events;
    parser.feed(text, events);
    pass_on(events);
  };
  TextStream stream(tokenizer, options_.stop);
  auto bar = std::make_unique<ProgressBar>("prompt", ProgressBar::Unit::tokens);
  const engine::GenerationResult result = engine::generate(
      session_, request,
      [&](const engine::SampledToken& token) {
        feed(stream.feed(token.token));
        return !stream.stopped();
      },
      [&](std::int64_t done, std::int64_t total) {
        bar->update(static_cast<std::size_t>(done), static_cast<std::size_t>(total));
        if (done == total) bar.reset();
        return true;
      });
  bar.reset();
  feed(stream.finish());
  std::vector<protocol::DsmlEvent> events;
  parser.finish(events,
                result.stop_token >= 0 ? protocol::EndOfTurn::eos : protocol::EndOfTurn::as_fed);
  pass_on(events);

  protocol::ParsedMessage parsed = builder.finish();
  Outcome outcome;
  for (protocol::ToolCall& call : parsed.tool_calls) {
    call.id = fmt::format("call_{}", n_calls_++);
    outcome.calls.push_back(call);
  }
  protocol::Message message = message_of(Role::assistant, std::move(parsed.content));
  message.reasoning_content = std::move(parsed.reasoning_content);
  message.tool_calls = std::move(parsed.tool_calls);
  conversation_.messages.push_back(std::move(message));
  if (result.reason == engine::FinishReason::cancelled) {
    outcome.note = "stopped";
  } else if (parsed.call_cut_off) {
    outcome.note = "the answer ended inside a tool call, which is left out";
  } else if (result.reason == engine::FinishReason::length) {
    outcome.note = request.max_tokens > 0 &&
                           static_cast<std::int64_t>(result.tokens.size()) >= request.max_tokens
                       ? "the answer reached --max-tokens"
                       : "the context is full; /reset begins anew";
  }
  return outcome;
}

}  // namespace hadal::cli
