// Tokens of one choice -> events.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/generate.h"
#include "engine/request.h"
#include "io/tokenizer.h"
#include "io/utf8.h"
#include "protocol/api.h"
#include "protocol/dsml_parser.h"
#include "server/served_model.h"

namespace hadal::server {

// How the answers of one request are read; shared by whoever reads one.
struct AnswerForm {
  // Reasoning, content and calls; without, all text is content (/v1/completions).
  std::optional<protocol::DsmlOptions> dsml;
  std::vector<std::string> stops;   // match content only
  bool single_call = false;         // ends with its first complete call
  bool skip_special_tokens = true;  // without `dsml`: leave them out of the text
  TokenId think_close = -1;
  // Under ignore_eos, tokens that would end an answer: they are drawn and counted, and say nothing.
  std::vector<TokenId> silent;
};
[[nodiscard]] AnswerForm answer_form(const protocol::ApiRequest& request, const ServedModel& model,
                                     protocol::DsmlInReasoning in_reasoning);

// A pure function of the tokens: the observer on the engine's thread and every writer of the
// response see the same end.
class AnswerReader {
 public:
  // Both must outlive the reader.
  AnswerReader(const AnswerForm& form, const io::Tokenizer& tokenizer);

  // Appends what the token makes certain.
  void feed(TokenId token, bool is_stop_token, std::vector<protocol::DsmlEvent>& out);
  // No more tokens come; for an answer that did not end with a stop token.
  void finish(std::vector<protocol::DsmlEvent>& out);

  // A stop string was found, or the only call is complete.
  [[nodiscard]] bool stopped() const { return stopped_; }
  [[nodiscard]] const std::string& matched_stop() const { return stops_.matched(); }
  [[nodiscard]] bool in_reasoning() const { return in_reasoning_; }
  [[nodiscard]] bool has_complete_call() const { return has_complete_call_; }
  [[nodiscard]] std::int64_t n_tokens() const { return n_tokens_; }
  [[nodiscard]] std::int64_t n_reasoning_tokens() const { return n_reasoning_tokens_; }
  [[nodiscard]] const protocol::DsmlRecoveries* recoveries() const {
    return parser_ ? &parser_->recoveries() : nullptr;
  }

 private:
  void pass(std::vector<protocol::DsmlEvent>& parsed, std::vector<protocol::DsmlEvent>& out);
  void release(std::vector<protocol::DsmlEvent>& out);
  void content(const std::string& text, std::vector<protocol::DsmlEvent>& out);

  const AnswerForm& form_;
  const io::Tokenizer& tokenizer_;
  std::optional<protocol::DsmlParser> parser_;
  io::Utf8Stream utf8_;
  engine::StopStrings stops_;
  bool stopped_ = false, finished_ = false, in_reasoning_ = false, has_complete_call_ = false;
  std::int64_t n_tokens_ = 0, n_reasoning_tokens_ = 0;
};

// Ends a choice where its text is to end; null when nothing but tokens ends it.
[[nodiscard]] std::unique_ptr<engine::TokenObserver> make_observer(
    std::shared_ptr<const AnswerForm> form, io::Tokenizer tokenizer);

}  // namespace hadal::server
