// The table of runs as pure functions: columns in, rows that match and their order out, and the state as an address.

import { capital, minus } from "../figures.js";

const text = (value) => value ?? "";
const whole = (value) => (value === null ? "–" : String(value));
const rate = (value) => (value === null ? "not stated" : String(+value.toPrecision(6)));
const percent = (value) => (value === null ? "–" : value === 0 ? "0%" : `${+(100 * value).toPrecision(3)}%`);

const scope = (value) => text(value).replace(/^weights \+ activations \+ gradients/, "all operands");

let digits = 4;
const loss = (value) => (value === null ? "–" : minus(value.toFixed(digits)));
const NUMBERS = new Set([loss, whole, rate, percent]);
const column = (key, title, write = text, shown = true) => ({ key, title, write, shown, number: NUMBERS.has(write) });
/** What the config of an arm says, which its name may say too: parallel coordinates have it whether shown or not. */
export const COMMON = [
  column("format", "Format", text, false),
  column("scope", "Quantized", scope, false),
  column("rule", "Step rule", text, false),
  column("learning_rate", "Learning rate", rate),
];
const STEPS = ["max_steps", "Steps", whole];

/** What can be shown of an arm (its seeds together) and of a run; `shown` at first. */
export const COLUMNS = {
  arms: [
    column("label", "Arm"),
    column("arm", "Id of the arm", text, false),
    ...COMMON,
    column(...STEPS),
    column("val_loss", "Validation loss", loss),
    column("low", "95% from", loss),
    column("high", "95% to", loss),
    column("n", "Seeds", whole),
    column("finished", "Finished", whole, false),
    column("counted", "Runs and how they ended", text, false),
    column("runs", "Runs", whole, false),
    column("stall_ratio", "Stall ratio", percent, false),
    column("studies", "Studies", text, false),
  ],
  runs: [
    column("id", "Run"),
    column("label", "Arm"),
    column("arm", "Id of the arm", text, false),
    column("seed", "Seed", whole),
    column("status", "Status"),
    column("failure", "Why it failed"),
    ...COMMON,
    column(...STEPS, false),
    column("final_val_loss", "Validation loss", loss),
    column("last_step", "Last step", whole, false),
    column("n", "Seeds of its arm", whole, false),
    column("stall_ratio", "Stall ratio", percent, false),
    column("study", "Study"),
    column("wandb", "W&B run", (value) => (value ? "W&B run" : ""), false),
  ],
};
export const PAGE = 50;

/** Filters by their key in the address: what a row has to have, or at least to have (`least`). */
export const FILTERS = {
  format: { key: "format", title: "Format" },
  rate: { key: "learning_rate", title: "Learning rate" },
  steps: { key: "max_steps", title: "Steps" },
  seeds: { key: "n", title: "Seeds", least: true },
  status: { key: "status", title: "Status", ofRun: true },
  study: { key: "study", title: "Study", ofRun: true },
};
/** Corners of the chart by which of x and y is the better the lower ("") or the higher it is. */
export const CORNERS = { "": "lower left", x: "lower right", y: "upper left", xy: "upper right" };
export const CHARTS = { "": "no chart", scatter: "two columns", parallel: "all shown columns" };
const NO_STATE = { rows: "arms", text: "", ...Object.fromEntries(Object.keys(FILTERS).map((name) => [name, ""])), tuning: "", sort: "", page: 1, chart: "", x: "", y: "", better: "" };

/** By what rows are sorted where the address does not say it; "" as recorded. */
const best = { arms: "", runs: "" };
export const sorting = (state) => state.sort || best[state.rows];
const UNSTATED = new Set([null, "", "not stated"]);
/** Columns that are there only where a run states them, the names that an address has for something else, and most values of a filter. */
const [OPTIONAL, TAKEN, MOST_CHOICES] = [new Set(["format", "scope", "rule", "learning_rate", "max_steps", "stall_ratio"]), new Set(["columns", "chosen", "q", "h"]), 24];

