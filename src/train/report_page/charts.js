"use strict";
// Which charts there are, what they are called and what they show.

const kDashes = [undefined, "6 3", "2 3", "9 3 2 3", "1 4", "12 4"];

// Lines are [series, label, extras]. Of extras, raw: behind the others; dots: points are shown;
// aside: hidden while runs are compared.
const kSections = [
  {
    title: "Loss",
    charts: [
      {
        title: "Loss", unit: "nats a token", wide: true, format: fixed(4), loss: true,
        lines: [["loss", "training", { raw: true }], ["smoothed_loss", "training, smoothed"], ["eval", "validation", { dots: true }], ["mtp_loss", "MTP", { aside: true }]],
      },
    ],
  },
  {
    title: "Optimizer",
    charts: [
      { title: "Learning rate", plain: true, format: (v) => (v === null ? "–" : v.toExponential(3)), zero: true, lines: [["lr", "learning rate"]] },
      { title: "Gradient norm", unit: "of all parameters", format: short, log: true, marks: "clipped", lines: [["grad_norm", "before clipping"], ["clipped_grad_norm", "after clipping", { aside: true }]] },
      { title: "Update RMS over learning rate", unit: "Muon's target is gamma", format: fixed(4), zero: true, lines: [["muon_update", "Muon"], ["adamw_update", "AdamW"]] },
      { title: "Batch", plain: true, unit: "tokens a step", format: whole, zero: true, lines: [["batch_tokens", "batch"]] },
    ],
  },
  {
    title: "Experts",
    map: true,
    charts: [
      { title: "Expert load", unit: "busiest over mean", format: fixed(3), limit: { value: 1.5, name: "1.5" }, lines: [["expert_load_max", "worst layer"], ["expert_load_mean", "mean of layers"]] },
      { title: "Balance loss", unit: "sequence-wise", format: short, zero: true, lines: [["balance_loss", "balance loss"]] },
      { title: "Dead experts", plain: true, unit: "without a token, all layers", format: whole, zero: true, lines: [["dead_experts", "dead experts"]] },
      { title: "Selection bias", unit: "largest minus smallest", format: fixed(4), zero: true, lines: [["bias_spread_max", "widest layer"], ["bias_spread_mean", "mean of layers"]] },
      { title: "Clamped SwiGLU inputs", unit: "share of elements, mean of layers", format: percent, tick: percent, zero: true, lines: [["gate_clamped", "gate above"], ["up_clamped_high", "linear above"], ["up_clamped_low", "linear below"]] },
    ],
  },
  {
    title: "Attention and streams",
    charts: [
      { title: "Indexer loss", unit: "KL, nats", format: short, log: true, lines: [["index_loss", "indexer loss"]] },
      { title: "Indexer recall", unit: "of the dense attention mass", format: percent, tick: percent, limit: { value: 0.9, name: "90 %" }, lines: [["index_recall_of_best", "of the best choice's"], ["index_recall", "of all"]] },
      { title: "Attention to sinks", unit: "share of the mass", format: percent, tick: percent, zero: true, lines: [["sink_mass_max", "highest layer"], ["sink_mass_mean", "mean of layers"]] },
      { title: "Gain of the residual streams", unit: "amax of the composed mHC matrices", format: fixed(3), lines: [["amax_gain", "gain"]] },
      { title: "Lifted FP4 scales", plain: true, unit: "to stay lossless in FP8", format: whole, zero: true, lines: [["scale_lifts", "scales"]] },
    ],
  },
  {
    title: "Speed and memory",
    charts: [
      { title: "Speed", unit: "tokens/s", format: short, zero: true, lines: [["tokens_per_second", "tokens/s"]] },
      { title: "Time of a step", format: duration, tick: duration, zero: true, parts: true, lines: [["step_seconds", "whole step"], ["forward_seconds", "forward"], ["backward_seconds", "backward"], ["optimizer_seconds", "optimizer"], ["newton_schulz_seconds", "Newton–Schulz"], ["data_seconds", "data"]] },
      { title: "Peak memory", plain: true, format: bytes, tick: bytes, ticks: byteTicks, zero: true, lines: [["peak_memory_bytes", "memory"]] },
      { title: "MFU", unit: "executed over peak FLOP/s", format: percent, tick: percent, zero: true, lines: [["mfu", "MFU"]] },
    ],
  },
];

function color(i) {
  return `var(--c${i % 8})`;
}

// A run's curve of that name, or nothing.
function curve(run, name) {
  if (name === "eval") {
    const evals = run.evals.filter((e) => e.loss !== null);
    return evals.length > 0 ? [evals.map((e) => e.step), evals.map((e) => e.loss)] : undefined;
  }
  return run.series[name];
}

// The spec of plot.js, or nothing when no run has a line of it.
function plotSpec(chart, runs) {
  const lines = [];
  const several = runs.length > 1;
  chart.lines.forEach(([name, label, extras], i) => {
    runs.forEach((run, r) => {
      const found = curve(run, name);
      if (!found || (several && chart.parts && i > 0)) return;
      // One run: a colour a line. Several: a colour a run, a dash a line.
      const own = several ? r : chart.loss ? [0, 0, 1, 2][i] : i;
      const dashed = chart.loss ? [0, 0, 1, 2][i] : i;
      lines.push({
        run, steps: found[0], values: found[1], color: color(own), dash: several ? kDashes[dashed % kDashes.length] : undefined,
        label: several ? (chart.lines.length > 1 ? `${run.name}: ${label}` : run.name) : label,
        // Comparing, too many curves hide each other.
        hidden: several && Boolean(extras?.raw || extras?.aside), ...extras,
      });
    });
  });
  if (lines.length === 0) return null;
  if (chart.loss) {
    for (const run of runs) {
      run.abandoned.forEach(([steps, values], i) => {
        lines.push({ run, steps, values, color: "var(--danger)", dash: "3 3", label: `${several ? `${run.name}: ` : ""}rolled back${run.abandoned.length > 1 ? ` (${i + 1})` : ""}` });
      });
    }
  }
  const marks = chart.marks === "clipped"
    ? runs.filter((run) => run.clipped.length > 0).map((run) => ({
      run, steps: run.clipped, label: several ? `${run.name}: clipped` : "clipped steps",
      color: several ? color(runs.indexOf(run)) : "var(--warm)",
    }))
    : [];
  return { ...chart, tickText: chart.tick, lines, marks };
}

// What only some runs measure: a chart each.
function otherCharts(runs) {
  const names = new Set(runs.flatMap((run) => Object.keys(run.series).filter((name) => name.startsWith("values/"))));
  return [...names].sort().map((name) => ({
    title: name.slice(7).replaceAll("_", " "), format: short, lines: [[name, name.slice(7).replaceAll("_", " ")]],
  }));
}
