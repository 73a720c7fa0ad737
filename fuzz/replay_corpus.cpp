// Feeds every file below the given paths, and a few mutations of each, to the fuzz target that this
// is linked with.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "core/file.h"
#include "core/rng.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

// Small edits with fixed seeds: flipped bits, cuts, and repeated runs.
void replay_mutations(const std::string& seed_input, std::uint64_t seed) {
  hadal::Rng rng(seed);
  for (int round = 0; round < 200; ++round) {
    std::string input = seed_input;
    for (std::uint32_t edit = 0; edit < 1 + rng.next_below(4) && !input.empty(); ++edit) {
      const auto at = rng.next_below(static_cast<std::uint32_t>(input.size()));
      switch (rng.next_below(4)) {
        case 0:
          input[at] = static_cast<char>(rng.next_u32());
          break;
        case 1:
          input[at] = static_cast<char>(input[at] ^ (1 << rng.next_below(8)));
          break;
        case 2:
          input.resize(at);
          break;
        default:
          input.insert(at, input.substr(at, 1 + rng.next_below(16)));
      }
    }
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::uint64_t n_files = 0;
  for (int i = 1; i < argc; ++i) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[i])) {
      if (!entry.is_regular_file()) continue;
      const std::string input = hadal::read_text(entry.path());
      LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
      replay_mutations(input, ++n_files);
    }
  }
  std::printf("replayed %llu inputs\n", static_cast<unsigned long long>(n_files));
  return n_files > 0 ? 0 : 1;
}
