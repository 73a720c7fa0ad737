// Reading a checkpoint back.
#include <fmt/format.h>

#include <memory>
#include <unordered_map>

#include "core/error.h"
#include "io/safetensors.h"
#include "train/checkpoint.h"
#include "train/checkpoint_layout.h"

namespace hadal::train {

namespace {

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

io::SafetensorsFile parse(std::vector<std::byte> bytes, const std::string& name) {
  const auto owner = std::make_shared<std::vector<std::byte>>(std::move(bytes));
  return io::SafetensorsFile::parse(std::shared_ptr<std::byte>(owner, owner->data()), owner->size(),
                                    name);
}

}  // namespace

SavedCheckpoint SavedCheckpoint::open(FileSystem& fs, const Path& directory) {
  SavedCheckpoint saved(fs, directory);
  const Path manifest = directory / kCheckpointManifestName;
  if (!fs.exists(manifest)) {
    throw Error(ErrorCode::not_found,
                fmt::format("{} is missing: {} is no whole training checkpoint", manifest.string(),
                            directory.string()));
  }
  saved.manifest_ = parse_checkpoint_manifest(text_of(fs.read_all(manifest)), manifest.string());
  for (const FileDigest& file : saved.manifest_.tensors) verify(fs, directory, file);
  const auto text = [&](const FileDigest& file) {
    return text_of(read_verified(fs, directory, file));
  };
  const FileDigest& state = saved.manifest_.state;
  saved.state_ = parse_checkpoint_state(text(state), (directory / state.file).string());
  if (saved.step() != saved.manifest_.step) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: its manifest is of step {}, its state of step {}",
                            directory.string(), saved.manifest_.step, saved.step()));
  }
  const FileDigest& config = saved.manifest_.model_config;
  saved.state_.model = model::parse_config(text(config), (directory / config.file).string());
  return saved;
}

std::size_t SavedCheckpoint::nbytes() const {
  std::size_t n = 0;
  for (const FileDigest& file : manifest_.files()) n += file.nbytes;
  return n;
}

void SavedCheckpoint::expect_identity(const RunIdentity& wanted) const {
  const RunIdentity& found = state_.identity;
  const auto value = [](const RunIdentity& identity, const std::string& key) {
    const auto at = identity.find(key);
    return at == identity.end() ? std::string("absent") : at->second;
  };
  std::vector<std::string> differ;
  for (const auto& [key, text] : wanted) {
    if (value(found, key) != text) differ.push_back(key);
  }
  for (const auto& [key, text] : found) {
    if (!wanted.contains(key)) differ.push_back(key);
  }
  if (differ.empty()) return;
  std::string more;
  for (std::size_t i = 1; i < differ.size() && i < 6; ++i) {
    more += (i == 1 ? "; so do " : ", ") + differ[i];
  }
  if (differ.size() > 6) more += fmt::format(" and {} more", differ.size() - 6);
  throw Error(ErrorCode::invalid_argument,
              fmt::format("{}: {} is {} in the checkpoint and {} in the config{}; go on with the "
                          "config that the run began with, or begin another run",
                          directory_.string(), differ[0], value(found, differ[0]),
                          value(wanted, differ[0]), more));
}

void SavedCheckpoint::read(std::span<const NamedTensor> tensors) const {
  read(tensors, Others::refuse);
}

void SavedCheckpoint::read_weights(const ParameterStore& store) const {
  std::vector<NamedTensor> masters;
  for (const Parameter& p : store.parameters()) masters.push_back(store.named(p));
  read(masters, Others::ignore);
}

void SavedCheckpoint::read(std::span<const NamedTensor> tensors, Others others) const {
  const auto fail = [&](const std::string& sentence) {
    throw Error(ErrorCode::corrupt_data, fmt::format("{}: {}", directory_.string(), sentence));
  };
  std::unordered_map<std::string_view, const NamedTensor*> wanted;
  for (const NamedTensor& t : tensors) wanted.emplace(t.name, &t);
  HADAL_CHECK(wanted.size() == tensors.size());
  for (const FileDigest& file : manifest_.tensors) {
    const io::SafetensorsFile shard =
        parse(read_verified(*fs_, directory_, file), (directory_ / file.file).string());
    for (const io::SafetensorsEntry& entry : shard.entries()) {
      const auto at = wanted.find(entry.name);
      if (at == wanted.end()) {
        if (others == Others::refuse) {
          fail(fmt::format("{} in {} is nothing that this run has", entry.name, file.file));
        }
        continue;
      }
      const Tensor& to = at->second->tensor;
      if (entry.dtype != to.dtype() || entry.shape != to.shape()) {
        fail(fmt::format("{} is {} {}, this run has {} {}", entry.name, to_string(entry.dtype),
                         to_string(entry.shape), to_string(to.dtype()), to_string(to.shape())));
      }
      at->second->assign(shard.tensor(entry));
      wanted.erase(at);
    }
  }
  if (wanted.empty()) return;
  for (const NamedTensor& t : tensors) {  // the first, in order
    if (wanted.contains(t.name)) {
      fail(fmt::format("{} is missing ({} of {} tensors are)", t.name, wanted.size(),
                       tensors.size()));
    }
  }
}

}  // namespace hadal::train
