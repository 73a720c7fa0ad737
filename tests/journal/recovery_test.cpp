#include "journal/recovery.h"

#include <fmt/format.h>

#include <map>
#include <mutex>

#include "journal/log_fixture.h"
#include "journal/segment_log.h"

namespace hadal::journal {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

class RecoveryTest : public LogTest {
 protected:
  // Records as they are said, without a Writer that would know better.
  void write_raw(const std::vector<std::vector<PendingRecord>>& commits,
                 const TableRecord& table = {}) {
    Recovery so_far = recover(fs, dir);
    SegmentLog log(fs, dir, so_far.log, so_far.next_segment, so_far.next_lsn, 0);
    log.start_segment(table);
    for (const auto& commit : commits) (void)log.add(commit);
    log.finish();
  }
  static PendingRecord open(LocalId local, const std::string& name, std::uint32_t n_choices = 1) {
    OpenRecord record = request(name, n_choices);
    record.local = local;
    return {RecordType::open, encode(record)};
  }
  static PendingRecord step(std::vector<TokenEntry> tokens) {
    return {RecordType::step, encode(StepRecord{std::move(tokens)})};
  }
  static PendingRecord close(LocalId local, const std::vector<TokenId>& tokens) {
    return {RecordType::close,
            encode(CloseRecord{.local = local,
                               .n_tokens = static_cast<std::uint32_t>(tokens.size()),
                               .tokens_sha256 = digest_of(tokens)})};
  }
  std::string refusal() {
    try {
      (void)recover(fs, dir);
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::corrupt_data);
      return error.what();
    }
    ADD_FAILURE() << "recovered";
    return {};
  }
  void flip(const Path& path, std::size_t at) {
    std::string text = fs.content(path);
    text.at(at) = static_cast<char>(text.at(at) ^ 0x10);
    fs.set_content(path, text);
  }
};

TEST_F(RecoveryTest, AnEmptyDirectoryIsAnEmptyLog) {
  Recovery recovery = recover(fs, dir);
  EXPECT_TRUE(recovery.streams.empty());
  EXPECT_EQ(recovery.next_lsn, 1u);
  EXPECT_NE(recovery.log, Uuid{});
  recovery.lock.reset();
  EXPECT_THROW((void)recover(fs, "nowhere", {.read_only = true}), Error);
}

