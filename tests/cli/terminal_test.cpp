// What only happens on a terminal: editing, streaming, Ctrl-C.
#include <poll.h>
#include <pty.h>

#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>

#include "command.h"

namespace hadal::test {
namespace {

// The program on a terminal of its own.
class Terminal {
 public:
  explicit Terminal(const std::vector<std::string>& arguments) {
    std::vector<std::string> words = {HADAL_BINARY};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    winsize size{.ws_row = 24, .ws_col = 100, .ws_xpixel = 0, .ws_ypixel = 0};
    pid_ = ::forkpty(&fd_, nullptr, nullptr, &size);
    if (pid_ == 0) {
      ::setenv("TERM", "xterm", 1);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
  }
  ~Terminal() {
    if (pid_ > 0) ::kill(pid_, SIGKILL), ::waitpid(pid_, nullptr, 0);
    ::close(fd_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  void type(const std::string& text) {
    ASSERT_EQ(::write(fd_, text.data(), text.size()), ssize(text));
  }

  // Reads until `text` has come, not counting what was waited for before.
  [[nodiscard]] bool wait_for(const std::string& text) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    for (;;) {
      const std::size_t at = screen_.find(text, seen_);
      if (at != std::string::npos) {
        seen_ = at + text.size();
        return true;
      }
      pollfd poll_fd{fd_, POLLIN, 0};
      if (std::chrono::steady_clock::now() > end || ::poll(&poll_fd, 1, 60'000) <= 0) return false;
      char buffer[4096];
      const ssize_t n = ::read(fd_, buffer, sizeof buffer);
      if (n <= 0) return false;  // the program has left
      screen_.append(buffer, static_cast<std::size_t>(n));
    }
  }
  // Waits for the program to leave, at most a minute. `key` is typed again every two seconds: a
  // control key that falls between two terminal modes is lost, as it is for a person.
  [[nodiscard]] int exit_status(const std::string& key = "") {
    for (int tenths = 0; tenths < 600; ++tenths) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = 0;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
      }
      pollfd poll_fd{fd_, POLLIN, 0};
      char buffer[4096];
      if (::poll(&poll_fd, 1, 100) > 0) {
        const ssize_t n = ::read(fd_, buffer, sizeof buffer);
        if (n > 0)
          screen_.append(buffer, static_cast<std::size_t>(n));
        else
          ::usleep(100'000);  // it has closed its terminal and is about to leave
      }
      if (!key.empty() && tenths % 20 == 19) (void)!::write(fd_, key.data(), key.size());
    }
    return -1;
  }
  [[nodiscard]] const std::string& screen() const { return screen_; }

 private:
  static ssize_t ssize(const std::string& text) { return static_cast<ssize_t>(text.size()); }
  int fd_ = -1;
  pid_t pid_ = 0;
  std::string screen_;
  std::size_t seen_ = 0;
};

TEST(ChatTerminal, CtrlCStopsTheAnswerAndNotTheProgram) {
  Terminal t({"chat", "-t", "0", "--ignore-eos"});
  ASSERT_TRUE(t.wait_for("/help lists the commands")) << t.screen();
  ASSERT_TRUE(t.wait_for("> ")) << t.screen();
  t.type("Who are you?\r");
  ASSERT_TRUE(t.wait_for("I am hadal-bootstrap")) << t.screen();  // it streams, and goes on
  t.type("\x03");
  ASSERT_TRUE(t.wait_for("hadal: stopped")) << t.screen();
  ASSERT_TRUE(t.wait_for("> ")) << t.screen();
  t.type("/stats\r");
  ASSERT_TRUE(t.wait_for("KV cache")) << t.screen();
  ASSERT_TRUE(t.wait_for("> ")) << t.screen();
  t.type("\x04");
  EXPECT_EQ(t.exit_status("\x04"), 0) << t.screen();
}

TEST(ChatTerminal, EditsLinesAndRemembersThem) {
  Terminal t({"chat", "-t", "0"});
  ASSERT_TRUE(t.wait_for("> ")) << t.screen();
  t.type("Who are yöu");
  ASSERT_TRUE(t.wait_for("u")) << t.screen();
  t.type(
      "\x7f\x7f"
      "ou?\r");  // two characters, three bytes
  ASSERT_TRUE(t.wait_for("I am hadal-bootstrap, a tiny demonstration model.")) << t.screen();
  ASSERT_TRUE(t.wait_for("> ")) << t.screen();
  t.type("/reset\r");
  ASSERT_TRUE(t.wait_for("a new conversation")) << t.screen();
  ASSERT_TRUE(t.wait_for("> ")) << t.screen();
  t.type("\x1b[A\x1b[A\r");  // two lines up
  ASSERT_TRUE(t.wait_for("I am hadal-bootstrap, a tiny demonstration model.")) << t.screen();
  ASSERT_TRUE(t.wait_for("> ")) << t.screen();
  t.type("half a thought");
  ASSERT_TRUE(t.wait_for("thought")) << t.screen();
  t.type("\x03");  // forgets the line
  ASSERT_TRUE(t.wait_for("> ")) << t.screen();
  t.type("/quit\r");
  EXPECT_EQ(t.exit_status(), 0) << t.screen();
}

TEST(GenerateTerminal, CtrlCEndsTheText) {
  Terminal t({"generate", "-p", "In the beginning", "-t", "0", "--ignore-eos", "-n", "0"});
  ASSERT_TRUE(t.wait_for("of the beginning of the")) << t.screen();
  t.type("\x03");
  EXPECT_EQ(t.exit_status(), 130) << t.screen();
}

// A model of some hundred megabytes takes long enough to see its progress and to interrupt it.
TEST(QuantizeTerminal, ShowsProgressAndCtrlCLeavesNothing) {
  const ScratchDirectory scratch("large");
  nlohmann::json config = nlohmann::json::parse(read_text(kBootstrap + "/config.json"));
  config["hidden_size"] = 2048;
  config["moe_intermediate_size"] = 1024;
  config["n_routed_experts"] = 32;
  write_text(scratch / "config.json", config.dump());
  const std::string model = (scratch / "m").string(), out = (scratch / "q").string();
  ASSERT_EQ(
      hadal_command({"synthesize", "-c", (scratch / "config.json").string(), "-o", model}).status,
      0);
  Terminal t({"quantize", "-m", model, "-o", out, "--format", "f32", "--shard-size", "64MiB",
              "--threads", "1"});
  ASSERT_TRUE(t.wait_for("quantize [")) << t.screen();
  ASSERT_TRUE(t.wait_for("/s, ")) << t.screen();
  t.type("\x03");
  EXPECT_TRUE(t.wait_for("interrupted; nothing was written")) << t.screen();
  EXPECT_EQ(t.exit_status(), 130) << t.screen();
  EXPECT_FALSE(std::filesystem::exists(out));
  EXPECT_FALSE(std::filesystem::exists(out + ".partial"));
}

}  // namespace
}  // namespace hadal::test
