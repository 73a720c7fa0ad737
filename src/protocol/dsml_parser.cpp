#include "protocol/dsml_parser.h"

#include "core/error.h"
#include "protocol/chat_format.h"
#include "protocol/dsml_grammar.h"

namespace hadal::protocol {

DsmlParser::DsmlParser(DsmlOptions options)
    : eos_(chat_format(options.profile).eos),
      text_(std::make_unique<DsmlText>()),
      grammar_(options.mode == DsmlMode::strict ? strict_dsml_grammar(options)
                                                : tolerant_dsml_grammar(std::move(options))) {}

DsmlParser::~DsmlParser() = default;
DsmlParser::DsmlParser(DsmlParser&&) noexcept = default;
DsmlParser& DsmlParser::operator=(DsmlParser&&) noexcept = default;

void DsmlParser::feed(std::string_view bytes, std::vector<Event>& out) {
  HADAL_CHECK(!text_->ended());
  text_->append(utf8_.feed(bytes));
  run(out);
}

void DsmlParser::finish(std::vector<Event>& out, EndOfTurn end) {
  HADAL_CHECK(!text_->ended());
  const std::string broken = utf8_.finish();  // a character that was cut off
  if (!grammar_->in_block()) text_->append(broken);
  if (end == EndOfTurn::eos) text_->append(eos_);
  text_->end();
  EventSink sink(out);
  do {
    run(out);
  } while (grammar_->close(*text_, sink));
}

void DsmlParser::run(std::vector<Event>& out) {
  EventSink sink(out);
  while (grammar_->step(*text_, sink)) {
    // One step at a time; a state says itself when it must wait.
  }
  text_->release(grammar_->needed_from(*text_));
}

const DsmlRecoveries& DsmlParser::recoveries() const {
  return grammar_->recoveries;
}

void MessageBuilder::add(const DsmlEvent& event) {
  if (const auto* reasoning = std::get_if<ReasoningDelta>(&event)) {
    message_.reasoning_content += reasoning->text;
  } else if (const auto* content = std::get_if<ContentDelta>(&event)) {
    message_.content += content->text;
  } else if (const auto* begin = std::get_if<ToolCallBegin>(&event)) {
    message_.tool_calls.push_back({{}, begin->name, {}});
    ended_.push_back(false);
  } else if (const auto* argument = std::get_if<ArgumentDelta>(&event)) {
    message_.tool_calls[argument->index].arguments += argument->text;
  } else if (const auto* end = std::get_if<ToolCallEnd>(&event)) {
    ended_[end->index] = true;
  } else if (const auto* malformed = std::get_if<Malformed>(&event)) {
    if (!message_.error) message_.error = malformed->error;
    message_.malformed_text += malformed->text;
    const bool is_answer = malformed->error != DsmlError::trailing_text;
    if (mode_ == DsmlMode::tolerant && is_answer) message_.content += malformed->text;
  }
}

ParsedMessage MessageBuilder::finish() {
  std::vector<ToolCall> complete;
  for (std::size_t i = 0; i < ended_.size(); ++i) {
    if (ended_[i]) complete.push_back(std::move(message_.tool_calls[i]));
  }
  message_.call_cut_off = complete.size() != ended_.size();
  message_.tool_calls = std::move(complete);
  return std::move(message_);
}

ParsedMessage parse_completion(std::string_view text, const DsmlOptions& options) {
  DsmlParser parser(options);
  std::vector<DsmlEvent> events;
  parser.feed(text, events);
  parser.finish(events);
  MessageBuilder builder(options.mode);
  for (const DsmlEvent& event : events) builder.add(event);
  ParsedMessage message = builder.finish();
  message.recoveries = parser.recoveries();
  return message;
}

}  // namespace hadal::protocol
