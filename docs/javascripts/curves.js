// Zoomable curves with bands over seeds, drawn by uPlot over a drawing that is on the page already.
// `seedBand` and `align` are pure; `plotCurves` draws any groups of them; at the end, the page of an arm.

import { capital, minus } from "./figures.js";

/**
 * Mean, lowest and highest value and standard deviation of `metric` over the runs at each step that any has; x is the
 * mean of `axis`. `whole`: every run with a value has one at each of these steps, so that the means are of the same seeds.
 */
export function seedBand(runs, metric, axis = "step") {
  const found = new Map();
  const seen = new Set();
  for (const run of runs) {
    (run.step ?? []).forEach((step, index) => {
      const x = run[axis]?.[index];
      const y = run[metric]?.[index];
      if (!Number.isFinite(x) || !Number.isFinite(y)) return;
      seen.add(run);
      if (!found.has(step)) found.set(step, []);
      found.get(step).push([x, y]);
    });
  }
  const rows = [...found.keys()].sort((a, b) => a - b).map((step) => {
    const points = found.get(step);
    const values = points.map(([, y]) => y);
    const mean = (numbers) => numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
    const middle = mean(values);
    const sd = Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
    return [mean(points.map(([x]) => x)), middle, Math.min(...values), Math.max(...values), values.length, step, sd];
  });
  const [x, middle, low, high, n, steps, sd] = [0, 1, 2, 3, 4, 5, 6].map((column) => rows.map((row) => row[column]));
  return { x, mean: middle, low, high, n, step: steps, sd, whole: n.every((count) => count === seen.size) };
}

/** `seedBand`; kind "t" has the 95% t interval of the mean for its ends, `t[k]` the quantile for k degrees of freedom. */
export function band(runs, { metric, axis, kind = "range", t = [] }) {
  const found = seedBand(runs, metric, axis);
  if (kind !== "t") return found;
  const half = found.n.map((n, index) => (n > 1 ? t[n - 1] * found.sd[index] / Math.sqrt(n) : 0));
  return { ...found, low: found.mean.map((mean, index) => mean - half[index]), high: found.mean.map((mean, index) => mean + half[index]) };
}

/** The runs of an arm whose seed the baseline has too, with `gap`: its metric minus the baseline's at the same step. */
export function gaps(arm, baseline) {
  const metric = arm.metric?.name ?? "val_loss";
  const first = ({ runs }) => new Map(runs.filter(({ role, seed }) => role === "report" && seed !== null).reverse().map((run) => [run.seed, run]));
  const others = first(baseline);
  return [...first(arm).values()].filter(({ seed }) => others.has(seed)).map((run) => {
    const other = others.get(run.seed);
    const at = new Map(other.step.map((step, index) => [step, other[metric]?.[index]]));
    const gap = run.step.map((step, index) => {
      const [own, its] = [run[metric]?.[index], at.get(step)];
      return Number.isFinite(own) && Number.isFinite(its) ? own - its : null;
    });
    return { ...run, gap };
  });
}

/** Columns over one ascending x that holds every x of `lines` ([{x, columns: [...]}]); null where a line has no value. */
export function align(lines) {
  const all = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const place = new Map(all.map((x, index) => [x, index]));
  const columns = lines.flatMap((line) => line.columns.map((values) => {
    const column = new Array(all.length).fill(null);
    line.x.forEach((x, index) => { column[place.get(x)] = values[index]; });
    return column;
  }));
  return [all, ...columns];
}

/** The part [from, to] of a range around its middle or a fraction of it: factor below 1 zooms in, shift moves. */
export function zoomed([from, to], factor, shift = 0) {
  const middle = (from + to) / 2 + shift * (to - from);
  const half = ((to - from) * factor) / 2;
  return [middle - half, middle + half];
}

/** Ascending places moved until each is `least` from the next, within [top, bottom] as far as they fit there. */
export function apart(places, least, top, bottom) {
  const found = places.map((place) => Math.min(Math.max(place, top), bottom));
  for (let index = 1; index < found.length; index += 1) found[index] = Math.max(found[index], found[index - 1] + least);
  let limit = Math.max(bottom, top + least * (found.length - 1));
  for (let index = found.length - 1; index >= 0; index -= 1) {
    found[index] = Math.min(found[index], limit);
    limit = found[index] - least;
  }
  return found;
}

