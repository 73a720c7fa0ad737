// The chat page: which conversation is shown, what is running, what the keys do.
import { apiKey, listModels } from "./client.js";
import { ConversationList, titleFrom, titleOf } from "./conversation_list.js";
import { byId, el, formatCount, placeIcons } from "./dom.js";
import { Job, newAnswer } from "./job.js";
import { MessageView, editor } from "./message_view.js";
import { closeOverlays, isNarrow, restorePanels, setPanel } from "./panels.js";
import { SettingsForm } from "./settings.js";
import { Store, newConversation } from "./store.js";

const kDrawEveryMs = 60;
const kWhere = "Conversations stay in this browser.";
const kLastShown = "hadal.shown";

placeIcons();
const log = byId("log");
const input = byId("input");

const store = new Store((sentence) => toast(sentence));
const jobs = new Map(); // by conversation id
const errors = new Map(); // by conversation id: {error, retry}
let models = [];
let shown = null; // the conversation
let views = []; // of its messages, in order; tool results belong to the call's view
let liveView = null;
let followEnd = true;
let drawTimer = null;

// ---- small things -----------------------------------------------------------------------------

let toastTimer = null;
function toast(sentence, undo) {
  const box = byId("toast");
  clearTimeout(toastTimer);
  box.replaceChildren(el("span", { text: sentence }));
  if (undo) {
    box.append(el("button", {
      type: "button", text: "Undo", on: { click: () => { box.hidden = true; undo(); } },
    }));
  }
  box.hidden = false;
  toastTimer = setTimeout(() => { box.hidden = true; }, 8000);
}

const announce = (text) => { byId("announcer").textContent = text; };
const job = () => jobs.get(shown.id) ?? null;

function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const anchor = el("a", { href: address, download: name });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// ---- the list of conversations ----------------------------------------------------------------

const list = new ConversationList({
  open: (id) => {
    show(store.get(id));
    closeOverlays();
    input.focus();
  },
  rename: (id, title) => {
    const conversation = store.get(id);
    if (!conversation) return;
    conversation.title = title;
    store.save(conversation);
    drawFrame();
  },
  remove: (id) => {
    const conversation = store.get(id);
    const neighbours = store.list();
    const at = neighbours.indexOf(conversation);
    discardJob(id);
    store.remove(id);
    errors.delete(id);
    if (shown.id === id) show(neighbours[at + 1] ?? neighbours[at - 1] ?? fresh());
    drawFrame();
    toast(`“${titleOf(conversation)}” is deleted.`, () => {
      store.save(conversation);
      show(conversation);
    });
  },
  isRunning: (id) => jobs.has(id),
});

const form = new SettingsForm(() => {
  store.save(shown);
  drawCounter();
});

// A new conversation goes on with the settings of the one before.
const fresh = () => newConversation(shown?.settings);

function newChat() {
  if (shown.messages.length > 0) show(fresh());
  closeOverlays();
  input.focus();
}

// ---- drawing ----------------------------------------------------------------------------------

const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 60;

function toEnd() {
  followEnd = true;
  log.scrollTop = log.scrollHeight;
}

log.addEventListener("scroll", () => {
  followEnd = atEnd();
  byId("to-end").hidden = followEnd;
}, { passive: true });
byId("to-end").addEventListener("click", () => {
  toEnd();
  input.focus();
});

function show(conversation) {
  shown = conversation;
  localStorage.setItem(kLastShown, shown.id);
  chooseModel();
  form.show(shown.settings);
  followEnd = true;
  draw();
}

// The results that follow the calls of message `index`: call id -> {content, index}.
function resultsAfter(index) {
  const results = new Map();
  for (let i = index + 1; i < shown.messages.length && shown.messages[i].role === "tool"; ++i) {
    results.set(shown.messages[i].tool_call_id, { content: shown.messages[i].content, index: i });
  }
  return results;
}

function draw() {
  views = [];
  liveView = null;
  const nodes = [];
  shown.messages.forEach((message, index) => {
    if (message.role === "tool") return;
    const live = job()?.message === message;
    const view = new MessageView(message, index, { live, results: resultsAfter(index), actions });
    if (live) liveView = view;
    views[index] = view;
    nodes.push(view.node);
  });
  if (nodes.length === 0) nodes.push(welcome());
  const failure = errors.get(shown.id);
  if (failure) nodes.push(errorBox(failure));
  log.replaceChildren(el("div", { class: "thread" }, ...nodes));
  drawFrame();
  if (followEnd) toEnd();
  byId("to-end").hidden = atEnd();
}

// Everything around the messages.
function drawFrame() {
  const title = titleOf(shown);
  byId("title").textContent = title;
  document.title = shown.messages.length > 0 ? `${title} · hadal` : "hadal";
  list.show(store.list(), shown.id);
  const running = job() !== null;
  byId("send").hidden = running;
  byId("stop").hidden = !running;
  log.setAttribute("aria-busy", String(running));
  byId("export-one").disabled = shown.messages.length === 0;
  drawCounter();
}

