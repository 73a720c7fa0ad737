#include "train/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "train/run_fixture.h"
#include "train/series.h"

namespace hadal::train {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

Series ramp(std::size_t n) {
  Series s{.name = "ramp", .steps = {}, .values = {}};
  for (std::size_t i = 0; i < n; ++i) {
    s.steps.push_back(static_cast<std::int64_t>(i));
    s.values.push_back(static_cast<double>(i % 100));
  }
  return s;
}

TEST(Series, ThinningKeepsThePeaksTheEndsAndTheBound) {
  Series series = ramp(100'001);
  series.values[31'415] = 9000, series.values[77'777] = -9000;
  const Series thin = thin_out(series, 2000);
  EXPECT_LE(thin.values.size(), 2000U);
  EXPECT_GT(thin.values.size(), 1900U);
  EXPECT_THAT(thin.values, testing::Contains(9000));
  EXPECT_THAT(thin.values, testing::Contains(-9000));
  EXPECT_EQ(thin.steps.front(), 0);
  EXPECT_EQ(thin.steps.back(), 100'000);
  EXPECT_TRUE(std::is_sorted(thin.steps.begin(), thin.steps.end()));
}

TEST(Series, ThinningPassesNanOverButShowsWhereThereIsNothingElse) {
  Series series = ramp(10'000);
  for (std::size_t i = 2'000; i < 4'000; ++i) series.values[i] = std::nan("");
  series.values[5'000] = std::nan("");
  const Series thin = thin_out(series, 200);
  std::size_t n_nan = 0;
  for (std::size_t i = 0; i < thin.values.size(); ++i) {
    if (!std::isnan(thin.values[i])) continue;
    ++n_nan;
    EXPECT_GE(thin.steps[i], 2'000);
    EXPECT_LT(thin.steps[i], 4'000);
  }
  EXPECT_GT(n_nan, 15U);
}

TEST(Series, FewPointsStayAsTheyAre) {
  EXPECT_EQ(thin_out(ramp(2000), 2000).values, ramp(2000).values);
  EXPECT_TRUE(thin_out(ramp(0), 2000).values.empty());
}

const Series* find(const std::vector<Series>& all, const std::string& name) {
  for (const Series& s : all) {
    if (s.name == name) return &s;
  }
  return nullptr;
}

TEST(Series, OnlyMeasuredCurvesAreThere) {
  RunHistory run = made_run("r", 5);
  EXPECT_EQ(find(curves(run), "mtp_loss"), nullptr);
  EXPECT_EQ(find(curves(run), "expert_load_max"), nullptr);
  for (StepRecord& s : run.steps) {
    s.muon_update_rms = 0.18e-3;
    s.expert_load = {std::nan(""), 1.5, 1.0};
    s.dead_experts = {0, 1, 2};
    s.values["reward"] = 0.5;
  }
  const auto all = curves(run);
  EXPECT_NEAR(find(all, "muon_update")->values[0], 0.18, 1e-12);
  EXPECT_EQ(find(all, "expert_load_max")->values[2], 1.5);
  EXPECT_EQ(find(all, "expert_load_mean")->values[2], 1.25);
  EXPECT_EQ(find(all, "dead_experts")->values[0], 3);
  EXPECT_EQ(find(all, "values/reward")->values[4], 0.5);
}

TEST(Series, TheLoadMapKeepsTheHighestOfEachStretch) {
  RunHistory run = made_run("r", 10);
  for (StepRecord& s : run.steps) {
    s.expert_load = {std::nan(""), 1.0 + 0.1 * static_cast<double>(s.step)};
  }
  const LoadMap map = load_map(run, 3);
  EXPECT_THAT(map.layers, ElementsAre(1));
  EXPECT_THAT(map.begin, ElementsAre(1, 4, 7));
  EXPECT_THAT(map.end, ElementsAre(3, 6, 10));
  EXPECT_THAT(map.loads[0],
              ElementsAre(testing::DoubleEq(1.3), testing::DoubleEq(1.6), testing::DoubleEq(2.0)));
}

TEST(Series, BandsFollowEachOther) {
  RunHistory run = made_run("r", 10);
  for (StepRecord& s : run.steps) {
    if (s.step > 4) s.phase = "indexer_warmup";
    if (s.step > 6) s.phase = "sparse", s.sequence_length = 1024;
    if (s.step == 8 || s.step == 9) s.anticipatory = "on";
  }
  std::vector<std::string> found;
  for (const Band& b : bands(run)) {
    found.push_back(b.kind + " " + b.name + " " + std::to_string(b.begin) + "-" +
                    std::to_string(b.end));
  }
  EXPECT_THAT(
      found,
      ElementsAre("phase dense · 256 tokens 0-4", "phase indexer warmup · 256 tokens 4-6",
                  "phase sparse · 1024 tokens 6-10", "anticipatory anticipatory routing 7-9"));
}

TEST(Report, ThePageHasEverythingWithinAndAsksForNothing) {
  RunHistory run = made_run("run", 50);
  run.samples.push_back({.step = 1, .tokens = 0, .time = 0, .prompt = "<b>", .text = "</script>"});
  const std::vector<RunHistory> runs = {run};
  const std::string page = html_report(runs);
  for (const char* outside : {"http://", "https://", "src=", "@import", "url(",
                              "rel=\"stylesheet\"", "fetch(", "@REPORT_DATA@"}) {
    // The one address is the name of SVG's vocabulary.
    std::string text = page;
    const std::string name = "http://www.w3.org/2000/svg";
    for (std::size_t at; (at = text.find(name)) != std::string::npos;) text.erase(at, name.size());
    text.replace(text.find("clip-path\": `url("), 17, "");
    EXPECT_THAT(text, Not(HasSubstr(outside)));
  }
  EXPECT_THAT(page, HasSubstr("\\u003c/script>"));
  EXPECT_EQ(page, html_report(runs));
  // Every script element that opens is closed, so no text of a run ends one.
  std::size_t n_open = 0, n_close = 0;
  for (std::size_t at = 0; (at = page.find("<script", at)) != std::string::npos; ++at) ++n_open;
  for (std::size_t at = 0; (at = page.find("</script", at)) != std::string::npos; ++at) ++n_close;
  EXPECT_EQ(n_open, n_close);
}

TEST(Report, TheDataIsJsonOfBoundedSize) {
  RunHistory run = made_run("long", 30'000);
  for (StepRecord& s : run.steps) s.clipped = s.step % 2 == 0, s.expert_load = {1.1, 1.2};
  run.steps[7].loss = std::nan("");
  const std::string text = report_json(std::vector{run});
  EXPECT_LT(text.size(), 1'000'000U);
  const auto data = nlohmann::json::parse(text);
  const auto& out = data.at("runs").at(0);
  for (const auto& [name, points] : out.at("series").items()) {
    EXPECT_LE(points.at(0).size(), kMaxSeriesPoints) << name;
    EXPECT_EQ(points.at(0).size(), points.at(1).size()) << name;
  }
  EXPECT_EQ(out.at("axis").at("tokens").back(), 30'000'000);
  EXPECT_EQ(out.at("axis").at("seconds").back(), 15'000.0);
  EXPECT_LE(out.at("clipped").size(), 1000U);
  EXPECT_EQ(out.at("load_map").at("loads").size(), 2U);
  EXPECT_EQ(data.at("comparison").size(), 0U);
}

TEST(Report, RunsOfDifferentKindsAreCompared) {
  RunHistory moe = made_run("moe", 300, 0.02), dense = made_run("dense", 100);
  for (StepRecord& s : moe.steps) s.expert_load = {1.1}, s.mtp_loss = 4;
  moe.abandoned.push_back({made_step(301), made_step(302)});
  const auto data = nlohmann::json::parse(report_json(std::vector{moe, dense}));
  EXPECT_EQ(data.at("comparison").size(), 2U);
  EXPECT_TRUE(data.at("runs").at(0).at("series").contains("mtp_loss"));
  EXPECT_FALSE(data.at("runs").at(1).at("series").contains("mtp_loss"));
  EXPECT_EQ(data.at("runs").at(0).at("abandoned").size(), 1U);
}

TEST(Report, TheTextFitsATerminal) {
  RunHistory a = made_run("a", 300), b = made_run("b", 300, 0.02);
  a.events.push_back({.step = 7,
                      .tokens = 0,
                      .time = 0,
                      .what = "spike",
                      .sentence = std::string(200, 'x') + "\n\x1b[2J"});
  a.samples.push_back({.step = 7,
                       .tokens = 0,
                       .time = 0,
                       .prompt = "Once",
                       .text = " upon\na time \xC3\xA4" + std::string(200, 'y')});
  const std::string text = text_report(std::vector{a, b}, 80);
  EXPECT_THAT(text, HasSubstr("a: 300 steps, 300k tokens"));
  EXPECT_THAT(text, HasSubstr("spike"));
  EXPECT_THAT(text, HasSubstr("Once upon a time ä"));
  EXPECT_THAT(text, HasSubstr("tokens to equal loss"));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const auto n = std::count_if(line.begin(), line.end(), [](char c) {
      return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;
    });
    if (line.find("ended with") != std::string::npos) continue;
    EXPECT_LE(n, 80) << line;
  }
}

TEST(Report, SparklinesGoFromLowToHigh) {
  const std::vector<double> values = {0, 1, 2, 3, 4, 5, 6, 7};
  EXPECT_EQ(sparkline(values, 8), "▁▂▃▄▅▆▇█");
  EXPECT_EQ(sparkline(values, 2), "▁█");
  const std::vector<double> flat = {2, std::nan(""), 2};
  EXPECT_EQ(sparkline(flat, 10), "▁ ▁");
  EXPECT_EQ(sparkline({}, 10), "");
}

}  // namespace
}  // namespace hadal::train
