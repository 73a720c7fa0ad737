// Answers as they were sampled, for prompts that repeat them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/digest.h"
#include "core/file.h"
#include "core/token.h"
#include "protocol/message.h"

namespace hadal::protocol {

class AnswerLog;

// One whole answer. Clients send it back as JSON, which says less than its tokens do: `[1,2]` or
// `[1, 2]`, escapes, how a word was cut.  Source: serving notes §1.10.
struct RememberedAnswer {
  // All that was sampled behind the answer's header, the end-of-sentence token last. Decoded, they
  // are what the client was shown: an answer that a stop string or a limit cut short has no place
  // here, unless its text is whole and the missing end-of-sentence token is added.
  std::vector<TokenId> tokens;
  ThinkingMode mode = ThinkingMode::thinking;  // chat: the header closed the reasoning at once
  std::string content, reasoning;
  std::vector<ToolCall> calls;  // with the ids that the client was given
  std::string pointer;  // our name for the answer (answer_pointer of api.h's writers), or ""
};

// The tokens of a prompt up to some place, as a digest that can be carried on. Digests of different
// `domain`s have nothing in common: what one domain was told stays there.
class PromptDigest {
 public:
  explicit PromptDigest(std::string_view domain = {});
  void extend(std::span<const TokenId> tokens);

  // Digest of the tokens so far and of an answer that follows them, as a client sees it. The calls'
  // arguments count by what they mean, their ids not at all.
  using Key = std::array<std::byte, 16>;
  [[nodiscard]] Key answer_key(std::string_view content, const std::vector<ToolCall>& calls) const;

 private:
  Sha256Digest chain_;               // of whole blocks
  std::vector<TokenId> unfinished_;  // less than a block
};

// Whether two texts of arguments mean the same: equal JSON values, members in any order, numbers by
// value, nothing at all for {}. Texts that are not JSON must be equal.
[[nodiscard]] bool same_arguments(std::string_view a, std::string_view b);

struct AnswerMemoryOptions {
  std::size_t max_ids = 100'000;                   // tool call ids and other names of answers
  std::size_t max_bytes = std::size_t{256} << 20;  // of all tokens and names
  // Where answers survive a restart; empty: nowhere. The directory exists. One memory a file.
  Path file = {};
  FileSystem* file_system = nullptr;  // the operating system's if null; must outlive the memory
  // Of the vocabulary: answers in the file that were sampled with another one are dropped.
  std::string fingerprint = {};
};

// Finds an answer by the id of one of its tool calls, by its pointer, or by the prompt that it
// answered together with what it says. The least recently used answers go first. All members may be
// called from many threads.
class AnswerMemory {
 public:
  // Reads the file, if there is one; records that are damaged are skipped and counted. Throws Error
  // io when the file can neither be read nor written.
  explicit AnswerMemory(AnswerMemoryOptions options = {});
  ~AnswerMemory();

  // `prompt` is what the answer answers, its header included. Answers without tokens are ignored.
  void remember(const RememberedAnswer& answer, std::span<const TokenId> prompt,
                std::string_view domain);

  // What to write in place of `message`, an assistant's, behind a header of this mode; null when
  // nothing is known, or the message is not what was sampled: other calls, other text, other
  // reasoning. Reasoning that did not come back, and content that did not come back beside a known
  // call, count as unchanged.
  [[nodiscard]] std::shared_ptr<const std::vector<TokenId>> find(const Message& message,
                                                                 ThinkingMode mode,
                                                                 const PromptDigest& prompt);

  struct Stats {
    std::size_t n_answers = 0, n_ids = 0, nbytes = 0;
    std::uint64_t hits = 0, misses = 0;
    std::uint64_t skipped_bytes = 0;  // of the file, when it was read
    std::string file_error;           // why the file is not written any more; empty while it is
  };
  [[nodiscard]] Stats stats() const;

 private:
  struct Answer;
  using Answers = std::list<std::shared_ptr<const Answer>>;  // the last used first

  void insert(std::shared_ptr<const Answer> answer);
  void forget(Answers::iterator answer);
  void write(const Answer& answer);
  [[nodiscard]] std::shared_ptr<const Answer> look_up(const std::string& name);

  const AnswerMemoryOptions options_;
  mutable std::mutex mutex_;
  Answers answers_;
  std::unordered_map<std::string, Answers::iterator> by_name_;
  std::size_t nbytes_ = 0;
  std::unique_ptr<AnswerLog> log_;
  Stats counters_;
};

}  // namespace hadal::protocol
