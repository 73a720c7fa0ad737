// hadal replay --resume: the server's recovery without its sockets.
#include <fmt/format.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "cli/generation.h"
#include "cli/interrupt.h"
#include "cli/replay.h"
#include "core/error.h"
#include "engine/engine.h"
#include "engine/journal_log.h"
#include "grammar/grammar_cache.h"
#include "journal/writer.h"
#include "server/app.h"
#include "server/model_identity.h"

namespace hadal::cli {

int resume_journal(const Path& directory, const ModelOptions& model) {
  FileSystem& fs = FileSystem::real();
  // Before the model is loaded: a directory that a server works in is refused at once.
  journal::Recovery recovered = journal::recover(fs, directory);
  std::vector<const journal::Stream*> unfinished;
  for (const journal::Stream* stream : recovered.unfinished()) {
    // Those that cannot go on are closed by the Writer.
    if (stream->fault.empty() && !stream->cancelled) unfinished.push_back(stream);
  }
  if (unfinished.empty()) {
    print("nothing is unfinished\n");
    return 0;
  }
  const auto runtime = model.runtime();
  const auto loaded = model.load(runtime.get());
  // As hadal serve would have it, so that the fingerprint is the same.
  server::ServedModel served =
      server::served_model(*loaded, {.id = {},
                                     .numerics = model.numerics,
                                     .version = HADAL_VERSION,
                                     .defaults = GenerationOptions{}.sampling(*loaded)});
  std::vector<std::string> names;
  std::string others;  // a line each
  for (const journal::Stream* stream : unfinished) {
    const std::string difference =
        server::model_difference(stream->open.fingerprint_text, served.fingerprint_text);
    if (difference.empty()) {
      names.push_back(stream->open.name);
    } else {
      others += fmt::format("\n  {}: {}", stream->open.name, difference);
    }
  }
  const auto refuse_others = [&] {
    if (others.empty()) return;
    throw Error(ErrorCode::unsupported,
                fmt::format("these streams were begun by another model than {}, which must not go "
                            "on with them; they are as they were: give --model (and --numerics) "
                            "of the model that began them{}",
                            model.resolved_directory().string(), others));
  };
  if (names.empty()) refuse_others();
  grammar::GrammarCache grammars(served.tokenizer);
  const server::KeyRing keys;
  // The engine and the log hold streams of the App: it goes last, and is stopped first.
  server::App app({.log = [](const std::string& line) { remark(line); }}, keys);
  journal::Writer writer(fs, directory, {}, recovered);
  engine::JournalLog log(writer);
  engine::Engine engine(*runtime, *loaded, {.numerics = model.resolved_numerics()}, &log);
  server::EngineGenerator generator(engine);
  struct Stop {
    server::App& app;
    ~Stop() { app.stop(); }
  };
  const Stop stop{app};

  const InterruptGuard guard;
  const std::size_t n_resumed = app.start({.model = std::move(served),
                                           .generator = &generator,
                                           .journal = &writer,
                                           .grammars = &grammars},
                                          names);
  remark(fmt::format("{} of {} unfinished streams go on; the others were not resumable", n_resumed,
                     names.size()));
  while (app.n_unfinished() > 0 && !InterruptGuard::flag()) {
    (void)app.wait_drained(std::chrono::milliseconds(200));
  }
  const bool durable = writer.flush();
  for (const std::string& name : names) {
    const auto info = writer.find(name);
    if (!info) continue;
    std::string ends;
    for (const auto& choice : info->choices) {
      ends += fmt::format(" {}", choice.close ? journal::to_string(*choice.close) : "unfinished");
    }
    print(fmt::format("{}: {} tokens,{}\n", name, info->n_tokens, ends));
  }
  flush_stdout();
  if (!durable) throw Error(ErrorCode::io, writer.failure());
  refuse_others();
  return app.n_unfinished() > 0 ? kInterruptedStatus : 0;
}

}  // namespace hadal::cli
