// Comparing arms: smoothing, bands, pairs, differences of configs, and the address.
import assert from "node:assert/strict";
import test from "node:test";
import { apart, band, gaps } from "../../../docs/javascripts/curves.js";
import { MOST, differences, finalLosses, health, interval, lineStyles, paired, readState, shortened, smooth, smoothed, writeState } from "../../../docs/javascripts/runs/compare.js";

const T = [null, 12.706204736174694, 4.302652729749462, 3.182446305283708];
const arm = (losses, more = {}) => ({
  config: {}, data: "ab", health: [], final: losses,
  runs: losses.map((_, seed) => ({ seed, role: "report" })), ...more,
});

test("smoothing starts without bias, keeps gaps, and at weight 0 changes nothing", () => {
  assert.deepEqual(smooth([4, null, 4], 0.9).map((value) => value && +value.toFixed(12)), [4, null, 4]);
  assert.deepEqual(smooth([1, NaN, 3], 0.5), [1, NaN, 7 / 3]);
  assert.deepEqual(smooth([1, Infinity, 3], 0), [1, Infinity, 3]);
  assert.deepEqual(smooth([], 0.5), []);
});

test("a band is the range of the seeds or the t interval of their mean, step by step", () => {
  const runs = [{ step: [0, 10], loss: [1, 2] }, { step: [0, 10], loss: [3, null] }];
  const range = band(runs, { metric: "loss", axis: "step" });
  assert.deepEqual([range.x, range.mean, range.low, range.high, range.n], [[0, 10], [2, 2], [1, 2], [3, 2], [2, 1]]);
  const t = band(runs, { metric: "loss", axis: "step", kind: "t", t: T });
  assert.ok(Math.abs(t.high[0] - (2 + T[1])) < 1e-12);
  assert.deepEqual([t.low[1], t.high[1]], [2, 2]);
});

test("runs are smoothed before their mean is taken, and losses that are no numbers have no place in it", () => {
  const runs = [{ step: [0, 1], tokens: [0, 8], loss: [1, 3] }, { step: [0, 1], tokens: [0, 8], loss: [null, null] }];
  const found = band(smoothed(runs, "loss", 0.5), { metric: "loss", axis: "tokens" });
  assert.deepEqual([found.x, found.mean, found.n], [[0, 8], [1, 7 / 3], [1, 1]]);
  assert.deepEqual(band(smoothed(runs, "val_loss", 0.5), { metric: "val_loss", axis: "step" }).x, []);
  assert.deepEqual(band([], { metric: "loss", axis: "seconds", kind: "t", t: T }).mean, []);
});

test("a band is whole where the same runs stand at every point", () => {
  const whole = (...runs) => band(runs, { metric: "loss", axis: "step" }).whole;
  assert.equal(whole({ step: [0, 10], loss: [1, 2] }, { step: [0, 10], loss: [3, 4] }, { step: [0, 10], loss: [null, null] }), true);
  assert.equal(whole({ step: [0, 10], loss: [1, 2] }, { step: [0, 10], loss: [3, null] }), false);
  assert.equal(whole({ step: [0, 300], loss: [1, 2] }, { step: [0, 600], loss: [3, 4] }), false, "other runs at each end");
  assert.equal(whole({ step: [5], loss: [1] }, { step: [10], loss: [3] }), false, "one run at each step, but never the same");
});

test("a difference over steps is taken at the same step of the same seed, outside of tuning", () => {
  const run = (seed, val_loss, role = "report") => ({ seed, role, step: [0, 10, 20], val_loss });
  const own = { runs: [run(1, [3, 2, null]), run(2, [3, 2.5, 2]), run(3, [1, 1, 1]), run(4, [0, 0, 0], "tuning")] };
  const other = { runs: [run(2, [3, 2, 1.5]), run(1, [3, 1.5, 1]), run(4, [1, 1, 1])] };
  assert.deepEqual(gaps(own, other).map(({ seed, gap }) => [seed, gap]).sort(), [[1, [0, 0.5, null]], [2, [0, 0.5, 0.5]]]);
  assert.deepEqual(gaps(other, other).flatMap(({ gap }) => gap), Array(9).fill(0));
  assert.deepEqual(gaps(own, { runs: [] }), []);
  assert.deepEqual(gaps({ runs: [run(null, [1, 1, 1])] }, { runs: [run(null, [2, 2, 2])] }), [], "no seed is stated");
});

test("names at the ends of lines stand apart and inside the drawing as far as they fit", () => {
  assert.deepEqual(apart([5, 6, 50], 10, 0, 100), [5, 15, 50]);
  assert.deepEqual(apart([-9, 96, 97, 99], 10, 0, 100), [0, 80, 90, 100]);
  assert.deepEqual(apart([1, 1, 1, 1], 10, 0, 20), [0, 10, 20, 30], "more than fit go on below");
  assert.deepEqual(apart([], 10, 0, 20), []);
});

