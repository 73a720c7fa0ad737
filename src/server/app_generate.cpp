// POST /v1/chat/completions and its kin: from the body to a stream of tokens.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <ctime>

#include "core/error.h"
#include "protocol/answer_pointer.h"
#include "protocol/responses_input.h"
#include "server/api_errors.h"
#include "server/app.h"

namespace hadal::server {

using namespace protocol;  // requests

void App::chat_completions(Call& call) {
  call.api = Api::chat_completions;
  generate(call);
}
void App::completions(Call& call) {
  call.api = Api::completions;
  generate(call);
}
void App::responses(Call& call) {
  call.api = Api::responses;
  generate(call);
}
void App::messages(Call& call) {
  call.api = Api::messages;
  generate(call);
}

// Checks the model's name and everything that the body alone can get wrong. `body` is completed
// by the response that it goes on from.
ApiRequest App::parse(Call& call, Json& body) {
  const ServedModel& model = backend().model;
  ApiDefaults defaults = generation_.defaults;
  defaults.profile = model.profile;
  const Json* name_json = body.find("model");
  const auto* name = name_json == nullptr ? nullptr : name_json->as<std::string>();
  if (name != nullptr) {
    const ModelName resolved = resolve_model(model, *name, call.api == Api::messages);
    if (!resolved.known) {
      ApiException error = not_found(fmt::format("there is no model \"{}\" here; there is \"{}\"",
                                                 name->substr(0, 200), model.id),
                                     "model_not_found");
      error.error.param = "model";
      if (call.api == Api::messages) {
        error.error.status = 400;
        error.error.type = "invalid_request_error";
      }
      throw error;
    }
    defaults.thinking_mode = resolved.thinking_mode.value_or(defaults.thinking_mode);
    const auto& allowed = call.key->limits.models;
    if (!allowed.empty() && std::ranges::find(allowed, *name) == allowed.end()) {
      throw forbidden(fmt::format("this key may not use the model \"{}\"", *name));
    }
  }
  if (call.api == Api::responses) {
    if (const auto previous = previous_response_id(body)) {
      Call earlier = call;
      earlier.id = *previous;
      const auto stream = find_response(earlier);
      if (stream == nullptr || stream->info().body.empty() || !stream->snapshot().finished) {
        throw invalid_request(
            fmt::format("there is no finished response \"{}\" to go on from; it was not stored, or "
                        "is forgotten: send the whole conversation as input instead",
                        previous->substr(0, 100)),
            "previous_response_id", "previous_response_not_found");
      }
      body = with_previous_response(body, parse_body(stream->info().body),
                                    parse_body(response_json(*stream)));
    }
  }
  ApiRequest request = parse_request(call.api, body, defaults);
  for (const std::string& field : request.unknown_fields) metrics_.count_unknown_field(field);
  if (request.priority > call.key->limits.max_priority) {
    throw forbidden(fmt::format("this key may use priorities up to {}, not {}",
                                call.key->limits.max_priority, request.priority));
  }
  return request;
}

namespace {

bool is_stream_id(std::string_view id) {
  constexpr std::size_t kMax = 120;  // the journal's limit, less the number of a part
  if (id.empty() || id.size() > kMax) return false;
  return std::ranges::all_of(id, [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-' ||
           c == '_' || c == '.' || c == ':';
  });
}

Sha256Digest request_digest(const Call& call) {
  Sha256 digest;
  digest.update(std::string_view(to_string(call.api)));
  digest.update("\n");
  digest.update(call.key->name);
  digest.update("\n");
  digest.update(call.request().body);
  return digest.finish();
}

ResponseIdentity new_identity(const ApiRequest& request, const ServedModel& model) {
  ResponseIdentity identity;
  identity.id = random_base62(24);
  identity.model = request.model;
  identity.created = std::time(nullptr);
  identity.system_fingerprint = model.system_fingerprint;
  identity.nonce.resize(16);
  random_bytes(std::as_writable_bytes(std::span(identity.nonce)));
  return identity;
}

}  // namespace

void App::generate(Call& call) {
  Backend& there = backend();
  if (draining_) throw overloaded("the server is shutting down; try again in a moment");
  Json body = parse_body(call.request().body);
  ApiRequest request = parse(call, body);
  if (!request.stream_id) {
    if (const auto header = call.request().header("x-stream-id")) request.stream_id = *header;
  }

  const Sha256Digest digest = request_digest(call);
  if (request.stream_id) {
    if (!is_stream_id(*request.stream_id)) {
      throw invalid_request("wanted 1 to 120 letters, digits and the characters - _ . :",
                            "stream_id");
    }
    if (const auto known = find_stream(call, *request.stream_id)) {
      if (known->info().request_sha256 != digest) {
        throw conflict(fmt::format("the stream_id \"{}\" belongs to another request; choose a new "
                                   "one, or send exactly the same body again",
                                   *request.stream_id),
                       "stream_id_in_use");
      }
      return attach(call, known, {.sse = request.stream});
    }
  }

  std::uint64_t seed = 0;
  random_bytes(std::as_writable_bytes(std::span(&seed, 1)));
  seed >>= 1;  // clients read it as a signed number
  Prepared prepared = prepare(request, there.model, generation_, *call.key, there.memory, seed);
  const bool resumable = request.resumable || request.stream_id || request.background;
  if (resumable && there.journal != nullptr && !there.journal->healthy()) {
    throw overloaded(
        "the journal cannot be written, so nothing resumable is started; ask again "
        "without stream_id and resumable, or later");
  }
  std::shared_ptr<Ticket> ticket = admission_.admit(*call.key, prepared.n_prompt_tokens);
  // Now, so that the headers count this one too.
  const Headers rate = Admission::rate_headers(*call.key);

  auto plan = std::make_shared<ResponsePlan>(ResponsePlan{
      .request = request,
      .identity = new_identity(request, there.model),
      .form = prepared.form,
      .tokenizer = there.model.tokenizer,
      .end_of_sentence = there.model.end_tokens.empty() ? -1 : there.model.end_tokens.front(),
      .n_choices = static_cast<std::int32_t>(prepared.parts.size()) * request.n,
      .prompts = {}});
  for (const PreparedPart& part : prepared.parts) plan->prompts.push_back(part.request.prompt);
  StreamInfo info{.id = request.stream_id.value_or(random_base62(24)),
                  .plan = plan,
                  .request_sha256 = digest,
                  .resumable = resumable,
                  .key_name = call.key->name,
                  .domain = prepared.parts.front().request.cache_domain,
                  .request_id = call.request_id,
                  .seed = prepared.seed,
                  .max_tokens = prepared.max_tokens,
                  .parts = {},
                  .ticket = std::move(ticket),
                  .body = call.api == Api::responses ? body.dump() : std::string()};
  for (std::size_t i = 0; i < prepared.parts.size(); ++i) {
    info.parts.push_back(prepared.parts.size() == 1 ? info.id : fmt::format("{}/{}", info.id, i));
  }
  const std::string raw = call.api == Api::responses ? info.body : call.request().body;
  const auto stream = make_stream(std::move(info));
  if (!registry_.insert(stream)) {
    throw conflict(fmt::format("the stream_id \"{}\" has just been taken by another request",
                               *request.stream_id),
                   "stream_id_in_use");
  }
  try {
    open_journal(stream->info(), prepared.parts, plan->identity.created, raw, *call.key);
    submit(stream, std::move(prepared.parts));
  } catch (const Error& error) {
    stream->cancel();
    registry_.remove(stream->info().id);
    throw invalid_request(error.what());
  }
  if (request.background && !request.stream) return begin_background(call, *stream);
  attach(call, stream, {.sse = request.stream, .headers = rate});
}

std::shared_ptr<LiveStream> App::make_stream(StreamInfo info) {
  return std::make_shared<LiveStream>(std::move(info), *backend_->generator, pumps_, events_,
                                      options_.output_bytes);
}

void App::open_journal(const StreamInfo& info, const std::vector<PreparedPart>& parts,
                       std::int64_t created, const std::string& body, const ApiKey& key) {
  journal::Writer* writer = backend_->journal;
  if (writer == nullptr) return;
  const ResponsePlan& plan = *info.plan;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].only_echo) continue;
    journal::OpenRecord record;
    record.name = info.parts[i];
    record.api = to_string(plan.request.api);
    record.response_id = plan.identity.id;
    std::memcpy(record.nonce.data(), plan.identity.nonce.data(), record.nonce.size());
    record.created = created;
    record.n_choices = static_cast<std::uint32_t>(plan.request.n);
    record.seed = info.seed;
    record.resumable = info.resumable;
    record.keep_logprobs = plan.request.logprobs;
    record.principal = key.name;
    record.request_sha256 = info.request_sha256;
    record.fingerprint = backend_->model.fingerprint;
    record.fingerprint_text = backend_->model.fingerprint_text;
    record.prompt = parts[i].request.prompt;
    record.request = body;
    if (!writer->open(std::move(record))) {
      throw conflict(fmt::format("the stream_id \"{}\" is in the journal already", info.id),
                     "stream_id_in_use");
    }
  }
}