TEST_F(RecoveryTest, SpaceThatACrashLeftSetAsideIsGivenBack) {
  write_raw({{open(1, "s")}, {step({{.local = 1, .index = 0, .token = 7}})}});
  const Path segment = dir / segment_name(1);
  const std::string written = fs.content(segment);
  fs.set_content(segment, written + std::string(100'000, '\0'));
  (void)recover(fs, dir, {.read_only = true});
  EXPECT_EQ(fs.content(segment).size(), written.size() + 100'000);
  const Recovery recovery = recover(fs, dir);
  EXPECT_EQ(fs.content(segment), written);
  EXPECT_EQ(recovery.torn_bytes, 0u);  // nothing was lost
  EXPECT_EQ(recovery.streams.at(1).n_tokens, 1u);
}

TEST_F(RecoveryTest, TornTailAtEveryByteOfTheLastCommits) {
  LocalId local = 0;
  std::vector<std::uint64_t> sizes;
  {
    auto writer = start();
    local = *writer->open(request("s"));
    for (std::uint32_t i = 0; i < 4; ++i) {
      writer->commit({token(local, i)},
                     i == 3 ? std::vector{end_of(local)} : std::vector<ChoiceEnd>{}, nullptr);
      ASSERT_TRUE(writer->flush());
      sizes.push_back(writer->stats().bytes);
    }
  }
  const Path path = last_segment();
  const std::string whole = fs.content(path);
  ASSERT_EQ(sizes.back(), whole.size());
  const std::vector<std::pair<std::string, std::string>> remains{
      {"cut", ""}, {"zeros", std::string(64, '\0')}, {"noise", std::string(64, '\x7e')}};
  for (std::size_t n = sizes[1]; n <= whole.size(); ++n) {
    for (const auto& [kind, rest] : remains) {
      SCOPED_TRACE(fmt::format("{} bytes of {}, then {}", n, whole.size(), kind));
      fs.set_content(path, whole.substr(0, n) + rest);
      // Zeros may be the very bytes that were cut off.
      const std::string text = fs.content(path);
      std::uint64_t whole_commits = 2;
      for (std::uint64_t k = 2; k < 4; ++k) {
        if (text.compare(0, sizes[k], whole, 0, sizes[k]) == 0) whole_commits = k + 1;
      }
      Recovery recovery = recover(fs, dir);
      const Stream& stream = recovery.streams.at(local);
      ASSERT_EQ(stream.n_tokens, whole_commits);
      // The last token and the CLOSE are one commit: both or neither.
      ASSERT_EQ(stream.closed(), whole_commits == 4);
      expect_drawn(stream);
      recovery.lock.reset();
      // Space never written, or bytes of the next record that happen to be zero.
      if (text.find_first_not_of('\0', sizes[whole_commits - 1]) == std::string::npos) continue;
      ASSERT_EQ(fs.content(path), whole.substr(0, sizes[whole_commits - 1]));
      ASSERT_EQ(recovery.torn_bytes, text.size() - sizes[whole_commits - 1]);
    }
  }
}

TEST_F(RecoveryTest, ATornHeaderOfTheLastSegmentIsNoSegment) {
  {
    auto writer = start();
    const LocalId local = *writer->open(request("s"));
    writer->commit({token(local, 0)}, {}, nullptr);
  }
  SegmentHeader header;
  const auto bytes = encode(header);
  for (const std::size_t n : {0u, 1u, 63u}) {
    fs.set_content(dir / segment_name(2),
                   std::string(reinterpret_cast<const char*>(bytes.data()), n));
    Recovery recovery = recover(fs, dir);
    EXPECT_EQ(recovery.streams.size(), 1u);
    EXPECT_FALSE(fs.exists(dir / segment_name(2)));
    EXPECT_EQ(recovery.next_segment, 2u);
  }
}

TEST_F(RecoveryTest, PowerLossNeverTakesAPublishedTokenUnderStepPolicy) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    test::FaultFileSystem disk;
    Rng rng(seed);
    std::map<std::string, std::vector<TokenId>> seen;  // by clients
    std::mutex mutex;
    for (int life = 0; life < 4; ++life) {
      SCOPED_TRACE(fmt::format("seed {}, life {}", seed, life));
      Recovery recovery = recover(disk, dir);
      std::map<LocalId, std::uint32_t> open;
      for (auto& [name, tokens] : seen) {
        Stream* stream = stream_of(recovery, name);
        if (stream == nullptr) {
          ASSERT_TRUE(tokens.empty());
          continue;
        }
        ASSERT_GE(stream->n_tokens, tokens.size());
        ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), stream->choices[0].tokens.begin()));
        open[stream->local()] = stream->choices[0].n_tokens;
      }
      auto writer = std::make_unique<Writer>(disk, dir, options(), recovery);
      for (int s = 0; s < 3; ++s) {
        const std::string name = fmt::format("{}-{}", life, s);
        const auto local = writer->open(request(name));
        ASSERT_TRUE(local);
        open[*local] = 0;
        seen[name];
      }
      std::map<LocalId, std::string> names;
      for (const StreamInfo& info : writer->streams()) names[info.local] = info.name;
      const std::uint32_t n_steps = 5 + rng.next_below(60);
      for (std::uint32_t k = 0; k < n_steps; ++k) {
        std::vector<TokenEntry> step;
        for (auto& [local, next] : open) step.push_back(token(local, next++));
        auto publish = [&, step] {
          const std::lock_guard lock(mutex);
          if (!writer->healthy()) return;  // from here on it warns that nothing is safe
          for (const TokenEntry& entry : step) seen[names[entry.local]].push_back(entry.token);
        };
        writer->commit(step, {}, publish);
        if (rng.next_below(8) == 0) (void)writer->flush();
      }
      // Somewhere in the middle: the dying machine publishes no more.
      disk.kill_after_bytes(rng.next_below(3000));
      for (std::uint32_t k = 0; k < 30; ++k) {
        std::vector<TokenEntry> step;
        for (auto& [local, next] : open) step.push_back(token(local, next++));
        auto publish = [&, step] {
          const std::lock_guard lock(mutex);
          if (!writer->healthy()) return;  // as above
          for (const TokenEntry& entry : step) seen[names[entry.local]].push_back(entry.token);
        };
        writer->commit(step, {}, publish);
      }
      (void)writer->flush();
      writer.reset();
      recovery.lock.reset();
      disk.power_loss(rng.next_u32());
      // Tokens that were drawn again by who reads the log on are the same ones: see drawn().
      Recovery tail = recover(disk, dir, {.read_only = true, .keep = Replay::Keep::everything});
      for (auto& [name, tokens] : seen) {
        Stream* stream = stream_of(tail, name);
        ASSERT_TRUE(stream != nullptr || tokens.empty()) << name;
        if (stream == nullptr) continue;
        ASSERT_LE(tokens.size(), stream->n_tokens) << name;
        tokens.assign(stream->choices[0].tokens.begin(), stream->choices[0].tokens.end());
      }
    }
  }
}

