#include "journal/writer.h"

#include <fmt/format.h>

#include <charconv>
#include <exception>
#include <utility>

#include "core/error.h"
#include "journal/log_thread.h"

namespace hadal::journal {

std::optional<SyncPolicy> SyncPolicy::parse(std::string_view text) {
  if (text == "none") return SyncPolicy{.kind = Kind::none};
  if (text == "step") return SyncPolicy{.kind = Kind::step};
  if (text == "interval") return SyncPolicy{};
  constexpr std::string_view kPrefix = "interval:";
  if (!text.starts_with(kPrefix)) return std::nullopt;
  text.remove_prefix(kPrefix.size());
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  const std::int64_t scale = unit == "ms" ? 1 : unit == "s" ? 1000 : 0;
  constexpr std::int64_t kMaxMilliseconds = 3'600'000;
  if (error != std::errc() || scale == 0 || value < 1 || value > kMaxMilliseconds / scale) {
    return std::nullopt;
  }
  return SyncPolicy{.kind = Kind::interval, .interval = std::chrono::milliseconds(value * scale)};
}

std::string SyncPolicy::to_string() const {
  if (kind == Kind::none) return "none";
  if (kind == Kind::step) return "step";
  return fmt::format("interval:{}ms", interval.count());
}

class Writer::Impl : public LogThread {
  using LogThread::LogThread;
};

Writer::Writer(FileSystem& fs, Path directory, WriterOptions options, const Recovery& recovered)
    : impl_(std::make_unique<Impl>(fs, std::move(directory), std::move(options), recovered)) {}
Writer::~Writer() = default;

std::optional<LocalId> Writer::open(OpenRecord record, std::function<void()> written) {
  if (record.name.empty() || record.name.size() > kMaxNameBytes) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("a stream's name has {} bytes; wanted 1 to {}", record.name.size(),
                            kMaxNameBytes));
  }
  constexpr std::uint32_t kMaxChoices = 65535;
  if (record.n_choices == 0 || record.n_choices > kMaxChoices) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("stream \"{}\" has {} choices; the journal takes 1 to {}", record.name,
                            record.n_choices, kMaxChoices));
  }
  if (impl_->local_of(record.name)) return std::nullopt;  // before the work of packing it
  record.local = 0;
  return impl_->open(record, encode(record), std::move(written));
}

void Writer::commit(std::vector<TokenEntry> tokens, std::vector<ChoiceEnd> ends,
                    std::function<void()> publish) {
  const std::uint64_t n_tokens = tokens.size();
  impl_->submit({.task = StepTask{.tokens = std::move(tokens), .ends = std::move(ends)},
                 .done = std::move(publish),
                 .n_tokens = n_tokens});
}

void Writer::cancel(LocalId local, const std::string& reason) {
  impl_->submit({.task = CancelRecord{.local = local, .reason = reason}});
}

void Writer::snap(SnapRecord record) {
  impl_->submit({.task = std::move(record)});
}

void Writer::abandon(LocalId local, CloseReason reason, const std::string& detail) {
  impl_->submit({.task = AbandonTask{.local = local, .reason = reason, .detail = detail}});
}

bool Writer::flush() {
  impl_->submit_and_wait(BarrierTask{.sync = true});
  return healthy();
}

void Writer::maintain() {
  impl_->submit_and_wait(MaintainTask{});
}

bool Writer::healthy() const {
  return impl_->failure().empty();
}

std::string Writer::failure() const {
  return impl_->failure();
}

WriterStats Writer::stats() const {
  return impl_->stats();
}

std::optional<StreamInfo> Writer::find(const std::string& name) const {
  return impl_->find(name);
}

std::vector<StreamInfo> Writer::streams() const {
  return impl_->streams();
}

std::optional<LocalId> Writer::local_of(const std::string& name) const {
  return impl_->local_of(name);
}

std::optional<Stream> Writer::read(const std::string& name) const {
  return impl_->read(name);
}

}  // namespace hadal::journal
