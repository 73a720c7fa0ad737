#include "server/auth.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "server/admission.h"

namespace hadal::server {
namespace {

HttpRequest with(const std::string& name, const std::string& value) {
  HttpRequest request;
  request.headers = {{name, value}};
  return request;
}

class KeyFile : public testing::Test {
 protected:
  Path write(const std::string& text) {
    path_ = Path(testing::TempDir()) / ("hadal_keys_" + std::to_string(::getpid()) + ".json");
    std::ofstream(path_) << text;
    return path_;
  }
  void TearDown() override { std::filesystem::remove(path_); }
  Path path_;
};

TEST(KeyRing, WithoutKeysEverybodyIsAnonymous) {
  const KeyRing ring;
  ASSERT_NE(ring.find({}), nullptr);
  EXPECT_EQ(ring.find({})->name, "");
  EXPECT_EQ(ring.by_name(""), ring.find({}));
}

TEST(KeyRing, FindsKeysInBothHeaders) {
  KeyRing ring;
  ring.add("a", "sk-1");
  ring.add("b", "sk-2");
  EXPECT_EQ(ring.find(with("authorization", "Bearer sk-2"))->name, "b");
  EXPECT_EQ(ring.find(with("authorization", "bearer sk-1"))->name, "a");
  EXPECT_EQ(ring.find(with("x-api-key", "sk-1"))->name, "a");
  EXPECT_EQ(ring.by_name("b")->secret, "sk-2");
  EXPECT_EQ(ring.by_name(""), nullptr);
  for (const HttpRequest& wrong :
       {HttpRequest{}, with("x-api-key", ""), with("x-api-key", "sk-"), with("x-api-key", "sk-12"),
        with("authorization", "sk-1"), with("authorization", "Basic sk-1"),
        with("authorization", "Bearer ")}) {
    EXPECT_EQ(ring.find(wrong), nullptr);
  }
}

TEST_F(KeyFile, HasLimits) {
  KeyRing ring;
  ring.add_file(write(R"({"keys": [{"name": "a", "key": "k", "concurrent": 2, "queued": 3,
    "input_tokens_per_minute": 4, "output_tokens_per_minute": 5, "max_context": 6, "max_output": 7,
    "priority": 8, "models": ["m"]}]})"));
  const KeyLimits& limits = ring.by_name("a")->limits;
  EXPECT_EQ(limits.concurrent, 2);
  EXPECT_EQ(limits.queued, 3);
  EXPECT_EQ(limits.input_tokens_per_minute, 4);
  EXPECT_EQ(limits.output_tokens_per_minute, 5);
  EXPECT_EQ(limits.max_context, 6);
  EXPECT_EQ(limits.max_output, 7);
  EXPECT_EQ(limits.max_priority, 8);
  EXPECT_EQ(limits.models, std::vector<std::string>{"m"});
}

TEST_F(KeyFile, SaysWhatIsWrongWithIt) {
  for (const char* text : {"", "[]", R"({"keys": 1})", R"({"keys": [{"name": "a"}]})",
                           R"({"keys": [{"name": "a", "key": ""}]})",
                           R"({"keys": [{"name": "a", "key": "k", "concurrent": 0}]})",
                           R"({"keys": [{"name": "a", "key": "k", "concurent": 1}]})",
                           R"({"keys": [{"name": "a", "key": "k", "models": "m"}]})"}) {
    KeyRing ring;
    try {
      ring.add_file(write(text));
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::corrupt_data) << text;
      EXPECT_NE(std::string(error.what()).find("hadal_keys"), std::string::npos) << error.what();
    }
  }
}

TEST(TokenBucket, RefillsAndMayBeOverdrawn) {
  TokenBucket bucket(60);
  EXPECT_EQ(bucket.level(100), 60);
  bucket.take(90, 100);
  EXPECT_EQ(bucket.level(100), -30);
  EXPECT_EQ(bucket.seconds_to_refill(100), 31);
  EXPECT_EQ(bucket.level(110), -20);
  EXPECT_EQ(bucket.level(1000), 60);
}

TEST(Admission, GivesPlacesBack) {
  ApiKey key("a", "k", {.concurrent = 2, .queued = 1});
  Admission admission({});
  auto first = admission.admit(key, 10);
  EXPECT_THROW((void)admission.admit(key, 10), Refusal);  // one waits
  first->started();
  auto second = admission.admit(key, 10);
  second->started();
  EXPECT_THROW((void)admission.admit(key, 10), Refusal);  // two run
  first->finished();
  first.reset();
  EXPECT_EQ(key.n_running, 1);
  EXPECT_EQ(admission.n_queued(), 0);
  EXPECT_EQ(admission.n_refused(), 2);
  second.reset();
  EXPECT_EQ(key.n_running, 0);
}

TEST(Admission, BoundsTheTokensThatWait) {
  ApiKey key("a", "k", {});
  Admission admission({.max_queue_requests = 10, .max_queue_tokens = 100});
  const auto large = admission.admit(key, 1000);  // alone, any prompt may wait
  EXPECT_THROW((void)admission.admit(key, 1), Refusal);
  large->started();
  EXPECT_NO_THROW((void)admission.admit(key, 60));
}

}  // namespace
}  // namespace hadal::server
