// The load itself: sessions that come and go, streams that only wait, and probes beside them.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/bench_serve.h"
#include "cli/bench_serve_client.h"
#include "cli/bench_serve_report.h"
#include "core/rng.h"

namespace hadal::cli {

// Everything runs on the thread that calls run().
class LoadGenerator {
 public:
  explicit LoadGenerator(const ServeLoad& load);
  // Asks the server which model it has and how it cuts words into tokens, then puts the load on it
  // until all sessions are over, or Ctrl-C. Throws io when there is no such server.
  [[nodiscard]] ServeRecords run();

 private:
  using Json = nlohmann::ordered_json;
  template <typename T>
  using Awaitable = boost::asio::awaitable<T>;

  // What one streamed answer said.
  struct Answer {
    std::string content, reasoning;
    Json tool_calls = Json::array();
  };

  Awaitable<void> prepare();
  Awaitable<void> worker();
  Awaitable<void> arrivals();
  Awaitable<void> session(std::int64_t index, HttpConnection& connection);
  Awaitable<void> arrived(std::int64_t index);
  Awaitable<void> random_session(std::int64_t index, HttpConnection& connection);
  Awaitable<void> agent_session(std::int64_t index, HttpConnection& connection);
  Awaitable<bool> stream(HttpConnection& connection, std::string path, Json body,
                         RequestRecord& record, Answer& answer);
  Awaitable<void> idle_stream(std::int64_t index);
  Awaitable<void> probe_health();
  Awaitable<void> watch();
  Awaitable<void> sleep(double seconds);

  [[nodiscard]] double now() const;
  [[nodiscard]] bool may_begin() const;
  [[nodiscard]] Json agent_tools() const;
  [[nodiscard]] std::string words(Rng& rng, std::int64_t n_tokens) const;
  void note(const std::string& data, RequestRecord& record, Answer& answer);
  void session_over();
  void show_progress();

  const ServeLoad& load_;
  const Endpoint endpoint_;
  boost::asio::io_context io_{1};
  std::string model_;
  std::vector<std::int64_t> token_pool_;  // ids that texts are made of
  double tokens_per_word_ = 1;
  std::string system_prompt_;  // of agents

  std::chrono::steady_clock::time_point begin_{};
  std::int64_t next_session_ = 0, running_sessions_ = 0, open_idle_ = 0;
  bool all_begun_ = false, over_ = false;
  std::int64_t n_done_ = 0, n_failed_ = 0, n_tokens_ = 0, shown_tokens_ = 0;
  double shown_at_ = 0;
  bool showing_ = false;
  ServeRecords records_;
};

}  // namespace hadal::cli