function drawCounter() {
  const running = job();
  const counter = byId("counter");
  if (running) {
    const rate = running.tokensPerSecond;
    counter.textContent = running.trouble || `${formatCount(running.tokens)} tokens`
      + (rate === null ? "" : ` · ${rate.toFixed(1)} tokens/s`);
    return;
  }
  const facts = shown.messages.findLast((m) => Number.isFinite(m.facts?.prompt_tokens))?.facts;
  const model = models.find((m) => m.id === shown.settings.model);
  if (!facts) counter.textContent = "";
  else {
    const used = formatCount(facts.prompt_tokens + facts.completion_tokens);
    counter.textContent = model?.context_length
      ? `${used} of ${formatCount(model.context_length)} tokens` : `${used} tokens`;
  }
}

function welcome() {
  const model = models.find((m) => m.id === shown.settings.model);
  return el("div", { class: "welcome" },
    el("img", { src: "icon.svg", alt: "", width: 56, height: 56 }),
    el("h2", { text: model ? model.id : "hadal" }),
    el("p", { class: "muted", text: model?.context_length
      ? `Reads up to ${formatCount(model.context_length)} tokens. ${kWhere}` : kWhere }));
}

function errorBox({ error, retry }) {
  const box = el("div", { class: "error", role: "alert" }, el("p", { text: error.message }));
  const buttons = el("div", { class: "error-buttons" });
  if (error.status === 401) {
    buttons.append(el("button", {
      type: "button", text: "Enter a key",
      on: { click: () => { setPanel("settings", true, false); byId("api-key").focus(); } },
    }));
  }
  buttons.append(el("button", {
    type: "button", class: "primary", text: "Try again", on: { click: retry },
  }));
  box.append(buttons);
  return box;
}

// ---- answers ----------------------------------------------------------------------------------

const hooks = {
  onChange: (changed) => {
    if (changed.conversation !== shown || drawTimer !== null) return;
    drawTimer = setTimeout(() => {
      drawTimer = null;
      if (!liveView || !job()) return;
      liveView.update();
      drawCounter();
      if (followEnd) toEnd();
    }, kDrawEveryMs);
  },
  onTrouble: (changed, sentence) => {
    if (changed.conversation !== shown) return;
    announce(sentence || "Connected again.");
    drawCounter();
  },
  onEnd: (ended, error) => {
    const { conversation, message } = ended;
    jobs.delete(conversation.id);
    const kept = conversation.messages.includes(message);
    if (error) {
      const retry = () =>
        (kept ? actions.regenerate(conversation.messages.indexOf(message)) : generate());
      errors.set(conversation.id, { error, retry });
    }
    if (conversation !== shown) {
      drawFrame();
      return;
    }
    if (kept && !error && liveView) {
      liveView.finish(); // the nodes stay: a selection or an open detail is not lost
      liveView = null;
      drawFrame();
      if (followEnd) toEnd();
    } else {
      draw();
    }
    const cancelled = message.finish_reason === "cancelled";
    announce(error ? "" : cancelled ? "Stopped." : "The answer is complete.");
    if (message.finish_reason === "tool_calls") {
      views[conversation.messages.indexOf(message)]?.emptyResult?.focus();
    }
  },
};

function discardJob(id) {
  jobs.get(id)?.discard();
  jobs.delete(id);
}

function run(begin, message) {
  errors.delete(shown.id);
  const created = new Job(store, shown, message, hooks);
  jobs.set(shown.id, created);
  try {
    begin(created);
  } catch (error) {
    jobs.delete(shown.id);
    toast(error.message);
    return;
  }
  followEnd = true;
  announce("Waiting for the answer.");
  draw();
}

function generate() {
  const wrong = form.wrongField;
  if (wrong) {
    setPanel("settings", true, false);
    wrong.focus();
    toast("A setting cannot be sent as it is.");
    return;
  }
  if (shown.settings.model === "") {
    loadModels(generate);
    return;
  }
  run((created) => created.start(), newAnswer());
}

// Drops messages from `from` on; a toast can bring them back.
function truncate(from) {
  const conversation = shown;
  discardJob(conversation.id);
  const before = [...conversation.messages];
  conversation.messages.length = from;
  if (before.length - from <= 1) return;
  toast(`${before.length - from} messages were replaced.`, () => {
    discardJob(conversation.id);
    conversation.messages = before;
    store.save(conversation);
    show(conversation);
  });
}