/** Round values of a logarithmic axis: powers of ten, with 2 and 5 between them where it has fewer than three. */
export function decades(min, max) {
  const every = Array.from({ length: 700 }, (_, index) => 10 ** (index - 350));
  const inside = (values) => values.filter((value) => value >= min && value <= max);
  const tens = inside(every);
  return tens.length > 2 ? tens : inside(every.flatMap((ten) => [ten, 2 * ten, 5 * ten]));
}

/** Height of a line of text in px. */
const LINE = 14;
let library;
function loadLibrary() {
  library ??= new Promise((resolve, reject) => {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("vendor/uPlot-1.6.32.min.css", import.meta.url).href;
    const script = document.createElement("script");
    script.src = new URL("vendor/uPlot-1.6.32.min.js", import.meta.url).href;
    script.onload = () => resolve(window.uPlot);
    script.onerror = () => reject(new Error("uPlot did not load"));
    document.head.append(style, script);
  });
  return library;
}

const figures = (value) => minus(value.toPrecision(4));
const whole = (value) => minus(Math.abs(value) >= 1e4 ? value.toLocaleString("en") : String(+value.toPrecision(6)));

/**
 * Draw groups of runs into `host`, an element with a width.
 *
 * groups: [{label, runs, colour: "--chart-1", dash: [4, 3] or nothing}], the first in front; `band` in place of what `seedBand`
 * makes of the runs, and `ghost`, {x, mean} of a pale line behind the group's own, where they are given. A band of other
 * seeds at other steps (`whole` is false) has no mean that is one curve: its runs are drawn, a thin line each.
 * options: {metric, axis, xLabel, height, each (every run as a thin line), log, of ("runs"), onPoint(text)}.
 * Returns {zoom(factor, shift), reset(), destroy()}.
 */
export async function plotCurves(host, groups, options) {
  const UPlot = await loadLibrary();
  const style = getComputedStyle(document.body);
  const colour = (name) => style.getPropertyValue(name).trim();
  const font = `12px ${style.getPropertyValue("--sans") || "sans-serif"}`;
  const shown = groups
    .map((group) => ({ ...group, band: group.band ?? seedBand(group.runs, options.metric, options.axis) }))
    .filter((group) => group.band.x.length);
  const lines = [];
  const series = [{}];
  const bands = [];
  const hidden = { width: 0, points: { show: false } };
  for (const group of [...shown].reverse()) {
    const stroke = colour(group.colour);
    const same = group.band.whole !== false;
    if (same && group.ghost) {
      lines.push({ x: group.ghost.x, columns: [group.ghost.mean] });
      series.push({ stroke: `${stroke}70`, width: 1, points: { show: false }, spanGaps: true });
    }
    const { x, low, high, mean } = group.band;
    if (same) {
      bands.push({ series: [series.length, series.length + 1], fill: `${stroke}2e` });
      lines.push({ x, columns: [high, low, mean] });
      series.push({ ...hidden, spanGaps: true }, { ...hidden, spanGaps: true });
      const few = { show: x.length <= 40 && !group.dash, size: 5 };
      series.push({ stroke, width: group.dash ? 1.3 : 1.8, dash: group.dash, points: few, spanGaps: true });
    }
    if (options.each || !same) {
      for (const run of group.runs) {
        const rows = (run[options.axis] ?? []).map((at, index) => [at, run[options.metric]?.[index]]);
        const points = rows.filter(([at, y]) => Number.isFinite(at) && Number.isFinite(y));
        lines.push({ x: points.map(([at]) => at), columns: [points.map(([, y]) => y)] });
        series.push({ stroke: `${stroke}80`, width: same ? 0.7 : 1, points: { show: points.length === 1, size: 5 }, spanGaps: true });
      }
    }
  }
  const labels = (plot) => {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    const ends = shown.map((group) => {
      const inside = group.band.x.map((x, index) => [x, index]).filter(([x]) => x <= plot.scales.x.max);
      const index = inside.length ? inside.at(-1)[1] : 0;
      return { group, y: plot.valToPos(group.band.mean[index], "y", true) };
    }).sort((a, b) => a.y - b.y);
    ctx.save();
    ctx.font = font.replace("12px", `${12 * ratio}px`);
    ctx.textBaseline = "middle";
    ctx.textAlign = "left";
    const places = apart(ends.map(({ y }) => y), LINE * ratio, bbox.top, bbox.top + bbox.height);
    ends.forEach(({ group }, index) => {
      ctx.fillStyle = colour(group.colour);
      ctx.fillText(group.label, bbox.left + bbox.width + 6 * ratio, places[index]);
    });
    ctx.restore();
  };
  const tell = (plot) => {
    const at = plot.cursor.idx;
    if (at == null) return options.onPoint?.("");
    const x = plot.data[0][at];
    const parts = shown.map(({ label, band }) => {
      const index = band.x.indexOf(x);
      if (index < 0) return null;
      const [mean, low, high] = [band.mean, band.low, band.high].map((values) => figures(values[index]));
      const of = `${band.n[index]} ${options.of ?? "runs"}`;
      if (band.n[index] < 2) return `${label} ${mean}`;
      return band.whole === false ? `${label} ${low} to ${high} (${of})` : `${label} ${mean} (${low} to ${high}, ${of})`;
    });
    options.onPoint?.([`${options.xLabel} ${whole(x)}`, ...parts.filter(Boolean)].join(" · "));
  };
  const axisLook = { stroke: colour("--chart-muted"), font, labelFont: font, labelSize: 18, gap: 4, ticks: { show: false } };
  const grid = { stroke: colour("--chart-grid"), width: 1 };
  const plot = new UPlot({
    width: Math.max(host.clientWidth, 240),
    height: options.height,
    padding: [6, Math.max(84, 10 + 7 * Math.max(...shown.map(({ label }) => label.length))), 0, 0],
    legend: { show: false },
    scales: { x: { time: false }, y: options.log ? { distr: 3, range: (_, min, max) => [(min ?? 1) / 1.2, (max ?? 1) * 1.2] } : {} },
    cursor: { drag: { x: true, y: false }, points: { size: 6 } },
    axes: [
      { ...axisLook, label: options.xLabel, size: 22, grid: { show: false }, values: (_, at) => at.map(whole) },
      { ...axisLook, grid, size: 48, values: (_, at) => at.map((value) => (value === null ? "" : whole(value))), ...(options.log && { splits: (_, __, min, max) => decades(min, max), filter: (_, at) => at }) },
    ],
    series,
    bands,
    hooks: { draw: [labels], setCursor: [tell] },
  }, align(lines), host);
  const range = () => [plot.scales.x.min, plot.scales.x.max];
  const bounds = [plot.data[0][0], plot.data[0].at(-1)];
  return {
    zoom(factor, shift = 0) {
      const [min, max] = zoomed(range(), factor, shift);
      const width = Math.min(max - min, bounds[1] - bounds[0]);
      const from = Math.min(Math.max(min, bounds[0]), bounds[1] - width);
      plot.setScale("x", { min: from, max: from + width });
    },
    reset: () => plot.setScale("x", { min: bounds[0], max: bounds[1] }),
    resize: (width) => plot.setSize({ width, height: options.height }),
    range,
    destroy: () => plot.destroy(),
  };
}

