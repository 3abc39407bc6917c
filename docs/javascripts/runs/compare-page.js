// The Compare page: arms chosen here, in the table of runs or by the address, drawn and put side by side.

import { band, element, gaps, plotCurves } from "../curves.js";
import { capital, minus, swatchOf } from "../figures.js";
import { AXES, BANDS, MOST, curvesOf, differences, finalLosses, health, interval, lineStyles, paired, readState, shortened, smoothed, writeState } from "./compare.js";
import { button, choice, field, say, status } from "./controls.js";
import { decode, near, places } from "./table.js";

const STATISTIC_NAMES = { overflow: "Overflow", underflow: "Underflow", sqnr_db: "SQNR", stall_ratio: "Stall ratio" };
const unit = (statistic) => (statistic === "sqnr_db" ? " (dB)" : " (%)");
const OPERAND_NAMES = { weight: "weights", activation: "activations", grad_output: "gradients", update: "" };
/** A, B, ... Z, AA, AB, ... */
const letter = (place) => (place < 26 ? "" : letter(Math.floor(place / 26) - 1)) + String.fromCharCode(65 + (place % 26));

const loss = (value, digits = 4) => (Number.isFinite(value) ? minus(value.toFixed(digits)) : "–");
const signed = (value, digits = 4) => (Number.isFinite(value) ? minus(`${value > 0 ? "+" : ""}${value.toFixed(digits)}`) : "–");
const percent = (value) => (value === null ? "–" : value > 0 && value < 1e-4 ? "<0.01" : String(+(100 * value).toPrecision(3)));
const decibel = (value) => (value === null ? "–" : minus(value.toFixed(1)));

function tableBox(label, headings, rows) {
  const align = (place) => (rows.length && rows[0][place] instanceof Element && rows[0][place].className === "number" ? "number" : "");
  const head = element("thead", {}, element("tr", {}, ...headings.map((heading, place) => element("th", { scope: "col", className: align(place) }, heading))));
  const body = element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map((cell) => (cell instanceof Element && /^T[HD]$/.test(cell.tagName) ? cell : element("td", {}, cell))))));
  const table = element("table", { className: "data" }, head, body);
  table.setAttribute("aria-label", label);
  const box = element("div", { className: "table-box", tabIndex: 0 }, table);
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", label);
  return box;
}

const rowHead = (...children) => element("th", { scope: "row" }, ...children);
const number = (text) => element("td", { className: "number", textContent: text });

