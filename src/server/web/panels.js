// The two panels beside the messages: next to them in a wide window, over them in a narrow one.
import { byId } from "./dom.js";

const kNarrow = matchMedia("(max-width: 860px)");
const kPanels = "hadal.panels";

export const isNarrow = () => kNarrow.matches;

const panels = { list: byId("list"), settings: byId("settings") };

export function setPanel(name, open, focus = true) {
  const panel = panels[name];
  const button = byId(`toggle-${name}`);
  if (open && kNarrow.matches) {
    for (const other of Object.keys(panels)) if (other !== name) setPanel(other, false, false);
  }
  panel.hidden = !open;
  button.setAttribute("aria-expanded", String(open));
  if (!kNarrow.matches) {
    const wanted = Object.keys(panels).filter((p) => !panels[p].hidden);
    localStorage.setItem(kPanels, wanted.join(" "));
  }
  if (!focus) return;
  if (open) panel.querySelector("input:not([hidden]), button:not(.close-side), textarea")?.focus();
  else button.focus();
}

// Closes what covers the messages in a narrow window. True when something did.
export function closeOverlays() {
  if (!kNarrow.matches) return false;
  const open = Object.keys(panels).find((name) => !panels[name].hidden);
  if (open) setPanel(open, false);
  return open !== undefined;
}

for (const name of Object.keys(panels)) {
  byId(`toggle-${name}`).addEventListener("click", () => setPanel(name, panels[name].hidden));
  byId(`close-${name}`).addEventListener("click", () => setPanel(name, false));
}

export function restorePanels() {
  const wanted = kNarrow.matches ? [] : (localStorage.getItem(kPanels) ?? "list").split(" ");
  for (const name of Object.keys(panels)) {
    const open = wanted.includes(name);
    panels[name].hidden = !open;
    byId(`toggle-${name}`).setAttribute("aria-expanded", String(open));
  }
}
kNarrow.addEventListener("change", restorePanels);