const expand = (values) => (Array.isArray(values) ? values : values.codes.map((code) => (code === null ? null : values.words[code])));

/** The two tables of the file that altgrad.reports.compare.table_json writes: {arms, runs}, each {length, columns: {key: values}}, and the styles of formats. */
export function decode(data) {
  const columns = (part) => Object.fromEntries(Object.entries(part).map(([key, values]) => [key, expand(values)]));
  const arms = columns(data.arms);
  const runs = columns(data.runs);
  const armRow = runs.arm;
  for (const key of ["arm", "label", "format", "scope", "rule", "learning_rate", "max_steps", "n"]) {
    runs[key] = armRow.map((row) => arms[key][row]);
  }
  runs.id = runs.name.map((name, row) => (runs.hash[row] === null ? name : `${name}-s${runs.seed[row]}-${runs.hash[row]}`));
  const made = (found) => ({ length: found.arm.length, columns: found, orders: new Map(), texts: new Map() });
  return { arms: made(arms), runs: { ...made(runs), armRow }, styles: data.styles };
}

const numeric = (values) => values.every((value) => value === null || Number.isFinite(Number(value)));

/** Let columns and filters be those of a site: its metric, and the keys that its arms differ in; what none states is not there or not shown at first. */
export function fit(tables, { metric, keys }) {
  const arms = tables.arms.columns;
  const { better } = metric;
  ({ digits } = metric);
  const others = arms.format.every((format) => format === "not stated");
  if (others) {
    [FILTERS.study.title, FILTERS.seeds.title] = ["Project", "Averaged runs"];
    for (const [rows, key] of [["arms", "val_loss"], ["runs", "final_val_loss"]]) best[rows] = better === "higher" ? `-${key}` : key;
  }
  for (const [rows, columns] of Object.entries(COLUMNS)) {
    const own = Object.entries(keys).map(([key, values]) => column(`config ${key}`, key, numeric(values) ? rate : (value) => value ?? "not stated"));
    columns.splice(columns.findIndex(({ key }) => key === "learning_rate") + 1, 0, ...own);
    columns.splice(0, columns.length, ...columns.filter(({ key }) => !OPTIONAL.has(key) || !tables[rows].columns[key].every((value) => UNSTATED.has(value))));
    for (const each of columns) {
      if (each.key === "val_loss" || each.key === "final_val_loss") each.title = capital(metric.title);
      if (others) each.title = each.title.replace(/^Stud(?:y|ies)$/, "Project").replace(/^Seeds/, "Averaged runs");
      if (each.shown && !each.key.endsWith("val_loss")) each.shown = (tables[rows].columns[each.key] ?? [each]).some((value) => value !== null);
    }
  }
  for (const [key, values] of Object.entries(keys)) {
    const own = arms[`config ${key}`] = numeric(values) ? values.map((value) => value && Number(value)) : values;
    tables.runs.columns[`config ${key}`] = tables.runs.armRow.map((row) => own[row]);
    if (new Set(own).size > MOST_CHOICES) continue;
    const name = key in NO_STATE || TAKEN.has(key) ? `config ${key}` : key;
    FILTERS[name] = { key: `config ${key}`, title: key };
    NO_STATE[name] = "";
  }
}

/** The values of a filter in order, as [what the address says, what a reader sees]. */
export function choices(tables, name) {
  const { key, ofRun, least } = FILTERS[name];
  const values = [...new Set(tables[ofRun ? "runs" : "arms"].columns[key])].filter((value) => value || (value === 0 && !least));
  return values.sort((a, b) => collator.compare(a, b)).map((value) => [String(value), least ? `${value} or more` : String(value)]);
}

/** What a column shows in each row, in small letters. */
function texts(table, { key, write }) {
  if (!table.texts.has(key)) table.texts.set(key, table.columns[key].map((value) => write(value).toLowerCase()));
  return table.texts.get(key);
}

const collator = new Intl.Collator("en", { numeric: true });

