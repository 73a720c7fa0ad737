#include "train/event_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/digest.h"
#include "support/fault_file_system.h"

namespace hadal::train {
namespace {

using test::FaultFileSystem;

std::string bytes(std::string_view hex) {
  std::string out;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    out += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  }
  return out;
}
std::string hex(std::string_view text) {
  return to_hex(std::as_bytes(std::span(text)));
}

// The records of a file, framing checked.
std::vector<std::string> events_of(const std::string& file) {
  std::vector<std::string> events;
  for (std::size_t at = 0; at < file.size();) {
    std::uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(file.at(at + i));
    const std::string data = file.substr(at + 12, length);
    EXPECT_EQ(hex(file.substr(at, 16 + length)), hex(tf_record(data)));
    events.push_back(data);
    at += 16 + length;
  }
  return events;
}

// As tensorboard's own EventFileWriter begins a file (TensorFlow's RecordWriter, with the wall time
// set to 1.0): length, masked CRC, Event{wall_time: 1.0, file_version: "brain.Event:2"}, masked
// CRC.
constexpr std::string_view kFirstRecord =
    "1800000000000000a37f4b22"
    "09000000000000f03f1a0d627261696e2e4576656e743a32"
    "86bf577a";

TEST(EventFile, FramesAsTfRecordsAre) {
  // The length's checksum is the published one of every file that begins with this event.
  const std::string event = bytes("09000000000000f03f1a0d627261696e2e4576656e743a32");
  const std::string record = tf_record(event);
  ASSERT_EQ(record.size(), 8 + 4 + 24 + 4);
  EXPECT_EQ(hex(record.substr(0, 12)), kFirstRecord.substr(0, 24));
  EXPECT_EQ(record.substr(12, 24), event);
  EXPECT_EQ(hex(record.substr(36)), "86bf577a");
}

TEST(EventFile, BeginsWithItsVersionAndNamesItselfByTime) {
  FaultFileSystem fs;
  EventFile file(fs, "/run/tensorboard", {.time = 1.0, .unique = "host.7"});
  EXPECT_EQ(file.path(), "/run/tensorboard/events.out.tfevents.0000000001.host.7.0");
  EXPECT_EQ(hex(events_of(fs.content(file.path())).at(0)),
            "09000000000000f03f1a0d627261696e2e4576656e743a32");
  EventFile other(fs, "/run/tensorboard", {.time = 1.0, .unique = "host.7"});
  EXPECT_NE(other.path(), file.path());
}

TEST(EventFile, AScalarIsAnEventWithASimpleValue) {
  FaultFileSystem fs;
  EventFile file(fs, "/t", {.time = 1.0, .unique = "x"});
  file.scalar(300, 2.0, "loss", 0.5);
  EXPECT_EQ(events_of(fs.content(file.path())).size(), 1U);  // not before flush
  file.flush();
  // wall_time 2.0; step 300; summary { value { tag "loss" simple_value 0.5 } }
  EXPECT_EQ(hex(events_of(fs.content(file.path())).at(1)),
            "090000000000000040"
            "10ac02"
            "2a0d0a0b0a046c6f7373150000003f");
}

TEST(EventFile, ATextIsAStringTensorOfTheTextPlugin) {
  FaultFileSystem fs;
  EventFile file(fs, "/t", {.time = 1.0, .unique = "x"});
  file.text(1, 2.0, "s", "hi");
  file.close();
  EXPECT_EQ(hex(events_of(fs.content(file.path())).at(1)),
            "090000000000000040"
            "1001"
            "2a1f0a1d"
            "0a0173"  // tag
            "420c08071204120208014202"
            "6869"                        // tensor: DT_STRING, shape [1], "hi"
            "4a0a0a060a04746578742002");  // metadata: plugin "text", DATA_CLASS_TENSOR
}

TEST(EventFile, AContinuationTellsReadersWhatToForget) {
  FaultFileSystem fs;
  EventFile file(fs, "/t", {.time = 1.0, .unique = "x", .after = 100});
  // step 101; session_log { status: START }
  EXPECT_EQ(hex(events_of(fs.content(file.path())).at(1)), "09000000000000f03f10653a020801");
}

TEST(EventFile, ARecordBecomesOneEventANumber) {
  FaultFileSystem fs;
  EventFile file(fs, "/t", {.time = 1.0, .unique = "x"});
  StepRecord r;
  r.step = 1, r.loss = 2, r.expert_load = {1.25, 1.5}, r.values = {{"reward", 1}};
  file.record(r);
  file.record(SampleRecord{.step = 1, .tokens = 0, .time = 0, .prompt = "a\n", .text = "b"});
  file.close();
  std::string all;
  for (const std::string& event : events_of(fs.content(file.path()))) all += event;
  for (const char* tag : {"loss/train", "experts/load_max", "expert_load/layer_01", "values/reward",
                          "samples", "    a\n    b"}) {
    EXPECT_THAT(all, testing::HasSubstr(tag));
  }
  EXPECT_THAT(all, testing::Not(testing::HasSubstr("loss/mtp")));
}

TEST(EventFile, NegativeStepsAndLongTextsAreVarints) {
  FaultFileSystem fs;
  EventFile file(fs, "/t", {.time = 1.0, .unique = "x"});
  file.text(-1, 0, "s", std::string(300, 'x'));
  file.close();
  const std::string event = events_of(fs.content(file.path())).at(1);
  // -1 takes ten bytes.
  EXPECT_THAT(hex(event), testing::HasSubstr("10ffffffffffffffffff01"));
  EXPECT_THAT(hex(event), testing::HasSubstr("42ac02787878"));
}

}  // namespace
}  // namespace hadal::train