TEST_F(RecoveryTest, AKilledProcessLosesNothingPublishedUnderAnyPolicy) {
  for (const auto kind : {SyncPolicy::Kind::none, SyncPolicy::Kind::interval}) {
    for (std::uint64_t budget = 0; budget < 3000; budget += 97) {
      SCOPED_TRACE(budget);
      test::FaultFileSystem disk;
      auto writer = std::make_unique<Writer>(disk, dir, options(kind), recover(disk, dir));
      const LocalId local = *writer->open(request("s"));
      ASSERT_TRUE(writer->flush());
      disk.kill_after_bytes(budget);
      std::uint64_t seen = 0;
      for (std::uint32_t i = 0; i < 80; ++i) {
        writer->commit({token(local, i)}, {}, [&] { seen += writer->healthy() ? 1 : 0; });
        if (i % 7 == 0) (void)writer->flush();
      }
      (void)writer->flush();
      writer.reset();
      disk.restart();
      Recovery recovery = recover(disk, dir);
      ASSERT_GE(recovery.streams.at(local).n_tokens, seen);
      expect_drawn(recovery.streams.at(local));
    }
  }
}

TEST_F(RecoveryTest, TheNextWriterGoesOnWithNumbersAndTokens) {
  LocalId local = 0;
  for (std::uint32_t life = 0; life < 5; ++life) {
    Recovery recovery = recover(fs, dir);
    EXPECT_EQ(recovery.segments.size(), life) << life;
    Writer writer(fs, dir, options(), recovery);
    recovery.lock.reset();
    if (life == 0) {
      local = *writer.open(request("s"));
    } else {
      EXPECT_EQ(*writer.local_of("s"), local);
      EXPECT_FALSE(writer.open(request("s")));
      EXPECT_GT(*writer.open(request("other" + std::to_string(life))), local);
      writer.abandon(*writer.local_of("other" + std::to_string(life)), CloseReason::cancelled, "");
    }
    writer.commit({token(local, life)}, {}, nullptr);
    ASSERT_TRUE(writer.flush());
    EXPECT_EQ(writer.read("s")->n_tokens, life + 1);
  }
  Recovery after = look();
  EXPECT_EQ(after.streams.at(local).n_tokens, 5u);
}

TEST_F(RecoveryTest, SaidAgainIsIgnoredAndSaidOtherwiseIsCorruption) {
  write_raw(
      {{open(1, "s")}, {step({token(1, 0), token(1, 1)})}, {step({token(1, 1), token(1, 2)})}});
  EXPECT_EQ(look().streams.at(1).n_tokens, 3u);
  TokenEntry other = token(1, 1);
  other.token += 1;
  write_raw({{step({other})}}, {{{.local = 1, .name = "s", .n_tokens = {3}}}});
  EXPECT_THAT(refusal(), AllOf(HasSubstr("stream \"s\", choice 0: token 1 is"), HasSubstr(".seg"),
                               HasSubstr("--repair")));
}

TEST_F(RecoveryTest, AGapClosesTheStreamWithAnError) {
  write_raw({{open(1, "s", 2)},
             {step({token(1, 0), token(1, 0, 1)})},
             {step({token(1, 2), token(1, 1, 1)})}});
  {
    Recovery recovery = recover(fs, dir);
    const Stream& stream = recovery.streams.at(1);
    EXPECT_EQ(stream.n_tokens, 2u);
    EXPECT_THAT(stream.fault, HasSubstr("lost tokens 1 to 1 of choice 0"));
    Writer writer(fs, dir, options(), recovery);
    ASSERT_TRUE(writer.flush());
    EXPECT_TRUE(writer.find("s")->closed());
    EXPECT_EQ(writer.find("s")->choices[1].close, CloseReason::error);
    EXPECT_THAT(writer.find("s")->choices[1].detail, HasSubstr("lost tokens"));
  }
  EXPECT_TRUE(look().unfinished().empty());
}

TEST_F(RecoveryTest, ACancelledStreamIsNotResumed) {
  {
    auto writer = start();
    const LocalId local = *writer->open(request("s"));
    writer->commit({token(local, 0)}, {}, nullptr);
    writer->cancel(local, "the client went away");
  }
  Recovery recovery = recover(fs, dir);
  EXPECT_EQ(recovery.streams.begin()->second.cancelled, "the client went away");
  Writer writer(fs, dir, options(), recovery);
  ASSERT_TRUE(writer.flush());
  EXPECT_EQ(writer.find("s")->choices[0].close, CloseReason::cancelled);
}

