// Markdown of answers as DOM nodes. What the model writes only ever becomes text, never markup:
// HTML in it shows as it was written, and pictures become links (the page loads nothing from
// elsewhere).
import { copyButton, el } from "./dom.js";

const kMaxDepth = 12; // of lists, quotes and emphasis within each other

// ---- blocks -----------------------------------------------------------------------------------

const kFence = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const kHeading = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$/;
const kRule = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const kItem = /^( *)([-*+]|\d{1,9}[.)])([ \t]+(.*)|[ \t]*)$/;
const kInterrupts = /^ *([-*+]|1[.)])[ \t]+\S/; // an item that ends a paragraph: no year does
const kQuote = /^ {0,3}> ?(.*)$/;
const kTableRule = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

const blank = (line) => line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;

function startsTable(lines, i) {
  return i + 1 < lines.length && lines[i].includes("|") && kTableRule.test(lines[i + 1])
    && cells(lines[i]).length === cells(lines[i + 1]).length;
}

function startsBlock(lines, i) {
  const line = lines[i];
  return kFence.test(line) || kHeading.test(line) || kRule.test(line) || kQuote.test(line)
    || startsTable(lines, i);
}

// The blocks of `lines`: {kind, from, to} over line numbers, with what the kind needs.
function blocksOf(lines) {
  const blocks = [];
  let i = 0;
  while (i < lines.length) {
    const from = i;
    const line = lines[i];
    if (blank(line)) {
      ++i;
      continue;
    }
    let match;
    if ((match = kFence.exec(line))) {
      const [, fence, info] = match;
      const closer = new RegExp(`^ {0,3}${fence[0] === "`" ? "`" : "~"}{${fence.length},}[ \\t]*$`);
      const indent = indentOf(line);
      const code = [];
      for (++i; i < lines.length && !closer.test(lines[i]); ++i) {
        code.push(lines[i].slice(Math.min(indent, indentOf(lines[i]))));
      }
      ++i; // the closing fence, or the end of what has come yet
      blocks.push({ kind: "code", from, to: i, language: info.trim().split(/\s+/)[0], code });
    } else if ((match = kHeading.exec(line))) {
      blocks.push({ kind: "heading", from, to: ++i, level: match[1].length, text: match[2] ?? "" });
    } else if (kRule.test(line)) {
      blocks.push({ kind: "rule", from, to: ++i });
    } else if (kQuote.test(line)) {
      const inner = [];
      for (; i < lines.length && !blank(lines[i]); ++i) {
        const quoted = kQuote.exec(lines[i]);
        if (!quoted && startsBlock(lines, i)) break;
        inner.push(quoted ? quoted[1] : lines[i]);
      }
      blocks.push({ kind: "quote", from, to: i, inner });
    } else if (startsTable(lines, i)) {
      for (i += 2; i < lines.length && !blank(lines[i]) && lines[i].includes("|");) ++i;
      blocks.push({ kind: "table", from, to: i, rows: lines.slice(from, i) });
    } else if ((match = kItem.exec(line))) {
      i = list(lines, i, match, blocks);
    } else {
      for (++i; i < lines.length && !blank(lines[i]) && !startsBlock(lines, i)
        && !kInterrupts.test(lines[i]);) ++i;
      blocks.push({ kind: "paragraph", from, to: i, text: lines.slice(from, i).join("\n") });
    }
  }
  return blocks;
}

function list(lines, start, first, blocks) {
  const ordered = /\d/.test(first[2]);
  const base = first[1].length;
  const items = [];
  let loose = false;
  let i = start;
  while (i < lines.length) {
    const match = kItem.exec(lines[i]);
    if (!match || match[1].length > base + 3 || match[1].length < base
      || /\d/.test(match[2]) !== ordered || kRule.test(lines[i])) break;
    // What belongs to the item stands at least as far right as its text; a line that is not a
    // block of its own may also follow on without.
    const spaces = match[4] === undefined ? 1 : match[3].length - match[4].length;
    const inside = match[1].length + match[2].length + Math.min(spaces, 4);
    const inner = [match[4] ?? ""];
    let sawBlank = false;
    for (++i; i < lines.length; ++i) {
      const line = lines[i];
      if (blank(line)) {
        sawBlank = true;
        inner.push("");
        continue;
      }
      const indent = indentOf(line);
      if (indent >= inside) {
        if (sawBlank) loose = true;
        inner.push(line.slice(inside));
      } else if (indent > base && kItem.test(line)) {
        inner.push(line.trimStart()); // a list inside, indented by less than it should be
      } else if (!sawBlank && !kItem.test(line) && !startsBlock(lines, i)) {
        inner.push(line.trimStart());
      } else {
        break;
      }
      sawBlank = false;
    }
    if (sawBlank) {
      while (inner.length > 1 && inner[inner.length - 1] === "") inner.pop();
      if (i < lines.length && kItem.test(lines[i]) && indentOf(lines[i]) >= base) loose = true;
    }
    items.push(inner);
  }
  let to = i;
  while (blank(lines[to - 1])) --to;
  blocks.push({
    kind: "list", from: start, to, ordered, items, loose,
    first: ordered ? parseInt(first[2], 10) : 1,
  });
  return i;
}

