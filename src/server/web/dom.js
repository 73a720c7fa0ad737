// Building the page from nodes. Text only ever goes in as text.

// An element with properties and children. "class", "text" and "on" (a map of listeners) are
// special; other names are attributes, left out when false, null or undefined.
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name === "on") {
      for (const [type, listener] of Object.entries(value)) node.addEventListener(type, listener);
    } else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

const kSvg = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(kSvg, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

// Strokes on a 24 x 24 grid.
const kIcons = {
  plus: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h16",
  sliders: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.5v5M9 14.5v5",
  pencil: "M4 20l1-4L16.5 4.5l3 3L8 19zM14 7l3 3",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l.8 12.5h8.4L17 7M10.3 10.5v5.5M13.7 10.5v5.5",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  check: "M5 12.5l4.5 4.5L19 7.5",
  refresh: "M19.5 12a7.5 7.5 0 1 1-2.2-5.3L19.5 9M19.5 4v5h-5",
  send: "M12 19V5.5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  upload: "M12 16V5M7 9l5-5 5 5M5 20h14",
  close: "M6 6l12 12M18 6L6 18",
  down: "M12 5v13M6 12.5l6 6 6-6",
  tool: "M9 4.5c-2.3 0-3 1-3 3v1.8c0 1.6-.8 2.4-2.5 2.7 1.7.3 2.5 1.1 2.5 2.7v1.8c0 2 .7 3 3 3"
    + "M15 4.5c2.3 0 3 1 3 3v1.8c0 1.6.8 2.4 2.5 2.7-1.7.3-2.5 1.1-2.5 2.7v1.8c0 2-.7 3-3 3",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  chart: "M4 20h16M6.5 16.5v-5M11 16.5V6M15.5 16.5v-8M20 16.5v-3",
  chat: "M4 5h16v11H10l-5 4v-4H4z",
};

export function icon(name) {
  return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" },
    svg("path", { d: kIcons[name] }));
}

// A button with only a picture: the label is for those who do not see it.
export function iconButton(name, label, onClick, extra = {}) {
  return el("button", {
    type: "button", class: "icon-button", "aria-label": label, title: label,
    on: { click: onClick }, ...extra,
  }, icon(name));
}

// Fills the elements that the HTML marks with data-icon.
export function placeIcons(root = document) {
  for (const node of root.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
}

const kNumber = new Intl.NumberFormat("en");
export const formatCount = (n) => kNumber.format(n);

export function formatBytes(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    ++unit;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

export function formatSeconds(s) {
  if (s < 0.0995) return `${(s * 1000).toFixed(s < 0.00995 ? 1 : 0)} ms`;
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(s % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  // Over plain HTTP from another machine there is no clipboard object; the old way works there.
  const area = el("textarea", { class: "off-screen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("The browser does not allow copying.");
}

export function copyButton(label, textOf) {
  const button = iconButton("copy", label, async () => {
    let name = "check";
    try {
      await copyText(textOf());
    } catch {
      name = "close";
    }
    button.replaceChildren(icon(name));
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}
