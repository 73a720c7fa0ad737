"use strict";
// One chart: curves over steps, tokens or time. All charts share the axis, the enlarged stretch and
// the place under the pointer.

const kSvg = "http://www.w3.org/2000/svg";

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(kSvg, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") node.textContent = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// The last index with xs[i] <= x, at least 0.
function lastAtOrBelow(xs, x) {
  let low = 0;
  let high = xs.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (xs[middle] <= x) low = middle;
    else high = middle - 1;
  }
  return low;
}

function nearest(xs, x) {
  const i = lastAtOrBelow(xs, x);
  return i + 1 < xs.length && Math.abs(xs[i + 1] - x) < Math.abs(xs[i] - x) ? i + 1 : i;
}

// What all charts share.
const view = {
  x: "steps",
  zoom: null, // [low, high] in units of x
  cursor: null, // a place on x
  charts: [],
  changed: () => {},
  redraw() {
    // All widths before the first change: each question behind a change lays the page out anew.
    const widths = view.charts.map((chart) => chart.node.clientWidth);
    view.charts.forEach((chart, i) => chart.draw(widths[i]));
    view.changed();
  },
  point(x) {
    view.cursor = x;
    for (const chart of view.charts) chart.showCursor();
  },
};

// A run's step as a place on the axis.
function place(run, step) {
  const { steps } = run.axis;
  const to = run.axis[view.x];
  if (view.x === "steps") return step;
  const i = lastAtOrBelow(steps, step);
  if (step <= steps[0]) return to[0] * (steps[0] > 0 ? Math.max(0, step) / steps[0] : 1);
  if (i + 1 >= steps.length) return to[i];
  return to[i] + ((to[i + 1] - to[i]) * (step - steps[i])) / (steps[i + 1] - steps[i]);
}

const kAxes = {
  steps: { name: "step", ticks: (a, b, n) => linearTicks(a, b, n).filter(Number.isInteger), text: short, exact: (v) => `step ${whole(v)}` },
  tokens: { name: "tokens", ticks: linearTicks, text: short, exact: (v) => `${short(v)} tokens` },
  seconds: { name: "training time", ticks: timeTicks, text: duration, exact: duration },
};

