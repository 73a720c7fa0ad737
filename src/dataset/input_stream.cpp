#include "dataset/input_stream.h"

#include <fmt/format.h>
#include <zstd.h>

#include <algorithm>
#include <vector>

#include "core/error.h"

namespace hadal::dataset {
namespace {

class PlainInput final : public InputStream {
 public:
  PlainInput(const Path& path, std::uint64_t skip)
      : file_(FileSystem::real().open_read(path)), position_(skip) {}
  [[nodiscard]] std::size_t read(std::span<char> into) override {
    const std::size_t n = file_->read(position_, std::as_writable_bytes(into));
    position_ += n;
    return n;
  }
  [[nodiscard]] std::uint64_t n_file_bytes() const override { return position_; }

 private:
  std::unique_ptr<ReadableFile> file_;
  std::uint64_t position_;
};

class ZstdInput final : public InputStream {
 public:
  ZstdInput(const Path& path, std::uint64_t skip)
      : path_(path),
        file_(FileSystem::real().open_read(path)),
        stream_(ZSTD_createDStream()),
        packed_(ZSTD_DStreamInSize()) {
    HADAL_CHECK(stream_ != nullptr);
    std::vector<char> dropped(std::min<std::uint64_t>(skip, 1U << 20));
    while (skip > 0) {
      const std::size_t n =
          read(std::span(dropped).first(std::min<std::uint64_t>(skip, dropped.size())));
      if (n == 0) break;
      skip -= n;
    }
  }

  [[nodiscard]] std::size_t read(std::span<char> into) override {
    ZSTD_outBuffer out{into.data(), into.size(), 0};
    while (out.pos < out.size) {
      if (in_.pos == in_.size) {
        const std::size_t n = file_->read(position_, std::as_writable_bytes(std::span(packed_)));
        position_ += n;
        in_ = {packed_.data(), n, 0};
        if (n == 0) {
          // What is held back inside comes out with no further input.
          const std::size_t before = out.pos;
          if (!frame_ended_) (void)decompress(out);
          if (out.pos > before) continue;
          if (!frame_ended_) fail("ends inside a zstd frame; it was cut off");
          break;
        }
      }
      frame_ended_ = decompress(out);
    }
    return out.pos;
  }
  [[nodiscard]] std::uint64_t n_file_bytes() const override { return position_; }

 private:
  struct FreeStream {
    void operator()(ZSTD_DStream* stream) const { ZSTD_freeDStream(stream); }
  };

  // Whether a frame is complete.
  bool decompress(ZSTD_outBuffer& out) {
    const std::size_t result = ZSTD_decompressStream(stream_.get(), &out, &in_);
    if (ZSTD_isError(result) != 0) {
      fail(fmt::format("is no whole zstd stream ({})", ZSTD_getErrorName(result)));
    }
    return result == 0;
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorCode::corrupt_data, fmt::format("{}: {}", path_.string(), what));
  }

  Path path_;
  std::unique_ptr<ReadableFile> file_;
  std::unique_ptr<ZSTD_DStream, FreeStream> stream_;
  std::vector<char> packed_;
  ZSTD_inBuffer in_{nullptr, 0, 0};
  std::uint64_t position_ = 0;
  bool frame_ended_ = true;
};

}  // namespace

std::unique_ptr<InputStream> open_input(const SourceFile& source, std::uint64_t skip) {
  if (source.compressed) return std::make_unique<ZstdInput>(source.path, skip);
  return std::make_unique<PlainInput>(source.path, skip);
}

}  // namespace hadal::dataset
