// What the user chose, checked and put into a request.
import { byId, formatCount } from "./dom.js";

const kNumbers = ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens"];
const kMaxSeed = 2n ** 64n - 1n;

const kToolsExample = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather at a place now",
      parameters: {
        type: "object",
        properties: { place: { type: "string", description: "City, country" } },
        required: ["place"],
      },
    },
  },
];

// The tools of a text: an array of definitions, bare functions allowed. Throws Error with a
// sentence.
export function parseTools(text) {
  if (text.trim() === "") return [];
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`Not JSON: ${error.message}.`);
  }
  const list = Array.isArray(value) ? value : [value];
  return list.map((entry, i) => {
    const tool = entry?.function ? entry : { type: "function", function: entry };
    if (typeof tool.function !== "object" || typeof tool.function?.name !== "string") {
      throw new Error(`Tool ${i + 1} has no "name".`);
    }
    if (!/^[A-Za-z0-9_.:-]{1,64}$/.test(tool.function.name)) {
      throw new Error(`Tool ${i + 1}: a name has 1 to 64 letters, digits, "_", "-", "." or ":".`);
    }
    return tool;
  });
}

// What is wrong with a number field, as a sentence, or null.
function numberProblem(input) {
  const text = input.value.trim().replace(",", ".");
  if (text === "") return null;
  const name = input.closest("label").firstChild.textContent.trim();
  const { min, max, above, whole } = input.dataset;
  if (whole !== undefined ? !/^\d+$/.test(text) : !/^\d*\.?\d+$|^\d+\.$/.test(text)) {
    return `${name} must be a ${whole !== undefined ? "whole " : ""}number.`;
  }
  if (input.id === "seed") return BigInt(text) > kMaxSeed ? "Seed must be below 2^64." : null;
  const value = Number(text);
  if (above !== undefined && value <= Number(above)) return `${name} must be above ${above}.`;
  if (value < Number(min)) return `${name} must be at least ${min}.`;
  if (max !== undefined && value > Number(max)) return `${name} must be at most ${max}.`;
  return null;
}

function messagesOf(conversation) {
  const out = [];
  if (conversation.settings.system.trim() !== "") {
    out.push({ role: "system", content: conversation.settings.system });
  }
  for (const message of conversation.messages) {
    if (message.role !== "assistant") {
      out.push(message.role === "tool"
        ? { role: "tool", tool_call_id: message.tool_call_id, content: message.content }
        : { role: "user", content: message.content });
      continue;
    }
    const sent = { role: "assistant", content: message.content };
    if (message.reasoning_content !== "") sent.reasoning_content = message.reasoning_content;
    if (message.tool_calls.length > 0) sent.tool_calls = message.tool_calls;
    out.push(sent);
  }
  return out;
}

// The JSON text of the request that continues a conversation; without a stream's name, one that
// ends with its connection.
export function requestBody(conversation, streamId) {
  const settings = conversation.settings;
  const body = {
    model: settings.model,
    messages: messagesOf(conversation),
    stream: true,
    stream_options: { include_usage: true },
    thinking: { type: settings.thinking === "off" ? "disabled" : "enabled" },
  };
  if (streamId !== undefined) Object.assign(body, { stream_id: streamId, resumable: true });
  if (settings.thinking !== "off" && settings.effort !== "") {
    body.reasoning_effort = settings.effort;
  }
  for (const name of kNumbers) {
    const text = settings[name].trim().replace(",", ".");
    if (text !== "" && name !== "seed") body[name] = Number(text);
  }
  const tools = parseTools(settings.tools);
  if (tools.length > 0) {
    body.tools = tools;
    body.tool_choice = settings.tool_choice;
  }
  const text = JSON.stringify(body);
  // A seed has 64 bits; a JavaScript number would round it.
  const seed = settings.seed.trim();
  return seed === "" ? text : `${text.slice(0, -1)},"seed":${BigInt(seed)}}`;
}

// Binds the form to the settings of whichever conversation is shown. onChange() after every change.
export class SettingsForm {
  #settings = null;
  #onChange;
  #names = [...kNumbers, "system", "tools", "tool_choice", "thinking", "effort"];

  constructor(onChange) {
    this.#onChange = onChange;
    for (const name of this.#names) {
      byId(name).addEventListener("input", () => {
        this.#settings[name] = byId(name).value;
        this.#check();
        this.#onChange();
      });
    }
    byId("reset-sampling").addEventListener("click", () => {
      for (const name of kNumbers) this.#settings[name] = "";
      this.show(this.#settings);
      this.#onChange();
    });
    byId("tools-example").addEventListener("click", () => {
      let present = [];
      try {
        present = parseTools(byId("tools").value);
      } catch {
        return; // what stands there is being written: do not touch it
      }
      this.#settings.tools = JSON.stringify([...present, ...kToolsExample], null, 2);
      this.show(this.#settings);
      this.#onChange();
    });
    byId("settings-form").addEventListener("submit", (event) => event.preventDefault());
  }

  show(settings) {
    this.#settings = settings;
    for (const name of this.#names) {
      const field = byId(name);
      if (field.value !== settings[name]) field.value = settings[name];
    }
    this.#check();
  }

  // The first field that cannot be sent as it is, or null.
  get wrongField() {
    const wrong = (field) => field.getAttribute("aria-invalid") === "true";
    return [...kNumbers, "tools"].map(byId).find(wrong) ?? null;
  }

  #check() {
    byId("effort-label").hidden = this.#settings.thinking === "off";
    const problems = [];
    for (const name of kNumbers) {
      const problem = numberProblem(byId(name));
      byId(name).setAttribute("aria-invalid", String(problem !== null));
      if (problem) problems.push(problem);
    }
    byId("sampling-problem").hidden = problems.length === 0;
    byId("sampling-problem").textContent = problems.join(" ");

    const state = byId("tools-state");
    let wrong = false;
    try {
      const tools = parseTools(byId("tools").value);
      const names = tools.map((tool) => tool.function.name).join(", ");
      state.textContent = tools.length === 0 ? "No tools."
        : `${formatCount(tools.length)} ${tools.length === 1 ? "tool" : "tools"}: ${names}`;
    } catch (error) {
      wrong = true;
      state.textContent = error.message;
    }
    state.classList.toggle("problem", wrong);
    byId("tools").setAttribute("aria-invalid", String(wrong));
  }
}