function start(root, data) {
  const tables = decode(data);
  const { t } = data;
  const rowOf = new Map(tables.arms.columns.arm.map((arm, row) => [arm, row]));
  const about = (arm, key) => tables.arms.columns[key][rowOf.get(arm)];
  const { state, problems, unknown } = readState(location.search, rowOf);

  const files = new Map();
  const load = (arm) => {
    if (!files.has(arm)) {
      const { file } = places(tables, rowOf.get(arm));
      files.set(arm, !file ? Promise.reject(new Error("only the best arms have a page and curves here")) : fetch(new URL(file, document.baseURI)).then((answer) => {
        if (!answer.ok) throw new Error(`${answer.status}`);
        return answer.json();
      }));
    }
    return files.get(arm);
  };

  const note = status("note");
  const said = status("count");
  const names = element("datalist", { id: "arm-names" }, ...tables.arms.columns.arm.map((value) => element("option", { value, label: about(value, "label") })));
  const added = element("input", { type: "search", autocomplete: "off", spellcheck: false, placeholder: "name or id" });
  added.setAttribute("list", names.id);
  const add = element("form", { className: "add" },
    element("label", { className: "field" }, element("span", { textContent: "Add an arm" }), added),
    element("button", { textContent: "Add" }), names);
  add.addEventListener("submit", (event) => {
    event.preventDefault();
    const arm = added.value.trim();
    if (!arm) return;
    if (addArm(arm)) added.value = "";
  });

  function addArm(arm) {
    if (!rowOf.has(arm)) told([], [arm]);
    else if (state.arms.includes(arm)) told([`${arm} is here already`]);
    else if (state.arms.length >= MOST) told([`at most ${MOST} arms at once`]);
    else {
      state.arms.push(arm);
      told([]);
      show();
      return true;
    }
    return false;
  }

  /** Say what went wrong; of names that no arm has, which ones are near, to add with a click. */
  function told(lines, names = []) {
    const like = [...new Set(names.flatMap((name) => near(name, tables.arms.columns.arm)))];
    const missing = names.map((name) => `there is no arm ${name.length > 100 ? `${name.slice(0, 100)}…` : name}`);
    say(note, [...missing, ...lines], ...(like.length ? [" Like it: ", ...like.map((arm) => button(arm, () => addArm(arm)))] : []));
  }

  const chosen = (label, options, key) => {
    const select = choice(Object.entries(options));
    select.value = state[key];
    select.addEventListener("change", () => { state[key] = select.value; drawCurves(); });
    return field(label, select);
  };
  const weight = element("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: state.smooth });
  const weightText = element("span");
  weight.addEventListener("input", () => { state.smooth = Number(weight.value); drawCurves(); });
  const each = element("input", { type: "checkbox", checked: state.each });
  each.addEventListener("change", () => { state.each = each.checked; drawCurves(); });
  let plot;
  const zoom = (text, ariaLabel, onclick) => button(text, onclick, { ariaLabel });
  const metricChoice = chosen("Curve", {}, "metric");
  const controls = element("div", { className: "filters" },
    metricChoice, chosen("Horizontal axis", AXES, "axis"), chosen("Band", BANDS, "band"),
    field("Smoothing", weight, " ", weightText),
    element("label", { className: "check" }, each, " each run"),
    element("span", { className: "zoom" }, zoom("+", "Zoom in", () => plot?.zoom(0.5)), zoom("−", "Zoom out", () => plot?.zoom(2)), zoom("Reset", "Reset zoom", () => plot?.reset())));
  const host = element("div", { className: "curves" });
  host.setAttribute("role", "img");
  const readout = element("p", { className: "readout" });
  const curves = element("section", {}, element("h2", { textContent: "Curves" }), controls, host, readout, element("p", { className: "small", textContent: "Line: mean over seeds, where the same seeds stand at every point; else thin lines, one a run. Pale line: the mean without smoothing. A difference is taken at the same step of the same seed. The table above has the final values." }));
  const arms = element("section");
  const configs = element("section");
  const looks = element("section");
  const suggestions = element("section");
  root.classList.add("compare-arms");
  root.append(add, note, said, suggestions, arms, curves, configs, looks);

  let loaded = [];
  let baseline = null;
  const mark = (file) => letter(loaded.indexOf(file));
  let labels = new Map();
  const name = (file) => `${mark(file)} · ${labels.get(file)}`;
  /** Its name at the end of its line, whole parts of it as far as there is room; values without their keys where not all have it. */
  const legend = (file) => {
    const most = host.clientWidth > 700 ? 36 : 14;
    const whole = loaded.every((each) => name(each).length <= most);
    const parts = (whole ? name(file) : name(file).replace(/[^\s,=]+=|learning rate /g, "")).split(", ");
    while (parts.length > 1 && parts.join(", ").length > most) parts.pop();
    const [counted] = about(file.arm, "counted").split(", ");
    return parts.join(", ").slice(0, most) + (counted.includes(" of ") ? ` (${counted})` : "");
  };
  /** The style of its format; of arms that state none a colour each. */
  const styleOf = (file) => file.style ?? [`--chart-${1 + (loaded.filter(({ style }) => !style).indexOf(file) % 8)}`, []];
  const line = (file) => lineStyles(loaded.map((one) => (one === baseline ? [styleOf(one)[0], [4, 3]] : styleOf(one))), data.dashes)[loaded.indexOf(file)];
  const swatch = (file) => swatchOf(line(file).colour, line(file).dash);
  const headings = () => loaded.map((file) => element("span", { title: file.arm }, element("span", { className: "mark" }, swatch(file), mark(file)), element("br"), ...labels.get(file).split(/(?<=\/)/).flatMap((part) => [part, element("wbr")])));
  /** Two arms are compared by what both end with. */
  const alike = (file) => file.metric && baseline.metric && file.metric.name === baseline.metric.name && file.data === baseline.data;
  const metric = () => {
    const names = curvesOf(loaded);
    if (state.metric in names) return state.metric;
    return baseline && loaded.length > 1 && loaded.some((file) => file !== baseline && alike(file)) ? "gap" : loaded.find((file) => file.metric)?.metric.name;
  };

  function save() {
    history.replaceState(null, "", `${location.pathname}${writeState(state)}${location.hash}`);
  }

  let turn = 0;
  async function show() {
    const mine = ++turn;
    save();
    const failed = [];
    const get = async (arm) => load(arm).catch((error) => { failed.push(`${arm} could not be read (${error.message})`); return null; });
    const own = (await Promise.all(state.arms.map(get))).filter(Boolean);
    let base = state.baseline;
    if (base === null) base = own.find((file) => about(file.arm, "scope") === "nothing")?.arm ?? own[0]?.baseline ?? null;
    const other = own.length && base !== null && base !== "none" && rowOf.has(base) ? own.find((file) => file.arm === base) ?? await get(base) : null;
    if (mine !== turn) return;
    baseline = other;
    loaded = other && !own.includes(other) ? [...own, other] : own;
    labels = new Map(shortened(loaded.map(({ arm }) => about(arm, "label"))).map((label, place) => [loaded[place], label]));
    const names = Object.entries(curvesOf(loaded));
    metricChoice.lastChild.replaceChildren(...names.map(([value, textContent]) => element("option", { value, textContent })));
    if (state.metric && !names.some(([value]) => value === state.metric)) {
      if (loaded.length) failed.push(`no arm here has a curve of ${state.metric.slice(0, 100)}`);
      state.metric = null;
      save();
    }
    if (failed.length) told(failed);
    const some = loaded.length > 0;
    for (const part of [arms, curves, configs, looks]) part.hidden = !some;
    suggestions.hidden = some;
    said.textContent = some ? `${loaded.length} ${loaded.length === 1 ? "arm" : "arms"}${baseline ? `, baseline ${name(baseline)}` : ", no baseline"}` : "No arms are chosen.";
    if (some) {
      armTable();
      configTable();
      healthTable();
      await drawCurves();
    } else {
      plot?.destroy();
      plot = undefined;
      suggest();
    }
    if (mine === turn) root.dataset.ready = String(mine);
  }

  function suggest() {
    const items = data.suggested.map(({ label, arms: chosen, baseline: base }) => {
      const link = element("a", { textContent: label, href: writeState({ ...state, arms: chosen, baseline: base }) });
      return element("li", {}, link);
    });
    suggestions.replaceChildren(element("p", {}, "Choose arms in ", element("a", { href: "../runs/", textContent: "the table of runs" }), items.length ? ", add one by its name, or begin with one of these:" : ", or add one by its name."), element("ul", {}, ...items));
  }

  function armTable() {
    const rows = loaded.map((file) => {
      const { arm } = file;
      const isBase = file === baseline;
      const losses = interval([...finalLosses(file).values()], t);
      const gap = baseline && !isBase && alike(file) ? paired(file, baseline, t) : null;
      const digits = file.metric?.digits;
      const pick = element("input", { type: "radio", name: "baseline", checked: isBase, ariaLabel: `Baseline: ${arm}` });
      pick.addEventListener("change", () => { change(arm); });
      const remove = button("×", () => {
        state.arms = state.arms.filter((one) => one !== arm);
        if (isBase) state.baseline = "none";
        show().then(() => added.focus());
      }, { ariaLabel: `Remove ${arm}` });
      const difference = isBase ? "baseline" : !baseline ? "–" : gap === null ? (file.data === baseline.data ? "another metric" : "other training data") : signed(gap.mean, digits);
      return [
        rowHead(swatch(file), `${mark(file)} · `, element("a", { href: places(tables, rowOf.get(arm)).page, textContent: about(arm, "label"), title: arm })),
        about(arm, "counted"),
        number(loss(losses.mean, digits)),
        ...(baseline ? [number(difference),
        number(gap ? (gap.n < 2 ? "none" : `[${signed(gap.low, digits)}, ${signed(gap.high, digits)}]`) : "–"),
        number(gap ? String(gap.n) : "–")] : []),
        element("td", {}, pick), element("td", {}, remove),
      ];
    });
    const metrics = new Map(loaded.filter(({ metric }) => metric).map(({ metric }) => [metric.name, metric]));
    const one = metrics.size === 1 && metrics.values().next().value;
    const title = one ? capital(one.title) : "Last value";
    const box = tableBox("Chosen arms", ["Arm", "Runs", title, ...(baseline ? ["Difference", "95% interval", "Pairs"] : []), "Baseline", element("span", { className: "sr", textContent: "Remove" })], rows);
    const none = button("No baseline", () => { change("none"); });
    none.disabled = !baseline;
    const what = one ? `${one.unit ? `, ${one.unit}` : ""}; ${one.better} is better` : ", of each arm’s own metric";
    const differs = baseline ? "Difference: minus the baseline’s, paired by seed, with the 95% t interval of the mean over the pairs; runs of tuning studies are held out. One interval in twenty misses; this table does not adjust for many comparisons." : "Choose a baseline to see the differences to it.";
    const text = `${title}: mean of the finished runs at their last evaluation${what}. ${differs}`;
    arms.replaceChildren(element("h2", { textContent: "Arms and paired differences" }), box, none, element("p", { className: "small", textContent: text }));
  }

  function change(base) {
    if (baseline && !state.arms.includes(baseline.arm) && state.arms.length < MOST) state.arms.push(baseline.arm);
    state.baseline = base;
    show().then(() => arms.querySelector("input:checked")?.focus());
  }

  function configTable() {
    const found = differences(loaded);
    const title = element("h2", { textContent: "Configs: only the differences" });
    if (!found.length) {
      const text = loaded.length > 1 ? "Their configs do not differ." : "One arm alone: nothing to differ from.";
      configs.replaceChildren(title, element("p", { textContent: text }));
      return;
    }
    const rows = found.map(({ key, values }) => [rowHead(element("code", { textContent: key })), ...values.map((value) => value ?? "not stated")]);
    configs.replaceChildren(title, tableBox("Config differences", ["Key", ...headings()], rows));
  }

  function healthTable() {
    const all = health(loaded);
    const calm = (statistic) => all.filter((row) => row.statistic === statistic).every(({ values }) => values.every((value) => value === null || value === 0));
    const zero = ["overflow", "underflow"].filter((statistic) => all.some((row) => row.statistic === statistic) && calm(statistic));
    const rows = all.filter(({ statistic }) => !zero.includes(statistic)).map(({ statistic, operand, layerType, values }) => [
      rowHead((STATISTIC_NAMES[statistic] ?? statistic) + unit(statistic)), OPERAND_NAMES[operand] ?? operand, layerType,
      ...values.map((value) => number(statistic === "sqnr_db" ? decibel(value) : percent(value))),
    ]);
    const title = element("h2", { textContent: "Health at the last look" });
    const calmText = zero.length ? ` ${zero.map((statistic) => STATISTIC_NAMES[statistic]).join(" and ")}: 0 in every layer.` : "";
    const text = all.length
      ? `Means over the layers of a type and over the finished runs; overflow and underflow are fractions of the nonzero elements, the stall ratio is the share of proposed changes that left the stored code as it was.${calmText}`
      : "None of these arms recorded figures of its layers.";
    looks.replaceChildren(title, element("p", { textContent: text }));
    looks.hidden = !all.length;
    if (rows.length) looks.append(tableBox("Health at the last look", ["Figure", "Operand", "Layers", ...headings()], rows));
  }

  let drawing = Promise.resolve();
  let wanted = false;
  /** One drawing at a time; what was asked for meanwhile is drawn once, after it. */
  function drawCurves() {
    save();
    weightText.textContent = state.smooth ? String(state.smooth) : "off";
    if (!wanted) {
      wanted = true;
      drawing = drawing.then(redraw);
    }
    return drawing;
  }

  async function redraw() {
    wanted = false;
    plot?.destroy();
    plot = undefined;
    host.replaceChildren();
    const key = metric();
    metricChoice.lastChild.value = key;
    const settings = { metric: key, axis: state.axis, kind: state.band, t };
    const pairs = (file) => (baseline && alike(file) ? gaps(file, baseline) : []);
    const groups = loaded.map((file) => {
      const own = key === "gap" ? pairs(file) : file.runs;
      const runs = smoothed(own, key, state.smooth);
      return {
        label: legend(file), runs, ...line(file),
        band: band(runs, settings), ghost: state.smooth > 0 ? band(own, settings) : undefined,
      };
    });
    const drawn = groups.filter((group) => group.band.x.length);
    const what = `${curvesOf(loaded)[key]} by ${AXES[state.axis]}`;
    const { digits } = loaded.find((file) => file.metric)?.metric ?? {};
    const write = (value) => (key === "gap" ? signed : loss)(value, digits);
    host.setAttribute("aria-label", `${what}: ${drawn.map(({ label, band: { mean } }) => `${label} from ${write(mean[0])} to ${write(mean.at(-1))}`).join("; ") || "nothing recorded"}`);
    const missing = drawn.length < groups.length ? `Without ${what}: ${groups.filter((group) => !drawn.includes(group)).map(({ label }) => label).join(", ")}.` : "";
    readout.textContent = missing;
    if (!drawn.length) return;
    plot = await plotCurves(host, drawn, {
      metric: key, axis: state.axis, xLabel: AXES[state.axis], height: Math.max(340, 60 + 14 * drawn.length), each: state.each,
      onPoint: (text) => { readout.textContent = text || missing; },
    });
  }

  new MutationObserver(() => loaded.length && drawCurves()).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
  new ResizeObserver(() => plot?.resize(Math.max(host.clientWidth, 240))).observe(host);
  told(problems, unknown);
  show();
}

const root = document.querySelector("#compare-arms");
if (root) {
  // The sorting of tables.js is for those that are there before this one: it runs before the document is ready.
  const ready = new Promise((resolve) => { document.addEventListener("DOMContentLoaded", resolve, { once: true }); });
  fetch(new URL("../runs/index.table.json", document.baseURI))
    .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(`table.json: ${answer.status}`))))
    .then((data) => ready.then(() => data))
    .then((data) => start(root, data))
    .catch((error) => {
      root.dataset.ready = "";
      root.replaceChildren(element("p", { role: "alert", textContent: `The runs could not be loaded (${error.message}).` }));
    });
}
