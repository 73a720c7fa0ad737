#include "arrows/include_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <stdexcept>

namespace hadal::arrows {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  std::istringstream in{std::string(text)};
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// The cells between the bars of a Markdown table line, without the blanks around them.
std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  std::istringstream in(line);
  std::string cell;
  std::getline(in, cell, '|');
  while (std::getline(in, cell, '|')) {
    const auto first = cell.find_first_not_of(' ');
    const auto last = cell.find_last_not_of(' ');
    cells.push_back(first == std::string::npos ? "" : cell.substr(first, last - first + 1));
  }
  return cells;
}

std::set<std::string> quoted_names(const std::string& cell) {
  static const std::regex kName("`([a-z_]+)`");
  std::set<std::string> names;
  for (std::sregex_iterator it(cell.begin(), cell.end(), kName), end; it != end; ++it) {
    names.insert((*it)[1]);
  }
  return names;
}

void visit(const Rows& rows, const std::string& folder, std::vector<std::string>& path,
           Rows& reached) {
  if (reached.contains(folder)) return;
  if (std::find(path.begin(), path.end(), folder) != path.end()) {
    throw std::runtime_error(
        fmt::format("the arrows form a circle: {} -> {}", fmt::join(path, " -> "), folder));
  }
  path.push_back(folder);
  std::set<std::string> all{folder};
  for (const std::string& below : rows.at(folder)) {
    if (!rows.contains(below)) {
      throw std::runtime_error(
          fmt::format("the row of {} names {}, which has no row of its own", folder, below));
    }
    visit(rows, below, path, reached);
    all.insert(reached.at(below).begin(), reached.at(below).end());
  }
  path.pop_back();
  reached.emplace(folder, std::move(all));
}

bool is_source(const fs::path& path) {
  static const std::set<std::string> kExtensions{".h", ".cpp", ".cu", ".cuh"};
  return kExtensions.contains(path.extension().string());
}

class TreeCheck {
 public:
  TreeCheck(const Rows& reachable, const std::vector<LibraryRule>& libraries)
      : reachable_(reachable), libraries_(libraries) {}

  void check_file(const fs::path& path, const std::string& name) {
    static const std::regex kInclude("^\\s*#\\s*include\\s*([<\"])([^>\"]+)[>\"]");
    ++report_.n_files;
    const std::string folder = name.substr(0, name.find('/'));
    if (!reachable_.contains(folder)) {
      report_.violations.push_back(
          fmt::format("{}: folder {} has no row in the table", name, folder));
      return;
    }
    std::ifstream in(path);
    int line_number = 0;
    for (std::string line; std::getline(in, line);) {
      ++line_number;
      std::smatch match;
      if (!std::regex_search(line, match, kInclude)) continue;
      const std::string where = fmt::format("{}:{}", name, line_number);
      match[1] == "\"" ? check_own(where, folder, match[2]) : check_library(where, name, match[2]);
    }
  }

  Report take() { return std::move(report_); }

 private:
  void check_own(const std::string& where, const std::string& folder, const std::string& target) {
    const auto slash = target.find('/');
    const std::string below = target.substr(0, slash);
    if (slash == std::string::npos || !reachable_.contains(below)) {
      report_.violations.push_back(
          fmt::format("{}: includes \"{}\"; wanted a path from src/", where, target));
    } else if (!reachable_.at(folder).contains(below)) {
      report_.violations.push_back(fmt::format("{}: {} may not include \"{}\"; it may include {}",
                                               where, folder, target,
                                               fmt::join(reachable_.at(folder), ", ")));
    } else if (below != folder) {
      ++report_.n_arrows;
    }
  }

  void check_library(const std::string& where, const std::string& name, const std::string& header) {
    for (const LibraryRule& rule : libraries_) {
      if (!header.starts_with(rule.header_prefix)) continue;
      const bool allowed =
          std::any_of(rule.allowed.begin(), rule.allowed.end(), [&](const std::string& place) {
            return place.ends_with('/') ? name.starts_with(place) : name == place;
          });
      if (!allowed) {
        report_.violations.push_back(fmt::format("{}: <{}> belongs in {}: {}", where, header,
                                                 fmt::join(rule.allowed, ", "), rule.reason));
      }
    }
  }

  const Rows& reachable_;
  const std::vector<LibraryRule>& libraries_;
  Report report_;
};

}  // namespace

