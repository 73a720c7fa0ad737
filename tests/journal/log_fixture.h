// A journal on a disk that can fail, and streams to put into it.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "core/error.h"
#include "journal/recovery.h"
#include "journal/writer.h"
#include "support/fault_file_system.h"

namespace hadal::journal {

inline OpenRecord request(const std::string& name, std::uint32_t n_choices = 1) {
  OpenRecord open;
  open.name = name;
  open.api = "chat.completions";
  open.response_id = "id-" + name;
  open.created = 1'700'000'000;
  open.n_choices = n_choices;
  open.seed = 42;
  open.resumable = true;
  open.principal = "alice";
  open.fingerprint_text = "tiny";
  open.prompt = {0, 5, 7, 11};
  open.request = R"({"messages":[{"role":"user","content":")" + name + R"("}]})";
  open.request_sha256 = sha256(open.request);
  return open;
}

// The token that every test draws at that place.
inline TokenId drawn(LocalId local, std::uint32_t choice, std::uint32_t index) {
  return static_cast<TokenId>(1000 * local + 100 * choice + index % 97);
}
inline TokenEntry token(LocalId local, std::uint32_t index, std::uint16_t choice = 0) {
  return {.local = local,
          .choice = choice,
          .index = index,
          .token = drawn(local, choice, index),
          .logprob = std::nullopt};
}
inline ChoiceEnd end_of(LocalId local, std::uint16_t choice = 0) {
  return {.local = local, .choice = choice, .reason = CloseReason::stop, .detail = {}};
}

class LogTest : public ::testing::Test {
 protected:
  static WriterOptions options(SyncPolicy::Kind kind = SyncPolicy::Kind::step) {
    WriterOptions o;
    o.sync = {.kind = kind, .interval = std::chrono::milliseconds(5)};
    o.segment_bytes = 4096;
    return o;
  }
  std::unique_ptr<Writer> start(const WriterOptions& o = options()) {
    return std::make_unique<Writer>(fs, dir, o, recover(fs, dir));
  }
  Recovery look(Replay::Keep keep = Replay::Keep::everything) {
    return recover(fs, dir, {.read_only = true, .keep = keep});
  }
  // The last segment's path.
  Path last_segment() {
    Path last;
    for (const auto& entry : fs.list(dir)) {
      if (segment_number(entry.name)) last = dir / entry.name;
    }
    return last;
  }
  std::size_t n_segments() {
    std::size_t n = 0;
    for (const auto& entry : fs.list(dir)) n += segment_number(entry.name) ? 1 : 0;
    return n;
  }
  static Stream* stream_of(Recovery& recovery, const std::string& name) {
    for (auto& [local, stream] : recovery.streams) {
      if (stream.open.name == name) return &stream;
    }
    return nullptr;
  }
  static void expect_drawn(const Stream& stream) {
    for (std::size_t c = 0; c < stream.choices.size(); ++c) {
      for (std::uint32_t i = 0; i < stream.choices[c].tokens.size(); ++i) {
        ASSERT_EQ(stream.choices[c].tokens[i],
                  drawn(stream.local(), static_cast<std::uint32_t>(c), i))
            << stream.open.name << " choice " << c << " token " << i;
      }
    }
  }

  test::FaultFileSystem fs;
  const Path dir = "journal";
};

}  // namespace hadal::journal