/** All rows in the order of `sort` ("val_loss", "-val_loss", "" as recorded); empty values last, ties as recorded. */
export function order(table, sort) {
  if (!table.orders.has(sort)) {
    const found = Array.from({ length: table.length }, (_, row) => row);
    const key = sort.replace(/^-/, "");
    const values = table.columns[key];
    if (values) {
      const words = values.some((value) => typeof value === "string") && [...new Set(values)].sort((a, b) => collator.compare(a ?? "", b ?? ""));
      const ranks = words && new Map(words.map((word, rank) => [word, rank]));
      const number = values.map((value) => (value === null || value === "" ? NaN : ranks ? ranks.get(value) : value));
      const sign = sort.startsWith("-") ? -1 : 1;
      found.sort((a, b) => {
        const [x, y] = [number[a], number[b]];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
        return sign * (x - y) || a - b;
      });
    }
    table.orders.set(sort, found);
  }
  return table.orders.get(sort);
}

const OTHER_NAMES = {
  loss: ["val_loss", "final_val_loss"], val_loss: ["final_val_loss"], rate: ["learning_rate"], lr: ["learning_rate"], steps: ["max_steps"],
  seeds: ["n"], stall: ["stall_ratio"], quantized: ["scope"], study: ["studies"], studies: ["study"], run: ["id"],
};
const COMPARE = { "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b };

/** What a column is called in a text or an address: its key, one of a config without its mark. */
const short = ({ key }) => key.replace(/^config /, "");

/** The column that a name means: its key, another name of it, a key of a config or the last part of one, if of one alone. */
function named(name, rows) {
  const columns = COLUMNS[rows];
  const meant = [name, ...(Object.hasOwn(OTHER_NAMES, name) ? OTHER_NAMES[name] : [])];
  const found = columns.find(({ key }) => meant.includes(key)) ?? columns.find((column) => short(column).toLowerCase() === name.toLowerCase());
  const ends = columns.filter(({ key }) => key.startsWith("config ") && key.toLowerCase().endsWith(`.${name.toLowerCase()}`));
  return found ?? (ends.length === 1 ? ends[0] : undefined);
}

/**
 * What a text asks for: words that a row has to show, and conditions such as `loss<2.2`, `format=E4M3,E5M2` or
 * `quantized="all operands"` on any column, shown or not; in `problems` what of it cannot be read.
 *
 * Returns {words, conditions: [{column, sign, values, texts}], problems}. A condition without a value is still being typed.
 */
export function parse(given, rows) {
  const found = { words: [], conditions: [], problems: [] };
  const parts = given.toLowerCase().replace(/\s*([<>!]=|[<>=])\s*/g, "$1").match(/(?:"[^"]*"?|[^\s"])+/g) ?? [];
  for (const part of parts.map((each) => each.replaceAll('"', ""))) {
    const [, name, sign, value] = /^([\w./-]+)([<>!]=|[<>=])(.*)$/.exec(part) ?? [];
    if (!name) {
      if (part) found.words.push(part);
      continue;
    }
    const column = named(name, rows);
    const texts = value.split(",").filter(Boolean);
    const values = column?.number ? texts.map((each) => (each.endsWith("%") ? Number(each.slice(0, -1)) / 100 : Number(each.replace("−", "-")))) : texts;
    if (!column) found.problems.push(`there is no column ${name}: ${COLUMNS[rows].map(short).join(", ")}`);
    else if (!column.number && /[<>]/.test(sign)) found.problems.push(`${name} is text: = or !=, not ${sign}`);
    else if (values.some(Number.isNaN)) found.problems.push(`${name} is a number, not ${value}`);
    else if (values.length) found.conditions.push({ column, sign, values, texts });
  }
  return found;
}