Rows rows_of_architecture(std::string_view markdown) {
  Rows rows;
  std::set<std::string> see_everything;
  bool inside = false;
  for (const std::string& line : lines_of(markdown)) {
    const std::vector<std::string> cells = cells_of(line);
    if (!inside) {
      inside = cells.size() >= 2 && cells.front() == "folder" && cells.back() == "may include";
      continue;
    }
    if (cells.size() < 2) break;
    if (cells.front().starts_with("-")) continue;
    const std::set<std::string> name = quoted_names(cells.front());
    const std::set<std::string> below = quoted_names(cells.back());
    if (name.size() != 1 ||
        (below.empty() && cells.back() != "nothing" && cells.back() != "everything")) {
      throw std::runtime_error(fmt::format("a row of the folder table cannot be read: {}", line));
    }
    if (cells.back() == "everything") see_everything.insert(*name.begin());
    rows[*name.begin()] = below;
  }
  if (rows.empty()) throw std::runtime_error("no table headed | folder | ... | may include |");
  for (const std::string& folder : see_everything) {
    for (const auto& [other, below] : rows) {
      if (other != folder) rows[folder].insert(other);
    }
  }
  return rows;
}

Rows rows_of_cmake(std::string_view cmake) {
  static const std::regex kLayer("^hadal_layer\\(([a-z_]+)([^)]*)\\)");
  static const std::regex kDependency("\\bhadal_([a-z_]+)");
  Rows rows;
  for (const std::string& line : lines_of(cmake)) {
    std::smatch match;
    if (!std::regex_search(line, match, kLayer)) continue;
    const std::string dependencies = match[2];
    std::set<std::string>& row = rows[match[1]];
    for (std::sregex_iterator it(dependencies.begin(), dependencies.end(), kDependency), end;
         it != end; ++it) {
      row.insert((*it)[1]);
    }
  }
  return rows;
}

Rows closure(const Rows& rows) {
  Rows reached;
  for (const auto& [folder, below] : rows) {
    std::vector<std::string> path;
    visit(rows, folder, path, reached);
  }
  return reached;
}

const std::vector<LibraryRule>& library_rules() {
  static const std::vector<LibraryRule> kRules{
      {"nlohmann/",
       {"io/", "protocol/", "cli/", "grammar/schema_document.h", "model/config_json.cpp",
        "model/accounting_report.cpp", "train/data_manifest.cpp", "train/data_loader_state.cpp",
        "train/step_record.cpp", "train/report.cpp", "train/checkpoint_manifest.cpp",
        "train/checkpoint_state.cpp", "train/export.cpp", "dataset/build_state.cpp"},
       "JSON stays at the edges; in grammar, only the reader of schemas knows it; in model, only "
       "the reader and writer of config.json and the report that inspect --json prints; in train "
       "and dataset, only readers and writers of small files"},
      {"pcre2.h", {"io/"}, "regular expressions are the tokenizer's business"},
      {"hwy/", {"kernels/cpu/"}, "portable SIMD stays in the CPU kernels"},
      {"oneapi/", {"kernels/cpu/gemm.cpp"}, "oneDNN has one door; kernels call gemm.h"},
      {"immintrin.h", {"kernels/cpu/"}, "intrinsics stay in the CPU kernels"},
      {"cuda", {"core/cuda/", "kernels/cuda/"}, "everything else builds without CUDA"},
      {"CLI/", {"cli/"}, "options are parsed in the program and handed in"},
      {"histedit.h", {"cli/"}, "only the program talks to a terminal"},
      {"boost/",
       {"server/", "cli/bench_serve_client.h", "cli/bench_serve_client.cpp",
        "cli/bench_serve_load.h", "cli/bench_serve_load.cpp"},
       "sockets stay in the server and its load generator"},
      {"openssl/", {"core/digest.cpp", "server/"}, "digests have one door, TLS is the server's"},
      {"zstd.h",
       {"journal/", "dataset/"},
       "only the journal stores compressed bytes, and text to train on may come compressed"},
      {"mpi.h", {"parallel/mpi/"}, "everything else knows a Communicator"},
      {"toml++/", {"cli/"}, "options are read in the program and handed in"},
  };
  return kRules;
}

Report check_tree(const std::string& src, const Rows& reachable,
                  const std::vector<LibraryRule>& libraries) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(src)) {
    if (entry.is_regular_file() && is_source(entry.path())) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  TreeCheck check(reachable, libraries);
  for (const fs::path& file : files) {
    check.check_file(file, fs::relative(file, src).generic_string());
  }
  return check.take();
}

}  // namespace hadal::arrows
