// One message on the page, and its following of a message that still grows.
import { copyButton, el, formatCount, formatSeconds, icon, iconButton } from "./dom.js";
import { MarkdownView } from "./markdown.js";

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // still growing, or never was JSON
  }
}

const kFinishes = {
  length: "reached the token limit",
  cancelled: "stopped",
  insufficient_system_resource: "ended by the server for lack of memory",
};

// What is known about an answer, in words.
export function factsText(message) {
  const facts = message.facts ?? {};
  const parts = [];
  if (Number.isFinite(facts.prompt_tokens)) {
    const cached = facts.cached_tokens > 0 ? ` (${formatCount(facts.cached_tokens)} cached)` : "";
    parts.push(`${formatCount(facts.prompt_tokens)} in${cached}`);
  }
  if (Number.isFinite(facts.completion_tokens)) {
    const reasoning = facts.reasoning_tokens > 0
      ? ` (${formatCount(facts.reasoning_tokens)} reasoning)` : "";
    parts.push(`${formatCount(facts.completion_tokens)} out${reasoning}`);
  }
  if (Number.isFinite(facts.tokens_per_second)) {
    parts.push(`${facts.tokens_per_second.toFixed(1)} tokens/s`);
  }
  if (Number.isFinite(facts.first_token_s)) {
    parts.push(`first after ${formatSeconds(facts.first_token_s)}`);
  }
  if (facts.seed) parts.push(`seed ${facts.seed}`);
  if (kFinishes[message.finish_reason]) parts.push(kFinishes[message.finish_reason]);
  return parts.join(" · ");
}

// actions: {edit(index), regenerate(index), answer(index, results)}
export class MessageView {
  #message;
  #index;
  #actions;
  #live;
  #parts = {};
  #callNodes = [];
  #openedByHand = false;

  constructor(message, index, { live = false, results = new Map(), actions }) {
    this.#message = message;
    this.#index = index;
    this.#actions = actions;
    this.#live = live;
    this.node = message.role === "user" ? this.#user() : this.#assistant(results);
  }

