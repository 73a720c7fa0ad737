// Conversations in the browser's local storage, one entry each.

const kPrefix = "hadal.conversation.";
const kFormat = "hadal-conversations";
const kVersion = 1;

export const kDefaultSettings = {
  model: "",
  system: "",
  thinking: "on",
  effort: "",
  temperature: "",
  top_p: "",
  top_k: "",
  min_p: "",
  seed: "",
  max_tokens: "",
  tools: "",
  tool_choice: "auto",
};

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

export function newConversation(settings = kDefaultSettings) {
  const now = Date.now();
  const copy = { ...settings };
  return { id: newId(), title: "", created: now, updated: now, settings: copy, messages: [] };
}

const isText = (value) => typeof value === "string";
const textOr = (value, other) => (isText(value) ? value : other);
const numberOr = (value, other) => (Number.isFinite(value) ? value : other);

function readCall(call) {
  if (!isText(call?.function?.name) || !isText(call?.id)) return null;
  return {
    id: call.id, type: "function",
    function: { name: call.function.name, arguments: textOr(call.function.arguments, "") },
  };
}

function readMessage(message) {
  if (message === null || typeof message !== "object" || !isText(message.content)) return null;
  if (message.role === "user") return { role: "user", content: message.content };
  if (message.role === "tool") {
    return isText(message.tool_call_id)
      ? { role: "tool", tool_call_id: message.tool_call_id, content: message.content } : null;
  }
  if (message.role !== "assistant") return null;
  const calls = Array.isArray(message.tool_calls) ? message.tool_calls.map(readCall) : [];
  if (calls.includes(null)) return null;
  const out = {
    role: "assistant", content: message.content,
    reasoning_content: textOr(message.reasoning_content, ""), tool_calls: calls,
  };
  if (isText(message.finish_reason)) out.finish_reason = message.finish_reason;
  if (isText(message.note)) out.note = message.note;
  if (isText(message.pending)) out.pending = message.pending;
  const facts = message.facts;
  if (facts !== null && typeof facts === "object") {
    out.facts = Object.fromEntries(Object.entries(facts)
      .filter(([, value]) => Number.isFinite(value) || isText(value)));
  }
  return out;
}

// A conversation out of anything that calls itself one; null where it is none. What stands in the
// storage or in an imported file may have been written by anyone.
function readConversation(value) {
  if (value === null || typeof value !== "object" || !isText(value.id)) return null;
  if (!/^[0-9A-Za-z_-]{1,64}$/.test(value.id) || !Array.isArray(value.messages)) return null;
  const messages = value.messages.map(readMessage);
  if (messages.includes(null)) return null;
  const settings = { ...kDefaultSettings };
  for (const name of Object.keys(settings)) {
    settings[name] = textOr(value.settings?.[name], settings[name]);
  }
  const now = Date.now();
  return {
    id: value.id, title: textOr(value.title, ""), created: numberOr(value.created, now),
    updated: numberOr(value.updated, now), settings, messages,
  };
}

export class Store {
  #conversations = new Map();
  #onProblem;

  // onProblem(sentence) when something cannot be kept.
  constructor(onProblem) {
    this.#onProblem = onProblem;
    for (let i = 0; i < localStorage.length; ++i) this.#load(localStorage.key(i));
  }

  #load(key) {
    if (!key?.startsWith(kPrefix)) return;
    let found = null;
    try {
      found = readConversation(JSON.parse(localStorage.getItem(key)));
    } catch {
      // not JSON: not ours
    }
    if (found && kPrefix + found.id === key) this.#conversations.set(found.id, found);
  }

  // Newest first; those without a message are not listed.
  list() {
    return [...this.#conversations.values()].filter((c) => c.messages.length > 0)
      .sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.#conversations.get(id) ?? null;
  }

  save(conversation) {
    this.#conversations.set(conversation.id, conversation);
    if (conversation.messages.length === 0) return;
    try {
      localStorage.setItem(kPrefix + conversation.id, JSON.stringify(conversation));
    } catch {
      this.#onProblem("The browser's storage is full: this conversation is lost when the page is "
        + "left. Export it, or delete others.");
    }
  }

  remove(id) {
    this.#conversations.delete(id);
    localStorage.removeItem(kPrefix + id);
  }

  // Another tab has changed something: takes it over, unless `keep(id)` says that this one is
  // being written here. True when the list may look different.
  changedElsewhere(event, keep) {
    if (!event.key?.startsWith(kPrefix)) return false;
    const id = event.key.slice(kPrefix.length);
    if (keep(id)) return false;
    if (event.newValue === null) this.#conversations.delete(id);
    else this.#load(event.key);
    return true;
  }

  static exported(conversations) {
    return JSON.stringify({ format: kFormat, version: kVersion, conversations }, null, 1);
  }

  // Takes the conversations of an exported file, under new names where theirs are in use. Returns
  // how many; throws Error with a sentence when the file is something else.
  import(text) {
    let file;
    try {
      file = JSON.parse(text);
    } catch {
      throw new Error("This file is not JSON; choose one that was exported here.");
    }
    if (file?.format !== kFormat || !Array.isArray(file.conversations)) {
      throw new Error(`This file holds no conversations; "format" should be "${kFormat}".`);
    }
    if (file.version !== kVersion) {
      throw new Error(
        `This file has version ${String(file.version)}; this page reads ${kVersion}.`);
    }
    const found = file.conversations.map(readConversation);
    const bad = found.indexOf(null);
    if (bad >= 0) {
      throw new Error(`Conversation ${bad + 1} of this file is damaged; nothing was imported.`);
    }
    for (const conversation of found) {
      for (const message of conversation.messages) delete message.pending;
      if (this.#conversations.has(conversation.id)) conversation.id = newId();
      this.save(conversation);
    }
    return found.length;
  }
}
