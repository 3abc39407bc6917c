// The table of runs as pure functions: columns in, rows that match and their order out, and the state as an address.

const text = (value) => value ?? "";
const fixed = (digits) => (value) => (value === null ? "–" : value.toFixed(digits).replace(/^-/, "−"));
const whole = (value) => (value === null ? "–" : String(value));
const rate = (value) => (value === null ? "not stated" : String(+value.toPrecision(6)));
const percent = (value) => (value === null ? "–" : value === 0 ? "0%" : `${+(100 * value).toPrecision(3)}%`);

const scope = (value) => text(value).replace(/^weights \+ activations \+ gradients/, "all operands");

const column = (key, title, write = text, shown = true) => ({ key, title, write, shown, number: write !== text && write !== scope });
const COMMON = [
  column("format", "Format"),
  column("scope", "Quantized", scope),
  column("rule", "Step rule"),
  column("learning_rate", "Learning rate", rate),
];
const STEPS = ["max_steps", "Steps", whole];

/** What can be shown of an arm (its seeds together) and of a run; `shown` at first. */
export const COLUMNS = {
  arms: [
    column("arm", "Arm"),
    ...COMMON,
    column(...STEPS),
    column("val_loss", "Validation loss", fixed(4)),
    column("low", "95% from", fixed(4)),
    column("high", "95% to", fixed(4)),
    column("n", "Seeds", whole),
    column("finished", "Finished", whole, false),
    column("runs", "Runs", whole, false),
    column("stall_ratio", "Stall ratio", percent, false),
    column("studies", "Studies", text, false),
  ],
  runs: [
    column("id", "Run"),
    column("arm", "Arm", text, false),
    column("seed", "Seed", whole),
    column("status", "Status"),
    ...COMMON,
    column(...STEPS, false),
    column("final_val_loss", "Validation loss", fixed(4)),
    column("last_step", "Last step", whole, false),
    column("stall_ratio", "Stall ratio", percent, false),
    column("failure", "Failure", text, false),
    column("study", "Study"),
    column("wandb", "W&B run", text, false),
  ],
};
export const PAGE = 50;
export const FILTERS = ["q", "format", "arm", "status", "study"];
const NO_STATE = { rows: "arms", q: "", format: "", arm: "", status: "", study: "", sort: "", page: 1 };

const expand = (values) => (Array.isArray(values) ? values : values.codes.map((code) => (code === null ? null : values.words[code])));

/**
 * The two tables of the file that altgrad.reports.compare.table_json writes: {arms, runs}.
 *
 * Each is {length, columns: {key: values}, haystack: the text that the search looks into, one string a row}.
 */
export function decode(data) {
  const columns = (part) => Object.fromEntries(Object.entries(part).map(([key, values]) => [key, expand(values)]));
  const arms = columns(data.arms);
  const runs = columns(data.runs);
  const armRow = runs.arm;
  for (const key of ["arm", "format", "scope", "rule", "learning_rate", "max_steps"]) {
    runs[key] = armRow.map((row) => arms[key][row]);
  }
  runs.id = runs.name.map((name, row) => (runs.hash[row] === null ? name : `${name}-s${runs.seed[row]}-${runs.hash[row]}`));
  const made = (found, keys) => {
    const length = found.arm.length;
    const haystack = Array.from({ length }, (_, row) => keys.map((key) => found[key][row] ?? "").join("\n").toLowerCase());
    return { length, columns: found, haystack, orders: new Map() };
  };
  return {
    arms: made(arms, ["arm", "format", "scope", "rule", "studies"]),
    runs: { ...made(runs, ["id", "arm", "format", "scope", "rule", "status", "study", "failure"]), armRow },
  };
}

/** The distinct values of a column in order, for a choice. */
export function choices(table, key) {
  return [...new Set(table.columns[key])].filter((value) => value).sort(collator.compare);
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

/**
 * The rows of `tables[state.rows]` that meet every filter, in order.
 *
 * Every word of `q` has to stand somewhere in the row. `arm` is a whole name, or else a part of one. An arm meets
 * `status` and `study` by any one of its runs that has both.
 */
export function select(tables, state) {
  const { arms, runs } = tables;
  const table = tables[state.rows];
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const whole = state.arm && arms.columns.arm.includes(state.arm);
  const ofRun = (row) => (!state.status || runs.columns.status[row] === state.status) && (!state.study || runs.columns.study[row] === state.study);
  let meets = ofRun;
  if (state.rows === "arms" && (state.status || state.study)) {
    const found = new Set();
    for (let row = 0; row < runs.length; row += 1) if (ofRun(row)) found.add(runs.armRow[row]);
    meets = (row) => found.has(row);
  } else if (state.rows === "arms") {
    meets = () => true;
  }
  const { arm, format } = table.columns;
  const { haystack } = table;
  const part = state.arm.toLowerCase();
  const found = [];
  for (const row of order(table, state.sort)) {
    if (state.format && format[row] !== state.format) continue;
    if (part && !(whole ? arm[row] === state.arm : arm[row].includes(part))) continue;
    let all = meets(row);
    for (let place = 0; all && place < words.length; place += 1) all = haystack[row].includes(words[place]);
    if (all) found.push(row);
  }
  return found;
}

/** The columns of a state that are shown, in their usual order. */
export function shownColumns(state) {
  const all = COLUMNS[state.rows];
  return all.filter(state.columns ? ({ key }) => state.columns.includes(key) : ({ shown }) => shown);
}

/**
 * What an address says ("?q=e5m2&sort=-val_loss"), and in words what of it there is not.
 *
 * State: {rows: "arms" or "runs", q, format, arm, status, study, sort, page, columns (null: the usual ones), chosen}.
 */
export function readState(search, tables) {
  const given = new URLSearchParams(search);
  const problems = [];
  const say = (what) => problems.push(what.length > 120 ? `${what.slice(0, 120)}…` : what);
  const state = { ...NO_STATE, columns: null, chosen: [] };
  if (given.get("rows") === "runs") state.rows = "runs";
  else if (given.has("rows") && given.get("rows") !== "arms") say(`rows are arms or runs, not ${given.get("rows")}`);
  for (const key of FILTERS) state[key] = given.get(key) ?? "";
  for (const key of ["format", "status", "study"]) {
    if (state[key] && !tables.runs.columns[key].includes(state[key])) {
      say(`no run has ${key} ${state[key]}`);
      state[key] = "";
    }
  }
  const keys = COLUMNS[state.rows].map(({ key }) => key);
  if (given.has("columns")) {
    const wanted = given.get("columns").split(",").filter(Boolean);
    for (const key of wanted) if (!keys.includes(key)) say(`there is no column ${key}`);
    const known = keys.filter((key) => wanted.includes(key));
    if (known.length) state.columns = known;
  }
  const sort = given.get("sort") ?? "";
  if (keys.includes(sort.replace(/^-/, ""))) state.sort = sort;
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

/** Rows as CSV: a header of keys, numbers as recorded. Text that a spreadsheet would run as a formula gets a quote mark. */
export function toCsv(table, rows, columns) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const lines = [columns.map(({ key }) => key), ...rows.map((row) => columns.map(({ key }) => cell(table.columns[key][row])))];
  return `${lines.map((line) => line.join(",")).join("\n")}\n`;
}

/** Where an arm's page, one of its runs on it, and its file are, as seen from a page one level below the site's root. */
export function places(tables, row) {
  const arm = tables.arms.columns.arm[row];
  const study = tables.arms.columns.study_page[row];
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
