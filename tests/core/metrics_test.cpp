#include "core/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace hadal {
namespace {

TEST(Metrics, PrintsPrometheusText) {
  MetricsRegistry registry(MetricLabels{{"model_name", "m"}});
  registry.counter("a_total", "how often").add(3);
  registry.counter("by_rule_total", "per rule", {{"rule", "R\"1\\\n"}}).add();
  registry.gauge("level", "now").set(0.25);
  Histogram& h = registry.histogram("seconds", "took", {0.1, 1.0});
  for (const double v : {0.05, 0.1, 0.5, 7.0}) h.observe(v);
  EXPECT_EQ(registry.text(),
            "# HELP a_total how often\n# TYPE a_total counter\na_total{model_name=\"m\"} 3\n"
            "# HELP by_rule_total per rule\n# TYPE by_rule_total counter\n"
            "by_rule_total{model_name=\"m\",rule=\"R\\\"1\\\\\\n\"} 1\n"
            "# HELP level now\n# TYPE level gauge\nlevel{model_name=\"m\"} 0.25\n"
            "# HELP seconds took\n# TYPE seconds histogram\n"
            "seconds_bucket{model_name=\"m\",le=\"0.1\"} 2\n"
            "seconds_bucket{model_name=\"m\",le=\"1\"} 3\n"
            "seconds_bucket{model_name=\"m\",le=\"+Inf\"} 4\n"
            "seconds_sum{model_name=\"m\"} 7.65\nseconds_count{model_name=\"m\"} 4\n");
}

TEST(Metrics, TheSameNameAndLabelsAreTheSameMetric) {
  MetricsRegistry registry;
  Counter& a = registry.counter("n_total", "n", {{"x", "1"}});
  Counter& b = registry.counter("n_total", "n", {{"x", "2"}});
  EXPECT_NE(&a, &b);
  EXPECT_EQ(&a, &registry.counter("n_total", "n", {{"x", "1"}}));
}

TEST(Metrics, CountsFromManyThreads) {
  MetricsRegistry registry;
  Counter& counter = registry.counter("n_total", "n");
  Histogram& histogram = registry.histogram("h", "h", {1, 2});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) counter.add(), histogram.observe(i % 4);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter.value(), 4000u);
  EXPECT_EQ(histogram.count(), 4000u);
  EXPECT_EQ(histogram.sum(), 6000.0);
}

TEST(Metrics, DecadeBounds) {
  EXPECT_THAT(decade_bounds(50), testing::ElementsAre(1, 2, 5, 10, 20, 50));
}

}  // namespace
}  // namespace hadal
