// The frame of an answer in chat completions and in completions: chunks or one object, how choices
// end, the usage behind them.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/openai_parts.h"

namespace hadal::protocol {

class OpenAiWriter : public ResponseWriter {
 public:
  std::vector<SseEvent> finish(std::int32_t index, AnswerEnd end, const std::string& detail,
                               const Usage& usage) final;
  std::vector<SseEvent> end(const Usage& usage) final;
  [[nodiscard]] std::string body() const final;

 protected:
  // `head` is what response_head() gives.
  OpenAiWriter(const ApiRequest& request, std::string head, std::size_t n_choices)
      : api_(request.api),
        stream_(request.stream),
        include_usage_(request.include_usage),
        head_(std::move(head)),
        endings_(n_choices) {}

  [[nodiscard]] bool streams() const { return stream_; }
  [[nodiscard]] bool failed() const { return error_.has_value(); }
  [[nodiscard]] std::size_t n_choices() const { return endings_.size(); }

  // A chunk of a choice, whose object this is.
  [[nodiscard]] SseEvent chunk_of(std::string_view choice) const;
  // finish_reason and what goes with it; null where the choice is not `finished`.
  void write_finish(JsonWriter& out, std::size_t at, bool finished, bool has_complete_call) const;

  // The chunk with which a choice ends.
  [[nodiscard]] virtual SseEvent last_chunk(std::size_t at) = 0;
  // A choice as the whole response has it.
  virtual void write_whole(JsonWriter& out, std::size_t at) const = 0;

 private:
  struct Ending {
    AnswerEnd end = AnswerEnd::stop;
    std::string matched_stop;
  };
  Api api_;
  bool stream_, include_usage_;
  std::string head_;
  std::vector<Ending> endings_;  // of the choices
  Usage usage_;
  std::optional<ApiError> error_;
};

}  // namespace hadal::protocol
