#include "dataset/chat_document.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <optional>

#include "core/error.h"
#include "protocol/chat_format.h"
#include "protocol/message_json.h"
#include "train/data_shard_format.h"

namespace hadal::dataset {
namespace {

using protocol::Json;

struct TextRange {
  std::size_t begin, end;  // bytes of the rendered text
};

// Notes where the assistant's own text lies.
class AnswerRanges final : public protocol::RenderListener {
 public:
  explicit AnswerRanges(const ChatDocument& chat) : chat_(chat) {}
  void message_rendered(std::size_t index, const protocol::SegmentWriter& text) override {
    if (!begin_) return;
    if (chat_.has_loss[index]) ranges_.push_back({*begin_, text.nbytes()});
    begin_.reset();
  }
  void header_begins(const protocol::SegmentWriter& /*text*/) override {}
  bool answer_begins(std::size_t /*index*/, protocol::ThinkingMode /*mode*/,
                     protocol::SegmentWriter& /*text*/) override {
    return false;
  }
  void answer_text_begins(std::size_t /*index*/, const protocol::SegmentWriter& text) override {
    begin_ = text.nbytes();
  }
  [[nodiscard]] const std::vector<TextRange>& ranges() const { return ranges_; }

 private:
  const ChatDocument& chat_;
  std::optional<std::size_t> begin_;
  std::vector<TextRange> ranges_;
};

const std::string* text_of(const Json& object, std::string_view key) {
  const Json* member = object.find(key);
  if (member == nullptr || member->is_null()) return nullptr;
  const auto* text = member->as<std::string>();
  if (text == nullptr) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{}: found {}, wanted a string", key, member->type_name()));
  }
  return text;
}

bool is_zero(const Json& value) {
  const auto* integer = value.as<Json::Integer>();
  const auto* real = value.as<double>();
  return (integer != nullptr && integer->digits == "0") || (real != nullptr && *real == 0);
}

protocol::ThinkingMode mode_of(const ChatDocument& chat, ChatMode mode) {
  using protocol::ThinkingMode;
  if (mode != ChatMode::automatic) {
    return mode == ChatMode::chat ? ThinkingMode::chat : ThinkingMode::thinking;
  }
  const bool thinks = std::ranges::any_of(chat.conversation.messages, [](const auto& message) {
    return message.role == protocol::Role::assistant && !message.reasoning_content.empty();
  });
  return thinks ? ThinkingMode::thinking : ThinkingMode::chat;
}

}  // namespace

ChatDocument chat_from_json(const Json& object, const EncodeOptions& options) {
  ChatDocument chat;
  const Json& messages = *object.find("messages");
  chat.conversation = protocol::conversation_from_json(messages);
  const auto& array = *messages.as<Json::Array>();
  bool learns = false;
  for (std::size_t i = 0; i < array.size(); ++i) {
    const Json* weight = array[i].find("weight");
    const bool loss = chat.conversation.messages[i].role == protocol::Role::assistant &&
                      (weight == nullptr || !is_zero(*weight));
    chat.has_loss.push_back(loss);
    learns |= loss;
  }
  if (!learns) {
    throw Error(ErrorCode::invalid_argument,
                "messages: none of them is an assistant's (of a weight other than 0), so there is "
                "nothing to learn");
  }
  const Json* tools = object.find("tools");
  if (tools != nullptr && !tools->is_null()) {
    const std::size_t before = chat.conversation.messages.size();
    protocol::attach_tools(chat.conversation, protocol::functions_from_json(*tools));
    // Where there was no system message, one was put in front.
    chat.has_loss.insert(chat.has_loss.begin(), chat.conversation.messages.size() - before, false);
  }
  protocol::validate(chat.conversation);

  chat.render.profile = options.profile;
  chat.render.thinking_mode = mode_of(chat, options.chat_mode);
  if (const std::string* mode = text_of(object, "thinking_mode")) {
    chat.render.thinking_mode = protocol::thinking_mode_from(*mode);
  }
  if (const std::string* effort = text_of(object, "reasoning_effort")) {
    chat.render.effort = protocol::reasoning_effort_from(*effort, options.profile);
    if (chat.render.effort == protocol::ReasoningEffort::none) {
      chat.render.thinking_mode = protocol::ThinkingMode::chat;
    }
  }
  return chat;
}

train::TokenDocument encode_chat(const io::Tokenizer& tokenizer, const ChatDocument& chat) {
  AnswerRanges listener(chat);
  const auto segments = protocol::render(chat.conversation, chat.render, &listener);
  train::TokenDocument out;
  out.flags = train::kChatDocument;
  out.tokens = tokenizer.encode(segments);
  out.loss.resize(out.tokens.size());
  // Tokens spell the text exactly, so their lengths are their places in it. What the assistant
  // wrote stands between control tokens, which no other token reaches across.
  auto range = listener.ranges().begin();
  std::size_t at = 0;
  for (std::size_t i = 0; i < out.tokens.size(); ++i) {
    while (range != listener.ranges().end() && range->end <= at) ++range;
    out.loss[i] = range != listener.ranges().end() && at >= range->begin;
    const std::size_t nbytes = tokenizer.token_bytes(out.tokens[i]).size();
    at += nbytes;
    if (!tokenizer.is_special(out.tokens[i])) out.text_bytes += static_cast<std::int64_t>(nbytes);
  }
  return out;
}

}  // namespace hadal::dataset
