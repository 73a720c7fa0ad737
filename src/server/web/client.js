// The server's API as the page uses it: errors as sentences, streams that survive a broken
// connection.
import { BrokenStream, sseEvents } from "./sse.js";

const kKeyName = "hadal.api-key";
const kGiveUpAfterMs = 180_000;
const kFirstPauseMs = 300;
const kLongestPauseMs = 5_000;

// The key stays in this tab and is forgotten with it.
export const apiKey = {
  get: () => sessionStorage.getItem(kKeyName) ?? "",
  set: (key) => (key ? sessionStorage.setItem(kKeyName, key) : sessionStorage.removeItem(kKeyName)),
};

// kind: "network" (no answer, or cut off), "api" (the server says no) or "bad" (not understood).
export class ApiError extends Error {
  constructor(message, details = {}) {
    super(message);
    Object.assign(this, { kind: "api", status: 0, param: null, code: null, retryAfter: null });
    Object.assign(this, details);
  }
}

const unreachable = () => new ApiError(
  "The server cannot be reached. Check that hadal is running and that this machine is online.",
  { kind: "network" });

function headers(extra = {}) {
  const key = apiKey.get();
  return key ? { ...extra, Authorization: `Bearer ${key}` } : extra;
}

function sentence(text) {
  const trimmed = String(text).trim();
  if (trimmed === "") return "The server gave no reason.";
  const upper = trimmed[0].toUpperCase() + trimmed.slice(1);
  return /[.!?…]$/.test(upper) ? upper : upper + ".";
}

function fromBody(error, status, retryAfter) {
  const message = typeof error === "string" ? error : error?.message ?? "";
  const details = { status, param: error?.param ?? null, code: error?.code ?? null, retryAfter };
  if (status === 401) {
    return new ApiError(apiKey.get() === ""
      ? "This server asks for an API key. Enter it in the settings."
      : "The server does not accept this API key. Check it in the settings.", details);
  }
  if (status === 429) {
    const wait = retryAfter === null ? "in a moment" : `in ${retryAfter} s`;
    return new ApiError(`The server is busy: ${sentence(message)} Try again ${wait}.`, details);
  }
  return new ApiError(sentence(message), details);
}

async function expectOk(response) {
  if (response.ok) return response;
  const wait = Number(response.headers.get("retry-after"));
  const retryAfter = response.headers.has("retry-after") && Number.isFinite(wait) ? wait : null;
  let body = null;
  try {
    body = await response.json();
  } catch {
    // no JSON: a proxy's page, or nothing
  }
  const nothing = `it answered ${response.status} ${response.statusText}`.trim();
  throw fromBody(body?.error ?? { message: `The server cannot do this: ${nothing}` },
    response.status, retryAfter);
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path,
      { cache: "no-store", ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
  return expectOk(response);
}

export async function getJson(path, signal) {
  const response = await call(path, { signal });
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(`The server's answer to ${path} is not JSON.`, { kind: "bad" });
  }
}

export const listModels = async () => (await getJson("v1/models")).data ?? [];

// A name of our own lets us ask again for what a broken connection may have started.
export function newStreamId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return "web-" + Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

// Ends a generation that would go on without us. True when the server knew it.
export async function stopStream(id) {
  try {
    await call(`v1/streams/${encodeURIComponent(id)}`, { method: "DELETE", keepalive: true });
    return true;
  } catch {
    return false; // it has ended, or was never resumable: closing the connection ended it
  }
}

const pause = (ms, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, ms);
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    reject(signal.reason);
  }, { once: true });
});

const startAgain = (error) => error.status === 502 || error.status === 503 || error.status === 504
  || error.status === 429;

// Runs one chat completion to its end: posts `body` (JSON text that names its stream `streamId`),
// or without a body reads that stream from its beginning. A connection that breaks is taken up
// again where it stood. A server that cannot keep streams at the moment (its journal's disk is
// full) is asked with `plainBody`, which does not want it.
//   onOpen({streamId, seed, fromStart})  the server has accepted; again after every re-attachment.
//                                fromStart: what comes next is the answer's first chunk
//   onChunk(chunk, tokens)       one chunk; tokens: how many the server has drawn, or null
//   onTrouble(message)           the connection broke and is being re-made
// Throws ApiError, or the signal's reason.
export async function streamChat(
  { body, plainBody, streamId, signal, onOpen, onChunk, onTrouble }) {
  let lastId = "";
  let accepted = body === undefined;
  let brokenSince = null;
  let pauseMs = kFirstPauseMs;
  for (;;) {
    try {
      const response = accepted
        ? await call(`v1/streams/${encodeURIComponent(streamId)}`, {
            signal,
            headers: lastId === "" ? {} : { "Last-Event-ID": lastId },
          })
        : await call("v1/chat/completions", {
            method: "POST",
            signal,
            headers: { "Content-Type": "application/json" },
            body,
          });
      accepted = true;
      streamId = response.headers.get("x-stream-id") ?? streamId;
      onOpen({ streamId, seed: response.headers.get("x-seed"), fromStart: lastId === "" });
      for await (const event of sseEvents(response.body)) {
        brokenSince = null;
        pauseMs = kFirstPauseMs;
        if (event.id !== "") lastId = event.id;
        if (event.data === "[DONE]") return;
        let chunk;
        try {
          chunk = JSON.parse(event.data);
        } catch {
          throw new ApiError("The server sent something that is not JSON.", { kind: "bad" });
        }
        if (chunk.error) throw fromBody(chunk.error, chunk.error.status ?? 500, null);
        // "NAME:12", or "NAME:12.3" within what one token caused.
        const position = parseInt(lastId.slice(lastId.lastIndexOf(":") + 1), 10);
        onChunk(chunk, Number.isNaN(position) ? null : position);
      }
      throw unreachable(); // the end came without [DONE]
    } catch (caught) {
      if (signal.aborted) throw signal.reason;
      const error = caught instanceof BrokenStream ? unreachable() : caught;
      if (!(error instanceof ApiError)) throw error;
      if (!accepted && error.status === 503 && plainBody !== undefined) {
        body = plainBody;
        plainBody = undefined;
        continue;
      }
      if (!accepted) throw error;
      if (error.status === 404) {
        throw new ApiError("The connection broke and the server no longer knows this answer. "
          + "What had come is kept.", { kind: "network", status: 404 });
      }
      if (error.kind !== "network" && !startAgain(error)) throw error;
      const now = performance.now();
      brokenSince ??= now;
      if (now - brokenSince > kGiveUpAfterMs) throw unreachable();
      onTrouble("The connection broke. Taking up the answer where it stood…");
      await pause(error.retryAfter !== null ? error.retryAfter * 1000 : pauseMs, signal);
      pauseMs = Math.min(pauseMs * 2, kLongestPauseMs);
    }
  }
}