TEST_F(RecoveryTest, ACloseThatItsTokensDoNotMatchIsCorruption) {
  write_raw({{open(1, "s")}, {step({token(1, 0)})}, {close(1, {drawn(1, 0, 0) + 1})}});
  EXPECT_THAT(refusal(), HasSubstr("CLOSE speaks of 1 tokens"));
}

TEST_F(RecoveryTest, RecordsOfStreamsNobodyOpenedAreCorruption) {
  write_raw({{step({token(9, 0)})}});
  EXPECT_THAT(refusal(), HasSubstr("stream number 9, which no record opens"));
}

class DamagedLog : public RecoveryTest {
 protected:
  // Four segments: `done` closed in the first, `open` open throughout, `late` in the last.
  void SetUp() override {
    const auto table = [](std::uint32_t n) {
      return TableRecord{{{.local = 2, .name = "open", .n_tokens = {n}}}};
    };
    write_raw({{open(1, "done")},
               {step({token(1, 0)}), close(1, {drawn(1, 0, 0)})},
               {open(2, "open")},
               {step({token(2, 0), token(2, 1)})}});
    write_raw({{step({token(2, 2)})}, {step({token(2, 3)})}}, table(2));
    write_raw({{step({token(2, 4)})}}, table(4));
    write_raw({{step({token(2, 5)})}, {open(3, "late")}, {step({token(3, 0)})}}, table(5));
  }
  // Offset of the n-th record in a segment.
  std::size_t record_at(std::uint64_t segment, int n) {
    const auto bytes = fs.read_all(dir / segment_name(segment));
    const auto header = *decode_header(bytes).header;
    SegmentScanner scanner(header, std::span(bytes).subspan(64), 64, header.first_lsn);
    for (int i = 0; i < n; ++i) EXPECT_TRUE(scanner.next());
    return scanner.offset();
  }
};

TEST_F(DamagedLog, UndamagedItReads) {
  Recovery recovery = look();
  EXPECT_EQ(recovery.streams.size(), 3u);
  EXPECT_EQ(recovery.streams.at(2).n_tokens, 6u);
}

TEST_F(DamagedLog, EveryFlippedByteOfAnEarlierSegmentIsRefused) {
  const Path path = dir / segment_name(2);
  const std::string whole = fs.content(path);
  for (std::size_t at = 0; at < whole.size(); ++at) {
    flip(path, at);
    const auto bytes = fs.read_all(path);
    bool refused = false;
    try {
      (void)recover(fs, dir);
    } catch (const Error& error) {
      refused = true;
      ASSERT_THAT(error.what(),
                  AllOf(HasSubstr(segment_name(2)), HasSubstr("hadal replay --repair")));
    }
    EXPECT_TRUE(refused) << at;
    ASSERT_EQ(fs.read_all(path), bytes) << "a refusal changed the file";
    fs.set_content(path, whole);
  }
}

TEST_F(DamagedLog, ACutOrMissingSegmentIsRefused) {
  const Path path = dir / segment_name(2);
  const std::string whole = fs.content(path);
  fs.set_content(path, whole.substr(0, record_at(2, 2)));  // at a record's end
  EXPECT_THAT(refusal(), HasSubstr("lost its end"));
  fs.set_content(path, whole.substr(0, whole.size() - 3));
  EXPECT_THAT(refusal(), HasSubstr(segment_name(2)));
  (void)fs.remove(path);
  EXPECT_THAT(refusal(), HasSubstr("number 2, is missing"));
}

TEST_F(DamagedLog, AMissingFirstSegmentIsRefused) {
  (void)fs.remove(dir / segment_name(1));
  EXPECT_THAT(refusal(), HasSubstr("\"open\" (number 2) was open when the first segment began"));
}

TEST_F(DamagedLog, ASegmentOfAnotherLogIsRefused) {
  test::FaultFileSystem other;
  SegmentLog log(other, dir, Uuid{std::byte{1}}, 2, 8, 0);
  other.create_directories(dir);
  log.start_segment({});
  log.finish();
  fs.set_content(dir / segment_name(2), other.content(dir / segment_name(2)));
  EXPECT_THAT(refusal(), HasSubstr("another journal"));
}