/** Whether a row meets a condition: any of its values, of `!=` all. A cell without a number meets only `!=`. */
function meets(table, { column, sign, values, texts: asked }) {
  const shown = texts(table, column);
  const raw = table.columns[column.key];
  const is = (row, place) => shown[row] === asked[place] || (column.number ? raw[row] === values[place] : shown[row].split(", ").includes(asked[place]));
  if (sign === "=") return (row) => asked.some((_, place) => is(row, place));
  if (sign === "!=") return (row) => !asked.some((_, place) => is(row, place));
  return (row) => raw[row] !== null && values.some((value) => COMPARE[sign](raw[row], value));
}

/**
 * The rows of `tables[state.rows]` that meet every filter and what the text asks for, in order.
 *
 * Every word of `text` has to stand in what the row shows. Runs of tuning studies are left out but by `tuning`, or where
 * their study is asked for. An arm meets these, `status` and `study` by any one of its runs that meets them all.
 */
export function select(tables, state) {
  const { arms, runs } = tables;
  const table = tables[state.rows];
  const { words, conditions } = parse(state.text, state.rows);
  const { status, study, role } = runs.columns;
  const ofRun = (row) => (!state.status || status[row] === state.status) && (state.study ? study[row] === state.study : state.tuning || role[row] !== "tuning");
  const tests = conditions.map((condition) => meets(table, condition));
  if (state.rows === "runs") {
    tests.push(ofRun);
  } else {
    const found = new Set();
    for (let row = 0; row < runs.length; row += 1) if (ofRun(row)) found.add(runs.armRow[row]);
    tests.push((row) => found.has(row));
  }
  for (const [name, { key, ofRun: own, least }] of Object.entries(FILTERS)) {
    const wanted = state[name];
    const values = table.columns[key];
    if (wanted && !own) tests.push(least ? (row) => values[row] >= Number(wanted) : (row) => String(values[row]) === wanted);
  }
  const shown = shownColumns(state).map((column) => texts(table, column));
  for (const word of words) tests.push((row) => shown.some((column) => column[row].includes(word)));
  return order(table, sorting(state)).filter((row) => tests.every((test) => test(row)));
}

/** Names that are like one that is none, the nearest first. */
export function near(name, names, most = 3) {
  const pairs = (word) => new Set(Array.from(word.slice(0, 200).toLowerCase(), (_, place) => word.slice(place, place + 2).toLowerCase()));
  const own = pairs(name);
  const like = names.map((other) => {
    const found = pairs(other);
    const common = [...found].filter((pair) => own.has(pair)).length;
    return { other, share: common / own.size, likeness: common / (own.size + found.size) };
  });
  return like.filter(({ share }) => share > 0.5).sort((a, b) => b.likeness - a.likeness).slice(0, most).map(({ other }) => other);
}

/** The columns of a state that are shown, in their usual order. */
export function shownColumns(state) {
  const all = COLUMNS[state.rows];
  return all.filter(state.columns ? ({ key }) => state.columns.includes(key) : ({ shown }) => shown);
}

/**
 * What an address says ("?text=loss<2.2&sort=-val_loss"), and in words what of it there is not.
 *
 * State: {rows: "arms" or "runs", text, the keys of `FILTERS`, tuning ("" or "shown"), sort, page, columns (null: the
 * usual ones), chart, x, y, better (the corner of the chart that is best), chosen}.
 */
