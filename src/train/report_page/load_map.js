"use strict";
// Expert load by layer over time, as colours.

const kLevels = 12; // from an even load to kHottest times the mean
const kHottest = 3;

function level(load) {
  const part = (load - 1) / (kHottest - 1);
  return Math.min(kLevels, Math.max(0, Math.round(part * kLevels)));
}

function heat(n) {
  return `color-mix(in oklab, var(--hot) ${Math.round((100 * n) / kLevels)}%, var(--cool))`;
}

class LoadMap {
  constructor(run, title) {
    this.run = run;
    this.svg = svg("svg", { role: "img" });
    this.tip = el("div", { class: "tip", hidden: true });
    const legend = el("div", { class: "legend" }, el("span", { class: "note", text: "1×" }));
    const ramp = svg("svg", { viewBox: "0 0 130 8", "aria-hidden": "true", style: "width:130px" });
    for (let n = 0; n <= kLevels; n += 1) {
      ramp.append(svg("rect", { x: n * 10, y: 0, width: 10.5, height: 8, style: `fill:${heat(n)}` }));
    }
    legend.append(ramp, el("span", { class: "note", text: `${kHottest}× and more` }));
    legend.style.alignItems = "center";
    this.node = el("figure", { class: "chart wide" },
      el("figcaption", {}, el("h3", { text: title }), el("span", { class: "unit", text: "busiest expert over mean, by layer" })),
      legend, this.svg, this.tip);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => {
      this.tip.hidden = true;
      view.point(null);
    });
    view.charts.push(this);
    new ResizeObserver(() => {
      if (Math.abs(this.node.clientWidth - (this.drawnWidth ?? 0)) > 1) this.draw();
    }).observe(this.node);
  }

  draw(outer = this.node.clientWidth) {
    const { layers, begin, end, loads } = this.run.load_map;
    const width = Math.max(260, outer - 24);
    this.drawnWidth = outer;
    const cell = Math.max(7, Math.min(22, 300 / layers.length));
    const box = { left: kMargin.left, right: width - kMargin.right, top: 6, bottom: 6 + cell * layers.length };
    const x = view.zoom ?? [0, place(this.run, this.run.last_step)];
    const scaleX = (v) => box.left + ((v - x[0]) / (x[1] - x[0] || 1)) * (box.right - box.left);
    Object.assign(this, { box, x, scaleX, cell });
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${box.bottom + kMargin.bottom}`);
    const every = Math.ceil(13 / cell);
    const bound = (step) => Math.min(box.right, Math.max(box.left, scaleX(place(this.run, step))));
    const lefts = begin.map((step, c) => bound(c === 0 ? 0 : end[c - 1]));
    const rights = end.map(bound);
    layers.forEach((layer, row) => {
      const y = box.top + row * cell;
      if (row % every === 0) {
        this.svg.append(svg("text", { class: "tick", x: box.left - 7, y: y + cell / 2 + 4, "text-anchor": "end" }, `layer ${layer}`));
      }
      // Neighbours of one colour are one rectangle.
      for (let c = 0; c < begin.length;) {
        const load = loads[row][c];
        let next = c + 1;
        while (next < begin.length && load !== null && loads[row][next] !== null && level(loads[row][next]) === level(load)) next += 1;
        if (load !== null && rights[next - 1] > lefts[c]) {
          this.svg.append(svg("rect", { x: lefts[c].toFixed(2), y: y.toFixed(2), width: (rights[next - 1] - lefts[c] + 0.3).toFixed(2), height: (cell - 0.6).toFixed(2), style: `fill:${heat(level(load))}` }));
        }
        c = next;
      }
    });
    const axis = kAxes[view.x];
    for (const v of axis.ticks(x[0], x[1], Math.max(2, Math.floor((box.right - box.left) / 105)))) {
      const at = scaleX(v);
      if (at < box.left - 0.5 || at > box.right + 0.5) continue;
      const anchor = at > box.right - 18 ? "end" : "middle";
      this.svg.append(svg("text", { class: "tick", x: anchor === "end" ? box.right + 8 : at, y: box.bottom + 16, "text-anchor": anchor }, axis.text(v)));
    }
    const most = Math.max(...loads.flat().filter((v) => v !== null));
    this.svg.setAttribute("aria-label", `Expert load of ${layers.length} layers; the highest is ${most.toFixed(2)} times the mean`);
    this.cursor = svg("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
    this.svg.append(this.cursor);
  }

  showCursor() {
    if (!this.cursor) return;
    const shown = view.cursor !== null && view.cursor >= this.x[0] && view.cursor <= this.x[1];
    this.cursor.setAttribute("visibility", shown ? "visible" : "hidden");
    if (!shown) return;
    this.cursor.setAttribute("x1", this.scaleX(view.cursor));
    this.cursor.setAttribute("x2", this.scaleX(view.cursor));
  }

  point(event) {
    const { layers, end, loads } = this.run.load_map;
    const bounds = this.svg.getBoundingClientRect();
    const scale = this.svg.viewBox.baseVal.width / bounds.width;
    const px = (event.clientX - bounds.left) * scale;
    const row = Math.floor(((event.clientY - bounds.top) * scale - this.box.top) / this.cell);
    const part = Math.min(1, Math.max(0, (px - this.box.left) / (this.box.right - this.box.left)));
    const x = this.x[0] + part * (this.x[1] - this.x[0]);
    view.point(x);
    let column = end.findIndex((step) => place(this.run, step) >= x);
    if (column < 0) column = end.length - 1;
    this.tip.hidden = row < 0 || row >= layers.length;
    if (this.tip.hidden) return;
    this.tip.replaceChildren(el("b", { text: kAxes[view.x].exact(x) }),
      el("div", { class: "row" }, el("span", { class: "chip", style: `background:${heat(level(loads[row][column] ?? 1))}` }),
        el("span", { text: `layer ${layers[row]}` }), el("span", { text: `${fixed(2)(loads[row][column])}×` })));
    const left = px / scale + 24;
    const room = this.node.clientWidth;
    this.tip.style.left = `${left + this.tip.offsetWidth > room ? left - this.tip.offsetWidth - 30 : left}px`;
    this.tip.style.top = `${event.clientY - this.node.getBoundingClientRect().top + 14}px`;
  }
}