void App::submit(const std::shared_ptr<LiveStream>& stream, std::vector<PreparedPart> parts) {
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto sink = stream->sink(i);
    if (parts[i].only_echo) {
      const auto n = static_cast<std::int64_t>(parts[i].request.prompt.size());
      sink->on_prompt({.prompt_tokens = n});
      for (std::int32_t c = 0; c < parts[i].request.n_choices; ++c) {
        sink->on_finish({.choice = c, .reason = engine::FinishReason::length});
      }
      continue;
    }
    parts[i].request.stream = stream->info().parts[i];
    parts[i].request.sink = sink;
    backend_->generator->submit(std::move(parts[i].request));
  }
}

void App::attach(Call& call, const std::shared_ptr<LiveStream>& stream, ReaderOptions options) {
  Headers headers = common_headers(call);
  headers.insert(headers.end(), options.headers.begin(), options.headers.end());
  options.headers = std::move(headers);
  stream->attach(call.exchange, std::move(options));
}

// The response object as it is while nothing has been said yet.
void App::begin_background(Call& call, const LiveStream& stream) {
  respond(call, 200, response_json(stream), "application/json",
          {{"X-Stream-Id", stream.info().id}, {"X-Seed", std::to_string(stream.info().seed)}});
}

void App::finished(const std::shared_ptr<LiveStream>& stream) {
  const StreamInfo& info = stream->info();
  info.ticket->finished();
  info.ticket->drew(stream->snapshot().n_tokens);
  try {
    observe(*stream);
    remember_answers(*stream);
  } catch (const std::exception& e) {
    if (options_.log) options_.log(fmt::format("{}: {}", info.request_id, e.what()));
  }
  const bool stored = info.plan->request.api == Api::responses && info.plan->request.store;
  registry_.retire(stream, info.resumable || stored);
}

