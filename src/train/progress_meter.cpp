#include "train/progress_meter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/units.h"

namespace hadal::train {

namespace {

// Of what was, after one step more: half-lives of 14 and 22 steps.
constexpr double kKeepLoss = 0.95, kKeepRate = 0.97;

// Characters, not bytes.
std::size_t width_of(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;
  }));
}

}  // namespace

void ProgressMeter::add(const StepRecord& record) {
  if (last_ && record.step <= last_->step) loss_ = 0, loss_weight_ = 0;
  if (std::isfinite(record.loss)) {
    loss_weight_ = kKeepLoss * loss_weight_ + (1 - kKeepLoss);
    loss_ += (1 - kKeepLoss) / loss_weight_ * (record.loss - loss_);
  }
  if (record.tokens_per_second > 0 && record.seconds.step > 0) {
    tokens_ = kKeepRate * tokens_ + record.tokens_per_second * record.seconds.step;
    seconds_ = kKeepRate * seconds_ + record.seconds.step;
  }
  last_ = record;
}

double ProgressMeter::tokens_per_second() const {
  return seconds_ > 0 ? tokens_ / seconds_ : 0;
}

std::optional<double> ProgressMeter::seconds_left() const {
  const double rate = tokens_per_second();
  if (!last_ || total_tokens_ <= 0 || !(rate > 0)) return std::nullopt;
  return static_cast<double>(std::max<std::int64_t>(0, total_tokens_ - last_->tokens)) / rate;
}

std::string ProgressMeter::line(std::size_t columns) const {
  if (!last_) return {};
  struct Part {
    std::string text;
    int rank;  // the highest goes first
  };
  std::vector<Part> parts;
  const auto tokens = static_cast<double>(last_->tokens);
  parts.push_back({fmt::format("step {}", last_->step), 0});
  if (total_tokens_ > 0) {
    const auto total = static_cast<double>(total_tokens_);
    parts.push_back({fmt::format("{} of {} tokens ({:.1f} %)", format_count(tokens),
                                 format_count(total), 100 * tokens / total),
                     3});
  } else {
    parts.push_back({fmt::format("{} tokens", format_count(tokens)), 3});
  }
  if (last_->phase == "indexer_warmup" && last_->index_loss) {
    parts.push_back({fmt::format("indexer loss {:.4f}", *last_->index_loss), 1});
  } else if (loss_weight_ > 0) {
    parts.push_back({fmt::format("loss {:.4f}", loss_), 1});
  }
  parts.push_back({fmt::format("lr {:.2e}", last_->lr), 6});
  if (last_->anticipatory != "off") parts.push_back({"anticipatory routing", 5});
  if (const double rate = tokens_per_second(); rate > 0) {
    parts.push_back({fmt::format("{} tokens/s", format_count(rate)), 4});
  }
  if (const auto left = seconds_left()) {
    parts.push_back({fmt::format("{} left", format_seconds(*left)), 2});
  }
  if (last_->peak_memory_bytes > 0) {
    parts.push_back({format_bytes(static_cast<double>(last_->peak_memory_bytes)), 7});
  }
  const auto joined = [&] {
    std::string text;
    for (const Part& part : parts) text += (text.empty() ? "" : " · ") + part.text;
    return text;
  };
  std::string text = joined();
  while (parts.size() > 1 && width_of(text) > columns) {
    parts.erase(std::max_element(parts.begin(), parts.end(),
                                 [](const Part& a, const Part& b) { return a.rank < b.rank; }));
    text = joined();
  }
  return text;
}

}  // namespace hadal::train