function pathOf(points) {
  let d = "";
  let open = false;
  for (const point of points) {
    if (point !== null) d += `${open ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
    open = point !== null;
  }
  return d;
}

// The mean of what lies within each few pixels.
function middles(points) {
  const out = [];
  let held = [];
  const flush = () => {
    if (held.length > 0) out.push([0, 1].map((c) => held.reduce((sum, p) => sum + p[c], 0) / held.length));
    held = [];
  };
  for (const point of points) {
    if (point === null || (held.length > 0 && point[0] - held[0][0] > 4)) flush();
    if (point === null) out.push(null);
    else held.push(point);
  }
  flush();
  return out;
}

const kMargin = { left: 56, right: 14, top: 24, bottom: 24 };

// spec: {title, unit, format(value), ticks(low, high, n), log, zero, wide, plain, limit: {value, name},
//   lines: [{run, label, color, dash, raw, dots, hidden, steps, values}],
//   marks: [{run, label, color, steps}]}
class Plot {
  constructor(spec) {
    this.spec = spec;
    this.log = Boolean(spec.log);
    this.tip = el("div", { class: "tip", hidden: true });
    this.svg = svg("svg", { role: "img", tabindex: "0" });
    this.canLog = spec.lines.some((line) => line.values.some((v) => v > 0));
    const scale = el("button", {
      type: "button", class: "scale", text: "log", title: "Logarithmic scale", "aria-pressed": String(this.log),
      onclick: () => {
        this.log = !this.log;
        scale.setAttribute("aria-pressed", String(this.log));
        this.draw();
      },
    });
    this.node = el("figure", { class: spec.wide ? "chart wide" : "chart" },
      el("figcaption", {}, el("h3", { text: spec.title }), el("span", { class: "unit", text: spec.unit ?? "" }),
        this.canLog ? scale : null),
      this.legend(), this.svg, this.tip);
    this.listen();
    view.charts.push(this);
    new ResizeObserver(() => {
      if (Math.abs(this.node.clientWidth - (this.drawnWidth ?? 0)) > 1) this.draw();
    }).observe(this.node);
  }

  legend() {
    const { lines, marks } = this.spec;
    const box = el("div", { class: "legend" });
    for (const line of lines) {
      const button = el("button", {
        type: "button", "aria-pressed": String(!line.hidden),
        onclick: () => {
          line.hidden = !line.hidden;
          button.setAttribute("aria-pressed", String(!line.hidden));
          this.draw();
        },
      }, svg("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" },
        svg("line", { x1: 1, x2: 21, y1: 4, y2: 4, "stroke-width": line.raw ? 1.5 : 2.5, "stroke-dasharray": line.dash ?? "", opacity: line.raw ? 0.5 : 1, style: `stroke:${line.color}` })),
      line.label);
      box.append(button);
    }
    for (const mark of marks ?? []) {
      box.append(el("span", { class: "note" }, el("span", { style: `color:${mark.color}`, text: "▲ " }), mark.label));
    }
    return box;
  }

  // Curves as places on the axis; remembered until the axis changes.
  xs(line) {
    if (line.axis !== view.x) {
      line.axis = view.x;
      line.places = line.steps.map((step) => place(line.run, step));
    }
    return line.places;
  }

  domain() {
    let low = Infinity;
    let high = -Infinity;
    for (const run of this.runs()) {
      low = Math.min(low, 0);
      high = Math.max(high, place(run, run.last_step));
    }
    return high > low ? [low, high] : [0, 1];
  }

  runs() {
    return [...new Set(this.spec.lines.map((line) => line.run))];
  }

  range([low, high]) {
    let bottom = Infinity;
    let top = -Infinity;
    const take = (v) => {
      if (v === null || (this.log && !(v > 0))) return;
      bottom = Math.min(bottom, v);
      top = Math.max(top, v);
    };
    for (const line of this.spec.lines) {
      if (line.hidden) continue;
      const xs = this.xs(line);
      line.values.forEach((v, i) => {
        if (xs[i] >= low && xs[i] <= high) take(v);
      });
    }
    if (bottom > top) return this.log ? [0.1, 1] : [0, 1];
    if (this.spec.limit) take(this.spec.limit.value);
    if (this.log) {
      const pad = Math.max(1.03, (top / bottom) ** 0.05);
      return [bottom / pad, top * pad];
    }
    if (this.spec.zero) bottom = Math.min(0, bottom);
    const pad = top > bottom ? (top - bottom) * 0.05 : Math.abs(top) * 0.1 || 1;
    return [bottom === 0 ? 0 : bottom - pad, top + pad];
  }

  draw(outer = this.node.clientWidth) {
    const width = Math.max(260, outer - 24);
    const height = this.spec.wide ? (width < 500 ? 270 : 340) : 210;
    this.drawnWidth = outer;
    const box = {
      left: kMargin.left, right: width - kMargin.right, top: kMargin.top, bottom: height - kMargin.bottom,
    };
    const x = view.zoom ?? this.domain();
    const y = this.range(x);
    const flat = this.log ? (v) => Math.log(v) : (v) => v;
    const scaleX = (v) => box.left + ((v - x[0]) / (x[1] - x[0])) * (box.right - box.left);
    const scaleY = (v) => box.bottom - ((flat(v) - flat(y[0])) / (flat(y[1]) - flat(y[0]))) * (box.bottom - box.top);
    Object.assign(this, { box, x, scaleX, scaleY });

    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const clip = `clip-${view.charts.indexOf(this)}`;
    this.svg.append(svg("clipPath", { id: clip },
      svg("rect", { x: box.left, y: box.top - 6, width: box.right - box.left, height: box.bottom - box.top + 12 })));
    const inside = svg("g", { "clip-path": `url(#${clip})` });
    this.drawBands(inside);
    this.drawTicks(x, y);
    if (this.spec.limit) this.drawLimit(inside, y);
    this.drawEvents(inside);
    for (const line of this.spec.lines) if (!line.hidden) this.drawLine(inside, line);
    for (const mark of this.spec.marks ?? []) this.drawMarks(inside, mark);
    this.cursor = svg("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
    this.dots = svg("g");
    this.selection = svg("rect", { class: "selection", y: box.top, height: box.bottom - box.top, width: 0 });
    this.svg.append(inside, this.selection, this.cursor, this.dots);
    this.svg.setAttribute("aria-label", this.spoken());
    this.showCursor();
  }

  spoken() {
    const ends = this.spec.lines.filter((line) => !line.hidden).map((line) => {
      const known = line.values.filter((v) => v !== null);
      return `${line.label} from ${this.spec.format(known[0] ?? null)} to ${this.spec.format(known.at(-1) ?? null)}`;
    });
    return `${this.spec.title}: ${ends.join("; ")}`;
  }

  drawTicks(x, y) {
    const { box } = this;
    const axis = kAxes[view.x];
    const nX = Math.max(2, Math.floor((box.right - box.left) / (view.x === "seconds" ? 105 : 80)));
    for (const v of axis.ticks(x[0], x[1], nX)) {
      const at = this.scaleX(v);
      if (at < box.left - 0.5 || at > box.right + 0.5) continue;
      this.svg.append(svg("line", { class: "grid", x1: at, x2: at, y1: box.top, y2: box.bottom }));
      const anchor = at > box.right - 18 ? "end" : "middle";
      this.svg.append(svg("text", { class: "tick", x: anchor === "end" ? box.right + 8 : at, y: box.bottom + 16, "text-anchor": anchor }, axis.text(v)));
    }
    const nY = Math.max(3, Math.floor((box.bottom - box.top) / 42));
    const ticks = this.log ? logTicks(y[0], y[1], nY) : (this.spec.ticks ?? linearTicks)(y[0], y[1], nY);
    const text = this.spec.tickText ?? ((v) => (this.log ? short(v) : tickText(v, ticks)));
    for (const v of ticks) {
      const at = this.scaleY(v);
      if (at < box.top - 0.5 || at > box.bottom + 0.5) continue;
      this.svg.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }));
      this.svg.append(svg("text", { class: "tick", x: box.left - 7, y: at + 4, "text-anchor": "end" }, text(v)));
    }
    this.svg.append(svg("line", { class: "frame", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  }

  // Of the first run: runs that are compared seldom differ in their schedule.
  drawBands(into) {
    const { box } = this;
    const run = this.spec.lines[0].run;
    let n = 0;
    let nameEnd = -Infinity;
    let row = 0;
    for (const band of run.bands) {
      const left = Math.max(box.left, this.scaleX(place(run, band.begin)));
      const right = Math.min(box.right, this.scaleX(place(run, band.end)));
      const title = svg("title", {}, band.name);
      if (band.kind === "phase") {
        n += 1;
        if (right <= left) continue;
        if (n % 2 === 0) into.append(svg("rect", { class: "band", x: left, y: box.top, width: right - left, height: box.bottom - box.top }, title));
        if (n > 1) into.append(svg("line", { class: "band-edge", x1: left, x2: left, y1: box.top, y2: box.bottom }));
        const fits = (text) => right - left > text.length * 5.6 + 8;
        const name = this.spec.wide && fits(band.name) ? band.name : band.name.split(" · ")[0];
        if (fits(name) && left + 4 > nameEnd) {
          this.svg.append(svg("text", { class: "band-name", x: left + 4, y: box.top - 11 }, name));
          nameEnd = left + 4 + name.length * 5.6;
        }
      } else if (right > left) {
        row = band.kind === "qat" ? 1 : 0;
        into.append(svg("rect", { class: `strip ${band.kind}`, x: left, y: box.top + 5 * row, width: Math.max(2, right - left), height: 4 }, title));
        if (this.spec.wide && box.right - box.left > 500) {
          const fits = left + band.name.length * 5.6 < box.right;
          this.svg.append(svg("text", { class: "band-name", x: fits ? left + 3 : box.right - 3, y: box.top + 20, "text-anchor": fits ? "start" : "end" }, band.name));
        }
      }
    }
  }

  drawLimit(into, y) {
    const { value, name } = this.spec.limit;
    if (value < y[0] || value > y[1]) return;
    const at = this.scaleY(value);
    into.append(svg("line", { class: "limit", x1: this.box.left, x2: this.box.right, y1: at, y2: at }));
    into.append(svg("text", { class: "limit-name", x: this.box.right - 4, y: at - 4, "text-anchor": "end" }, name));
  }

  drawEvents(into) {
    const { box } = this;
    for (const run of this.runs()) {
      for (const event of run.events) {
        const at = this.scaleX(place(run, event.step));
        if (at < box.left - 1 || at > box.right + 1 || event.what === "phase") continue;
        const kind = event.what.replace(/[^a-z_]/g, "");
        if (kind === "checkpoint") {
          into.append(svg("path", { class: "flag checkpoint", d: `M${at} ${box.bottom}l-3 5h6z` }));
          continue;
        }
        into.append(svg("line", { class: `event ${kind}`, x1: at, x2: at, y1: box.top, y2: box.bottom }));
        into.append(svg("path", { class: `flag ${kind}`, d: `M${at} ${box.top}l-4 -6h8z` }));
      }
    }
  }

  drawLine(into, line) {
    const xs = this.xs(line);
    const points = [];
    line.values.forEach((v, i) => {
      points.push(v === null || (this.log && !(v > 0)) ? null : [this.scaleX(xs[i]), this.scaleY(v)]);
    });
    const inside = points.filter((p) => p !== null && p[0] >= this.box.left && p[0] <= this.box.right);
    // Where there is more than a screen can tell apart, what happened stays behind as a shade and the
    // middle of each few pixels is the line.
    const dense = !line.raw && !this.spec.plain && inside.length > 1.5 * (this.box.right - this.box.left);
    const dash = line.dash ?? "";
    into.append(svg("path", { class: line.raw || dense ? "curve raw" : "curve", d: pathOf(points), "stroke-dasharray": line.raw || dense ? "" : dash, style: `stroke:${line.color}` }));
    if (dense) into.append(svg("path", { class: "curve", d: pathOf(middles(points)), "stroke-dasharray": dash, style: `stroke:${line.color}` }));
    if (!line.dots && line.values.length > 1) return;
    if (inside.length > 300) return;
    for (const [x, y] of inside) into.append(svg("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 2.6, style: `fill:${line.color}` }));
  }

  drawMarks(into, mark) {
    const { box } = this;
    let d = "";
    let last = -Infinity;
    for (const step of mark.steps) {
      const at = this.scaleX(place(mark.run, step));
      if (at < box.left || at > box.right || at - last < 0.7) continue;
      d += `M${at.toFixed(1)} ${box.bottom - 1}v-5`;
      last = at;
    }
    into.append(svg("path", { d, "stroke-width": 1.2, style: `stroke:${mark.color};fill:none` }));
  }

  showCursor() {
    if (!this.cursor) return;
    const { cursor: x } = view;
    const shown = x !== null && x >= this.x[0] && x <= this.x[1];
    this.cursor.setAttribute("visibility", shown ? "visible" : "hidden");
    this.dots.replaceChildren();
    if (!shown) return;
    this.cursor.setAttribute("x1", this.scaleX(x));
    this.cursor.setAttribute("x2", this.scaleX(x));
  }

  // The values at a place, beside it.
  showTip(x) {
    const rows = [];
    this.dots.replaceChildren();
    for (const line of this.spec.lines) {
      if (line.hidden || line.steps.length === 0) continue;
      const xs = this.xs(line);
      const i = nearest(xs, x);
      const v = line.values[i];
      // A curve that ends before or begins behind this place says nothing about it.
      if (v === null || Math.abs(this.scaleX(xs[i]) - this.scaleX(x)) > Math.max(12, (this.box.right - this.box.left) / 60)) continue;
      rows.push(el("div", { class: "row" }, el("span", { class: "chip", style: `background:${line.color}` }),
        el("span", { text: line.label }), el("span", { text: this.spec.format(v) })));
      if (!this.log || v > 0) {
        this.dots.append(svg("circle", { class: "dot", cx: this.scaleX(xs[i]), cy: this.scaleY(v), r: 3.5, style: `fill:${line.color}` }));
      }
    }
    const said = [];
    for (const run of this.runs()) {
      for (const event of run.events) {
        if (Math.abs(this.scaleX(place(run, event.step)) - this.scaleX(x)) > 5 || said.length > 3) continue;
        said.push(el("div", { class: "what" }, el("b", { text: `${event.what}, step ${whole(event.step)}: ` }), event.sentence));
      }
    }
    const bands = this.spec.lines[0].run.bands
      .filter((b) => x >= place(this.spec.lines[0].run, b.begin) && x <= place(this.spec.lines[0].run, b.end))
      .map((b) => b.name);
    this.tip.replaceChildren(el("b", { text: kAxes[view.x].exact(x) }),
      ...(bands.length ? [el("span", { class: "muted", text: `  ${bands.join(", ")}` })] : []), ...rows, ...said);
    this.tip.hidden = false;
    const scale = this.svg.getBoundingClientRect().width / this.svg.viewBox.baseVal.width;
    const at = this.svg.offsetLeft + this.scaleX(x) * scale || this.scaleX(x) + 12;
    const room = this.node.clientWidth;
    const left = at + 14 + this.tip.offsetWidth > room ? at - 14 - this.tip.offsetWidth : at + 14;
    this.tip.style.left = `${Math.max(4, Math.min(left, room - this.tip.offsetWidth - 4))}px`;
    const top = this.svg.getBoundingClientRect().top - this.node.getBoundingClientRect().top;
    this.tip.style.top = `${top + this.box.top + 8}px`;
  }

  listen() {
    const at = (event) => {
      const bounds = this.svg.getBoundingClientRect();
      const px = ((event.clientX - bounds.left) / bounds.width) * this.svg.viewBox.baseVal.width;
      const part = Math.min(1, Math.max(0, (px - this.box.left) / (this.box.right - this.box.left)));
      return this.x[0] + part * (this.x[1] - this.x[0]);
    };
    let from = null;
    const leave = () => {
      this.tip.hidden = true;
      view.point(null);
    };
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0) {
        from = at(event);
        this.svg.setPointerCapture(event.pointerId);
      }
    });
    this.svg.addEventListener("pointermove", (event) => {
      const x = at(event);
      view.point(x);
      this.showTip(x);
      if (from === null) return;
      const [left, right] = [this.scaleX(Math.min(from, x)), this.scaleX(Math.max(from, x))];
      this.selection.setAttribute("x", left);
      this.selection.setAttribute("width", right - left);
    });
    this.svg.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const ends = [from, at(event)].sort((a, b) => a - b);
      from = null;
      if (this.scaleX(ends[1]) - this.scaleX(ends[0]) < 6) {
        this.selection.setAttribute("width", 0);
        return;
      }
      view.zoom = ends;
      view.redraw();
    });
    this.svg.addEventListener("pointercancel", leave);
    this.svg.addEventListener("pointerleave", leave);
    this.svg.addEventListener("blur", leave);
    this.svg.addEventListener("dblclick", () => {
      view.zoom = null;
      view.redraw();
    });
    this.svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        leave();
        return;
      }
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      const [low, high] = this.x;
      const step = ((high - low) / 60) * (event.key === "ArrowRight" ? 1 : -1);
      const x = Math.min(high, Math.max(low, (view.cursor ?? (low + high) / 2) + step));
      view.point(x);
      this.showTip(x);
    });
  }
}
