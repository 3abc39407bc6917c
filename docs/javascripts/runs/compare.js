// Comparing arms as pure functions: smoothing and bands, paired differences, what differs in configs, and the address.

export const AXES = { step: "step", tokens: "tokens", seconds: "seconds of training" };
export const BANDS = { t: "95% interval of the mean", range: "lowest to highest seed" };
export const MOST = 60;

/** The curves that some arms have: the difference in the first one's metric, then every metric of any of them. */
export function curvesOf(arms) {
  const title = arms.find(({ metric }) => metric)?.metric.title;
  return title === undefined ? {} : { gap: `difference in ${title}`, ...Object.assign({}, ...arms.map(({ metrics }) => Object.fromEntries(metrics))) };
}

/**
 * How each of several lines is drawn, {colour, dash}, from the styles of their formats ([variable, dashes]): of those that
 * would be drawn alike, all but the first get other `dashes`.
 */
export function lineStyles(styles, dashes) {
  const taken = new Set();
  return styles.map(([colour, own]) => {
    const free = [own, ...dashes].find((each) => !taken.has(`${colour} ${each}`)) ?? own;
    taken.add(`${colour} ${free}`);
    return { colour, dash: free.length ? free : undefined };
  });
}

/** Exponential moving average of the finite values, started without bias; weight 0 changes nothing, gaps stay gaps. */
export function smooth(values, weight) {
  let [sum, total] = [0, 0];
  return values.map((value) => {
    if (!Number.isFinite(value)) return value;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/** The runs with `metric` smoothed. */
export function smoothed(runs, metric, weight) {
  return weight > 0 ? runs.map((run) => ({ ...run, [metric]: smooth(run[metric] ?? [], weight) })) : runs;
}

/**
 * What arms are called among those shown together: of names such as "E4M3, AdamW; 300 steps, 2 layers" what follows the
 * semicolon only where the beginning is not one arm's alone, and no later part or key=value that all have, as long as they
 * differ.
 */
export function shortened(names) {
  const beginnings = names.map((name) => name.split("; ")[0]);
  const own = names.map((name, place) => (beginnings.filter((other) => other === beginnings[place]).length > 1 ? name : beginnings[place]));
  const parts = own.map((name) => name.split(/[,;] /));
  const found = parts.map((one) => one.filter((part, place) => (place === 0 && !part.includes("=")) || !parts.every((other) => other.includes(part))).join(", "));
  return new Set(found).size === names.length ? found : names;
}

/** What an arm ended with, by seed (a run that states none by its id): finished runs that compare, the first of each. */
export function finalLosses(arm) {
  const found = new Map();
  arm.runs.forEach((run, index) => {
    const loss = arm.final[index];
    const seed = run.seed ?? run.id;
    if (run.role === "report" && Number.isFinite(loss) && !found.has(seed)) found.set(seed, loss);
  });
  return found;
}

/** Mean of `values` with its two-sided 95% t interval: {mean, low, high, n}; NaN where n is too small for one. */
export function interval(values, t) {
  const n = values.length;
  const mean = n ? values.reduce((sum, value) => sum + value, 0) / n : NaN;
  if (n < 2) return { mean, low: NaN, high: NaN, n };
  const sd = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1));
  const half = t[n - 1] * sd / Math.sqrt(n);
  return { mean, low: mean - half, high: mean + half, n };
}

/** What `arm` ended with minus what the baseline did, over the seeds that both have, with its interval. */
export function paired(arm, baseline, t) {
  const [own, other] = [finalLosses(arm), finalLosses(baseline)];
  const seeds = [...own.keys()].filter((seed) => other.has(seed));
  return interval(seeds.map((seed) => own.get(seed) - other.get(seed)), t);
}

/** Config keys in which the arms are not all alike: [{key, values}], null where an arm does not have the key. */
export function differences(arms) {
  const keys = [...new Set(arms.flatMap((arm) => Object.keys(arm.config)))].sort();
  const rows = keys.map((key) => ({ key, values: arms.map((arm) => (Object.hasOwn(arm.config, key) ? arm.config[key] : null)) }));
  const data = { key: "training data (sha256)", values: arms.map((arm) => arm.data) };
  return [...rows, data].filter(({ values }) => values.some((value) => value !== values[0]));
}

const LAYERS = ["attention", "mlp", "embedding", "head"];
const OPERANDS = ["weight", "activation", "grad_output", "update"];
const STATISTICS = ["overflow", "underflow", "sqnr_db", "stall_ratio"];

/** The last look of the arms: [{statistic, operand, layerType, values}], null where an arm has no figure. */
export function health(arms) {
  const found = new Map();
  arms.forEach((arm, place) => arm.health.forEach(([statistic, operand, layerType, value]) => {
    const key = JSON.stringify([statistic, operand, layerType]);
    if (!found.has(key)) found.set(key, { statistic, operand, layerType, values: arms.map(() => null) });
    found.get(key).values[place] = value;
  }));
  const place = (list, name) => (list.includes(name) ? list.indexOf(name) : list.length);
  const rank = ({ statistic, operand, layerType }) => [place(STATISTICS, statistic), place(OPERANDS, operand), place(LAYERS, layerType)];
  return [...found.values()].sort((a, b) => {
    const [x, y] = [rank(a), rank(b)];
    return x[0] - y[0] || x[1] - y[1] || x[2] - y[2] || (a.layerType < b.layerType ? -1 : 1);
  });
}

const USUAL = { metric: null, axis: "step", smooth: 0, band: "t", each: false };

/**
 * What an address says ("?arms=a,b&baseline=c&axis=tokens&smooth=0.5"), and in words what of it there is not.
 *
 * State: {arms, baseline (a name, "none", or null: the first arm's own), metric (null: the difference where there is a
 * baseline), axis, smooth, band, each}. A name that no arm has is among `unknown`.
 */
export function readState(search, known) {
  const given = new URLSearchParams(search);
  const problems = [];
  const unknown = [];
  const say = (what) => problems.push(what.length > 120 ? `${what.slice(0, 120)}…` : what);
  const state = { arms: [], baseline: null, ...USUAL };
  for (const arm of new Set((given.get("arms") ?? "").split(",").filter(Boolean))) {
    if (!known.has(arm)) unknown.push(arm);
    else if (state.arms.length >= MOST) say(`at most ${MOST} arms at once: ${arm}`);
    else state.arms.push(arm);
  }
  const baseline = given.get("baseline");
  if (baseline === "none" || known.has(baseline)) state.baseline = baseline;
  else if (baseline) unknown.push(baseline);
  state.metric = given.get("metric") || null;
  for (const [key, names] of Object.entries({ axis: AXES, band: BANDS })) {
    const value = given.get(key);
    if (value !== null && Object.hasOwn(names, value)) state[key] = value;
    else if (value) say(`${key} is ${Object.keys(names).join(" or ")}, not ${value}`);
  }
  if (given.has("smooth")) {
    const weight = Number(given.get("smooth") || NaN);
    if (weight >= 0 && weight < 1) state.smooth = weight;
    else say(`smooth is from 0 to below 1, not ${given.get("smooth")}`);
  }
  state.each = given.get("each") === "1";
  return { state, problems, unknown };
}

/** The address of a state: "" for the usual one, else "?" and what differs. */
export function writeState(state) {
  const found = new URLSearchParams();
  if (state.arms.length) found.set("arms", state.arms.join(","));
  if (state.baseline !== null) found.set("baseline", state.baseline);
  for (const [key, usual] of Object.entries(USUAL)) if (state[key] !== usual) found.set(key, key === "each" ? "1" : state[key]);
  const query = found.toString().replaceAll("%2C", ",");
  return query && `?${query}`;
}
