// The status page: asks once a second, keeps five minutes, draws.
import { Chart } from "./chart.js";
import { apiKey, getJson } from "./client.js";
import { byId, el, formatBytes, formatCount, formatSeconds, placeIcons } from "./dom.js";

const kEveryMs = 1_000;
const kPatienceMs = 5_000;
const kSeconds = 300;
const kRateWindowSeconds = 3; // a step may take longer than the pause between two polls
const kHitWindowSeconds = 10; // hit rates of single seconds say little

placeIcons();

let history = []; // {at, status or null}, one per answer; null where the server did not answer
let newest = null;

const rate = (before, after, of) => {
  if (!before || after.now <= before.now) return null;
  return Math.max(0, of(after) - of(before)) / (after.now - before.now);
};

// The status at least `seconds` before sample i, within an unbroken run of answers of one server.
function before(i, seconds) {
  let found = null;
  const { started } = history[i].status;
  for (let k = i - 1; k >= 0 && history[k].status?.started === started; --k) {
    found = history[k].status;
    if (history[i].at - history[k].at >= seconds) break;
  }
  return found;
}

const perSecond = (of) => (status, i) => rate(before(i, kRateWindowSeconds), status, of);

function hitRate(status, i) {
  const start = before(i, kHitWindowSeconds);
  if (!start) return null;
  const asked = status.cache.prefix_query_tokens_total - start.cache.prefix_query_tokens_total;
  const hit = status.cache.prefix_hit_tokens_total - start.cache.prefix_hit_tokens_total;
  return asked > 0 && hit >= 0 ? hit / asked : null;
}

function stepTime(status, i) {
  const start = before(i, 0);
  if (!start) return null;
  const steps = status.engine.steps_total - start.engine.steps_total;
  const seconds = status.engine.step_seconds_total - start.engine.step_seconds_total;
  return steps > 0 ? seconds / steps : null;
}

// What is left of a step is scheduling, sampling and handing out.
function modelShare(status, i) {
  const start = before(i, kRateWindowSeconds);
  if (!start) return null;
  const all = status.engine.step_seconds_total - start.engine.step_seconds_total;
  const model = status.engine.forward_seconds_total - start.engine.forward_seconds_total;
  return all > 0 && model >= 0 ? Math.min(1, model / all) : null;
}

const oneDigit = (v) => (v >= 100 ? formatCount(Math.round(v)) : v.toFixed(1));
const whole = (v) => formatCount(Math.round(v));

// of: one function per series, of a status and its place in the history
const kCharts = [
  {
    title: "Requests", series: ["running", "waiting"], format: whole,
    of: [(s) => s.engine.running, (s) => s.engine.waiting],
  },
  {
    title: "Tokens out", series: ["per second"], format: oneDigit,
    of: [perSecond((s) => s.engine.generated_tokens_total)],
  },
  {
    title: "Tokens in", series: ["per second", "cached"], format: oneDigit,
    of: [
      perSecond((s) => s.engine.prompt_tokens_total),
      perSecond((s) => s.engine.cached_tokens_total),
    ],
  },
  {
    title: "KV pages", series: ["used", "cached"], format: whole,
    of: [(s) => s.cache.pages_used, (s) => s.cache.pages_cached],
    ceiling: () => newest?.cache.pages_total,
  },
  {
    title: "Prefix hit rate", series: [`over ${kHitWindowSeconds} s`],
    format: (v) => `${(100 * v).toFixed(0)} %`, of: [hitRate], ceiling: 1,
  },
  {
    title: "Journal lag", series: ["tokens not durable yet"], format: whole,
    of: [(s) => s.journal?.lag_tokens ?? null],
  },
  { title: "Step time", series: ["per step"], format: formatSeconds, of: [stepTime] },
  {
    title: "Time in the model", series: ["of a step"],
    format: (v) => `${(100 * v).toFixed(1)} %`, of: [modelShare], ceiling: 1,
  },
];

const charts = kCharts.map((definition) => {
  const chart = new Chart({ ...definition, seconds: kSeconds });
  byId("charts").append(chart.node);
  return { chart, of: definition.of };
});

function drawCharts(now) {
  for (const { chart, of } of charts) {
    chart.draw(history.map(({ at, status }, i) =>
      ({ at, values: of.map((f) => (status ? f(status, i) : null)) })), now);
  }
}

// What the table says, and what it means.
const kStates = {
  waiting: ["waiting", "not admitted yet"],
  prefilling: ["reading", "it reads its prompt"],
  decoding: ["generating", ""],
  suspended: ["suspended", "its reader is too slow"],
  detached: ["detached", "nobody reads; it is kept running"],
};
const kApis = { chat_completions: "chat", completions: "text" };

