"use strict";
// Numbers as people read them, and where to put ticks.

const kPrefixes = ["", "k", "M", "G", "T", "P", "E"];

// 1.25k, 75.5M; small ones plain or with an exponent.
function short(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(2);
  let power = 0;
  let v = value;
  while (Math.abs(v) >= 999.5 && power < kPrefixes.length - 1) {
    v /= 1000;
    power += 1;
  }
  return trimmed(v.toPrecision(3)) + kPrefixes[power];
}

function trimmed(text) {
  return text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text;
}

const whole = (value) => (value === null ? "–" : Math.round(value).toLocaleString("en"));
const fixed = (digits) => (value) => (Number.isFinite(value) && value !== null ? value.toFixed(digits) : "–");
const percent = (value) => (value === null ? "–" : `${trimmed((100 * value).toPrecision(3))} %`);

function bytes(value) {
  if (value === null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let v = value;
  let i = 0;
  while (v >= 1024 && i < units.length - 1) {
    v /= 1024;
    i += 1;
  }
  return `${trimmed(v.toPrecision(v >= 1000 ? 4 : 3))} ${units[i]}`;
}

function duration(value) {
  if (value === null) return "–";
  if (value >= 3600) return `${Math.floor(value / 3600)} h ${String(Math.floor(value / 60) % 60).padStart(2, "0")} min`;
  if (value >= 60) return `${Math.floor(value / 60)} min ${String(Math.round(value % 60)).padStart(2, "0")} s`;
  if (value >= 1 || value === 0) return `${trimmed(value.toPrecision(3))} s`;
  return `${trimmed((1000 * value).toPrecision(3))} ms`;
}

// Multiples of 1, 2 or 5 x 10^n, about `count` of them.
function linearTicks(low, high, count, bases = [1, 2, 5, 10]) {
  const raw = (high - low) / Math.max(1, count);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * bases.find((b) => b * power >= raw * 0.7);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12) + step * 1e-9; i += 1) ticks.push(i * step);
  return ticks;
}

function byteTicks(low, high, count) {
  const unit = 1024 ** Math.max(0, Math.floor(Math.log(Math.max(high, 1)) / Math.log(1024)));
  return linearTicks(low / unit, high / unit, count).map((v) => v * unit);
}

function timeTicks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const step = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400]
    .find((s) => s >= raw);
  if (raw < 1 || step === undefined) return linearTicks(low, high, count);
  const ticks = [];
  for (let v = Math.ceil(low / step) * step; v <= high; v += step) ticks.push(v);
  return ticks;
}

// Powers of ten, and 2 and 5 times them where there is room.
function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return linearTicks(low, high, count).filter((v) => v > 0);
  const steps = decades < 2.2 ? [1, 2, 5] : [1];
  const skip = Math.max(1, Math.ceil(decades / Math.max(1, count)));
  const ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) {
    if (steps.length === 1 && e % skip !== 0) continue;
    for (const s of steps) {
      const v = s * 10 ** e;
      if (v >= low * 0.9999 && v <= high * 1.0001) ticks.push(v);
    }
  }
  return ticks;
}

// As many decimals as tell neighbours apart.
function tickText(value, ticks) {
  const step = ticks.length > 1 ? Math.min(...ticks.slice(1).map((t, i) => t - ticks[i])) : Math.abs(value) || 1;
  const most = Math.max(...ticks.map(Math.abs));
  if (most >= 10000) return short(value);
  if (most < 1e-3 && most > 0) return value === 0 ? "0" : trimmed(value.toExponential(1)).replace(".0e", "e");
  return value.toFixed(Math.min(6, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))));
}
