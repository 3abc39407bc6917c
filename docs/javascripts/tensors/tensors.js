// The tensor view: a recorded histogram through every 8-bit format.

import { element } from "../explorer/explorer.js";
import { readFormat } from "../explorer/format.js";
import { readable } from "../explorer/state.js";
import { minus } from "../figures.js";
import { POLICIES, outcome } from "./outcome.js";

const SCALES = { amax: "largest magnitude, a power of two", amax_exact: "largest magnitude, exact", none: "none (scale 1)" };
const PARTS = { 1: "kept", 2: "flushed", 3: "clipped" };
const percent = (part) => (part === 0 ? "0" : part < 0.0001 ? "<0.01%" : `${(100 * part).toFixed(part < 0.1 ? 2 : 1)}%`);
const bounded = (part, [low, high]) => (high - low > 5e-5 ? `${percent(part)} (${percent(low)} to ${percent(high)})` : percent(part));

/** What the address asks for, held against what there is: {choice, notes}. `tensors` are those of the run. */
export function choose(query, tensors) {
  const given = new URLSearchParams(query);
  const notes = [];
  let left = tensors;
  const choice = {};
  for (const key of ["layer", "operand", "step"]) {
    const values = [...new Set(left.map((each) => String(each[key])))];
    const wanted = given.get(key);
    if (wanted !== null && !values.includes(wanted)) notes.push(`This run has no histogram with ${key} “${wanted.slice(0, 60)}”.`);
    choice[key] = values.includes(wanted) ? wanted : key === "step" ? values.at(-1) : values[0];
    left = left.filter((each) => String(each[key]) === choice[key]);
  }
  const policy = given.get("scale");
  if (policy !== null && !POLICIES.includes(policy)) notes.push(`There is no scale “${policy.slice(0, 60)}”.`);
  choice.scale = POLICIES.includes(policy) ? policy : "amax";
  return { choice, notes, tensor: left[0] };
}