function requestRow(r) {
  const prompt = el("td", { class: "number" }, formatCount(r.prompt_tokens));
  if (r.state === "prefilling" && r.prompt_tokens > 0) {
    const progress = el("progress",
      { class: "progress", max: r.prompt_tokens, "aria-label": "read" });
    progress.value = r.prefill_done;
    prompt.append(progress);
  }
  const number = (text) => el("td", { class: "number", text });
  const [word, meaning] = kStates[r.state] ?? [r.state, ""];
  const state = word + (r.recovered ? ", recovered" : "");
  const choices = r.choices > 1 ? ` (${r.choices} choices)` : "";
  return el("tr", {},
    el("td", { text: r.stream, title: r.stream }), el("td", { text: state, title: meaning }),
    el("td", { text: kApis[r.api] ?? r.api }), el("td", { class: "cut", text: r.key || "–" }),
    el("td", { class: "cut", text: r.user_id || "–", title: r.user_id }),
    number(formatSeconds(r.age_s)), prompt, number(formatCount(r.cached_tokens)),
    number(formatCount(r.generated_tokens) + choices), number(oneDigit(r.tokens_per_second)),
    number(r.resumable ? String(r.readers) : r.readers ? "1" : "0"));
}

function drawRequests(requests) {
  byId("request-count").textContent = `(${formatCount(requests.length)})`;
  byId("rows").replaceChildren(...(requests.length > 0 ? requests.map(requestRow)
    : [el("tr", {}, el("td", { colspan: 11, class: "muted", text: "None at the moment." }))]));
}

function drawFacts(s) {
  const { engine, cache, journal, http } = s;
  const errors = Object.entries(http.errors_total)
    .map(([status, n]) => `${status}: ${formatCount(n)}`);
  const share = (part, all) => (all > 0 ? `${(100 * part / all).toFixed(1)} %` : "–");
  const facts = [
    ["Prompt tokens", formatCount(engine.prompt_tokens_total)],
    ["of these cached", formatCount(engine.cached_tokens_total)],
    ["Recomputed after hits", formatCount(engine.replayed_tokens_total)],
    ["Generated tokens", formatCount(engine.generated_tokens_total)],
    ["Drafted tokens", formatCount(engine.drafted_tokens_total)],
    ["of these accepted", share(engine.accepted_drafts_total, engine.drafted_tokens_total)],
    ["Steps", formatCount(engine.steps_total)],
    ["of their time in the model", share(engine.forward_seconds_total, engine.step_seconds_total)],
    ["Preemptions", formatCount(engine.preemptions_total)],
    ["Prefix hit rate", `${(100 * cache.prefix_hit_rate).toFixed(1)} %`],
    ["Context", `${formatCount(engine.context_length)} tokens`],
    ["Sequences in a step", `at most ${formatCount(engine.max_running)}`],
    ["Pages", formatBytes(cache.page_bytes)],
    ["States", formatBytes(cache.state_bytes)],
    ["Snapshots", formatBytes(cache.snapshot_bytes)],
    ["KV on disk", formatBytes(cache.disk_bytes)],
    ["Journal", journal ? `${journal.policy}, ${formatBytes(journal.bytes)}` : "off"],
    ["Connections", formatCount(http.connections)],
    ["HTTP requests", formatCount(http.requests_total)],
    ["Clients that went away", formatCount(http.disconnects_total)],
    ["Errors", errors.length > 0 ? errors.join(", ") : "none"],
  ];
  byId("facts").replaceChildren(...facts.map(([name, value]) =>
    el("div", {}, el("dt", { text: name }), el("dd", { text: value }))));
}

function setState(state, words) {
  const badge = byId("state");
  if (badge.dataset.state === state && badge.textContent === words) return; // it is read out
  badge.dataset.state = state;
  badge.textContent = words;
}

function setTrouble(sentence) {
  byId("trouble").hidden = sentence === "";
  const words = byId("trouble").firstChild;
  if (words.textContent !== sentence) words.textContent = sentence; // it is read out
  byId("status").classList.toggle("stale", sentence !== "" && newest !== null);
}

function take(s) {
  newest = s;
  byId("model").textContent = s.model;
  document.title = `${s.engine.running + s.engine.waiting} requests · hadal`;
  byId("uptime").textContent = `version ${s.version}, up ${formatSeconds(s.uptime_s)}`;
  const words = { ready: "ready", draining: "finishing, accepts nothing new" };
  setState(s.state, words[s.state] ?? s.state);
  setTrouble(s.journal?.failed
    ? "The journal cannot be written: generations are not durable. See the server's log and disk."
    : "");
  drawRequests(s.requests);
  drawFacts(s);
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();
let lastAnswer = null;

async function poll() {
  const started = performance.now();
  let status = null;
  try {
    status = await getJson("status.json", AbortSignal.timeout(kPatienceMs));
    lastAnswer = Date.now() / 1000;
    byId("key-form").hidden = true;
    take(status);
  } catch (error) {
    status = null;
    if (error.status === 401) {
      setState("unreachable", "key needed");
      byId("key-form").hidden = false;
      setTrouble(error.message.replace(/ (Enter it|Check it) in the settings\./, ""));
    } else if (error.status === 503) {
      setState("loading", "loading the model");
      setTrouble("");
    } else {
      setState("unreachable", "unreachable");
      setTrouble(lastAnswer === null ? "The server cannot be reached. Trying again every second."
        : `The server cannot be reached since ${clock(lastAnswer)}. What is below is old.`);
    }
  }
  const now = Date.now() / 1000;
  history.push({ at: now, status });
  history = history.filter(({ at }) => now - at <= kSeconds);
  drawCharts(now);
  setTimeout(poll, Math.max(100, kEveryMs - (performance.now() - started)));
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey.set(byId("api-key").value.trim());
  byId("api-key").value = "";
});

poll();
