// Responses that somebody comes back to: re-attach, stop, and what a restart finds in the journal.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <set>

#include "core/error.h"
#include "engine/journal_log.h"
#include "protocol/api_json.h"
#include "protocol/responses_object.h"
#include "server/api_errors.h"
#include "server/app.h"
#include "server/model_identity.h"

namespace hadal::server {

using namespace protocol;  // requests

namespace {

Api api_from(const std::string& name) {
  for (const Api api : {Api::chat_completions, Api::completions, Api::responses, Api::messages}) {
    if (name == to_string(api)) return api;
  }
  throw Error(ErrorCode::corrupt_data, fmt::format("the journal names an API \"{}\"", name));
}

std::string part_name(const std::string& id, std::size_t n_parts, std::size_t part) {
  return n_parts == 1 ? id : fmt::format("{}/{}", id, part);
}

std::optional<std::uint64_t> number(std::string_view text) {
  std::uint64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return n;
}

std::string event_stream_error(std::string_view id) {
  return fmt::format("there is no stream \"{}\"; it is finished and forgotten, or never was",
                     id.substr(0, 128));
}

}  // namespace

// The request again, from its OPEN records, with all that was drawn for it. Nothing when the
// journal does not know it, or only as another key's than `key_name`, if that is given. Throws
// ApiException when this model cannot read it.
std::optional<App::Rebuilt> App::rebuild(const std::string& id, const std::string* key_name) {
  const Backend& there = *backend_;
  if (there.journal == nullptr) return std::nullopt;
  std::optional<journal::Stream> first = there.journal->read(id);
  if (!first) first = there.journal->read(id + "/0");
  if (!first || first->open.request.empty()) return std::nullopt;
  const journal::OpenRecord open = first->open;
  if (key_name != nullptr && open.principal != *key_name) return std::nullopt;
  if (!same_tokenizer(open.fingerprint_text, there.model.fingerprint_text)) {
    throw conflict(
        fmt::format(
            "the stream \"{}\" was drawn with another tokenizer than the one that is loaded "
            "now, so its tokens are no text here; have it read by the model that began it, "
            "or send the request again under a new stream_id",
            id.substr(0, 128)),
        "stream_of_another_model");
  }

  ApiDefaults defaults = generation_.defaults;
  defaults.profile = there.model.profile;
  const Api api = api_from(open.api);
  const Json body = parse_body(open.request);
  if (const Json* name = body.find("model");
      name != nullptr && name->as<std::string>() != nullptr) {
    defaults.thinking_mode = resolve_model(there.model, *name->as<std::string>(), true)
                                 .thinking_mode.value_or(defaults.thinking_mode);
  }
  ApiRequest request = parse_request(api, body, defaults);
  request.sampling.seed = open.seed;
  ApiKey* key = keys_.by_name(open.principal);
  static ApiKey gone("", "", {.max_priority = 0});  // its key is not accepted any more
  if (key == nullptr) key = &gone;
  Prepared prepared = prepare(request, there.model, generation_, *key, nullptr, open.seed);
  const std::size_t n_parts = prepared.parts.size();

  auto plan = std::make_shared<ResponsePlan>(ResponsePlan{
      .request = request,
      .identity = {.id = open.response_id,
                   .model = request.model,
                   .created = open.created,
                   .system_fingerprint = there.model.system_fingerprint,
                   .nonce = std::string(reinterpret_cast<const char*>(open.nonce.data()),
                                        open.nonce.size())},
      .form = prepared.form,
      .tokenizer = there.model.tokenizer,
      .end_of_sentence = there.model.end_tokens.empty() ? -1 : there.model.end_tokens.front(),
      .n_choices = static_cast<std::int32_t>(n_parts) * request.n,
      .prompts = {}});
  std::vector<std::optional<journal::Stream>> streams(n_parts);
  for (std::size_t i = 0; i < n_parts; ++i) {
    streams[i] = n_parts == 1 ? std::move(first) : there.journal->read(part_name(id, n_parts, i));
    engine::Request& r = prepared.parts[i].request;
    // As it was rendered then: what is known about its answers may have changed since.
    if (streams[i] && r.prompt != streams[i]->open.prompt) {
      r.prompt = streams[i]->open.prompt;
      r.snapshot_positions.clear();
      r.preamble_tokens = 0;
    }
    plan->prompts.push_back(r.prompt);
  }
  StreamInfo info{.id = id,
                  .plan = plan,
                  .request_sha256 = open.request_sha256,
                  .resumable = open.resumable,
                  .recovered = true,
                  .same_fingerprint = open.fingerprint == there.model.fingerprint,
                  .key_name = open.principal,
                  .domain = prepared.parts.front().request.cache_domain,
                  .request_id = "resumed",
                  .seed = open.seed,
                  .max_tokens = prepared.max_tokens,
                  .parts = {},
                  .ticket = admission_.readmit(*key, prepared.n_prompt_tokens),
                  .body = api == Api::responses ? open.request : std::string()};
  for (std::size_t i = 0; i < n_parts; ++i) info.parts.push_back(part_name(id, n_parts, i));

  Rebuilt rebuilt{make_stream(std::move(info)), std::move(prepared.parts)};
  for (std::size_t i = 0; i < n_parts; ++i) {
    const auto choices = static_cast<std::size_t>(request.n);
    std::vector<LoggedToken> tokens;
    std::vector<std::vector<engine::TopLogprob>> top;
    std::vector<std::optional<engine::Finish>> ends(choices);
    std::vector<engine::Request::Drawn> drawn(choices);
    if (streams[i]) {
      const auto first_choice = static_cast<std::int32_t>(i) * request.n;
      for (const journal::TokenEntry& entry : streams[i]->events) {
        tokens.push_back({entry.token, first_choice + entry.choice, entry.logprob.value_or(0),
                          entry.is_stop_token});
        top.push_back(engine::to_event(entry).top);
        drawn.at(entry.choice).tokens.push_back(entry.token);
      }
      for (std::size_t c = 0; c < choices && c < streams[i]->choices.size(); ++c) {
        const auto& close = streams[i]->choices[c].close;
        if (!close) continue;
        drawn[c].finished = true;
        ends[c] = engine::Finish{.choice = static_cast<std::int32_t>(c),
                                 .reason = engine::finish_reason(close->reason),
                                 .error = close->detail,
                                 .n_tokens = close->n_tokens};
      }
    }
    rebuilt.parts[i].request.drawn = std::move(drawn);
    rebuilt.stream->restore(i, std::move(tokens), std::move(top), std::move(ends));
  }
  return rebuilt;
}

// How the model that began a stream differs from the present one; empty when it does not.
std::string App::other_model(const journal::StreamInfo& known) const {
  if (known.fingerprint == backend_->model.fingerprint) return {};
  const std::optional<journal::Stream> stream = backend_->journal->read(known.name);
  return stream ? model_difference(stream->open.fingerprint_text, backend_->model.fingerprint_text)
                : std::string();
}

std::size_t App::recover(std::span<const std::string> unfinished) {
  std::size_t n = 0;
  bool closed_any = false;
  std::set<std::string> ids;
  for (const std::string& name : unfinished) ids.insert(name.substr(0, name.find('/')));
  for (const std::string& id : ids) {
    const auto close_all = [&](journal::CloseReason reason, const std::string& detail) {
      closed_any = true;
      for (const std::string& name : unfinished) {
        if (name.substr(0, name.find('/')) != id) continue;
        if (const auto local = backend_->journal->local_of(name)) {
          backend_->journal->abandon(*local, reason, detail);
        }
      }
    };
    try {
      auto known = backend_->journal->find(id);
      if (!known) known = backend_->journal->find(id + "/0");
      if (known && !known->resumable) {
        close_all(journal::CloseReason::cancelled, "the server restarted, and its client is gone");
        continue;
      }
      if (const std::string difference = known ? other_model(*known) : ""; !difference.empty()) {
        throw Error(ErrorCode::unsupported,
                    fmt::format("the server was restarted with another model ({}), which must not "
                                "go on with an answer that it did not begin; what was drawn is "
                                "kept: send the request again under a new stream_id to have it "
                                "answered anew",
                                difference));
      }
      std::optional<Rebuilt> rebuilt = rebuild(id);
      if (!rebuilt) continue;
      const StreamInfo& info = rebuilt->stream->info();
      if (!registry_.insert(rebuilt->stream)) continue;
      std::vector<PreparedPart> parts;
      for (std::size_t i = 0; i < rebuilt->parts.size(); ++i) {
        PreparedPart& part = rebuilt->parts[i];
        const bool done = std::ranges::all_of(part.request.drawn,
                                              [](const auto& drawn) { return drawn.finished; });
        if (done || part.only_echo) continue;
        // In front of everything that comes now: it has waited longer.
        part.request.priority += 1'000'000;
        part.request.stream = info.parts[i];
        part.request.sink = rebuilt->stream->sink(i);
        backend_->generator->submit(std::move(part.request));
      }
      metrics_.count_resumed("restart");
      ++n;
    } catch (const std::exception& e) {
      registry_.remove(id);
      close_all(journal::CloseReason::error, e.what());
      if (options_.log) {
        options_.log(fmt::format("stream {}: cannot go on after the restart: {}", id, e.what()));
      }
    }
  }
  // Whoever comes back for one of them finds its end.
  if (closed_any) (void)backend_->journal->flush();
  return n;
}

std::shared_ptr<LiveStream> App::find_stream(const Call& call, const std::string& id) {
  std::shared_ptr<LiveStream> stream = registry_.find(id);
  if (stream == nullptr && loaded()) {
    // Memory forgets sooner than the journal does.
    if (auto rebuilt = rebuild(id, &call.key->name);
        rebuilt && rebuilt->stream->snapshot().finished) {
      rebuilt->stream->info().ticket->finished();
      if (registry_.insert(rebuilt->stream)) registry_.retire(rebuilt->stream, true);
      stream = registry_.find(id);
    }
  }
  // Another key's streams do not exist.
  if (stream != nullptr && stream->info().key_name != call.key->name) return nullptr;
  return stream;
}

void App::get_stream(Call& call) {
  (void)backend();
  const auto stream = find_stream(call, call.id);
  if (stream == nullptr) throw not_found(event_stream_error(call.id), "stream_not_found");
  call.api = stream->info().plan->request.api;
  ReaderOptions options{.sse = true};
  std::optional<std::string> given = call.request().parameter("after");
  if (!given) {
    if (const auto header = call.request().header("last-event-id")) given = std::string(*header);
  }
  if (given && !given->empty()) {
    options.after = StreamPosition::parse(*given);
    if (!options.after) {
      throw invalid_request(
          fmt::format("\"{}\" is no event id of a stream; wanted NAME:12, or just "
                      "12",
                      given->substr(0, 100)),
          "after");
    }
    const LiveStream::Snapshot now = stream->snapshot();
    const auto n_tokens = static_cast<std::uint64_t>(now.n_tokens);
    // Beyond what is known: tokens that the log lost with the power. The same model draws the same
    // ones again, and the client gets what follows them; nobody else may go on with other text.
    const bool will_come = !now.finished && stream->info().same_fingerprint;
    if (options.after->n_tokens > n_tokens && !will_come) {
      ApiException error = conflict(
          fmt::format("the stream stands at {} tokens, and this client has seen {}: the last ones "
                      "were lost and cannot be drawn again the same; start over from position {}",
                      n_tokens, options.after->n_tokens, n_tokens),
          "stream_diverged");
      error.error.extra = {
          {"common_position", Json(Json::Value(Json::Integer{std::to_string(n_tokens)}))}};
      throw error;
    }
  }
  attach(call, stream, std::move(options));
}

void App::delete_stream(Call& call) {
  (void)backend();
  const auto stream = find_stream(call, call.id);
  if (stream == nullptr) throw not_found(event_stream_error(call.id), "stream_not_found");
  const bool was_running = !stream->snapshot().finished;
  stream->cancel();
  JsonWriter out;
  out.begin_object().member("id", call.id).member("object", "stream");
  out.key("cancelled").boolean(was_running);
  out.member("tokens", stream->snapshot().n_tokens).end_object();
  respond(call, 200, out.take());
}

std::shared_ptr<LiveStream> App::find_response(const Call& call) {
  constexpr std::string_view kPrefix = "resp_";
  if (!call.id.starts_with(kPrefix)) return nullptr;
  const std::string id = call.id.substr(kPrefix.size());
  auto stream = registry_.find_response(id);
  if (stream == nullptr && loaded() && backend_->journal != nullptr) {
    for (const journal::StreamInfo& known : backend_->journal->streams()) {
      if (known.response_id != id) continue;
      stream = find_stream(call, known.name.substr(0, known.name.find('/')));
      break;
    }
  }
  if (stream == nullptr || stream->info().key_name != call.key->name) return nullptr;
  return stream->info().plan->request.api == Api::responses ? stream : nullptr;
}

// The response object as it stands.
std::string App::response_json(const LiveStream& stream) const {
  const ResponsePlan& plan = *stream.info().plan;
  const LiveStream::Snapshot now = stream.snapshot();
  if (!now.finished) {
    JsonWriter out;
    write_response(out, plan.identity, plan.request.echoed, plan.request.background, {},
                   {.status = now.prompted ? "in_progress" : "queued"}, "");
    return out.take();
  }
  ResponseStream reading(stream.info().plan, false);
  ResponseStream::Events none;
  reading.begin(stream.prompt_usage(), none);
  for (const LoggedToken& token : stream.tokens()) reading.token(token, nullptr, none);
  reading.finish(now.ends, none);
  return reading.body();
}

void App::get_response(Call& call) {
  (void)backend();
  const auto stream = find_response(call);
  if (stream == nullptr) {
    throw not_found(fmt::format("there is no response \"{}\"; it was not stored, or is forgotten",
                                call.id.substr(0, 128)));
  }
  if (call.request().parameter("stream") != "true") {
    return respond(call, 200, response_json(*stream), "application/json",
                   {{"X-Stream-Id", stream->info().id}});
  }
  ReaderOptions options{.sse = true};
  if (const auto after = call.request().parameter("starting_after")) {
    options.after_sequence = number(*after);
    if (!options.after_sequence) {
      throw invalid_request("wanted the sequence_number of an event", "starting_after");
    }
  }
  attach(call, stream, std::move(options));
}

void App::cancel_response(Call& call) {
  (void)backend();
  const auto stream = find_response(call);
  if (stream == nullptr) {
    throw not_found(fmt::format("there is no response \"{}\"", call.id.substr(0, 128)));
  }
  stream->cancel();
  respond(call, 200, response_json(*stream));
}

}  // namespace hadal::server