void App::observe(const LiveStream& stream) {
  const LiveStream::Snapshot s = stream.snapshot();
  const ApiRequest& request = stream.info().plan->request;
  const auto seconds = [](const auto& from, const auto& to) {
    return from && to ? std::chrono::duration<double>(*to - *from).count() : 0.0;
  };
  std::int64_t longest = 0;
  for (const engine::Finish& end : s.ends) {
    longest = std::max(longest, end.n_tokens);
    switch (end.reason) {
      case engine::FinishReason::stop:
        metrics_.count_finish("stop");
        break;
      case engine::FinishReason::length:
        metrics_.count_finish("length");
        break;
      case engine::FinishReason::cancelled:
        metrics_.count_finish("abort");
        break;
      case engine::FinishReason::error:
        metrics_.count_finish("error");
        break;
    }
  }
  metrics_.request_prompt_tokens.observe(static_cast<double>(s.prompt.prompt_tokens));
  metrics_.request_generation_tokens.observe(static_cast<double>(s.n_tokens));
  metrics_.max_generation_tokens.observe(static_cast<double>(longest));
  metrics_.params_max_tokens.observe(static_cast<double>(stream.info().max_tokens));
  metrics_.params_n.observe(static_cast<double>(request.n));
  const std::optional arrival(s.times.arrival);
  metrics_.e2e_latency.observe(seconds(arrival, s.times.finished));
  metrics_.queue_time.observe(s.prompt.queue_seconds);
  metrics_.prefill_time.observe(s.prompt.prefill_seconds);
  if (!s.times.first_token) return;
  const double decode = seconds(s.times.first_token, s.times.last_token);
  metrics_.decode_time.observe(decode);
  metrics_.inference_time.observe(decode + s.prompt.prefill_seconds);
  if (s.n_tokens > 1) {
    metrics_.time_per_output_token.observe(decode / static_cast<double>(s.n_tokens - 1));
  }
}

// Whoever sends these answers back is given a prompt that continues the old one token by token.
// Source: serving.md §1.10.
void App::remember_answers(const LiveStream& stream) {
  const ResponsePlan& plan = *stream.info().plan;
  if (plan.request.api == Api::completions) return;
  const std::vector<LoggedToken> tokens = stream.tokens();
  DsmlRecoveries recoveries{};
  for (std::int32_t choice = 0; choice < plan.n_choices; ++choice) {
    const ReadAnswer answer = read_answer(plan, choice, tokens);
    for (std::size_t i = 0; i < recoveries.size(); ++i) recoveries[i] += answer.recoveries[i];
    if (backend_->memory == nullptr || !answer.is_whole || plan.request.continues_answer) continue;
    RememberedAnswer remembered;
    for (const LoggedToken& token : tokens) {
      if (token.choice == choice) remembered.tokens.push_back(token.token);
    }
    remembered.mode = plan.request.thinking_mode;
    remembered.content = answer.message.content;
    remembered.reasoning = answer.message.reasoning_content;
    remembered.calls = answer.message.tool_calls;
    remembered.pointer = answer_pointer(plan.identity, choice);
    backend_->memory->remember(remembered, plan.prompts.front(), stream.info().domain);
  }
  metrics_.count_recoveries(recoveries);
}

}  // namespace hadal::server
