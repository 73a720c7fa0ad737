#include "protocol/dsml_writer.h"

#include <fmt/format.h>

#include <optional>

#include "core/error.h"
#include "protocol/json_text.h"

namespace hadal::protocol {
namespace {

class Writer {
 public:
  Writer(const ChatFormat& format, SegmentWriter& out) : format_(format), out_(out) {}

  void calls(const std::vector<ToolCall>& tool_calls) {
    open(format_.calls_tag, ">\n");
    for (const ToolCall& tool_call : tool_calls) {
      call(tool_call);
      out_.trusted("\n");
    }
    close(format_.calls_tag);
  }

 private:
  void open(std::string_view tag, std::string_view then) {
    out_.trusted(fmt::format("<{}{}{}", format_.dsml_mark, tag, then));
  }
  void close(std::string_view tag) { out_.trusted(fmt::format("</{}{}>", format_.dsml_mark, tag)); }

  void call(const ToolCall& tool_call) {
    open(format_.invoke_tag, " name=\"");
    out_.untrusted(tool_call.name);
    out_.trusted("\">\n");
    parameters(tool_call);
    out_.trusted("\n");
    close(format_.invoke_tag);
  }

  void parameters(const ToolCall& tool_call) {
    if (tool_call.arguments.empty()) return;
    const std::optional<Json> arguments = Json::try_parse(tool_call.arguments);
    if (!arguments) return parameter("arguments", "true", tool_call.arguments);
    if (arguments->is_null()) return;
    const auto* object = arguments->as<Json::Object>();
    if (object == nullptr) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("arguments of tool call '{}' are a JSON {}, wanted an object",
                              tool_call.name, arguments->type_name()));
    }
    for (std::size_t i = 0; i < object->size(); ++i) {
      if (i > 0) out_.trusted("\n");
      const auto& [key, value] = (*object)[i];
      if (const auto* text = value.as<std::string>()) {
        parameter(key, "true", *text);
      } else {
        parameter(key, "false", value.dump());
      }
    }
  }

  void parameter(std::string_view key, std::string_view is_string, std::string_view value) {
    open(format_.parameter_tag, " name=\"");
    out_.untrusted(key);
    out_.trusted(fmt::format("\" string=\"{}\">", is_string));
    out_.untrusted(value);
    close(format_.parameter_tag);
  }

  const ChatFormat& format_;
  SegmentWriter& out_;
};

}  // namespace

void write_tool_calls(const std::vector<ToolCall>& calls, const ChatFormat& format,
                      SegmentWriter& out) {
  Writer(format, out).calls(calls);
}

std::string tool_calls_text(const std::vector<ToolCall>& calls, const ChatFormat& format) {
  SegmentWriter out;
  write_tool_calls(calls, format, out);
  std::string text;
  for (const io::TextSegment& segment : out.take()) text += segment.text;
  return text;
}

}  // namespace hadal::protocol