async function load(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: ${response.status}`);
  return response.json();
}

async function start(root) {
  const here = (name) => new URL(name, window.location.href.split(/[?#]/)[0]).href;
  const [index, table] = await Promise.all([load(here(root.dataset.index)), load(new URL("../../explorer/formats.json", import.meta.url).href)]);
  const formats = table.formats.map(readFormat).filter((fmt) => fmt.signed && (fmt.bits <= 8 || fmt.group === "16 bits") && fmt.group !== "IEEE P3109");
  if (!index.runs.length) {
    root.hidden = false;
    root.replaceChildren(element("p", { role: "status" }, element("strong", { textContent: "Pending: no recorded run has a histogram yet. " }),
      "A run records them with ", element("code", { textContent: "telemetry: {codes_every: 1, histograms: [weight, activation, grad_output]}" }), " in its config."));
    return;
  }
  const labels = new Map(table.formats.map(({ name, label }) => [name, label]));
  const loaded = new Map();
  const names = ["run", "layer", "operand", "step", "scale"];
  const titles = { run: "Run", layer: "Layer", operand: "Tensor", step: "Step", scale: "Scale" };
  const selects = Object.fromEntries(names.map((name) => [name, element("select", { id: `t-${name}` })]));
  const notes = element("div", { className: "notes", role: "status" });
  const about = element("p", { className: "summary", role: "status" });
  const output = element("div", { className: "format-table", role: "region", tabIndex: 0, "aria-label": "What each format makes of the tensor" });
  root.replaceChildren(element("div", { className: "controls" }, ...names.map((name) => element("div", { className: "field" }, element("label", { for: `t-${name}`, textContent: titles[name] }), selects[name]))), notes, about, output);

  const fill = (select, values, text, chosen) => select.replaceChildren(...values.map((value) => element("option", { value, textContent: text(value), selected: value === chosen })));
  let asked = 0;
  async function show() {
    const turn = (asked += 1);
    const query = window.location.search;
    const wanted = new URLSearchParams(query).get("run");
    const run = index.runs.find(({ id }) => id === wanted) ?? index.runs.find(({ kinds }) => kinds.includes("binades")) ?? index.runs[0];
    const said = wanted !== null && run.id !== wanted ? [`There is no run “${wanted.slice(0, 80)}” with histograms.`] : [];
    if (!loaded.has(run.id)) loaded.set(run.id, await load(here(run.file)));
    if (turn !== asked) return;
    const { tensors } = loaded.get(run.id);
    const { choice, notes: more, tensor } = choose(query, tensors);
    fill(selects.run, index.runs.map(({ id }) => id), (id) => index.runs.find((each) => each.id === id).label, run.id);
    const among = (key, fixed) => [...new Set(tensors.filter((each) => fixed.every((name) => String(each[name]) === choice[name])).map((each) => String(each[key])))];
    fill(selects.layer, among("layer", []), (name) => name, choice.layer);
    fill(selects.operand, among("operand", ["layer"]), (name) => index.operands[name] ?? name, choice.operand);
    fill(selects.step, among("step", ["layer", "operand"]), (step) => step, choice.step);
    fill(selects.scale, POLICIES, (name) => SCALES[name], choice.scale);
    const missing = Object.keys(index.operands).filter((name) => !run.operands.includes(name)).map((name) => index.operands[name]);
    const pending = missing.length ? [`This run has no histograms of ${missing.join(" and ")}: pending. A run records them with telemetry.histograms in its config.`] : [];
    notes.replaceChildren(...[...said, ...more, ...pending].map((text) => element("p", { textContent: text })));
    const nonzero = tensor.counts.reduce((sum, [, number]) => sum + number, 0);
    about.textContent = `${(nonzero + tensor.zeros).toLocaleString("en")} elements, ${tensor.zeros.toLocaleString("en")} of them zero, the largest ${readable(tensor.amax)}; `
      + `trained in ${labels.get(tensor.format) ?? tensor.format} with ${tensor.scaled}; `
      + (tensor.kind === "binades" ? "binades before rounding." : `codes after rounding to ${tensor.format.toUpperCase()}: figures are of a further rounding.`);
    output.replaceChildren(outcomeTable(tensor, choice.scale, formats));
  }
  for (const name of names) {
    selects[name].addEventListener("change", () => {
      const query = new URLSearchParams(Object.fromEntries(names.map((each) => [each, selects[each].value])));
      if (name === "run") for (const key of ["layer", "operand", "step"]) query.delete(key);
      window.history.pushState(null, "", `?${query}`);
      show();
    });
  }
  window.addEventListener("popstate", show);
  await show();
  root.hidden = false; // only now: what is below moves once, before it is seen
}

function outcomeTable(tensor, policy, formats) {
  const head = ["Format", "Kept", "Flushed", "Clipped", "SQNR", "Scale", ""];
  const rows = formats.map((fmt) => [fmt, outcome(tensor, fmt, policy)]);
  const bar = ({ kept, flushed, clipped }) => element("span", { className: "parts", "aria-hidden": "true" },
    ...[["kept", kept], ["flushed", flushed], ["clipped", clipped]].map(([name, part]) => {
      const piece = element("span", { className: `part ${name}` });
      piece.style.width = `${100 * part}%`;
      return piece;
    }));
  return element("table", { "aria-label": "What each format makes of the tensor" },
    element("thead", {}, element("tr", {}, ...head.map((text, place) => (text ? element("th", { scope: "col" }, ...(place in PARTS ? [element("span", { className: `part ${PARTS[place]}` })] : []), text) : element("td"))))),
    element("tbody", {}, ...rows.map(([fmt, found]) => element("tr", {},
      element("th", { scope: "row" }, fmt.label.replaceAll("_", " "), ...(fmt.name === tensor.format ? [" ", element("span", { className: "trained", textContent: `(${tensor.policy === policy ? "as trained" : "trained with another scale"})` })] : [])),
      ...[percent(found.kept), bounded(found.flushed, found.flushed_bounds), bounded(found.clipped, found.clipped_bounds),
        found.sqnr_db === null ? "nothing lost" : `${minus(found.sqnr_db.toFixed(1))} dB${fmt.name === tensor.format && tensor.kind === "binades" && tensor.recorded.sqnr_db !== undefined ? ` (recorded${tensor.policy === policy ? "" : ", with the scale of training"}: ${minus(tensor.recorded.sqnr_db.toFixed(1))})` : ""}`,
        scaleText(found.scale)].map((text) => element("td", { textContent: text })),
      element("td", {}, bar(found))))));
}

function scaleText(scale) {
  const power = Math.log2(scale);
  return Number.isInteger(power) && scale !== 1 ? `2^${minus(String(power))}` : readable(scale);
}

const root = globalThis.document?.getElementById("tensor-view");
if (root) {
  start(root).catch((error) => {
    root.hidden = false;
    root.replaceChildren(element("p", { role: "alert", textContent: `The histograms could not be loaded (${error.message}).` }));
  });
}
