// Runs as one HTML file that needs nothing else, and as text for a terminal.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "train/run_history.h"

namespace hadal::train {

// The page: src/train/report_page with its styles and scripts in place and the runs as JSON within.
// Asks for nothing over a network. The same runs give the same bytes. With more than one run,
// curves lie on top of each other and the first two are compared.
[[nodiscard]] std::string html_report(std::span<const RunHistory> runs);

// What the page draws. "<" is escaped, so that it can stand in a script element.
[[nodiscard]] std::string report_json(std::span<const RunHistory> runs);

// Summary, curves as rows of block characters, events and the newest sample of each run.
// `columns`: of the terminal, at least 40 are taken.
[[nodiscard]] std::string text_report(std::span<const RunHistory> runs, std::size_t columns);

// `width` characters of heights 1 to 8 (" " for NaN); the mean of what falls on each.
[[nodiscard]] std::string sparkline(std::span<const double> values, std::size_t width);

// Made at build time by cmake/embed_page.cmake: one HTML text with kReportData in it.
[[nodiscard]] std::string_view report_page();
inline constexpr std::string_view kReportData = "@REPORT_DATA@";

}  // namespace hadal::train
