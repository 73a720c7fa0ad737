#include "protocol/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "protocol/chat_format.h"
#include "protocol/dsml_writer.h"
#include "protocol/segment_writer.h"

namespace hadal::protocol {
namespace {

// One piece of a user turn: what the user wrote, or a tool's result.
struct Part {
  const Message* source;
  [[nodiscard]] bool is_result() const { return source->role == Role::tool; }
};

// A message as it is rendered. Tool results do not exist in a prompt: they are parts of user turns.
struct Turn {
  const Message* source;    // of a user turn: its first message
  std::vector<Part> parts;  // of a user turn
  Role role;
  std::optional<Task> task;
  bool has_reasoning = true;  // false once the history's reasoning is dropped
};

bool opens_answer(Role role) {
  return role == Role::user || role == Role::developer;
}

// Neighbouring user messages and tool results become one turn, but no user message joins a turn
// that has a task.
std::vector<Turn> merge(const std::vector<Message>& messages) {
  std::vector<Turn> turns;
  for (const Message& message : messages) {
    const bool is_result = message.role == Role::tool;
    if (!is_result && message.role != Role::user) {
      turns.push_back({&message, {}, message.role, message.task});
      continue;
    }
    const bool joins =
        !turns.empty() && turns.back().role == Role::user && (is_result || !turns.back().task);
    if (!joins) {
      turns.push_back({&message, {}, Role::user, is_result ? std::nullopt : message.task});
    }
    turns.back().parts.push_back({&message});
  }
  return turns;
}

// Puts the results inside each user turn into the order of the calls they answer; texts keep their
// places. A result of no known call counts as the first.
void sort_results(std::vector<Turn>& turns) {
  std::unordered_map<std::string_view, std::size_t> call_order;
  const auto order_of = [&](const Part& part) {
    const auto found = call_order.find(part.source->tool_call_id);
    return found == call_order.end() ? 0 : found->second;
  };
  for (Turn& turn : turns) {
    if (turn.role == Role::assistant && !turn.source->tool_calls.empty()) {
      call_order.clear();
      const auto& calls = turn.source->tool_calls;
      for (std::size_t i = 0; i < calls.size(); ++i) {
        if (!calls[i].id.empty()) call_order[calls[i].id] = i;
      }
    }
    if (call_order.empty()) continue;
    std::vector<Part> results;
    std::ranges::copy_if(turn.parts, std::back_inserter(results),
                         [](const Part& part) { return part.is_result(); });
    // By address where the order is the same: the messages stand in one array.
    std::ranges::sort(results, [&](const Part& a, const Part& b) {
      return std::pair(order_of(a), a.source) < std::pair(order_of(b), b.source);
    });
    auto next = results.begin();
    for (Part& part : turn.parts) {
      if (part.is_result()) part = *next++;
    }
  }
}

// The index of the last turn that asks for an answer; -1, before every turn, when there is none.
std::ptrdiff_t last_question(const std::vector<Turn>& turns) {
  for (std::ptrdiff_t i = std::ssize(turns) - 1; i >= 0; --i) {
    if (opens_answer(turns[static_cast<std::size_t>(i)].role)) return i;
  }
  return -1;
}

// Answers before the last question lose their reasoning, and developer turns before it vanish.
void drop_history_thinking(std::vector<Turn>& turns) {
  const std::ptrdiff_t last = last_question(turns);
  std::vector<Turn> kept;
  for (std::ptrdiff_t i = 0; i < std::ssize(turns); ++i) {
    Turn& turn = turns[static_cast<std::size_t>(i)];
    if (i < last && turn.role == Role::developer) continue;
    if (i < last) turn.has_reasoning = false;
    kept.push_back(std::move(turn));
  }
  turns = std::move(kept);
}

class Renderer {
 public:
  Renderer(const RenderOptions& options, RenderListener* listener)
      : options_(options), format_(chat_format(options.profile)), listener_(listener) {}

  std::vector<io::TextSegment> run(const Conversation& conversation) {
    messages_ = conversation.messages.data();
    turns_ = merge(conversation.messages);
    sort_results(turns_);
    drops_thinking_ = drops_thinking(conversation);
    if (thinking() && drops_thinking_) drop_history_thinking(turns_);
    last_question_ = last_question(turns_);

    out_.trusted(format_.bos);
    if (thinking() && !turns_.empty()) {
      out_.trusted(format_.effort_text[static_cast<std::size_t>(options_.effort)]);
    }
    for (std::size_t i = 0; i < turns_.size(); ++i) {
      if (!listener_takes(i)) body(i);
      if (turns_[i].role != Role::user) rendered(turns_[i].source);
      header_mode_.reset();
      if (i + 1 == turns_.size() || turns_[i + 1].role == Role::assistant ||
          turns_[i + 1].role == Role::latest_reminder) {
        header(i);
      }
    }
    return out_.take();
  }

 private:
  [[nodiscard]] bool thinking() const { return options_.thinking_mode == ThinkingMode::thinking; }

  [[nodiscard]] bool drops_thinking(const Conversation& conversation) const {
    return options_.drop_thinking &&
           std::ranges::none_of(conversation.messages, [&](const Message& message) {
             return !message.tools.empty() ||
                    (options_.tool_history_keeps_thinking && !message.tool_calls.empty());
           });
  }

