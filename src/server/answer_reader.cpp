#include "server/answer_reader.h"

#include <algorithm>
#include <utility>

#include "protocol/chat_format.h"

namespace hadal::server {

using namespace protocol;  // the events

AnswerForm answer_form(const ApiRequest& request, const ServedModel& model,
                       DsmlInReasoning in_reasoning) {
  AnswerForm form;
  form.stops = request.stop;
  form.skip_special_tokens = request.skip_special_tokens;
  if (request.api == Api::completions) return form;
  if (request.ignore_eos) form.silent = model.chat_stop_tokens;
  DsmlOptions dsml;
  dsml.profile = model.profile;
  dsml.in_reasoning = in_reasoning;
  // Where the prompt ends inside an answer, what follows is of the part that it ends in.
  const bool thinks = request.continues_answer ? request.continues_reasoning
                                               : request.thinking_mode == ThinkingMode::thinking;
  dsml.thinking_mode = thinks ? ThinkingMode::thinking : ThinkingMode::chat;
  dsml.tools = declared_tools(request.tools);
  form.dsml = std::move(dsml);
  form.single_call =
      !request.tools.empty() &&
      (!request.tool_policy.parallel ||
       (request.tool_policy.mode == ToolMode::required && request.tool_policy.allowed.size() == 1));
  form.think_close = model.tokenizer.token_id(chat_format(model.profile).think_close).value_or(-1);
  return form;
}

AnswerReader::AnswerReader(const AnswerForm& form, const io::Tokenizer& tokenizer)
    : form_(form), tokenizer_(tokenizer), stops_(form.stops) {
  if (form.dsml) {
    parser_.emplace(*form.dsml);
    in_reasoning_ = form.dsml->thinking_mode == ThinkingMode::thinking;
  }
}

void AnswerReader::feed(TokenId token, bool is_stop_token, std::vector<DsmlEvent>& out) {
  if (finished_) return;
  ++n_tokens_;
  const bool closes_reasoning = token == form_.think_close && !is_stop_token;
  std::vector<DsmlEvent> parsed;
  if (is_stop_token) {
    finished_ = true;
    if (stopped_) return;
    if (parser_) {
      parser_->finish(parsed, EndOfTurn::eos);
    } else {
      parsed.emplace_back(ContentDelta{utf8_.finish()});
    }
    pass(parsed, out);
    release(out);
    in_reasoning_ = false;
    return;
  }
  if (stopped_) return;
  if (in_reasoning_ && !closes_reasoning) ++n_reasoning_tokens_;
  if (std::ranges::find(form_.silent, token) != form_.silent.end()) return;
  const std::string_view bytes = tokenizer_.token_bytes(token);
  if (parser_) {
    parser_->feed(bytes, parsed);
    if (closes_reasoning) in_reasoning_ = false;
  } else if (!form_.skip_special_tokens || !tokenizer_.is_special(token)) {
    parsed.emplace_back(ContentDelta{utf8_.feed(bytes)});
  }
  pass(parsed, out);
}

void AnswerReader::finish(std::vector<DsmlEvent>& out) {
  if (std::exchange(finished_, true) || (stopped_ && !stops_.matched().empty())) return;
  std::vector<DsmlEvent> parsed;
  if (parser_) {
    parser_->finish(parsed);
  } else {
    parsed.emplace_back(ContentDelta{utf8_.finish()});
  }
  stopped_ = false;  // a single call's end: what stands behind it is the parser's to judge
  pass(parsed, out);
  release(out);
}

void AnswerReader::pass(std::vector<DsmlEvent>& parsed, std::vector<DsmlEvent>& out) {
  for (DsmlEvent& event : parsed) {
    if (stopped_) return;
    if (const auto* delta = std::get_if<ContentDelta>(&event)) {
      in_reasoning_ = false;
      content(delta->text, out);
      continue;
    }
    // What a stop string could have begun with stands before this.
    release(out);
    if (!std::holds_alternative<ReasoningDelta>(event)) in_reasoning_ = false;
    const bool ends_call = std::holds_alternative<ToolCallEnd>(event);
    out.push_back(std::move(event));
    if (!ends_call) continue;
    has_complete_call_ = true;
    if (form_.single_call) stopped_ = true;
  }
}

void AnswerReader::content(const std::string& text, std::vector<DsmlEvent>& out) {
  std::string shown = form_.stops.empty() ? text : stops_.feed(text);
  stopped_ = stops_.stopped();
  if (!shown.empty()) out.emplace_back(ContentDelta{std::move(shown)});
}

void AnswerReader::release(std::vector<DsmlEvent>& out) {
  if (form_.stops.empty() || stops_.stopped()) return;
  std::string held = stops_.finish();
  if (!held.empty()) out.emplace_back(ContentDelta{std::move(held)});
}

namespace {

class Observer final : public engine::TokenObserver {
 public:
  Observer(std::shared_ptr<const AnswerForm> form, io::Tokenizer tokenizer)
      : form_(std::move(form)), tokenizer_(std::move(tokenizer)), reader_(*form_, tokenizer_) {}
  bool ends_with(TokenId token) override {
    events_.clear();
    reader_.feed(token, false, events_);
    return reader_.stopped();
  }

 private:
  const std::shared_ptr<const AnswerForm> form_;
  const io::Tokenizer tokenizer_;
  AnswerReader reader_;
  std::vector<DsmlEvent> events_;
};

}  // namespace

std::unique_ptr<engine::TokenObserver> make_observer(std::shared_ptr<const AnswerForm> form,
                                                     io::Tokenizer tokenizer) {
  if (form->stops.empty() && !form->single_call) return nullptr;
  return std::make_unique<Observer>(std::move(form), std::move(tokenizer));
}

}  // namespace hadal::server
