#include "dataset/document_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace hadal::dataset {

namespace {
constexpr std::size_t kReadBytes = std::size_t{1} << 20;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
}  // namespace

DocumentReader::DocumentReader(const std::vector<SourceFile>& sources, std::string separator,
                               const ReaderPosition& begin)
    : sources_(sources), separator_(std::move(separator)), position_(begin) {
  for (std::size_t i = 0; i < sources.size() && std::cmp_less(i, begin.file); ++i) {
    bytes_before_ += sources[i].nbytes;
  }
}

std::uint64_t DocumentReader::n_file_bytes() const {
  return bytes_before_ + (input_ ? input_->n_file_bytes() : 0);
}

void DocumentReader::begin_file() {
  input_ = open_input(sources_[static_cast<std::size_t>(position_.file)], position_.offset);
  buffer_.clear();
  buffer_begin_ = 0;
  at_end_ = false;
  if (position_.offset > 0) return;
  (void)fill();
  if (buffer_.starts_with(kByteOrderMark)) {
    buffer_begin_ = kByteOrderMark.size();
    position_.offset = kByteOrderMark.size();
  }
}

// Reads on; false when there is nothing left.
bool DocumentReader::fill() {
  if (at_end_) return false;
  buffer_.erase(0, std::exchange(buffer_begin_, 0));
  const std::size_t before = buffer_.size();
  buffer_.resize(before + kReadBytes);
  const std::size_t n = input_->read(std::span(buffer_).subspan(before));
  buffer_.resize(before + n);
  at_end_ = n < kReadBytes;
  return n > 0;
}

std::optional<RawDocument> DocumentReader::next() {
  while (std::cmp_less(position_.file, sources_.size())) {
    const SourceFile& source = sources_[static_cast<std::size_t>(position_.file)];
    if (!input_) begin_file();
    if (auto document = next_in_file(source)) return document;
    input_.reset();
    bytes_before_ += source.nbytes;
    position_ = {
        .file = position_.file + 1, .offset = 0, .n_lines = 0, .document = position_.document};
  }
  return std::nullopt;
}

std::optional<RawDocument> DocumentReader::next_in_file(const SourceFile& source) {
  const bool lines = source.kind == SourceKind::jsonl;
  const std::string_view delimiter = lines ? std::string_view("\n") : std::string_view(separator_);
  for (;;) {
    std::size_t searched = 0, end = std::string::npos;
    const auto unread = [&] { return std::string_view(buffer_).substr(buffer_begin_); };
    for (;;) {
      if (!delimiter.empty()) {
        // A delimiter may begin at the end of what was searched before.
        end = unread().find(delimiter, searched - std::min(searched, delimiter.size() - 1));
        if (end != std::string::npos) break;
      }
      searched = unread().size();
      if (searched > kMaxDocumentBytes) {
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("{}: the document at byte {} is longer than {} bytes; {}",
                                source.path.string(), position_.offset, kMaxDocumentBytes,
                                lines ? "is it JSON, a line an object?"
                                      : "--document-separator cuts a file into several"));
      }
      if (!fill()) break;
    }
    const bool is_last = end == std::string::npos;
    if (is_last) end = unread().size();
    // A text file without a separator is a document even when it is empty.
    const bool whole = !lines && separator_.empty();
    if (is_last && end == 0 &&
        !(whole && position_.offset <= kByteOrderMark.size() && position_.n_lines == 0)) {
      return std::nullopt;
    }

    RawDocument document;
    document.text = unread().substr(0, end);
    document.kind = source.kind;
    document.file = static_cast<std::size_t>(position_.file);
    document.line = whole ? 0 : position_.n_lines + 1;
    document.offset = position_.offset;
    std::size_t consumed = is_last ? end : end + delimiter.size();
    if (!lines && !is_last) {
      if (unread().size() < consumed + 2) (void)fill();
      for (const std::string_view line_break : {"\r\n", "\n"}) {
        if (unread().substr(consumed).starts_with(line_break)) {
          consumed += line_break.size();
          break;
        }
      }
    }
    const std::string_view taken = unread().substr(0, consumed);
    position_.n_lines += std::ranges::count(taken, '\n');
    if (whole) position_.n_lines += 1;  // says that the file was read, were it empty
    position_.offset += consumed;
    buffer_begin_ += consumed;
    if (lines && document.text.find_first_not_of(" \t\r") == std::string::npos) continue;
    document.index = position_.document++;
    document.after = position_;
    return document;
  }
}

std::string place_of(const RawDocument& document, const std::vector<SourceFile>& sources) {
  const std::string path = sources[document.file].path.string();
  return document.line == 0 ? path : fmt::format("{}:{}", path, document.line);
}

}  // namespace hadal::dataset
