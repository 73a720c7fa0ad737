// What the server wants of an engine, so that tests can be one.
#pragma once

#include <string>

#include "engine/engine.h"

namespace hadal::server {

// As engine::Engine has them.
class Generator {
 public:
  virtual ~Generator() = default;
  virtual void submit(engine::Request request) = 0;
  virtual void cancel(const std::string& stream) = 0;
  virtual void suspend(const std::string& stream, bool suspended) = 0;
  virtual void preempt(const std::string& stream) = 0;
  [[nodiscard]] virtual engine::EngineStatus status() const = 0;
};

class EngineGenerator final : public Generator {
 public:
  // `engine` must outlive this.
  explicit EngineGenerator(engine::Engine& engine) : engine_(engine) {}
  void submit(engine::Request request) override { engine_.submit(std::move(request)); }
  void cancel(const std::string& stream) override { engine_.cancel(stream); }
  void suspend(const std::string& stream, bool suspended) override {
    engine_.suspend(stream, suspended);
  }
  void preempt(const std::string& stream) override { engine_.preempt(stream); }
  [[nodiscard]] engine::EngineStatus status() const override { return engine_.status(); }

 private:
  engine::Engine& engine_;
};

}  // namespace hadal::server
