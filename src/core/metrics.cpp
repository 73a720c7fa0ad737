#include "core/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace hadal {

namespace {

void append_escaped(std::string& out, std::string_view text, bool in_label) {
  for (const char c : text) {
    if (c == '\\') {
      out += "\\\\";
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '"' && in_label) {
      out += "\\\"";
    } else {
      out += c;
    }
  }
}

std::string number(double v) {
  if (std::isnan(v)) return "NaN";
  if (std::isinf(v)) return v > 0 ? "+Inf" : "-Inf";
  return fmt::format("{}", v);
}

// {a="1",b="2"}, or nothing; `le` only where it is given.
std::string braces(const MetricLabels& common, const MetricLabels& own,
                   const std::string& le = {}) {
  std::string out;
  const auto add = [&out](std::string_view name, std::string_view value) {
    out += out.empty() ? "{" : ",";
    out += name;
    out += "=\"";
    append_escaped(out, value, true);
    out += '"';
  };
  for (const auto& [name, value] : common) add(name, value);
  for (const auto& [name, value] : own) add(name, value);
  if (!le.empty()) add("le", le);
  return out.empty() ? out : out + "}";
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)),
      buckets_(std::make_unique<std::atomic<std::uint64_t>[]>(bounds_.size() + 1)) {
  HADAL_CHECK(std::is_sorted(bounds_.begin(), bounds_.end()));
}

void Histogram::observe(double v) {
  const auto at = std::lower_bound(bounds_.begin(), bounds_.end(), v) - bounds_.begin();
  buckets_[static_cast<std::size_t>(at)].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(v, std::memory_order_relaxed);
}

std::uint64_t Histogram::bucket(std::size_t i) const {
  return buckets_[i].load(std::memory_order_relaxed);
}

std::uint64_t Histogram::count() const {
  std::uint64_t n = 0;
  for (std::size_t i = 0; i <= bounds_.size(); ++i) n += bucket(i);
  return n;
}

MetricsRegistry::Series& MetricsRegistry::series(std::string_view name, std::string_view help,
                                                 Kind kind, const MetricLabels& labels) {
  auto family = std::find_if(families_.begin(), families_.end(),
                             [&](const Family& f) { return f.name == name; });
  if (family == families_.end()) {
    families_.push_back({std::string(name), std::string(help), kind, {}});
    family = std::prev(families_.end());
  }
  HADAL_CHECK(family->kind == kind);
  for (Series& known : family->series) {
    if (known.labels == labels) return known;
  }
  family->series.push_back({labels, nullptr, nullptr, nullptr});
  return family->series.back();
}

Counter& MetricsRegistry::counter(std::string_view name, std::string_view help,
                                  const MetricLabels& labels) {
  const std::lock_guard lock(mutex_);
  Series& s = series(name, help, Kind::counter, labels);
  if (!s.counter) s.counter = std::make_unique<Counter>();
  return *s.counter;
}

Gauge& MetricsRegistry::gauge(std::string_view name, std::string_view help,
                              const MetricLabels& labels) {
  const std::lock_guard lock(mutex_);
  Series& s = series(name, help, Kind::gauge, labels);
  if (!s.gauge) s.gauge = std::make_unique<Gauge>();
  return *s.gauge;
}

Histogram& MetricsRegistry::histogram(std::string_view name, std::string_view help,
                                      std::vector<double> bounds, const MetricLabels& labels) {
  const std::lock_guard lock(mutex_);
  Series& s = series(name, help, Kind::histogram, labels);
  if (!s.histogram) s.histogram = std::make_unique<Histogram>(std::move(bounds));
  return *s.histogram;
}

std::string MetricsRegistry::text() const {
  static constexpr const char* kTypes[] = {"counter", "gauge", "histogram"};
  const std::lock_guard lock(mutex_);
  std::string out;
  for (const Family& family : families_) {
    out += "# HELP " + family.name + " ";
    append_escaped(out, family.help, false);
    out += fmt::format("\n# TYPE {} {}\n", family.name, kTypes[static_cast<int>(family.kind)]);
    for (const Series& s : family.series) {
      if (s.counter) {
        out += fmt::format("{}{} {}\n", family.name, braces(common_, s.labels), s.counter->value());
      } else if (s.gauge) {
        out += fmt::format("{}{} {}\n", family.name, braces(common_, s.labels),
                           number(s.gauge->value()));
      } else if (s.histogram) {
        // Buckets once: the count is their sum, whatever is observed meanwhile.
        std::uint64_t n = 0;
        const std::vector<double>& bounds = s.histogram->bounds();
        for (std::size_t i = 0; i <= bounds.size(); ++i) {
          n += s.histogram->bucket(i);
          const std::string le = i < bounds.size() ? number(bounds[i]) : "+Inf";
          out += fmt::format("{}_bucket{} {}\n", family.name, braces(common_, s.labels, le), n);
        }
        const std::string labels = braces(common_, s.labels);
        out += fmt::format("{}_sum{} {}\n{}_count{} {}\n", family.name, labels,
                           number(s.histogram->sum()), family.name, labels, n);
      }
    }
  }
  return out;
}

std::vector<double> decade_bounds(double last) {
  std::vector<double> bounds;
  for (double decade = 1; decade <= last; decade *= 10) {
    for (const double step : {1.0, 2.0, 5.0}) {
      if (step * decade <= last) bounds.push_back(step * decade);
    }
  }
  return bounds;
}

}  // namespace hadal
