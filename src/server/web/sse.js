// Server-sent events out of a fetch() body, as the HTML standard reads them. EventSource itself
// can neither POST nor send a key.

export class SseParser {
  #onEvent;
  #line = "";
  #sawCarriageReturn = false;
  #data = [];
  #type = "";
  #id = "";
  #retry = null;
  #first = true;

  // onEvent({type, data, id}) for every complete event; `id` is the last one the stream named, ""
  // before any. An event that its blank line has not ended yet is not one.
  constructor(onEvent) {
    this.#onEvent = onEvent;
  }

  get retryMilliseconds() {
    return this.#retry;
  }

  feed(text) {
    if (this.#first && text.length > 0) {
      this.#first = false;
      if (text.charCodeAt(0) === 0xfeff) text = text.slice(1);
    }
    // Lines end in CR LF, LF or CR; a CR may be the last character of one piece and its LF the
    // first of the next.
    let start = 0;
    if (this.#sawCarriageReturn && text.length > 0) {
      this.#sawCarriageReturn = false;
      if (text[0] === "\n") start = 1;
    }
    for (let i = start; i < text.length; ++i) {
      const c = text[i];
      if (c !== "\n" && c !== "\r") continue;
      this.#take(this.#line + text.slice(start, i));
      this.#line = "";
      if (c === "\r") {
        if (i + 1 === text.length) this.#sawCarriageReturn = true;
        else if (text[i + 1] === "\n") ++i;
      }
      start = i + 1;
    }
    this.#line += text.slice(start);
  }

  #take(line) {
    if (line === "") {
      if (this.#data.length > 0) {
        this.#onEvent({ type: this.#type || "message", data: this.#data.join("\n"), id: this.#id });
      }
      this.#data = [];
      this.#type = "";
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment: keep-alive
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#type = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.#retry = Number(value);
  }
}

// The connection failed while it was read.
export class BrokenStream extends Error {}

// The events of a byte stream. Characters may be split between pieces anywhere.
export async function* sseEvents(body) {
  const ready = [];
  const parser = new SseParser((event) => ready.push(event));
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw new BrokenStream(error.message);
      });
      if (done) return;
      parser.feed(decoder.decode(value, { stream: true }));
      yield* ready.splice(0);
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already
  }
}
