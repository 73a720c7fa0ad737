// Running the program as a user does.
#pragma once

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "core/file.h"
#include "support/failing_file_system.h"

namespace hadal::test {

struct CommandResult {
  int status = -1;  // -1: ended by a signal
  std::string out, err;
};

struct CommandInput {
  std::string text{};         // stdin
  std::string stdout_path{};  // instead of catching it, "/dev/full" say
};

// The binary that was built, with these arguments; stdin is empty without `input`.
inline CommandResult hadal_command(const std::vector<std::string>& arguments,
                                   const CommandInput& input = {}) {
  const ScratchDirectory scratch("command");
  const std::string in = (scratch / "in").string(), err = (scratch / "err").string();
  const std::string out =
      input.stdout_path.empty() ? (scratch / "out").string() : input.stdout_path;
  write_text(in, input.text);
  std::vector<std::string> words = {HADAL_BINARY};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  const pid_t pid = ::fork();
  if (pid == 0) {
    const int flags = input.stdout_path.empty() ? O_WRONLY | O_CREAT | O_TRUNC : O_WRONLY;
    ::dup2(::open(in.c_str(), O_RDONLY), STDIN_FILENO);
    ::dup2(::open(out.c_str(), flags, 0600), STDOUT_FILENO);
    ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  CommandResult result;
  if (WIFEXITED(status)) result.status = WEXITSTATUS(status);
  if (input.stdout_path.empty()) result.out = read_text(out);
  result.err = read_text(err);
  return result;
}

// Exit status 1, nothing on stdout, and one sentence on stderr with `text` in it.
inline void expect_refusal(const CommandResult& r, const std::string& text) {
  EXPECT_EQ(r.status, 1) << r.err;
  EXPECT_EQ(r.out, "");
  EXPECT_TRUE(r.err.starts_with("hadal: ")) << r.err;
  EXPECT_EQ(r.err.find("hadal: ", 1), std::string::npos) << r.err;
  EXPECT_THAT(r.err, testing::HasSubstr(text));
}

inline void expect_usage_error(const CommandResult& r, const std::string& text) {
  EXPECT_EQ(r.status, 2) << r.err;
  EXPECT_EQ(r.out, "");
  EXPECT_TRUE(r.err.starts_with("hadal: ")) << r.err;
  EXPECT_THAT(r.err, testing::HasSubstr(text));
}

inline const std::string kTiny = HADAL_TEST_DATA_DIR "/golden/official-tiny";
inline const std::string kBootstrap = HADAL_SOURCE_DIR "/models/hadal-bootstrap";

}  // namespace hadal::test
