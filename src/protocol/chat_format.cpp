#include "protocol/chat_format.h"

#include <fmt/format.h>

#include "core/error.h"

namespace hadal::protocol {
namespace {

constexpr std::string_view kEffortA =
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
    "resolve the root cause, rigorously stress-testing your logic against all potential paths, "
    "edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, "
    "considered alternative, and rejected hypothesis to ensure absolutely no assumption is left "
    "unchecked.\n\n";

constexpr std::string_view kEffortB =
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: "
    "exhaustively decompose the problem into its most fundamental components, trace every causal "
    "chain to its root, and resolve the underlying cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple "
    "angles and are certain that no assumption remains unchecked and no error remains "
    "undiscovered.\n\n";

constexpr std::string_view kToolsBeforeSchemas =
    "## Tools\n\n"
    "You have access to a set of tools to help answer the user's question. You can invoke tools "
    "by writing a \"<｜DSML｜tool_calls>\" block like the following:\n\n"
    "<｜DSML｜tool_calls>\n"
    "<｜DSML｜invoke name=\"$TOOL_NAME\">\n"
    "<｜DSML｜parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE"
    "</｜DSML｜parameter>\n"
    "...\n"
    "</｜DSML｜invoke>\n"
    "<｜DSML｜invoke name=\"$TOOL_NAME2\">\n"
    "...\n"
    "</｜DSML｜invoke>\n"
    "</｜DSML｜tool_calls>\n\n"
    "String parameters should be specified as is and set `string=\"true\"`. For all other types "
    "(numbers, booleans, arrays, objects), pass the value in JSON format and set "
    "`string=\"false\"`.\n\n"
    "If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning "
    "inside <think>...</think> BEFORE any tool calls or final response.\n\n"
    "Otherwise, output directly after </think> with tool calls or final response.\n\n"
    "### Available Tool Schemas\n\n";

constexpr std::string_view kToolsAfterSchemas =
    "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool "
    "calls.\n";

constexpr std::string_view kResponseFormat =
    "## Response Format:\n\n"
    "You MUST strictly adhere to the following schema to reply:\n";

constexpr EffortName kPreviewEfforts[] = {{.name = "none", .level = ReasoningEffort::none},
                                          {.name = "minimal", .level = ReasoningEffort::high},
                                          {.name = "low", .level = ReasoningEffort::high},
                                          {.name = "medium", .level = ReasoningEffort::high},
                                          {.name = "high", .level = ReasoningEffort::high},
                                          {.name = "xhigh", .level = ReasoningEffort::max},
                                          {.name = "max", .level = ReasoningEffort::max}};

constexpr EffortName k0731Efforts[] = {{.name = "none", .level = ReasoningEffort::none},
                                       {.name = "minimal", .level = ReasoningEffort::low},
                                       {.name = "low", .level = ReasoningEffort::low},
                                       {.name = "medium", .level = ReasoningEffort::high},
                                       {.name = "high", .level = ReasoningEffort::high},
                                       {.name = "xhigh", .level = ReasoningEffort::high},
                                       {.name = "max", .level = ReasoningEffort::max},
                                       {.name = "ultra", .level = ReasoningEffort::max}};

constexpr ChatFormat kPreview{.bos = "<｜begin▁of▁sentence｜>",
                              .eos = "<｜end▁of▁sentence｜>",
                              .user = "<｜User｜>",
                              .assistant = "<｜Assistant｜>",
                              .latest_reminder = "<｜latest_reminder｜>",
                              .think_open = "<think>",
                              .think_close = "</think>",
                              .tool_result_open = "<tool_result>",
                              .tool_result_close = "</tool_result>",
                              .dsml_mark = "｜DSML｜",
                              .calls_tag = "tool_calls",
                              .invoke_tag = "invoke",
                              .parameter_tag = "parameter",
                              .tools_before_schemas = kToolsBeforeSchemas,
                              .tools_after_schemas = kToolsAfterSchemas,
                              .response_format = kResponseFormat,
                              .effort_text = {"", "", "", kEffortA},
                              .effort_names = kPreviewEfforts,
                              .task_token = {"<｜action｜>", "<｜query｜>", "<｜authority｜>",
                                             "<｜domain｜>", "<｜title｜>", "<｜read_url｜>"}};

constexpr ChatFormat make_0731() {
  ChatFormat format = kPreview;  // the same tags, roles and DSML
  format.effort_text = {"", "", kEffortA, kEffortB};
  format.effort_names = k0731Efforts;
  return format;
}
constexpr ChatFormat k0731 = make_0731();

}  // namespace

const ChatFormat& chat_format(ChatProfile profile) {
  return profile == ChatProfile::v4_preview ? kPreview : k0731;
}

ReasoningEffort reasoning_effort_from(std::string_view word, ChatProfile profile) {
  if (word.empty()) return ReasoningEffort::high;
  std::string known;
  for (const EffortName& entry : chat_format(profile).effort_names) {
    if (entry.name == word) return entry.level;
    known.append(known.empty() ? "" : ", ").append(entry.name);
  }
  throw Error(ErrorCode::invalid_argument,
              fmt::format("unknown reasoning effort '{}' for chat profile {}; known are: {}", word,
                          to_string(profile), known));
}

std::vector<std::string> default_stop_tokens(ChatProfile profile) {
  const ChatFormat& f = chat_format(profile);
  return {std::string(f.eos), std::string(f.user), std::string(f.assistant),
          std::string(f.latest_reminder)};
}

}  // namespace hadal::protocol