const AXES = { step: "step", tokens: "tokens", seconds: "seconds of training" };

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A long name that a narrow column may break, but only between its parts. */
export const breakable = (text) => (text.length > 13 ? text.split(/(?<=[._/])(?=[^\W\d])/) : [text]).flatMap((part, index) => (index ? [element("wbr"), part] : [part]));

function choice(label, names, runs) {
  const select = element("select", { ariaLabel: label });
  for (const [value, text] of Object.entries(names)) {
    const known = runs.some((run) => (run[value] ?? []).some(Number.isFinite));
    select.append(element("option", { value, textContent: text, disabled: !known }));
  }
  return select;
}

/**
 * Keep what `draw` plots into `host`, a part of `box`, in the palette and the width of the page.
 *
 * Returns {redraw(), buttons: those that zoom}; `box` has the same on its keys while it has the focus.
 */
export function live(box, host, draw) {
  let plot;
  const redraw = async () => {
    plot?.destroy();
    plot = undefined;
    plot = await draw();
  };
  const button = (textContent, ariaLabel, onclick) => element("button", { type: "button", textContent, ariaLabel, onclick });
  const keys = {
    "+": () => plot.zoom(0.5), "-": () => plot.zoom(2), 0: () => plot.reset(), Escape: () => plot.reset(),
    ArrowLeft: () => plot.zoom(1, -0.25), ArrowRight: () => plot.zoom(1, 0.25),
  };
  box.addEventListener("keydown", (event) => {
    if (!plot || event.target !== box || !(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    keys[event.key]();
    event.preventDefault();
  });
  new MutationObserver(() => plot && redraw()).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
  new ResizeObserver(() => plot?.resize(Math.max(host.clientWidth, 240))).observe(host);
  const buttons = [button("+", "Zoom in", keys["+"]), button("−", "Zoom out", keys["-"]), button("Reset", "Reset zoom", keys[0])];
  return { redraw, buttons };
}

/** What several plots do as one. */
const together = (plots) => Object.fromEntries(["zoom", "reset", "resize", "destroy"].map((name) => [name, (...given) => { for (const plot of plots) plot[name](...given); }]));

/** Put the zoomable chart in the place of an arm's drawing, and the difference to the baseline into `difference`. */
async function armCurves(figure, difference, arm, address) {
  const groups = [{ label: "this arm", runs: arm.runs, colour: arm.style?.[0] ?? "--chart-1" }];
  const pairs = [];
  if (typeof arm.baseline === "string") {
    const other = await read(new URL(`${encodeURIComponent(arm.baseline)}.curves.json`, address));
    const look = { label: "baseline", colour: "--chart-muted", dash: [4, 3] };
    groups.push({ ...look, runs: other.runs });
    pairs.push({ ...groups[0], runs: gaps(arm, other) }, { ...look, runs: gaps(other, arm).map((run) => ({ ...run, gap: run.gap.map((gap) => gap && 0) })) });
  }
  const box = figure.querySelector(".chart-box");
  const caption = figure.querySelector("figcaption");
  const drawing = box.querySelector("svg");
  const titles = Object.fromEntries(arm.metrics);
  const metric = choice("Metric", titles, arm.runs);
  const axis = choice("Horizontal axis", AXES, arm.runs);
  const each = element("input", { type: "checkbox" });
  const picture = () => {
    const host = element("div", { className: "curves" });
    host.setAttribute("role", "img");
    return host;
  };
  const host = picture();
  const readout = element("p", { className: "curve-readout" });
  const height = Math.round(Math.max(drawing.getBoundingClientRect().height, 180));
  const below = { host: picture(), caption: element("p", { className: "caption" }), readout: element("p", { className: "below" }) };
  const plot = (to, all, key, kind, what, readout, height) => {
    const shown = all.map((group) => ({ ...group, band: band(group.runs, { metric: key, axis: axis.value, kind, t: arm.t }) })).filter((group) => group.band.x.length);
    to.setAttribute("aria-label", `${what}: ${shown.map(({ label, band: { mean } }) => `${label} from ${figures(mean[0])} to ${figures(mean.at(-1))}`).join("; ")}`);
    return plotCurves(to, shown, { metric: key, axis: axis.value, xLabel: AXES[axis.value], height, each: each.checked, onPoint: (text) => { readout.textContent = text; } });
  };
  const { redraw, buttons } = live(box, host, async () => {
    const by = `by ${AXES[axis.value]}`;
    caption.textContent = `${capital(titles[metric.value])} ${by}`;
    box.ariaLabel = `Chart: ${caption.textContent}`;
    const plots = [await plot(host, groups, metric.value, "range", caption.textContent, readout, height)];
    if (below.host.isConnected) {
      below.caption.textContent = `Difference in ${arm.metric.title} to the baseline ${by}`;
      plots.push(await plot(below.host, pairs, "gap", "t", below.caption.textContent, below.readout, 180));
    }
    return together(plots);
  });
  const controls = element("div", { className: "curve-controls" }, metric, axis, element("label", {}, each, " each run"), ...buttons);
  await loadLibrary();
  host.style.height = `${height}px`;
  box.append(controls, host, readout);
  if (difference && pairs.length) difference.append(below.caption, below.host, below.readout);
  drawing.classList.add("replaced");
  await redraw();
  for (const input of [metric, axis, each]) input.addEventListener("change", redraw);
  box.dataset.ready = "";
}

async function read(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.json();
}

/** The page of an arm: what its file has, in the place of the drawing and below its last heading. */
async function armPage(address, figure, difference, layers) {
  try {
    const arm = await read(address);
    const drawn = layers && import("./layers.js").then(({ drawLayers }) => drawLayers(layers, arm.layers));
    await Promise.all([drawn, figure && armCurves(figure, difference, arm, address)]);
  } catch (error) {
    layers?.append(element("p", { role: "alert", textContent: `The data of this page could not be read (${error.message}).` }));
  } finally {
    if (layers) layers.dataset.ready = "";
  }
}

const page = globalThis.document?.querySelector(".md-content");
const file = page?.querySelector("a[href$='.curves.json']");
if (file && /\/runs\/[^/]+\/(?:index\.html)?$/.test(location.pathname)) {
  armPage(file.href, page.querySelector("figure#chart-loss"), page.querySelector("div#difference"), page.querySelector("div#layers"));
}

if (page?.querySelector("#table-calculator")) import("./scaling/calculator.js").then(({ start }) => start(page));