  // Whether the listener puts an answer in place itself.
  [[nodiscard]] bool listener_takes(std::size_t i) {
    const Message& message = *turns_[i].source;
    if (listener_ == nullptr || !header_mode_ || turns_[i].role != Role::assistant) return false;
    return !message.wo_eos && listener_->answer_begins(index_of(&message), *header_mode_, out_);
  }
  [[nodiscard]] std::size_t index_of(const Message* message) const {
    return static_cast<std::size_t>(message - messages_);
  }
  void rendered(const Message* message) {
    if (listener_ != nullptr) listener_->message_rendered(index_of(message), out_);
  }

  void body(std::size_t i) {
    const Turn& turn = turns_[i];
    switch (turn.role) {
      case Role::system:
        out_.untrusted(turn.source->content);
        blocks(*turn.source);
        break;
      case Role::developer:
        if (turn.source->content.empty()) {
          throw Error(ErrorCode::invalid_argument,
                      "a developer message has no content; give it text or leave it out");
        }
        out_.trusted(format_.user);
        out_.untrusted(turn.source->content);
        blocks(*turn.source);
        break;
      case Role::user:
        user(turn);
        break;
      case Role::latest_reminder:
        out_.trusted(format_.latest_reminder);
        out_.untrusted(turn.source->content);
        break;
      case Role::assistant:
        if (listener_ != nullptr) listener_->answer_text_begins(index_of(turn.source), out_);
        assistant(i);
        break;
      case Role::tool:
        HADAL_CHECK(!"tool messages are merged into user turns");
    }
  }

  // The tools and response format blocks of system and developer text.
  void blocks(const Message& message) {
    if (!message.tools.empty()) {
      out_.trusted("\n\n");
      out_.trusted(format_.tools_before_schemas);
      for (std::size_t i = 0; i < message.tools.size(); ++i) {
        if (i > 0) out_.trusted("\n");
        out_.untrusted(message.tools[i].dump());
      }
      out_.trusted(format_.tools_after_schemas);
    }
    if (message.response_format) {
      out_.trusted("\n\n");
      out_.trusted(format_.response_format);
      out_.untrusted(message.response_format->dump());
    }
  }

  void user(const Turn& turn) {
    out_.trusted(format_.user);
    for (std::size_t i = 0; i < turn.parts.size(); ++i) {
      if (i > 0) out_.trusted("\n\n");
      const Part& part = turn.parts[i];
      if (part.is_result()) out_.trusted(format_.tool_result_open);
      out_.untrusted(part.source->content);
      if (part.is_result()) out_.trusted(format_.tool_result_close);
      rendered(part.source);
    }
  }

  void assistant(std::size_t i) {
    const Message& message = *turns_[i].source;
    const bool answers_task = i > 0 && turns_[i - 1].task.has_value();
    if (thinking() && !answers_task && (!drops_thinking_ || std::ptrdiff_t(i) > last_question_)) {
      if (turns_[i].has_reasoning) out_.untrusted(message.reasoning_content);
      if (options_.continues_reasoning && message.wo_eos && i + 1 == turns_.size()) return;
      out_.trusted(format_.think_close);
    }
    out_.untrusted(message.content);
    if (!message.tool_calls.empty()) {
      out_.trusted("\n\n");
      write_tool_calls(message.tool_calls, format_, out_);
    }
    if (!message.wo_eos) out_.trusted(format_.eos);
  }

  // What stands between a turn and the answer to it: the task's token or the answer's header.
  void header(std::size_t i) {
    const Turn& turn = turns_[i];
    if (turn.task && *turn.task != Task::action) {
      out_.trusted(format_.task_token[static_cast<std::size_t>(*turn.task)]);
      return;
    }
    if (!turn.task && !opens_answer(turn.role)) return;
    out_.trusted(format_.assistant);
    // An action is decided in the mode of the conversation, wherever it stands.
    const bool thinks =
        thinking() && (turn.task || !drops_thinking_ || std::ptrdiff_t(i) >= last_question_);
    if (listener_ != nullptr) listener_->header_begins(out_);
    out_.trusted(thinks ? format_.think_open : format_.think_close);
    if (!turn.task) header_mode_ = thinks ? ThinkingMode::thinking : ThinkingMode::chat;
    if (turn.task) out_.trusted(format_.task_token[static_cast<std::size_t>(*turn.task)]);
  }

  const RenderOptions& options_;
  const ChatFormat& format_;
  RenderListener* listener_;
  const Message* messages_ = nullptr;
  std::optional<ThinkingMode> header_mode_;  // of the header that was just written
  std::vector<Turn> turns_;
  std::ptrdiff_t last_question_ = -1;
  bool drops_thinking_ = true;
  SegmentWriter out_;
};

}  // namespace

std::vector<io::TextSegment> render(const Conversation& conversation, const RenderOptions& options,
                                    RenderListener* listener) {
  std::vector<io::TextSegment> segments = Renderer(options, listener).run(conversation);
  if (options.trust_special_tokens) {
    SegmentWriter all;
    for (const io::TextSegment& segment : segments) all.trusted(segment.text);
    segments = all.take();
  }
  return segments;
}

std::vector<io::TextSegment> render(const Conversation& conversation,
                                    const RenderOptions& options) {
  return render(conversation, options, nullptr);
}

std::string render_text(const Conversation& conversation, const RenderOptions& options) {
  std::string text;
  for (const io::TextSegment& segment : render(conversation, options)) text += segment.text;
  return text;
}

}  // namespace hadal::protocol