  #user() {
    return el("article", { class: "message user", "aria-label": "You" },
      el("div", { class: "bubble", text: this.#message.content }),
      el("div", { class: "tools-row" },
        iconButton("pencil", "Edit this message", () => this.#actions.edit(this.#index)),
        copyButton("Copy this message", () => this.#message.content)));
  }

  #assistant(results) {
    const parts = this.#parts;
    parts.summary = el("summary", { on: { click: () => { this.#openedByHand = true; } } },
      el("span", { text: "Reasoning" }));
    parts.reasoningText = el("div", { class: "markdown" });
    parts.reasoning = el("details", { class: "reasoning", hidden: true }, parts.summary,
      parts.reasoningText);
    parts.content = el("div", { class: "markdown answer" });
    parts.calls = el("div", { class: "calls" });
    parts.waiting = el("div", { class: "waiting", hidden: true }, el("i"), el("i"), el("i"),
      el("span", { class: "off-screen", text: "Waiting for the first token" }));
    parts.note = el("p", { class: "note", hidden: true });
    parts.facts = el("span", { class: "facts" });
    parts.row = el("div", { class: "tools-row" },
      copyButton("Copy this answer", () => this.#message.content),
      iconButton("refresh", "Generate this answer again",
        () => this.#actions.regenerate(this.#index)),
      parts.facts);
    parts.reasoningView = new MarkdownView(parts.reasoningText);
    parts.contentView = new MarkdownView(parts.content);
    const node = el("article", { class: "message assistant", "aria-label": "Answer" },
      parts.reasoning, parts.waiting, parts.content, parts.calls, parts.note, parts.row);
    this.update();
    this.#showResults(results);
    return node;
  }

  // Shows the message as it now is.
  update() {
    const message = this.#message;
    const parts = this.#parts;
    const thinking = this.#live && message.content === "" && message.tool_calls.length === 0;
    const reasons = message.reasoning_content !== "";
    parts.reasoning.hidden = !reasons;
    parts.reasoningView.update(message.reasoning_content);
    if (this.#live && !this.#openedByHand) parts.reasoning.open = thinking;
    const length = message.facts?.reasoning_tokens > 0
      ? ` · ${formatCount(message.facts.reasoning_tokens)} tokens` : "";
    parts.summary.firstChild.textContent = thinking ? "Thinking…" : `Reasoning${length}`;
    parts.contentView.update(message.content);
    parts.waiting.hidden = !thinking || reasons;
    this.#showCalls();
    parts.note.hidden = !message.note;
    parts.note.textContent = message.note ?? "";
    parts.facts.textContent = factsText(message);
    parts.row.hidden = this.#live;
  }

  finish() {
    this.#live = false;
    this.update();
    if (!this.#openedByHand) this.#parts.reasoning.open = false;
    this.#showResults(new Map());
  }

  #showCalls() {
    const calls = this.#message.tool_calls;
    while (this.#callNodes.length < calls.length) {
      const name = el("code", { class: "call-name" });
      const args = el("code");
      const result = el("div", { class: "call-result" });
      const node = el("section", { class: "call", "aria-label": "Tool call" },
        el("header", {}, icon("tool"), name,
          copyButton("Copy the arguments", () => args.textContent)),
        el("pre", { tabindex: "0", "aria-label": "Arguments" }, args), result);
      this.#callNodes.push({ name, args, result });
      this.#parts.calls.append(node);
    }
    calls.forEach((call, i) => {
      this.#callNodes[i].name.textContent = call.function.name;
      this.#callNodes[i].args.textContent = pretty(call.function.arguments);
    });
  }

  // Results that are there are shown; where a complete turn waits for some, fields ask for them.
  #showResults(results) {
    const calls = this.#message.tool_calls;
    if (calls.length === 0 || this.#live || this.#message.finish_reason !== "tool_calls") return;
    const missing = calls.filter((call) => !results.has(call.id));
    const fields = new Map();
    calls.forEach((call, i) => {
      const place = this.#callNodes[i].result;
      if (results.has(call.id)) {
        const { content, index } = results.get(call.id);
        place.replaceChildren(
          el("div", { class: "call-result-head" }, el("span", { text: "Result" }),
            iconButton("pencil", "Edit this result", () => this.#actions.edit(index))),
          el("pre", { tabindex: "0", "aria-label": "Result" },
            el("code", { text: content || "(empty)" })));
        place.dataset.index = index;
        return;
      }
      const field = el("textarea", {
        rows: 2, spellcheck: "false", class: "mono", placeholder: "What the tool returns",
        "aria-label": `Result of ${call.function.name}`,
        on: {
          keydown: (event) => {
            if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
            event.preventDefault();
            send();
          },
        },
      });
      fields.set(call.id, field);
      place.replaceChildren(el("label", {}, el("span", { text: "Result" }), field));
    });
    this.#parts.answer?.remove();
    if (missing.length === 0) return;
    const send = () => this.#actions.answer(this.#index,
      missing.map((call) => ({ id: call.id, content: fields.get(call.id).value })));
    this.#parts.answer = el("button", {
      type: "button", class: "primary", title: "Ctrl+Enter", on: { click: send },
      text: missing.length > 1 ? `Send ${missing.length} results` : "Send the result",
    });
    this.#parts.calls.append(this.#parts.answer);
  }

  // The first field that waits for a tool's result, if any.
  get emptyResult() {
    return this.node.querySelector(".call-result textarea");
  }
}

// The message's text as a field, in place of its view. done(text or null).
export function editor(text, label, saveLabel, done) {
  const field = el("textarea", {
    "aria-label": label, rows: Math.min(12, Math.max(2, text.split("\n").length)),
    on: {
      keydown: (event) => {
        if (event.key === "Escape") {
          event.stopPropagation();
          done(null);
        } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
          event.preventDefault();
          done(field.value);
        }
      },
    },
  });
  field.value = text;
  const node = el("div", { class: "editor" }, field,
    el("div", { class: "editor-buttons" },
      el("button", { type: "button", text: "Cancel", on: { click: () => done(null) } }),
      el("button", {
        type: "button", class: "primary", text: saveLabel, on: { click: () => done(field.value) },
      })));
  queueMicrotask(() => {
    field.focus();
    field.setSelectionRange(text.length, text.length);
  });
  return node;
}
