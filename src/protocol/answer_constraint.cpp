#include "protocol/answer_constraint.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>

#include "grammar/matcher.h"
#include "protocol/answer_grammar.h"
#include "protocol/chat_format.h"

namespace hadal::protocol {
namespace {

// Finds a text in bytes that arrive in pieces.
class Finder {
 public:
  explicit Finder(std::string text = {}) : text_(std::move(text)) {}

  // How many of `bytes` end with the text's first appearance; nothing when it has not appeared.
  std::optional<std::size_t> feed(std::string_view bytes) {
    if (text_.empty()) return std::nullopt;
    const std::size_t n_before = tail_.size();
    tail_ += bytes;
    const std::size_t found = tail_.find(text_);
    if (found != std::string::npos) return found + text_.size() - n_before;
    tail_.erase(0, tail_.size() - std::min(tail_.size(), text_.size() - 1));
    return std::nullopt;
  }

 private:
  std::string text_, tail_;
};

// What does not change while an answer grows; shared by its copies.
struct Plan {
  io::Tokenizer tokenizer;
  std::vector<TokenId> stop_tokens;
  std::optional<TokenId> think_close, mark;
  std::string think_close_text;
  std::string block_text;  // what opens a tool block in free content; "" when nothing does
  std::shared_ptr<const grammar::Grammar> grammar;  // null: content is free
  bool holds_content = false;  // from its first token, else from a block's mark
  std::optional<std::int64_t> thinking_budget;
  std::int64_t min_tokens = 0;
};

class AnswerConstraint final : public grammar::Constraint {
 public:
  AnswerConstraint(std::shared_ptr<const Plan> plan, bool in_reasoning) : plan_(std::move(plan)) {
    if (in_reasoning) {
      finder_ = Finder(plan_->think_close_text);
    } else {
      begin_content();
    }
  }

  // Text of the message that the answer continues. False when the form does not allow it.
  [[nodiscard]] bool begin_with(std::string_view text) {
    if (matcher_) return matcher_->accept_text(text);
    // Markup in what a client sent is text; only what the model adds can complete a tag.
    (void)finder_.feed(text.substr(text.size() - std::min<std::size_t>(text.size(), 1)));
    return true;
  }

  bool fill(grammar::TokenMask& mask) override {
    const bool may_stop = n_tokens_ >= plan_->min_tokens;
    switch (phase_) {
      case Phase::reasoning: {
        if (plan_->thinking_budget && plan_->think_close && n_tokens_ >= *plan_->thinking_budget) {
          mask.clear();
          mask.allow(*plan_->think_close);
          return true;
        }
        if (!plan_->holds_content && may_stop) return false;
        allow_all(mask);
        forbid_stops(mask);
        if (plan_->holds_content && plan_->mark) mask.forbid(*plan_->mark);
        return true;
      }
      case Phase::content:
        if (may_stop) return false;
        allow_all(mask);
        forbid_stops(mask);
        return true;
      case Phase::form: {
        const bool complete = matcher_->complete();
        if (complete && plan_->stop_tokens.empty()) return false;  // nothing could end the answer
        matcher_->fill(mask);
        if (complete && (may_stop || is_empty(mask))) {
          for (const TokenId id : plan_->stop_tokens) mask.allow(id);
        }
        return true;
      }
      case Phase::over:
        return false;
    }
    return false;
  }

  void accept(TokenId token) override {
    ++n_tokens_;
    if (phase_ == Phase::over) return;
    const auto& stops = plan_->stop_tokens;
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
      end();
      return;
    }
    if (phase_ == Phase::form) {
      if (!matcher_->accept(token)) end();
      return;
    }
    std::string_view bytes = plan_->tokenizer.token_bytes(token);
    if (phase_ == Phase::reasoning) {
      const auto past = finder_.feed(bytes);
      if (!past) return;
      bytes.remove_prefix(*past);
      begin_content();
    }
    if (phase_ == Phase::content) {
      const auto past = finder_.feed(bytes);
      if (!past) return;
      bytes.remove_prefix(*past);
      begin_form();
    }
    if (!bytes.empty() && !matcher_->accept_text(bytes)) end();
  }

  [[nodiscard]] std::unique_ptr<grammar::Constraint> clone() const override {
    return std::make_unique<AnswerConstraint>(*this);
  }

 private:
  enum class Phase : std::uint8_t { reasoning, content, form, over };

  void begin_content() {
    phase_ = Phase::content;
    finder_ = Finder(plan_->block_text);
    if (plan_->holds_content) begin_form();
  }
  void begin_form() {
    phase_ = Phase::form;
    matcher_.emplace(plan_->grammar, plan_->grammar->root());
  }
  void end() {
    phase_ = Phase::over;
    matcher_.reset();
  }

  void allow_all(grammar::TokenMask& mask) const {
    mask.clear();
    const auto n =
        static_cast<std::size_t>(std::min(mask.vocab_size(), plan_->tokenizer.vocab_size()));
    const std::span<std::uint64_t> words = mask.words();
    std::fill_n(words.begin(), n / 64, ~std::uint64_t{0});
    if (n % 64 != 0) words[n / 64] = (std::uint64_t{1} << (n % 64)) - 1;
  }
  void forbid_stops(grammar::TokenMask& mask) const {
    for (const TokenId id : plan_->stop_tokens) mask.forbid(id);
  }
  static bool is_empty(const grammar::TokenMask& mask) {
    const auto words = mask.words();
    return std::all_of(words.begin(), words.end(), [](std::uint64_t word) { return word == 0; });
  }

