// Numbers that a monitoring system reads: counted without locks, printed as Prometheus text.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hadal {

// All three may be used from any thread; nobody waits.
class Counter {
 public:
  void add(std::uint64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  // For a sum that is kept elsewhere.
  void set(std::uint64_t n) { value_.store(n, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

class Gauge {
 public:
  void set(double v) { value_.store(v, std::memory_order_relaxed); }
  void add(double v) { value_.fetch_add(v, std::memory_order_relaxed); }
  [[nodiscard]] double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds);  // upper ones, ascending; +Inf is added
  void observe(double v);
  [[nodiscard]] std::uint64_t count() const;
  [[nodiscard]] double sum() const { return sum_.load(std::memory_order_relaxed); }
  [[nodiscard]] const std::vector<double>& bounds() const { return bounds_; }
  // Observations in bucket i alone, i up to bounds().size().
  [[nodiscard]] std::uint64_t bucket(std::size_t i) const;

 private:
  const std::vector<double> bounds_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> buckets_;
  std::atomic<double> sum_{0};
};

using MetricLabels = std::vector<std::pair<std::string, std::string>>;

// Names and their values. What is returned lives as long as the registry; asking again for a name
// and the same labels returns the same object. Looking up takes a lock: keep what counts often.
class MetricsRegistry {
 public:
  // On every line, before a metric's own.
  explicit MetricsRegistry(MetricLabels common = {}) : common_(std::move(common)) {}

  [[nodiscard]] Counter& counter(std::string_view name, std::string_view help,
                                 const MetricLabels& labels = {});
  [[nodiscard]] Gauge& gauge(std::string_view name, std::string_view help,
                             const MetricLabels& labels = {});
  [[nodiscard]] Histogram& histogram(std::string_view name, std::string_view help,
                                     std::vector<double> bounds, const MetricLabels& labels = {});

  // Text format 0.0.4, families in the order of their first mention.
  [[nodiscard]] std::string text() const;

 private:
  enum class Kind : std::uint8_t { counter, gauge, histogram };
  struct Series {
    MetricLabels labels;
    std::unique_ptr<Counter> counter;
    std::unique_ptr<Gauge> gauge;
    std::unique_ptr<Histogram> histogram;
  };
  struct Family {
    std::string name, help;
    Kind kind;
    std::deque<Series> series;
  };
  Series& series(std::string_view name, std::string_view help, Kind kind,
                 const MetricLabels& labels);

  const MetricLabels common_;
  mutable std::mutex mutex_;
  std::deque<Family> families_;
};

// 1, 2, 5, 10, 20, 50, ... up to `last`.
[[nodiscard]] std::vector<double> decade_bounds(double last);

}  // namespace hadal
