// From parsed pieces to events: joins neighbours, and writes the arguments of a call as JSON text.
// Internal to the DSML parser.
#pragma once

#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "protocol/dsml_event.h"

namespace hadal::protocol {

// Appends to a vector of events; what continues the last event is joined to it.
class EventSink {
 public:
  explicit EventSink(std::vector<DsmlEvent>& out) : out_(out) {}

  void reasoning(std::string_view text);
  void content(std::string_view text);
  void begin_call(std::size_t index, std::string_view name);
  void argument(std::size_t index, std::string_view text);
  void end_call(std::size_t index);
  void malformed(DsmlError error, std::string_view text);

 private:
  std::vector<DsmlEvent>& out_;
};

// The arguments of one call, written while they are read: {"key": value, ...}.
class CallArguments {
 public:
  explicit CallArguments(std::size_t index) : index_(index) {}

  [[nodiscard]] bool has(std::string_view key) const { return keys_.contains(std::string(key)); }
  [[nodiscard]] bool empty() const { return keys_.empty(); }

  // A string value in any number of pieces, each of whole characters.
  void begin_string(std::string_view key, EventSink& sink);
  void string_piece(std::string_view text, EventSink& sink);
  void end_string(EventSink& sink);
  void string(std::string_view key, std::string_view text, EventSink& sink);
  // A value that is JSON text already; pasted as it is.
  void json(std::string_view key, std::string_view text, EventSink& sink);

  void end(EventSink& sink);
  // Ends the call with a whole object in place of single parameters.
  void end_with(std::string_view object, EventSink& sink);

 private:
  std::string member(std::string_view key);

  std::size_t index_;
  std::unordered_set<std::string> keys_;
};

}  // namespace hadal::protocol