const actions = {
  regenerate: (index) => {
    truncate(index);
    generate();
  },
  answer: (index, results) => {
    if (job()) return;
    const have = resultsAfter(index);
    for (const { id, content } of results) have.set(id, { content });
    const calls = shown.messages[index].tool_calls;
    shown.messages.length = index + 1;
    for (const call of calls) {
      const content = have.get(call.id)?.content ?? "";
      shown.messages.push({ role: "tool", tool_call_id: call.id, content });
    }
    store.save(shown);
    generate();
    input.focus();
  },
  edit: (index) => {
    const message = shown.messages[index];
    const isUser = message.role === "user";
    const place = isUser ? views[index].node
      : views[shown.messages.findLastIndex((m, i) => i < index && m.role === "assistant")].node
        .querySelector(`[data-index="${index}"]`);
    const conversation = shown;
    const field = editor(message.content, isUser ? "Your message" : "Result", "Send", (text) => {
      if (conversation !== shown) return;
      if (text === null || (isUser && text.trim() === "")) {
        draw();
        input.focus();
        return;
      }
      let next = index + 1; // other results of the same turn stay
      while (!isUser && shown.messages[next]?.role === "tool") ++next;
      truncate(next);
      shown.messages[index] = { ...message, content: text };
      if (index === 0) shown.title = titleFrom(text);
      store.save(shown);
      generate();
      input.focus();
    });
    place.replaceChildren(field);
  },
};

function send() {
  const text = input.value;
  if (text.trim() === "" || job()) return;
  const waiting = views.findLast((view) => view?.emptyResult)?.emptyResult;
  if (waiting) {
    toast("The model waits for the results of its tool calls; fill them in first.");
    waiting.focus();
    return;
  }
  if (shown.title === "") shown.title = titleFrom(text);
  shown.messages.push({ role: "user", content: text });
  shown.updated = Date.now();
  store.save(shown);
  input.value = "";
  fitInput();
  draw();
  generate();
}

// ---- models and key ---------------------------------------------------------------------------

function chooseModel() {
  const select = byId("model");
  if (models.length > 0 && !models.some((m) => m.id === shown.settings.model)) {
    shown.settings.model = models[0].id;
  }
  select.value = shown.settings.model;
}

async function loadModels(then) {
  const select = byId("model");
  try {
    models = await listModels();
    select.replaceChildren(...models.map((m) => el("option", { value: m.id, text: m.id })));
    select.disabled = models.length === 0;
    chooseModel();
    if (errors.get(shown.id)?.ofModels) errors.delete(shown.id);
    draw();
    if (then && models.length > 0) then();
  } catch (error) {
    select.replaceChildren(el("option", { value: "", text: "no model" }));
    select.disabled = true;
    errors.set(shown.id, { error, retry: () => loadModels(then), ofModels: true });
    draw();
  }
}

byId("model").addEventListener("change", () => {
  shown.settings.model = byId("model").value;
  store.save(shown);
  draw();
});

byId("api-key").value = apiKey.get();
byId("api-key").addEventListener("change", () => {
  apiKey.set(byId("api-key").value.trim());
  loadModels();
});

// ---- input and keys ---------------------------------------------------------------------------

function fitInput() {
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, window.innerHeight * 0.4)}px`;
}
input.addEventListener("input", fitInput);

input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && input.value === "" && !job()) {
    const last = shown.messages.findLastIndex((m) => m.role === "user");
    if (last < 0) return;
    event.preventDefault();
    actions.edit(last);
  }
});

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", () => {
  job()?.stop();
  input.focus();
});
byId("new").addEventListener("click", newChat);

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented) {
    if (!closeOverlays()) job()?.stop();
  } else if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.altKey
    && !event.shiftKey) {
    event.preventDefault();
    newChat();
  }
});

// ---- files ------------------------------------------------------------------------------------

const today = () => new Date().toISOString().slice(0, 10);

byId("export-all").addEventListener("click", () =>
  download(`hadal-conversations-${today()}.json`, Store.exported(store.list())));
byId("export-one").addEventListener("click", () =>
  download(`hadal-conversation-${today()}.json`, Store.exported([shown])));
byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", async (event) => {
  const file = event.target.files[0];
  event.target.value = ""; // the same file can be chosen again
  if (!file) return;
  try {
    const count = store.import(await file.text());
    drawFrame();
    toast(`${formatCount(count)} ${count === 1 ? "conversation" : "conversations"} imported.`);
  } catch (error) {
    toast(error.message);
  }
});

window.addEventListener("storage", (event) => {
  if (!store.changedElsewhere(event, (id) => id === shown.id || jobs.has(id))) return;
  drawFrame();
});
window.addEventListener("pagehide", () => {
  for (const running of jobs.values()) store.save(running.conversation);
});

// ---- start ------------------------------------------------------------------------------------

// Answers that were being generated when the page was left go on on the server: read them again.
function resumeAnswers() {
  for (const conversation of store.list()) {
    const message = conversation.messages.at(-1);
    if (message?.role !== "assistant" || !message.pending) continue;
    const resumed = new Job(store, conversation, message, hooks);
    jobs.set(conversation.id, resumed);
    resumed.resume();
  }
}

restorePanels();
resumeAnswers();
show(store.get(localStorage.getItem(kLastShown) ?? "")
  ?? newConversation(store.list()[0]?.settings));
loadModels();
if (!isNarrow()) input.focus();
