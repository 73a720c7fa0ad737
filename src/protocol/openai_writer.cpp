#include "protocol/openai_writer.h"

namespace hadal::protocol {
namespace {

std::string usage_json(const Usage& usage) {
  JsonWriter out;
  write_usage(out, usage);
  return out.take();
}

}  // namespace

std::vector<SseEvent> OpenAiWriter::finish(std::int32_t index, AnswerEnd end,
                                           const std::string& detail, const Usage& /*usage*/) {
  if (error_) return {};
  const auto at = static_cast<std::size_t>(index);
  Ending& ending = endings_.at(at);
  ending.end = end;
  if (end == AnswerEnd::stop_string) ending.matched_stop = detail;
  if (end == AnswerEnd::error) error_ = failed_answer(detail);
  if (!stream_) return {};
  if (error_) return {stream_error(api_, *error_, {})};
  return {last_chunk(at)};
}

std::vector<SseEvent> OpenAiWriter::end(const Usage& usage) {
  usage_ = usage;
  std::vector<SseEvent> out;
  if (!stream_ || error_) return out;
  if (include_usage_) out.push_back({"", head_ + "],\"usage\":" + usage_json(usage) + "}"});
  out.push_back({"", "[DONE]"});
  return out;
}

std::string OpenAiWriter::body() const {
  if (error_) return error_body(api_, *error_, {});
  JsonWriter choices;
  for (std::size_t i = 0; i < endings_.size(); ++i) write_whole(choices, i);
  return head_ + choices.take() + "],\"usage\":" + usage_json(usage_) + "}";
}

SseEvent OpenAiWriter::chunk_of(std::string_view choice) const {
  return {"", head_ + std::string(choice) + (include_usage_ ? R"(],"usage":null})" : "]}")};
}

void OpenAiWriter::write_finish(JsonWriter& out, std::size_t at, bool finished,
                                bool has_complete_call) const {
  out.key("finish_reason");
  if (!finished) {
    out.null();
    return;
  }
  const Ending& ending = endings_[at];
  out.text(openai_finish_reason(ending.end, has_complete_call));
  if (ending.end == AnswerEnd::stop_string) out.member("matched_stop", ending.matched_stop);
}

}  // namespace hadal::protocol
