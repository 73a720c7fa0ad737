// The arrows between the folders of src/, read from the table in ARCHITECTURE.md and from the link
// lines in CMakeLists.txt, and the #include lines that break them.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace hadal::arrows {

// Folder -> the folders that its row names.
using Rows = std::map<std::string, std::set<std::string>>;

// The rows of the Markdown table headed "| folder | ... | may include |". A row's last cell is
// `nothing`, `everything` (all other rows) or a list in backquotes. Throws std::runtime_error when
// the table is missing or a cell is none of these.
[[nodiscard]] Rows rows_of_architecture(std::string_view markdown);

// The rows that `hadal_layer(NAME hadal_DEP... OTHER...)` lines spell. OTHER libraries are ignored.
[[nodiscard]] Rows rows_of_cmake(std::string_view cmake);

// Each folder with everything that it reaches, itself included. Throws std::runtime_error, naming
// the folders, when a row names a folder without a row or when arrows form a circle.
[[nodiscard]] Rows closure(const Rows& rows);

// The only places that may include the headers of a library. A place is a folder ("io/") or a file
// ("model/config_json.cpp") below src/.
struct LibraryRule {
  std::string header_prefix;  // "nlohmann/"
  std::vector<std::string> allowed;
  std::string reason;
};
[[nodiscard]] const std::vector<LibraryRule>& library_rules();

struct Report {
  std::vector<std::string> violations;  // "ops/rope.cpp:7: ..." sentences, in the order of files
  int n_files = 0;
  int n_arrows = 0;  // includes of another folder that were allowed
};

// Checks every .h .cpp .cu .cuh below `src`. Includes in quotes are paths from src/; those in
// angle brackets are held against `libraries`.
[[nodiscard]] Report check_tree(const std::string& src, const Rows& reachable,
                                const std::vector<LibraryRule>& libraries);

}  // namespace hadal::arrows
