"use strict";
// The page: from the data to headings, charts and tables.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { runs } = data;
  const main = document.getElementById("main");
  const several = runs.length > 1;

  function section(title) {
    main.append(el("h2", { text: title }));
  }

  function table(head, rows, kind = "") {
    return el("div", { class: `table-scroll ${kind}`, tabindex: "0", role: "region", "aria-label": head.map((h) => h.text ?? h).join(", ") },
      el("table", {}, el("thead", {}, el("tr", {}, ...head.map((h) => el("th", { scope: "col", class: h.number ? "number" : "" }, h.text ?? h)))),
        el("tbody", {}, ...rows)));
  }

  function runName(run) {
    return el("span", {}, el("span", { class: "chip", style: `background:${color(runs.indexOf(run))}` }), run.name);
  }

  function heading() {
    const names = runs.map((run) => run.name).join(" · ");
    document.title = `${names} · hadal`;
    document.getElementById("title").textContent = several ? "Training runs compared" : names;
    document.getElementById("subtitle").textContent = several ? `${runs.length} runs` : "Training report";
    if (several) document.getElementById("runs").append(...runs.map((run) => el("li", {}, runName(run))));
    for (const run of runs) {
      for (const sentence of run.warnings.slice(0, 5)) main.append(el("p", { class: "warning", role: "alert", text: sentence }));
      if (run.warnings.length > 5) main.append(el("p", { class: "warning", text: `${run.warnings.length - 5} more lines of ${run.name} cannot be read.` }));
    }
  }

  function summary() {
    if (!several) {
      main.append(el("dl", { class: "cards" }, ...runs[0].summary.filter((row) => row.value !== "").map((row) =>
        el("div", { class: row.warns ? "card warns" : "card" }, el("dt", { text: row.label }),
          el("dd", {}, row.value, el("small", { text: row.note }))))));
      return;
    }
    const labels = runs[0].summary.map((row) => row.label);
    const rows = labels.map((label, i) => ({ label, cells: runs.map((run) => run.summary[i]) }))
      .filter(({ cells }) => cells.some((cell) => cell.value !== ""))
      .map(({ label, cells }) => el("tr", {}, el("th", { scope: "row", text: label }), ...cells.map((cell) =>
        el("td", { class: cell.warns ? "warns" : "" }, cell.value === "" ? "–" : cell.value, cell.note ? el("small", { text: cell.note }) : null))));
    main.append(table(["", ...runs.map(runName)].map((h) => h), rows, "summary-table"));
  }

  function comparison() {
    if (data.comparison.length === 0) return;
    section("Tokens to equal loss");
    const rows = data.comparison.map((c) => el("tr", {},
      el("td", { text: c.reference }), el("td", { class: "number", text: fixed(4)(c.loss) }),
      el("td", { class: "number", text: short(c.reference_tokens) }), el("td", { text: c.other }),
      el("td", { class: "number", text: c.other_tokens === null ? `never (best ${fixed(4)(c.other_best)})` : `${c.at_most ? "≤ " : ""}${short(c.other_tokens)}` }),
      el("td", { class: "number" }, el("b", { text: c.ratio === null ? "–" : `${c.at_most ? "≤ " : ""}${percent(c.ratio)}` }))));
    main.append(table(["Run", { text: `Last ${data.comparison[0].curve} loss`, number: true }, { text: "Its tokens", number: true },
      "Other run", { text: "Tokens to that loss", number: true }, { text: "Ratio", number: true }], rows));
  }

  function charts() {
    const sections = [...kSections, { title: "Other measures", charts: otherCharts(runs) }];
    for (const { title, charts: list, map } of sections) {
      const nodes = [];
      if (map) {
        for (const run of runs.filter((r) => r.load_map.layers.length > 0)) {
          nodes.push(new LoadMap(run, several ? `Expert load: ${run.name}` : "Expert load by layer").node);
        }
      }
      for (const chart of list) {
        const spec = plotSpec(chart, runs);
        if (spec) nodes.push(new Plot(spec).node);
      }
      if (nodes.length === 0) continue;
      section(title);
      const small = nodes.filter((node) => !node.classList.contains("wide")).length;
      main.append(el("div", { class: small === 2 || small === 4 ? "charts pairs" : "charts" }, ...nodes));
    }
  }

  // Rows, the newest first, of which `few` are shown until somebody wants all.
  function longTable(head, rows, few) {
    main.append(table(head, rows));
    if (rows.length <= few) return;
    rows.slice(few).forEach((row) => { row.hidden = true; });
    const button = el("button", {
      type: "button", class: "more", text: `Show all ${rows.length}`,
      onclick: () => {
        rows.forEach((row) => { row.hidden = false; });
        button.remove();
      },
    });
    main.append(button);
  }

  function samples() {
    const all = runs.flatMap((run) => run.samples.map((sample) => ({ run, ...sample }))).sort((a, b) => b.step - a.step);
    if (all.length === 0) return;
    section("Samples");
    longTable([...(several ? ["Run"] : []), { text: "Step", number: true }, { text: "Tokens", number: true }, "Text"],
      all.map((s) => el("tr", {}, several ? el("td", {}, runName(s.run)) : null, el("td", { class: "number", text: whole(s.step) }),
        el("td", { class: "number", text: short(s.tokens) }), el("td", { class: "text" }, el("span", { class: "prompt", text: s.prompt }), s.text))), 8);
  }

  function events() {
    const all = runs.flatMap((run) => run.events.map((event) => ({ run, ...event }))).sort((a, b) => b.step - a.step);
    if (all.length === 0) return;
    section("Events");
    longTable([...(several ? ["Run"] : []), { text: "Step", number: true }, "Event", "What happened"],
      all.map((e) => el("tr", {}, several ? el("td", {}, runName(e.run)) : null, el("td", { class: "number", text: whole(e.step) }),
        el("td", {}, el("span", { class: `badge ${e.what.replace(/[^a-z_]/g, "")}`, text: e.what })), el("td", { text: e.sentence }))), 12);
  }

  function config() {
    const known = runs.filter((run) => run.config.length > 0);
    if (known.length === 0) {
      for (const run of runs.filter((r) => r.config_text !== "")) {
        section(several ? `Config of ${run.name}` : "Config");
        main.append(el("div", { class: "table-scroll" }, el("pre", { text: run.config_text })));
      }
      return;
    }
    const keys = [...new Set(known.flatMap((run) => run.config.map(([key]) => key)))];
    const maps = known.map((run) => new Map(run.config));
    const rows = keys.map((key) => {
      const values = maps.map((map) => map.get(key) ?? "–");
      const differs = values.some((value) => value !== values[0]);
      return el("tr", { class: differs ? "differs" : "" }, el("td", { text: key }), ...values.map((value) => el("td", { text: value })));
    });
    section("Config");
    const body = table(["Key", ...(known.length > 1 ? known.map(runName) : ["Value"])], rows, "config");
    if (known.length > 1) {
      const only = el("input", {
        type: "checkbox",
        onchange: () => rows.forEach((row) => { row.hidden = only.checked && !row.classList.contains("differs"); }),
      });
      main.append(el("div", { class: "config-head" }, el("label", {}, only, " Only what differs")));
    }
    main.append(body);
  }

  function controls() {
    const reset = document.getElementById("reset");
    view.changed = () => { reset.hidden = view.zoom === null; };
    reset.addEventListener("click", () => {
      view.zoom = null;
      view.redraw();
    });
    for (const input of document.querySelectorAll("input[name=x]")) {
      input.addEventListener("change", () => {
        view.x = input.value;
        view.zoom = null;
        view.cursor = null;
        view.redraw();
      });
    }
    const themes = ["auto", "light", "dark"];
    const button = document.getElementById("theme");
    let theme = "auto";
    const show = () => {
      if (theme === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = theme;
      button.textContent = `Colours: ${theme}`;
    };
    button.addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      show();
    });
    show();
  }

  heading();
  summary();
  comparison();
  charts();
  samples();
  events();
  config();
  controls();
  view.redraw();
})();
