// A small line chart of the last minutes: one or two series over a common scale.
import { el, svg } from "./dom.js";

const kWidth = 600;
const kHeight = 100;

// The least of 1, 2, 5 x 10^n that is not below `value`.
function niceCeiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((f) => f * power).find((ceiling) => ceiling >= value * 0.999999);
}

export class Chart {
  #series;
  #format;
  #ceiling;
  #seconds;
  #values = [];
  #lines = [];
  #areas = [];
  #max = el("span", { class: "max" });
  #note = el("span");
  #cursor = svg("line", { class: "cursor", y1: 0, y2: kHeight, visibility: "hidden" });
  #samples = [];
  #now = 0;
  #pointed = null; // a time under the pointer
  #picture;

  // series: names. format(value): what is read. ceiling: a fixed upper end, or a function of the
  // newest sample; without one the scale follows the data.
  constructor({ title, series, format, ceiling, seconds }) {
    this.#series = series;
    this.#format = format;
    this.#ceiling = ceiling;
    this.#seconds = seconds;
    this.#picture = svg("svg", {
      viewBox: `0 0 ${kWidth} ${kHeight}`, preserveAspectRatio: "none", role: "img",
    }, ...[0, 0.5, 1].map((f) => svg("line", {
      class: "grid-line", x1: 0, x2: kWidth, y1: f * kHeight, y2: f * kHeight,
    })));
    const values = el("div", { class: "values" });
    series.forEach((name, i) => {
      const value = el("span", { text: "–" });
      values.append(el("span", { class: `value series-${i}` }, value, el("small", { text: name })));
      this.#values.push(value);
      this.#areas.push(svg("path", { class: `area series-${i}` }));
      this.#lines.push(svg("path", { class: `line series-${i}` }));
      this.#picture.append(this.#areas[i], this.#lines[i]);
    });
    this.#picture.append(this.#cursor);
    this.#picture.addEventListener("pointermove", (event) => {
      const box = this.#picture.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width;
      this.#pointed = this.#now - (1 - Math.min(1, Math.max(0, x))) * this.#seconds;
      this.#read();
    });
    this.#picture.addEventListener("pointerleave", () => {
      this.#pointed = null;
      this.#read();
    });
    this.title = title;
    this.node = el("figure", { class: "chart" },
      el("figcaption", {}, el("h2", { text: title }), this.#note), values,
      el("div", { class: "plot" }, this.#picture, this.#max),
      el("div", { class: "axis", "aria-hidden": "true" },
        el("span", { text: `${Math.round(seconds / 60)} min ago` }), el("span", { text: "now" })));
  }

  // samples: [{at, values: [number or null per series]}], oldest first; null breaks the line.
  draw(samples, now) {
    this.#samples = samples;
    this.#now = now;
    let top = 0;
    for (const { values } of samples) for (const v of values) if (v !== null && v > top) top = v;
    const fixed = typeof this.#ceiling === "function" ? this.#ceiling() : this.#ceiling;
    const ceiling = fixed > 0 ? Math.max(fixed, top) : niceCeiling(top);
    this.#max.textContent = this.#format(ceiling);
    const x = (at) => (kWidth * (1 - (now - at) / this.#seconds)).toFixed(1);
    const y = (value) => (kHeight * (1 - value / ceiling)).toFixed(2);
    this.#series.forEach((_, s) => {
      let line = "";
      let area = "";
      let run = [];
      const close = () => {
        if (run.length > 0) {
          const points = run.map(([at, value]) => `${x(at)} ${y(value)}`).join("L");
          line += `M${points}`;
          area += `M${x(run[0][0])} ${kHeight}L${points}L${x(run[run.length - 1][0])} ${kHeight}Z`;
        }
        run = [];
      };
      for (const { at, values } of samples) {
        if (values[s] === null) close();
        else run.push([at, values[s]]);
      }
      close();
      this.#lines[s].setAttribute("d", line);
      this.#areas[s].setAttribute("d", area);
    });
    this.#read();
    const spoken = this.#series.map((name, s) => `${name} ${this.#values[s].textContent}`);
    this.#picture.setAttribute("aria-label",
      `${this.title}: ${spoken.join(", ")}; scale to ${this.#format(ceiling)}`);
  }

  // Shows the newest values, or those under the pointer.
  #read() {
    let sample = this.#samples[this.#samples.length - 1];
    const pointed = this.#pointed !== null && this.#samples.length > 0;
    if (pointed) {
      sample = this.#samples.reduce((best, s) =>
        Math.abs(s.at - this.#pointed) < Math.abs(best.at - this.#pointed) ? s : best);
      const x = kWidth * (1 - (this.#now - sample.at) / this.#seconds);
      this.#cursor.setAttribute("x1", x);
      this.#cursor.setAttribute("x2", x);
    }
    this.#cursor.setAttribute("visibility", pointed ? "visible" : "hidden");
    this.#note.textContent = pointed ? `${Math.round(this.#now - sample.at)} s ago` : "";
    this.#series.forEach((_, s) => {
      const value = sample?.values[s];
      this.#values[s].textContent = Number.isFinite(value) ? this.#format(value) : "–";
    });
  }
}
