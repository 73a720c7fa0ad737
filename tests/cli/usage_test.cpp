#include "command.h"

namespace hadal::test {
namespace {

constexpr const char* kSubcommands[] = {"chat",    "generate",   "logits",   "tokenize",
                                        "inspect", "synthesize", "quantize", "bench"};

TEST(Usage, HelpTeaches) {
  const CommandResult all = hadal_command({"--help"});
  EXPECT_EQ(all.status, 0);
  for (const char* subcommand : kSubcommands) {
    EXPECT_THAT(all.out, testing::HasSubstr(subcommand));
    const CommandResult one = hadal_command({subcommand, "--help"});
    EXPECT_EQ(one.status, 0) << subcommand;
    EXPECT_EQ(one.err, "") << subcommand;
    EXPECT_THAT(one.out, testing::HasSubstr(std::string("Examples:\n  hadal ") + subcommand));
  }
}

TEST(Usage, VersionSaysWhatThereIs) {
  const CommandResult r = hadal_command({"--version"});
  EXPECT_EQ(r.status, 0);
  EXPECT_THAT(r.out, testing::StartsWith("hadal 0."));
  EXPECT_THAT(r.out, testing::HasSubstr("instruction sets: portable"));
}

TEST(Usage, MistakesExitWithTwo) {
  expect_usage_error(hadal_command({}), "A subcommand is required");
  expect_usage_error(hadal_command({"genrate"}), "no subcommand \"genrate\"; there is: chat");
  expect_usage_error(hadal_command({"quantize"}), "--model is required");
  expect_usage_error(hadal_command({"inspect", "--contxt", "3"}), "--contxt");
  expect_usage_error(hadal_command({"inspect", "--context", "many"}), "--context");
  expect_usage_error(hadal_command({"generate", "-p", "x", "--numerics", "exact"}), "--numerics");
  expect_usage_error(hadal_command({"generate"}), "one of --prompt and --file");
  expect_usage_error(hadal_command({"generate", "-p", "x", "--system", "y"}), "--chat");
  expect_usage_error(hadal_command({"tokenize"}), "one of TEXT and --input");
  expect_usage_error(hadal_command({"bench", "everything"}), "WHAT");
  expect_usage_error(
      hadal_command({"quantize", "-m", kTiny, "-o", "/nowhere/q", "--shard-size", "big"}),
      "\"big\" is no size");
}

// What --print-config prints is what --options reads, and flags win over it.
TEST(Usage, OptionsComeFromAFileToo) {
  const ScratchDirectory scratch;
  const CommandResult printed =
      hadal_command({"inspect", kTiny, "--context", "77", "--print-config"});
  EXPECT_EQ(printed.status, 0);
  EXPECT_THAT(printed.out, testing::HasSubstr("[inspect]\n"));
  EXPECT_THAT(printed.out, testing::HasSubstr("context=77"));
  const Path file = scratch / "options.toml";
  write_text(file, "[inspect]\ncontext=77\njson=true\n");
  const CommandResult read = hadal_command({"--options", file.string(), "inspect", kTiny});
  EXPECT_EQ(read.status, 0) << read.err;
  EXPECT_THAT(read.out, testing::HasSubstr("\"context\": 77"));
  const CommandResult won =
      hadal_command({"--options", file.string(), "inspect", kTiny, "--context", "5"});
  EXPECT_THAT(won.out, testing::HasSubstr("\"context\": 5,"));
  expect_usage_error(hadal_command({"--options", "/nowhere/o.toml", "inspect"}), "o.toml");
}

TEST(Usage, UnknownInstructionSetIsRefused) {
  expect_usage_error(hadal_command({"inspect", "--isa", "mmx"}), "--isa");
  expect_usage_error(hadal_command({"generate", "-p", "x", "--isa", "mmx"}), "--isa");
}

}  // namespace
}  // namespace hadal::test
