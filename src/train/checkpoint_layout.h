// Names within a directory of checkpoints.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace hadal::train {

inline constexpr std::string_view kCheckpointManifestName = "manifest.json";
inline constexpr std::string_view kCheckpointStateName = "state.json";
inline constexpr std::string_view kCheckpointConfigName = "config.json";

// Behind the name of one that is being written or removed: never a checkpoint.
inline constexpr std::string_view kPartialSuffix = ".partial";
// Behind the name of one whose successor is being put in its place: still a checkpoint.
inline constexpr std::string_view kReplacedSuffix = ".replaced";

[[nodiscard]] std::string checkpoint_name(std::int64_t step);  // step-00001200

struct CheckpointName {
  std::int64_t step;
  bool replaced;
};
// Nothing for any other name.
[[nodiscard]] std::optional<CheckpointName> parse_checkpoint_name(std::string_view name);

}  // namespace hadal::train
