// TensorBoard's event files: scalars and text by step, as `tensorboard --logdir RUN` shows them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "core/file.h"
#include "train/step_record.h"

namespace hadal::train {

// Appends to a file of its own. A program that continues a run opens another one in the same
// directory; TensorBoard reads them in the order of their names.
//
// Format: TFRecord framing (u64 length, its masked CRC-32C, data, its masked CRC-32C; little
// endian) around protocol buffers of type Event.
// Source: tensorflow/core/lib/io/record_writer.h; tensorflow/core/util/event.proto,
// tensorflow/core/framework/{summary,tensor,tensor_shape}.proto.
class EventFile {
 public:
  struct Options {
    double time = 0;       // of the first event, seconds since 1970; it names the file
    std::string unique{};  // distinguishes files of one second: host and process, say
    std::optional<std::int64_t> after{};  // as forget_after()
  };
  // Throws Error io.
  EventFile(FileSystem& fs, const Path& directory, const Options& options);

  // Readers drop what this and older files say of steps behind `step`.
  void forget_after(std::int64_t step, double time);
  void scalar(std::int64_t step, double time, std::string_view tag, double value);
  void text(std::int64_t step, double time, std::string_view tag, std::string_view markdown);
  // Everything of a record that has a number or a text, under tags of its own: loss/train,
  // experts/load_max and so on. Of vectors the worst layer; loads by layer too.
  void record(const RunRecord& record);

  // What was added so far goes into the file with one write; nothing does before.
  void flush();
  void close();  // flushes and syncs
  [[nodiscard]] const Path& path() const { return path_; }

 private:
  void add_event(std::string_view event);

  Path path_;
  std::unique_ptr<WritableFile> file_;
  std::string pending_;
};

// One TFRecord around `data`.
[[nodiscard]] std::string tf_record(std::string_view data);

}  // namespace hadal::train