function cells(row) {
  let text = row.trim();
  if (text.startsWith("|")) text = text.slice(1);
  if (text.endsWith("|") && !text.endsWith("\\|")) text = text.slice(0, -1);
  const out = [""];
  let inCode = false;
  for (let i = 0; i < text.length; ++i) {
    if (text[i] === "\\" && text[i + 1] === "|") {
      out[out.length - 1] += "|";
      ++i;
    } else if (text[i] === "|" && !inCode) {
      out.push("");
    } else {
      if (text[i] === "`") inCode = !inCode;
      out[out.length - 1] += text[i];
    }
  }
  return out.map((cell) => cell.trim());
}

function tableNode(rows) {
  const alignments = cells(rows[1]).map((cell) => {
    if (!cell.endsWith(":")) return null;
    return cell.startsWith(":") ? "center" : "end";
  });
  const row = (line, tag) => {
    const found = cells(line);
    return el("tr", {}, ...alignments.map((alignment, column) =>
      el(tag, { class: alignment && `align-${alignment}` }, ...inline(found[column] ?? "", 0))));
  };
  return el("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-label": "Table" },
    el("table", {}, el("thead", {}, row(rows[0], "th")),
      el("tbody", {}, ...rows.slice(2).map((line) => row(line, "td")))));
}

function codeNode({ language, code }) {
  const text = code.join("\n");
  return el("figure", { class: "code" },
    el("figcaption", {}, el("span", { text: language || "text" }),
      copyButton("Copy code", () => text)),
    el("pre", { tabindex: "0" }, el("code", { text })));
}

function itemNodes(lines, loose, depth) {
  const task = /^\[([ xX])\][ \t]+/.exec(lines[0]);
  const own = task ? [lines[0].slice(task[0].length), ...lines.slice(1)] : lines;
  const nodes = blockNodes(own, depth + 1, loose);
  return task ? [task[1] === " " ? "☐ " : "☑ ", ...nodes] : nodes;
}

function blockNode(block, depth, loose) {
  switch (block.kind) {
    case "code":
      return codeNode(block);
    case "heading": // the page itself has the first two levels
      return el(`h${Math.min(block.level + 2, 6)}`, {}, ...inline(block.text, 0));
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", {}, ...blockNodes(block.inner, depth + 1, true));
    case "table":
      return tableNode(block.rows);
    case "list":
      return el(block.ordered ? "ol" : "ul", { start: block.first === 1 ? null : block.first },
        ...block.items.map((lines) => el("li", {}, ...itemNodes(lines, block.loose, depth))));
    default:
      return loose ? el("p", {}, ...inline(block.text, 0))
        : el("span", { class: "tight" }, ...inline(block.text, 0));
  }
}

function blockNodes(lines, depth, loose) {
  if (depth > kMaxDepth) return [lines.join("\n")];
  return blocksOf(lines).map((block) => blockNode(block, depth, loose));
}

// ---- text within a block ----------------------------------------------------------------------

const kWord = /[\p{L}\p{N}]/u;
const kUrl = /^https?:\/\/[^\s<>"'`]+/i;
const kEscapable = /[!-/:-@[-`{-~]/;

function safeAddress(address) {
  return /^(https?:|mailto:)/i.test(address) ? address : null;
}

function link(address, children) {
  const safe = safeAddress(address);
  if (!safe) return el("span", { title: address }, ...children);
  return el("a", { href: safe, rel: "noopener noreferrer nofollow", target: "_blank" },
    ...children);
}

// The end of the text that the run of `size` marks at `at` opens, and of its closing run.
function closingRun(text, at, mark, size) {
  for (let i = at + size; i < text.length; ++i) {
    if (text[i] === "\\") {
      ++i;
    } else if (text[i] === "`") {
      i = codeSpan(text, i).end - 1;
    } else if (text[i] === mark) {
      let end = i;
      while (text[end] === mark) ++end;
      const run = end - i;
      const fits = run === size || (run === 3 && size < 3) || (run > 3 && size > 1);
      const closes = i > at + size && !/\s/.test(text[i - 1])
        && (mark !== "_" || end === text.length || !kWord.test(text[end]));
      if (fits && closes) return { from: end - size, end };
      i = end - 1;
    }
  }
  return null;
}

// The code span at `at`, or its opening marks as text where no like run closes it.
function codeSpan(text, at) {
  let open = at;
  while (text[open] === "`") ++open;
  const size = open - at;
  for (let i = open; i < text.length;) {
    const from = text.indexOf("`", i);
    if (from < 0) break;
    let end = from;
    while (text[end] === "`") ++end;
    if (end - from === size) {
      let code = text.slice(open, from).replace(/\n/g, " ");
      if (/^ .*[^ ].* $/.test(code)) code = code.slice(1, -1);
      return { code, end };
    }
    i = end;
  }
  return { code: null, end: open };
}