TEST_F(DamagedLog, RepairKeepsWhatIsWholeAndClosesWhatLostTokens) {
  flip(dir / segment_name(2), record_at(2, 1) + 30);  // token 2 of "open"
  Recovery recovery = recover(fs, dir, {.repair = true, .keep = Replay::Keep::everything});
  ASSERT_EQ(recovery.streams.size(), 3u);
  EXPECT_TRUE(recovery.streams.at(1).closed());
  EXPECT_EQ(recovery.streams.at(1).choices[0].close->reason, CloseReason::stop);
  const Stream& hurt = recovery.streams.at(2);
  EXPECT_TRUE(hurt.closed());
  EXPECT_EQ(hurt.n_tokens, 2u);  // a prefix of what was drawn
  expect_drawn(hurt);
  EXPECT_EQ(hurt.choices[0].close->reason, CloseReason::error);
  EXPECT_THAT(hurt.choices[0].close->detail, HasSubstr("lost tokens"));
  EXPECT_FALSE(recovery.streams.at(3).closed());
  EXPECT_EQ(recovery.streams.at(3).n_tokens, 1u);
  EXPECT_THAT(recovery.notes, Contains(HasSubstr("\"open\" is closed with an error after 2")));
  EXPECT_THAT(recovery.notes, Contains(HasSubstr("set aside")));
  EXPECT_TRUE(fs.exists(dir / (segment_name(2) + ".damaged")));
  recovery.lock.reset();
  // From here on it is a log like any other.
  {
    Writer writer(fs, dir, options(), recover(fs, dir));
    writer.commit({token(3, 1)}, {end_of(3)}, nullptr);
    ASSERT_TRUE(writer.flush());
  }
  EXPECT_TRUE(look().unfinished().empty());
}

TEST_F(DamagedLog, RepairOfAnUndamagedLogDoesNothing) {
  Recovery recovery = recover(fs, dir, {.repair = true});
  EXPECT_TRUE(recovery.notes.empty());
  EXPECT_EQ(recovery.segments.size(), 4u);
}

TEST_F(DamagedLog, RepairSurvivesTheLossOfAnySegmentAndOfAnyByte) {
  const std::vector<Path> paths{dir / segment_name(1), dir / segment_name(2),
                                dir / segment_name(3)};
  std::map<Path, std::string> whole;
  for (std::uint64_t n = 1; n <= 4; ++n) {
    whole[dir / segment_name(n)] = fs.content(dir / segment_name(n));
  }
  const auto restore = [&] {
    fs.remove_all(dir);
    fs.create_directories(dir);
    for (const auto& [path, text] : whole) fs.set_content(path, text);
  };
  const auto check = [&] {
    Recovery recovery = recover(fs, dir, {.repair = true, .keep = Replay::Keep::everything});
    for (const auto& [local, stream] : recovery.streams) {
      expect_drawn(stream);
      // What lost something does not go on.
      EXPECT_TRUE(local != 2 || stream.n_tokens == 6 || stream.closed());
    }
    recovery.lock.reset();
    (void)recover(fs, dir);
  };
  for (const Path& path : paths) {
    SCOPED_TRACE(path);
    for (std::size_t at = 0; at < whole[path].size(); at += 5) {
      restore();
      flip(path, at);
      SCOPED_TRACE(at);
      check();
    }
    restore();
    (void)fs.remove(path);
    check();
  }
}

TEST_F(RecoveryTest, ARecycledSegmentsOldRecordsDoNotComeBack) {
  write_raw({{open(1, "s")}, {step({token(1, 0), token(1, 1)})}, {step({token(1, 2)})}});
  // The next segment is written over an old one: its header and TABLE, then what lay there.
  std::string old = fs.content(dir / segment_name(1));
  write_raw({{step({token(1, 3)})}}, {{{.local = 1, .name = "s", .n_tokens = {3}}}});
  const std::string fresh = fs.content(dir / segment_name(2));
  old.resize(std::max(old.size(), fresh.size() + 8), 'x');
  fs.set_content(dir / segment_name(2), fresh + old.substr(fresh.size()));
  Recovery recovery = recover(fs, dir);
  EXPECT_EQ(recovery.streams.at(1).n_tokens, 4u);
  EXPECT_GT(recovery.torn_bytes, 0u);
}

TEST_F(RecoveryTest, ClosedStreamsCostNoTokensInMemory) {
  auto writer = start();
  const LocalId local = *writer->open(request("s"));
  writer->commit({token(local, 0)}, {end_of(local)}, nullptr);
  writer.reset();
  Recovery recovery = recover(fs, dir);
  const Stream& stream = recovery.streams.at(local);
  EXPECT_TRUE(stream.events.empty());
  EXPECT_TRUE(stream.open.prompt.empty());
  EXPECT_EQ(stream.n_tokens, 1u);
  Writer next(fs, dir, options(), recovery);
  EXPECT_EQ(next.read("s")->events.size(), 1u);
  EXPECT_EQ(next.read("s")->open.prompt, request("s").prompt);
}

}  // namespace
}  // namespace hadal::journal