export function readState(search, tables) {
  const given = new URLSearchParams(search);
  const problems = [];
  const say = (what) => problems.push(what.length > 120 ? `${what.slice(0, 120)}…` : what);
  const state = { ...NO_STATE, columns: null, chosen: [], text: given.get("text") ?? "" };
  const one = (name, allowed, what) => {
    const value = given.get(name);
    if (value === null || value === "") return;
    if (allowed.includes(value)) state[name] = value;
    else say(what(value));
  };
  one("rows", ["arms", "runs"], (value) => `rows are arms or runs, not ${value}`);
  for (const name of Object.keys(FILTERS)) one(name, choices(tables, name).map(([value]) => value), (value) => `no run has ${name} ${value}`);
  one("tuning", ["shown"], (value) => `tuning is shown or not there, not ${value}`);
  one("chart", Object.keys(CHARTS), (value) => `there is no chart ${value}`);
  one("better", Object.keys(CORNERS), (value) => `there is no corner ${value}`);
  const keys = COLUMNS[state.rows].map(({ key }) => key);
  if (given.has("columns")) {
    const asked = given.get("columns").split(",").filter(Boolean);
    const wanted = asked.map((name) => named(name, state.rows)?.key);
    asked.forEach((name, place) => { if (!wanted[place]) say(`there is no column ${name}`); });
    const known = keys.filter((key) => wanted.includes(key));
    if (known.length) state.columns = known;
  }
  for (const axis of ["x", "y"]) one(axis, keys, (value) => `there is no column ${value}`);
  const sort = given.get("sort") ?? "";
  const by = sort && named(sort.replace(/^-/, ""), state.rows);
  if (by) state.sort = `${sort.startsWith("-") ? "-" : ""}${by.key}`;
  else if (sort) say(`there is no column ${sort.replace(/^-/, "")}`);
  const page = Number(given.get("page") ?? 1);
  if (Number.isInteger(page) && page >= 1) state.page = page;
  else say(`there is no page ${given.get("page")}`);
  const known = new Set(tables.arms.columns.arm);
  for (const arm of new Set((given.get("chosen") ?? "").split(",").filter(Boolean))) {
    if (known.has(arm)) state.chosen.push(arm);
    else say(`there is no arm ${arm}`);
  }
  return { state, problems };
}

/** The address of a state: "" for the usual one, else "?" and what differs. */
export function writeState(state) {
  const found = new URLSearchParams();
  for (const [key, usual] of Object.entries(NO_STATE)) if (state[key] !== usual) found.set(key, state[key]);
  if (state.columns) found.set("columns", state.columns.join(","));
  if (state.chosen.length) found.set("chosen", state.chosen.join(","));
  const query = found.toString().replaceAll("%2C", ",");
  return query && `?${query}`;
}

/** What some reader takes for the end of a row or of a cell, and where a spreadsheet sees a formula (altgrad/text.py). */
const BREAKS = /[\r\n\t\f\v\x1c-\x1e\x85\u2028\u2029]+/g;
const FORMULA = /^\s*(?=[=@＝＠]|[+＋－-](?!(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$))|;\s*(?=[=@＝＠]|[+＋－-]\s*(?:[^\s\d.]|[\d.]+(?:e[+-]?\d+)?\s*[-+*/^&|!=<>%]))/g;

/** Rows as CSV: a header of keys, numbers as recorded. Text that a spreadsheet would run as a formula gets a quote mark. */
export function toCsv(table, rows, columns) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const safe = value.replace(BREAKS, " ").replace(FORMULA, "$&'");
    return /[",]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const lines = [columns.map(({ key }) => cell(key)), ...rows.map((row) => columns.map(({ key }) => cell(table.columns[key][row])))];
  return `${lines.map((line) => line.join(",")).join("\n")}\n`;
}

/** Where an arm's page, one of its runs on it, and its file are, as seen from a page one level below the site's root; "" for one without a page. */
export function places(tables, row) {
  const arm = tables.arms.columns.arm[row];
  const study = tables.arms.columns.study_page[row];
  if (study === "index") return { page: "", run: () => "", file: "" };
  const page = study ? `../runs/${encodeURIComponent(study)}/` : `../runs/${encodeURIComponent(arm)}/`;
  return {
    page: study ? `${page}#${slug(arm)}` : page,
    run: (id) => `${page}#${slug(id)}`,
    file: `../runs/${study ? `${encodeURIComponent(study)}.` : ""}${encodeURIComponent(arm)}.curves.json`,
  };
}

/** The anchor of a name, as altgrad.site.slug makes it. */
export function slug(name) {
  const plain = name.normalize("NFKD").replace(/[^\x00-\x7f]/g, "").toLowerCase();
  return plain.replace(/[^a-z0-9_]+/g, "-").replace(/^-+|-+$/g, "") || "section";
}