const kTarget = new RegExp("^\\s*(?:<([^<>\\n]*)>|((?:[^\\s()\\\\]|\\\\.|\\([^\\s()]*\\))*))"
  + "(?:\\s+(?:\"[^\"]*\"|'[^']*'))?\\s*\\)");

// [label](address "title") at `at`, which is its bracket; null where it is none.
function linkAt(text, at) {
  let depth = 0;
  let close = -1;
  for (let i = at; i < text.length && i < at + 2000; ++i) {
    if (text[i] === "\\") ++i;
    else if (text[i] === "[") ++depth;
    else if (text[i] === "]" && --depth === 0) {
      close = i;
      break;
    }
  }
  if (close < 0 || text[close + 1] !== "(") return null;
  const rest = text.slice(close + 2, close + 4002);
  const match = kTarget.exec(rest);
  if (!match) return null;
  return {
    label: text.slice(at + 1, close),
    address: (match[1] ?? match[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1"),
    end: close + 2 + match[0].length,
  };
}

function inline(text, depth) {
  if (depth > kMaxDepth) return [text];
  const nodes = [];
  let plain = "";
  const flush = () => {
    if (plain !== "") nodes.push(plain);
    plain = "";
  };
  const push = (node) => {
    flush();
    nodes.push(node);
  };
  // A mark that found no end will find none further right either: without this, a text of
  // nothing but marks would take quadratic time.
  const hopeless = new Set();
  let i = 0;
  while (i < text.length) {
    const c = text[i];
    if (c === "\\" && i + 1 < text.length && kEscapable.test(text[i + 1])) {
      plain += text[i + 1];
      i += 2;
    } else if (c === "\n") {
      plain = plain.replace(/[ \\]+$/, "");
      push(el("br"));
      for (++i; text[i] === " ";) ++i;
    } else if (c === "`") {
      let run = i;
      while (text[run] === "`") ++run;
      const key = "`".repeat(run - i);
      const span = hopeless.has(key) ? { code: null, end: run } : codeSpan(text, i);
      if (span.code === null) {
        hopeless.add(key);
        plain += text.slice(i, span.end);
      } else {
        push(el("code", { text: span.code }));
      }
      i = span.end;
    } else if (c === "*" || c === "_" || (c === "~" && text[i + 1] === "~")) {
      let run = i;
      while (text[run] === c) ++run;
      const size = Math.min(run - i, c === "~" ? 2 : 3);
      const key = c + size;
      const opens = run - i <= 3 && run < text.length && !/\s/.test(text[run])
        && (c !== "_" || i === 0 || !kWord.test(text[i - 1]));
      const close = opens && !hopeless.has(key) ? closingRun(text, i, c, size) : null;
      if (close === null) {
        if (opens) hopeless.add(key);
        plain += text.slice(i, run);
        i = run;
      } else {
        const inner = inline(text.slice(i + size, close.from), depth + 1);
        if (c === "~") push(el("del", {}, ...inner));
        else if (size === 1) push(el("em", {}, ...inner));
        else if (size === 2) push(el("strong", {}, ...inner));
        else push(el("strong", {}, el("em", {}, ...inner)));
        i = close.end;
      }
    } else if (c === "[" || (c === "!" && text[i + 1] === "[")) {
      const found = linkAt(text, c === "!" ? i + 1 : i);
      if (found) {
        push(link(found.address, inline(found.label || found.address, depth + 1)));
        i = found.end;
      } else {
        plain += c;
        ++i;
      }
    } else if (c === "<" && /^<(https?:\/\/|mailto:)[^\s<>]+>/i.test(text.slice(i, i + 2000))) {
      const end = text.indexOf(">", i);
      push(link(text.slice(i + 1, end), [text.slice(i + 1, end)]));
      i = end + 1;
    } else if ((c === "h" || c === "H") && (i === 0 || !kWord.test(text[i - 1]))
      && kUrl.test(text.slice(i, i + 2000))) {
      let address = kUrl.exec(text.slice(i, i + 2000))[0].replace(/[.,;:!?*_~]+$/, "");
      while (address.endsWith(")") && address.split(")").length > address.split("(").length) {
        address = address.slice(0, -1);
      }
      push(link(address, [address]));
      i += address.length;
    } else {
      plain += c;
      ++i;
    }
  }
  flush();
  return nodes;
}

// ---- a growing text ---------------------------------------------------------------------------

// Shows a text in `root` and follows it as it grows: blocks that did not change keep their nodes,
// and with them selections and the focus.
export class MarkdownView {
  #root;
  #shown = []; // {source, node}

  constructor(root) {
    this.#root = root;
  }

  update(text) {
    const lines = text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n");
    const blocks = blocksOf(lines);
    const sources = blocks.map((b) => lines.slice(b.from, b.to).join("\n"));
    let same = 0;
    while (same < sources.length && same < this.#shown.length
      && this.#shown[same].source === sources[same]) ++same;
    for (const { node } of this.#shown.splice(same)) node.remove();
    for (let i = same; i < blocks.length; ++i) {
      const node = blockNode(blocks[i], 0, true);
      this.#root.append(node);
      this.#shown.push({ source: sources[i], node });
    }
  }
}
