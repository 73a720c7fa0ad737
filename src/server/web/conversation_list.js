// The conversations in the side bar: open, rename, delete.
import { byId, el, iconButton } from "./dom.js";

export const titleOf = (conversation) => conversation.title || "New chat";

export function titleFrom(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

// actions: {open(id), rename(id, title), remove(id), isRunning(id)}
export class ConversationList {
  #actions;
  #renaming = null;

  constructor(actions) {
    this.#actions = actions;
  }

  show(conversations, currentId) {
    if (this.#renaming) return; // the list under a rename field stands still
    byId("no-conversations").hidden = conversations.length > 0;
    byId("export-all").disabled = conversations.length === 0;
    const focused = document.activeElement?.closest("#conversations li")?.dataset.id;
    byId("conversations").replaceChildren(...conversations.map((c) => this.#item(c, currentId)));
    if (focused) byId("conversations").querySelector(`li[data-id="${focused}"] .open`)?.focus();
  }

  #item(conversation, currentId) {
    const { id } = conversation;
    const title = titleOf(conversation);
    const current = id === currentId;
    const running = this.#actions.isRunning(id);
    const item = el("li", { "data-id": id, class: current ? "current" : "" });
    item.append(
      el("button", {
        type: "button", class: "open", "aria-current": current ? "true" : null,
        title: new Date(conversation.updated).toLocaleString(),
        on: {
          click: () => this.#actions.open(id),
          dblclick: () => this.#rename(item, conversation),
        },
      }, running ? el("span", { class: "dot", role: "img", "aria-label": "answering" }) : null,
      el("span", { class: "name", text: title })),
      iconButton("pencil", `Rename “${title}”`, () => this.#rename(item, conversation)),
      iconButton("trash", `Delete “${title}”`, () => this.#actions.remove(id)));
    return item;
  }

  #rename(item, conversation) {
    const field = el("input", { "aria-label": "Title", maxlength: 120 });
    field.value = titleOf(conversation);
    const done = (keep) => {
      if (this.#renaming !== field) return;
      this.#renaming = null;
      const title = field.value.trim();
      this.#actions.rename(conversation.id, keep && title !== "" ? title : conversation.title);
      byId("conversations").querySelector(`li[data-id="${conversation.id}"] .open`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation();
      done(event.key === "Enter");
    });
    field.addEventListener("blur", () => done(true));
    this.#renaming = field;
    item.replaceChildren(field);
    field.focus();
    field.select();
  }
}
