#include "dataset/source_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <set>
#include <system_error>

#include "core/digest.h"
#include "core/error.h"

namespace hadal::dataset {
namespace {

namespace fs = std::filesystem;

struct Format {
  SourceKind kind;
  bool compressed;
};

std::optional<Format> format_of(Path path, std::span<const std::string> text_extensions) {
  const bool compressed = path.extension() == ".zst";
  if (compressed) path.replace_extension();
  const std::string extension = path.extension().string();
  if (extension == ".jsonl") return Format{SourceKind::jsonl, compressed};
  for (const std::string& text : text_extensions) {
    if (extension == "." + text) return Format{SourceKind::text, compressed};
  }
  return std::nullopt;
}

std::string formats_text(std::span<const std::string> text_extensions) {
  std::string text = ".jsonl";
  for (const std::string& extension : text_extensions) text += ", ." + extension;
  return text + " (or with .zst behind it)";
}

SourceFile source_of(const Path& path, const Format& format) {
  std::error_code error;
  const std::uint64_t nbytes = fs::file_size(path, error);
  const auto modified = error ? fs::file_time_type() : fs::last_write_time(path, error);
  if (error) {
    throw Error(ErrorCode::io, fmt::format("cannot read {}: {}", path.string(), error.message()));
  }
  return {.path = path,
          .kind = format.kind,
          .compressed = format.compressed,
          .nbytes = nbytes,
          .modified_ns =
              std::chrono::duration_cast<std::chrono::nanoseconds>(modified.time_since_epoch())
                  .count()};
}

void add_directory(const Path& directory, std::span<const std::string> text_extensions,
                   std::vector<SourceFile>& sources) {
  const std::size_t before = sources.size();
  std::error_code error;
  fs::recursive_directory_iterator it(directory, error);
  for (const fs::recursive_directory_iterator end; !error && it != end; it.increment(error)) {
    if (!it->is_regular_file()) continue;
    const auto format = format_of(it->path(), text_extensions);
    if (format) sources.push_back(source_of(it->path(), *format));
  }
  if (error) {
    throw Error(ErrorCode::io,
                fmt::format("cannot read {}: {}", directory.string(), error.message()));
  }
  if (sources.size() == before) {
    throw Error(ErrorCode::not_found,
                fmt::format("{} has no file to read: looked for {}; --text-extension takes others "
                            "as text",
                            directory.string(), formats_text(text_extensions)));
  }
  std::sort(sources.begin() + static_cast<std::ptrdiff_t>(before), sources.end(),
            [](const SourceFile& a, const SourceFile& b) {
              return a.path.generic_string() < b.path.generic_string();
            });
}

}  // namespace

std::vector<SourceFile> find_sources(std::span<const Path> inputs,
                                     std::span<const std::string> text_extensions) {
  std::vector<SourceFile> sources;
  for (const Path& input : inputs) {
    std::error_code error;
    const auto status = fs::status(input, error);
    if (!fs::exists(status)) {
      throw Error(ErrorCode::not_found, fmt::format("there is no {} to read", input.string()));
    }
    if (fs::is_directory(status)) {
      add_directory(input, text_extensions, sources);
      continue;
    }
    const auto format = format_of(input, text_extensions);
    if (!format) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{}: of a kind that is not read; wanted {}; --text-extension takes "
                              "others as text",
                              input.string(), formats_text(text_extensions)));
    }
    sources.push_back(source_of(input, *format));
  }
  std::set<std::string> seen;
  for (const SourceFile& source : sources) {
    if (!seen.insert(fs::weakly_canonical(source.path).string()).second) {
      throw Error(
          ErrorCode::invalid_argument,
          fmt::format("{} is named twice; its documents would count double", source.path.string()));
    }
  }
  return sources;
}

std::string digest_of(std::span<const SourceFile> sources) {
  Sha256 sha;
  for (const SourceFile& source : sources) {
    sha.update(fmt::format("{}\n{} {}\n", source.path.generic_string(), source.nbytes,
                           source.modified_ns));
  }
  return to_hex(sha.finish());
}

}  // namespace hadal::dataset
