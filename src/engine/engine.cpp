#include "engine/engine.h"

#include "engine/engine_loop.h"

namespace hadal::engine {

Engine::Engine(Runtime& runtime, const LoadedModel& loaded, const EngineOptions& options,
               TokenLog* log, cache::DiskStore* disk)
    : loop_(std::make_unique<EngineLoop>(runtime, loaded, options, log, disk)) {}

Engine::~Engine() = default;

void Engine::submit(Request request) {
  loop_->validate(request);
  loop_->post(std::move(request));
}

void Engine::cancel(const std::string& stream) {
  loop_->post(EngineLoop::Cancel{stream});
}

void Engine::suspend(const std::string& stream, bool suspended) {
  loop_->post(EngineLoop::Suspend{stream, suspended});
}

void Engine::preempt(const std::string& stream) {
  loop_->post(EngineLoop::Preempt{stream});
}

EngineStatus Engine::status() const {
  return loop_->status();
}

const EngineOptions& Engine::options() const {
  return loop_->options();
}

void Engine::on_step(std::function<void(const StepReport&)> observer) {
  loop_->on_step(std::move(observer));
}

}  // namespace hadal::engine