  std::shared_ptr<const Plan> plan_;
  Phase phase_ = Phase::reasoning;
  std::int64_t n_tokens_ = 0;
  Finder finder_;
  std::optional<grammar::Matcher> matcher_;
};

// Where a tool's schema stands in the request, as its client wrote it.
std::string tool_param(Api api, std::size_t i) {
  switch (api) {
    case Api::messages:
      return fmt::format("tools[{}].input_schema", i);
    case Api::responses:
      return fmt::format("tools[{}].parameters", i);
    default:
      return fmt::format("tools[{}].function.parameters", i);
  }
}

std::string schema_param(Api api) {
  switch (api) {
    case Api::messages:
      return "output_config.format.schema";
    case Api::responses:
      return "text.format.schema";
    default:
      return "response_format.json_schema.schema";
  }
}

std::vector<CallableTool> callable_tools(const ApiRequest& request) {
  std::vector<CallableTool> tools;
  const ToolPolicy& policy = request.tool_policy;
  if (policy.mode == ToolMode::none) return tools;
  for (std::size_t i = 0; i < request.tools.size(); ++i) {
    const Json* name = request.tools[i].find("name");
    const auto* text = name == nullptr ? nullptr : name->as<std::string>();
    if (text == nullptr) continue;
    const bool is_allowed =
        policy.allowed.empty() ||
        std::find(policy.allowed.begin(), policy.allowed.end(), *text) != policy.allowed.end();
    const bool is_repeated = std::any_of(
        tools.begin(), tools.end(), [&](const CallableTool& tool) { return tool.name == *text; });
    if (!is_allowed || is_repeated) continue;
    CallableTool tool{.name = *text, .parameters = {}, .param = tool_param(request.api, i)};
    const Json* parameters = request.tools[i].find("parameters");
    if (parameters == nullptr) parameters = request.tools[i].find("input_schema");
    if (parameters != nullptr && !parameters->is_null()) tool.parameters = parameters->dump();
    tool.strict = i < policy.strict.size() && policy.strict[i];
    // "parameters absent = empty object schema" (§4.5).
    if (tool.parameters.empty() && tool.strict) {
      tool.parameters = R"({"type": "object", "additionalProperties": false})";
    }
    tools.push_back(std::move(tool));
  }
  return tools;
}

// Line breaks that the text before a block ends with; the block brings what is missing of two.
std::string_view block_separator(std::string_view text) {
  std::size_t n = 0;
  while (n < 2 && n < text.size() && text[text.size() - 1 - n] == '\n') ++n;
  return text.substr(text.size() - n);
}

}  // namespace

std::unique_ptr<grammar::Constraint> make_answer_constraint(const ApiRequest& request,
                                                            const io::Tokenizer& tokenizer,
                                                            ChatProfile profile,
                                                            std::span<const TokenId> stop_tokens,
                                                            grammar::GrammarCache& cache) {
  const ChatFormat& format = chat_format(profile);
  const auto added = [&](std::string_view text) {
    const auto id = tokenizer.token_id(text);
    return id && tokenizer.is_added(*id) ? id : std::nullopt;
  };
  auto plan = std::make_shared<Plan>(Plan{.tokenizer = tokenizer,
                                          .stop_tokens = {stop_tokens.begin(), stop_tokens.end()},
                                          .think_close = added(format.think_close),
                                          .mark = added(format.dsml_mark),
                                          .think_close_text = std::string(format.think_close),
                                          .block_text = {},
                                          .grammar = nullptr,
                                          .thinking_budget = request.thinking_budget,
                                          .min_tokens = request.min_tokens});

  const bool is_chat = request.api != Api::completions;
  const bool continues_content = request.continues_answer && !request.continues_reasoning;
  const bool in_reasoning =
      is_chat && request.thinking_mode == ThinkingMode::thinking && !continues_content;
  if (!in_reasoning) plan->thinking_budget.reset();

  AnswerForm form;
  const bool wants_json = is_chat && request.format.kind != AnswerFormat::Kind::text;
  if (is_chat) form.tools = callable_tools(request);
  const bool wants_call = !form.tools.empty() && request.tool_policy.mode == ToolMode::required;
  form.parallel = request.tool_policy.parallel;
  if (wants_call) {
    form.start = AnswerStart::block;
  } else if (wants_json) {
    form.start = AnswerStart::json;
    form.schema_param = schema_param(request.api);
    form.strict_schema = request.format.strict;
    if (request.format.kind == AnswerFormat::Kind::json_schema) {
      form.schema = request.format.schema.dump();
    }
  }
  plan->holds_content = wants_call || wants_json;
  if (plan->holds_content || !form.tools.empty()) {
    plan->grammar = answer_grammar(form, profile, cache);
    plan->block_text = fmt::format("<{}", format.dsml_mark);
  }
  if (plan->grammar == nullptr && plan->min_tokens <= 0 && !plan->thinking_budget) return nullptr;

  auto constraint = std::make_unique<AnswerConstraint>(plan, in_reasoning);
  if (continues_content && is_chat && !request.conversation.messages.empty()) {
    const std::string_view text = request.conversation.messages.back().content;
    if (!constraint->begin_with(wants_call ? block_separator(text) : text)) {
      throw ApiException(ApiError{
          .message = "the message to continue does not begin what response_format demands; leave "
                     "the format or that beginning out",
          .param = fmt::format("messages[{}].content", request.conversation.messages.size() - 1)});
    }
  }
  return constraint;
}

}  // namespace hadal::protocol
