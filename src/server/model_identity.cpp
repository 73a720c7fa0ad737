#include "server/model_identity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <vector>

#include "core/error.h"
#include "io/safetensors.h"

namespace hadal::server {

namespace {

constexpr std::string_view kBuild = "hadal", kTokenizer = "tokenizer";
constexpr std::size_t kShownDigits = 32;

struct Source {
  const ReadableFile* file;
  std::uint64_t offset;
  std::uint64_t nbytes;
};
// The bytes of several tensors, one behind the other.
struct Kind {
  std::vector<Source> tensors;
  std::uint64_t nbytes = 0;
};

// layers.12.ffn.experts.7.w1.weight -> layers.#.ffn.experts.#.w1.weight
std::string kind_of(std::string_view name) {
  std::string kind;
  for (const char c : name) {
    if (std::isdigit(static_cast<unsigned char>(c)) == 0) {
      kind += c;
    } else if (!kind.ends_with('#')) {
      kind += '#';
    }
  }
  return kind;
}

// `n` pieces of at most `nbytes`, evenly spaced from the first byte on.
void add_samples(Sha256& hash, const Kind& kind, std::size_t n, std::size_t nbytes) {
  std::vector<std::byte> buffer(nbytes);
  std::size_t tensor = 0;
  std::uint64_t tensor_begin = 0;
  for (std::size_t i = 0; i < n; ++i) {
    std::uint64_t at = kind.nbytes / n * i + std::min<std::uint64_t>(i, kind.nbytes % n);
    const std::uint64_t next =
        kind.nbytes / n * (i + 1) + std::min<std::uint64_t>(i + 1, kind.nbytes % n);
    const std::uint64_t end = std::min<std::uint64_t>(at + nbytes, next);
    while (at < end) {
      while (at >= tensor_begin + kind.tensors[tensor].nbytes) {
        tensor_begin += kind.tensors[tensor++].nbytes;
      }
      const Source& source = kind.tensors[tensor];
      const auto wanted = std::min(end, tensor_begin + source.nbytes) - at;
      const auto into = std::span(buffer).first(static_cast<std::size_t>(wanted));
      if (source.file->read(source.offset + (at - tensor_begin), into) != into.size()) {
        throw Error(ErrorCode::io,
                    "a weight file became shorter while its digest was taken; start "
                    "again when it is complete");
      }
      hash.update(std::as_bytes(into));
      at += wanted;
    }
  }
}

// The value of the line that begins with `word`; empty when there is none.
std::string_view value_of(std::string_view text, std::string_view word) {
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    if (line.starts_with(word) && line.substr(word.size()).starts_with(' ')) {
      return line.substr(word.size() + 1);
    }
    text.remove_prefix(std::min(text.size(), line.size() + 1));
  }
  return {};
}

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    words.push_back(line.substr(0, line.find(' ')));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
  }
  return words;
}

}  // namespace

Sha256Digest weights_digest(FileSystem& fs, const Path& directory, const WeightSamples& samples) {
  std::vector<std::unique_ptr<ReadableFile>> files;
  std::map<std::string, std::pair<io::SafetensorsEntry, const ReadableFile*>> tensors;
  for (const FileSystem::Entry& entry : fs.list(directory)) {
    const Path path = directory / entry.name;
    if (entry.is_directory || path.extension() != ".safetensors") continue;
    files.push_back(fs.open_read(path));
    const io::SafetensorsFile weights = io::SafetensorsFile::open(path);
    for (const io::SafetensorsEntry& e : weights.entries()) {
      tensors.insert_or_assign(e.name, std::pair(e, files.back().get()));
    }
  }

  Sha256 hash;
  std::map<std::string, Kind> kinds;
  for (const auto& [name, tensor] : tensors) {
    const auto& [entry, file] = tensor;
    hash.update(fmt::format("{}\n{} {}\n", name, entry.dtype_name, to_string(entry.shape)));
    if (entry.nbytes == 0) continue;
    Kind& kind = kinds[kind_of(name)];
    kind.tensors.push_back({file, entry.offset, entry.nbytes});
    kind.nbytes += entry.nbytes;
  }

  // The small ones first: what they do not need is shared by the rest.
  std::vector<const Kind*> by_size;
  for (const auto& [name, kind] : kinds) by_size.push_back(&kind);
  std::ranges::stable_sort(by_size, {}, &Kind::nbytes);
  std::size_t left = samples.n;
  for (std::size_t i = 0; i < by_size.size(); ++i) {
    const Kind& kind = *by_size[i];
    const std::uint64_t whole = (kind.nbytes + samples.nbytes - 1) / samples.nbytes;
    const std::size_t share = std::max<std::size_t>(1, left / (by_size.size() - i));
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(whole, share));
    add_samples(hash, kind, n, samples.nbytes);
    left -= std::min(left, n);
  }
  return hash.finish();
}

std::string fingerprint_text(FileSystem& fs, const Path& directory, const std::string& numerics,
                             const std::string& version) {
  const auto digits = [](const Sha256Digest& digest) {
    return to_hex(digest).substr(0, kShownDigits);
  };
  return fmt::format("{} {}\nnumerics {}\nweights {}\nconfig {}\n{} {}\n", kBuild, version,
                     numerics, digits(weights_digest(fs, directory)),
                     digits(sha256(read_text(directory / "config.json"))), kTokenizer,
                     digits(sha256(read_text(directory / "tokenizer.json"))));
}

std::string model_difference(std::string_view then, std::string_view now) {
  std::vector<std::string_view> words = words_of(now);
  for (const std::string_view word : words_of(then)) {
    if (std::ranges::find(words, word) == words.end()) words.push_back(word);
  }
  std::string difference;
  for (const std::string_view word : words) {
    const std::string_view before = value_of(then, word), present = value_of(now, word);
    if (word == kBuild || before == present) continue;
    const auto shown = [](std::string_view value) {
      return value.empty() ? "unknown" : value.substr(0, 12);
    };
    difference += fmt::format("{}{} {} then, {} now", difference.empty() ? "" : "; ", word,
                              shown(before), shown(present));
  }
  return difference;
}

bool same_tokenizer(std::string_view then, std::string_view now) {
  return value_of(then, kTokenizer) == value_of(now, kTokenizer);
}

}  // namespace hadal::server
