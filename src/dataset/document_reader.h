// Cuts source files into documents, one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dataset/input_stream.h"
#include "dataset/source_files.h"

namespace hadal::dataset {

// Between two documents. A reader that begins there reads the same documents from there on.
struct ReaderPosition {
  std::int64_t file = 0;      // number of the source
  std::uint64_t offset = 0;   // in it, unpacked
  std::int64_t n_lines = 0;   // of it, read so far
  std::int64_t document = 0;  // documents in front of here, over all sources
  bool operator==(const ReaderPosition&) const = default;
};

struct RawDocument {
  std::string text;  // of a jsonl source: the line
  SourceKind kind = SourceKind::text;
  std::size_t file = 0;
  std::int64_t line = 0;     // that it begins on, from 1; 0: it is the whole file
  std::uint64_t offset = 0;  // of its first byte in the file, unpacked
  std::int64_t index = 0;    // over all sources
  ReaderPosition after;      // where the next one is read from
};

// By one thread. A text source is one document, or with a separator as many as lie between the
// places where it stands; a line break directly behind a separator belongs to it, and a byte order
// mark at the head of a file to nobody. Blank lines of a jsonl source are no documents.
class DocumentReader {
 public:
  static constexpr std::size_t kMaxDocumentBytes = std::size_t{1} << 30;

  // `sources` must outlive this.
  DocumentReader(const std::vector<SourceFile>& sources, std::string separator,
                 const ReaderPosition& begin = {});
  DocumentReader(std::vector<SourceFile>&&, std::string, const ReaderPosition& = {}) = delete;

  // The next one; nothing at the end. Throws as InputStream; invalid_argument for a document of
  // more than kMaxDocumentBytes.
  [[nodiscard]] std::optional<RawDocument> next();

  [[nodiscard]] const ReaderPosition& position() const { return position_; }
  [[nodiscard]] std::uint64_t n_file_bytes() const;  // read so far of all sources, as they are

 private:
  std::optional<RawDocument> next_in_file(const SourceFile& source);
  void begin_file();
  [[nodiscard]] bool fill();

  const std::vector<SourceFile>& sources_;
  std::string separator_;
  ReaderPosition position_;
  std::unique_ptr<InputStream> input_;
  std::uint64_t bytes_before_ = 0;  // of the sources in front of this one
  std::string buffer_;              // read, from buffer_begin_ on not handed out
  std::size_t buffer_begin_ = 0;
  bool at_end_ = false;  // of the input
};

// "notes.txt", "talks.jsonl:17": where a document comes from, for messages.
[[nodiscard]] std::string place_of(const RawDocument& document,
                                   const std::vector<SourceFile>& sources);

}  // namespace hadal::dataset
