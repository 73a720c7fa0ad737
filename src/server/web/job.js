// One answer while it is generated: it goes on whichever conversation the page shows.
import { ApiError, newStreamId, stopStream, streamChat } from "./client.js";
import { requestBody } from "./settings.js";

const kSaveEveryMs = 2_000;
const kRateWindowMs = 3_000;

export const newAnswer = () =>
  ({ role: "assistant", content: "", reasoning_content: "", tool_calls: [] });

// Tokens a second, now and over all.
class RateMeter {
  #samples = [];
  #first = null;
  #last = null;

  add(tokens) {
    const sample = { at: performance.now(), tokens };
    this.#first ??= sample;
    this.#last = sample;
    this.#samples.push(sample);
    while (sample.at - this.#samples[0].at > kRateWindowMs) this.#samples.shift();
  }
  reset() {
    this.#samples = [];
    this.#first = null;
    this.#last = null;
  }
  static #between(a, b) {
    return a && b && b.at - a.at > 200 ? ((b.tokens - a.tokens) * 1000) / (b.at - a.at) : null;
  }
  get now() {
    return RateMeter.#between(this.#samples[0], this.#last);
  }
  get overall() {
    return RateMeter.#between(this.#first, this.#last);
  }
}

export class Job {
  #abort = new AbortController();
  #store;
  #hooks;
  #meter = new RateMeter();
  #lastSave = 0;
  #startedAt = performance.now();
  #chunks = 0;
  #discarded = false;
  #whole = true; // no break yet: times and rates mean something

  // hooks: onChange(job), onTrouble(job, message), onEnd(job, error or null)
  constructor(store, conversation, message, hooks) {
    this.#store = store;
    this.#hooks = hooks;
    this.conversation = conversation;
    this.message = message;
    this.tokens = 0;
    this.trouble = "";
  }

  get tokensPerSecond() {
    return this.#meter.now;
  }

  // Asks for the answer that follows the conversation; its message must not be in there yet.
  // Throws Error with a sentence when the settings cannot be sent.
  start() {
    const streamId = newStreamId();
    const body = requestBody(this.conversation, streamId);
    const plainBody = requestBody(this.conversation);
    this.message.pending = streamId;
    this.conversation.messages.push(this.message);
    this.#store.save(this.conversation);
    return this.#run({ body, plainBody, streamId });
  }

  // Reads an answer that was being generated when the page was left.
  resume() {
    this.#whole = false;
    return this.#run({ streamId: this.message.pending });
  }

  stop() {
    const pending = this.message.pending;
    this.#abort.abort(new DOMException("stopped", "AbortError"));
    if (pending) stopStream(pending);
  }

  // Stops, and keeps its hands off the conversation from now on.
  discard() {
    this.stop();
    this.#discarded = true;
    delete this.message.pending;
    this.message.finish_reason = "cancelled";
  }

  async #run({ body, plainBody, streamId }) {
    let error = null;
    let opened = false;
    try {
      await streamChat({
        body, plainBody, streamId, signal: this.#abort.signal,
        onOpen: ({ streamId: id, seed, fromStart }) => {
          if (opened) this.#whole = false;
          opened = true;
          this.message.pending = id;
          if (fromStart) this.#clear();
          if (seed) this.#facts({ seed });
          this.#meter.reset();
          this.#setTrouble("");
        },
        onChunk: (chunk, tokens) => this.#take(chunk, tokens),
        onTrouble: (sentence) => this.#setTrouble(sentence),
      });
    } catch (caught) {
      if (this.#abort.signal.aborted) {
        this.message.finish_reason = "cancelled";
      } else {
        error = caught instanceof ApiError ? caught
          : new ApiError(`The page failed: ${caught.message}.`, { kind: "bad" });
      }
    }
    this.#end(error);
  }

  #clear() {
    Object.assign(this.message, newAnswer());
    delete this.message.finish_reason;
    this.tokens = 0;
  }

  #facts(facts) {
    this.message.facts = { ...this.message.facts, ...facts };
  }

  #setTrouble(sentence) {
    if (this.trouble === sentence) return;
    this.trouble = sentence;
    this.#hooks.onTrouble(this, sentence);
  }

  #take(chunk, tokens) {
    const choice = chunk.choices?.[0];
    const delta = choice?.delta ?? {};
    const message = this.message;
    const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
    const text = delta.content ?? "";
    const calls = delta.tool_calls ?? [];
    message.reasoning_content += reasoning;
    message.content += text;
    for (const part of calls) this.#takeCall(part);
    if (choice?.finish_reason) message.finish_reason = choice.finish_reason;
    if (reasoning !== "" || text !== "" || calls.length > 0) {
      if (this.#chunks++ === 0 && this.#whole) {
        this.#facts({ first_token_s: (performance.now() - this.#startedAt) / 1000 });
      }
      this.tokens = tokens ?? this.tokens + 1;
      this.#meter.add(this.tokens);
    }
    if (chunk.usage) {
      const usage = chunk.usage;
      this.#facts({
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.prompt_tokens_details?.cached_tokens ?? 0,
        completion_tokens: usage.completion_tokens,
        reasoning_tokens: usage.completion_tokens_details?.reasoning_tokens ?? 0,
      });
      this.tokens = usage.completion_tokens;
    }
    const now = performance.now();
    if (now - this.#lastSave > kSaveEveryMs) {
      this.#lastSave = now;
      this.#store.save(this.conversation);
    }
    this.#hooks.onChange(this);
  }

  #takeCall(part) {
    const calls = this.message.tool_calls;
    const index = part.index ?? Math.max(0, calls.length - 1);
    if (!Number.isInteger(index) || index < 0 || index > calls.length) return;
    calls[index] ??= { id: "", type: "function", function: { name: "", arguments: "" } };
    if (part.id) calls[index].id = part.id;
    calls[index].function.name += part.function?.name ?? "";
    calls[index].function.arguments += part.function?.arguments ?? "";
  }

  #end(error) {
    if (this.#discarded) return;
    const { message, conversation } = this;
    delete message.pending;
    if (message.finish_reason !== "tool_calls" && message.tool_calls.length > 0) {
      message.tool_calls = [];
      message.note = "The answer ended inside a tool call, which is left out.";
    }
    if (this.#whole && this.#meter.overall !== null) {
      this.#facts({ tokens_per_second: this.#meter.overall });
    }
    const empty = message.content === "" && message.reasoning_content === ""
      && message.tool_calls.length === 0;
    if (empty && (error || message.finish_reason === "cancelled")) {
      const at = conversation.messages.indexOf(message);
      if (at >= 0) conversation.messages.splice(at, 1);
    } else if (error) {
      message.note = message.note ?? "This answer is not complete.";
    }
    conversation.updated = Date.now();
    this.#store.save(conversation);
    this.#hooks.onEnd(this, error);
  }
}