test("arms are called by what tells them apart among those shown", () => {
  assert.deepEqual(shortened(["E4M3, AdamW; 300 steps", "E5M2, AdamW; 300 steps", "E4M3, AdamW, only in head"]), ["E4M3", "E5M2", "E4M3, only in head"]);
  assert.deepEqual(shortened(["E4M3, AdamW; 300 steps, 2 layers", "E4M3, AdamW; 500 steps, 2 layers", "FP32, AdamW"]), ["E4M3, 300 steps, 2 layers", "E4M3, 500 steps, 2 layers", "FP32"]);
  assert.deepEqual(shortened(["E4M3, AdamW; 20 steps", "E4M3, AdamW; 40 steps"]), ["E4M3, 20 steps", "E4M3, 40 steps"]);
  assert.deepEqual(shortened(["E4M3, AdamW"]), ["E4M3"]);
  assert.deepEqual(shortened(["x, a, b", "x, b, a", "x, a"]), ["x, a, b", "x, b, a", "x, a"]);
  assert.deepEqual(shortened([]), []);
});

test("pairs are seeds that both arms finished, outside of tuning, each once", () => {
  const own = arm([1.5, null, 1.5, 1.8]);
  own.runs.push({ seed: 0, role: "report" });
  own.final.push(9);
  own.runs[3].role = "tuning";
  assert.deepEqual([...finalLosses(own)], [[0, 1.5], [2, 1.5]]);
  const other = arm([1, 1, 1.25, 1]);
  const found = paired(own, other, T);
  assert.deepEqual([found.n, found.mean], [2, 0.375]);
  assert.ok(Math.abs(found.high - (0.375 + T[1] * 0.125)) < 1e-12);
});

test("one pair has no interval, and no pair has no mean", () => {
  assert.deepEqual(interval([0.5], T), { mean: 0.5, low: NaN, high: NaN, n: 1 });
  assert.deepEqual(paired(arm([1]), arm([null]), T), { mean: NaN, low: NaN, high: NaN, n: 0 });
  assert.deepEqual(interval([0.25, 0.25, 0.25], T), { mean: 0.25, low: 0.25, high: 0.25, n: 3 });
});

test("only keys that differ are shown, a missing one as such, and whatever their name", () => {
  const config = (value) => JSON.parse(value);
  const found = differences([
    arm([], { config: config('{"a": "1", "b": "2", "__proto__": "x"}') }),
    arm([], { config: config('{"a": "1", "b": "3", "constructor": "y"}'), data: "cd" }),
  ]);
  assert.deepEqual(found, [
    { key: "__proto__", values: ["x", null] },
    { key: "b", values: ["2", "3"] },
    { key: "constructor", values: [null, "y"] },
    { key: "training data (sha256)", values: ["ab", "cd"] },
  ]);
  assert.deepEqual(differences([arm([])]), []);
});

test("health stands side by side in the order of the model, missing figures as such", () => {
  const rows = health([
    arm([], { health: [["stall_ratio", "update", "mlp", 0.5], ["overflow", "weight", "mlp", 0], ["overflow", "weight", "conv", 0.5]] }),
    arm([], { health: [["overflow", "weight", "attention", 0.25]] }),
  ]);
  assert.deepEqual(rows.map(({ statistic, layerType, values }) => [statistic, layerType, values]), [
    ["overflow", "attention", [null, 0.25]],
    ["overflow", "mlp", [0, null]],
    ["overflow", "conv", [0.5, null]],
    ["stall_ratio", "mlp", [0.5, null]],
  ]);
});

test("a state is its address", () => {
  const known = new Map([["a", 0], ["b", 1], ["c", 2]]);
  const address = "?arms=a,b&baseline=c&metric=loss&axis=tokens&smooth=0.5&band=range&each=1";
  const { state, problems } = readState(address, known);
  assert.deepEqual(problems, []);
  assert.deepEqual(state, { arms: ["a", "b"], baseline: "c", metric: "loss", axis: "tokens", smooth: 0.5, band: "range", each: true });
  assert.equal(writeState(state), address);
  assert.equal(writeState(readState("", known).state), "");
});

test("what is broken in an address is left out and named", () => {
  const known = new Map([["a", 0]]);
  const { state, problems, unknown } = readState("?arms=a,a,,<script>,__proto__&baseline=x&axis=toString&metric=&smooth=NaN&band=%", known);
  assert.deepEqual(state, { arms: ["a"], baseline: null, metric: null, axis: "step", smooth: 0, band: "t", each: false });
  assert.deepEqual(problems.map((text) => text.slice(0, 23)), ["axis is step or tokens ", "band is t or range, not", "smooth is from 0 to bel"]);
  assert.deepEqual(unknown, ["<script>", "__proto__", "x"]);
  for (const weight of ["1", "-0.1", "1e400", "", "0x"]) assert.equal(readState(`?smooth=${weight}`, known).state.smooth, 0);
  const many = new Map(Array.from({ length: MOST + 5 }, (_, index) => [`arm-${index}`, index]));
  assert.equal(readState(`?arms=${[...many.keys()].join(",")}`, many).state.arms.length, MOST);
});

test("a line has the style of its format, and another dash only where it would be drawn like one before", () => {
  const dashes = [[], [8, 3], [2, 3]];
  const styles = lineStyles([["--chart-5", []], ["--chart-muted", [4, 3]], ["--chart-5", []], ["--chart-6", []], ["--chart-5", []]], dashes);
  assert.deepEqual(styles, [
    { colour: "--chart-5", dash: undefined }, { colour: "--chart-muted", dash: [4, 3] }, { colour: "--chart-5", dash: [8, 3] },
    { colour: "--chart-6", dash: undefined }, { colour: "--chart-5", dash: [2, 3] },
  ]);
});
