// The table of runs: what is found, in which order, as which address and file.
import assert from "node:assert/strict";
import test from "node:test";
import { axisOf, front, nearest, nearestLine } from "../../../docs/javascripts/runs/chart.js";
import { COLUMNS, choices, decode, fit, near, order, parse, places, readState, select, shownColumns, slug, toCsv, writeState } from "../../../docs/javascripts/runs/table.js";

const HOSTILE = '<img src=x onerror="alert(1)">, "=1+1"';
const words = (values) => {
  const found = [...new Set(values.filter((value) => value !== null))];
  return { words: found, codes: values.map((value) => (value === null ? null : found.indexOf(value))) };
};
const data = () => ({
  arms: {
    arm: ["e4m3-adamw-1", "e5m2-adamw-2", "fp32-adamw-3"],
    label: ["E4M3, AdamW", "E5M2, AdamW", "FP32, AdamW"],
    format: words(["E4M3", "E5M2", "FP32"]),
    scope: words(["weights", "weights", "nothing"]),
    rule: words(["AdamW", "AdamW", "AdamW"]),
    learning_rate: [0.003, 0.003, null],
    max_steps: [300, 300, 300],
    val_loss: [2.1, 2.2, null],
    low: [2.0, null, null],
    high: [2.2, null, null],
    n: [2, 1, 0],
    finished: [2, 1, 0],
    counted: words(["2", "1 of 2, 1 failed", "0 of 1, 1 crashed"]),
    runs: [2, 2, 1],
    stall_ratio: [0.5, 0, null],
    studies: words(["formats", `formats, ${HOSTILE}`, "formats"]),
    study_page: words([null, "study-tuning", null]),
  },
  runs: {
    arm: [0, 0, 1, 1, 2],
    name: words(["e4m3-adamw", "e4m3-adamw", "e5m2-adamw", HOSTILE, "fp32-adamw"]),
    hash: ["0000000a", "0000000b", "0000000c", null, "0000000d"],
    seed: [10, 9, 10, 11, 10],
    status: words(["finished", "finished", "finished", "failed", "crashed"]),
    study: words(["formats", "formats", "formats", HOSTILE, "formats"]),
    role: words(["report", "report", "report", "tuning", "report"]),
    failure: words(["", "", "", "nan_loss", ""]),
    wandb: words([null, null, null, "https://wandb.ai/a/b/runs/c", null]),
    last_step: [300, 300, 300, 12, 5],
    final_val_loss: [2.1, 2.1, 2.2, null, null],
    stall_ratio: [0.5, 0.5, 0, null, null],
  },
});
const usual = { ...readState("", decode(data())).state, tuning: "shown" };
const found = (changes) => select(decode(data()), { ...usual, ...changes });

test("a run's id is put together again, whatever it is", () => {
  assert.deepEqual(decode(data()).runs.columns.id, ["e4m3-adamw-s10-0000000a", "e4m3-adamw-s9-0000000b", "e5m2-adamw-s10-0000000c", HOSTILE, "fp32-adamw-s10-0000000d"]);
});

test("every word of the text has to stand in what the row shows", () => {
  assert.deepEqual(found({ text: "ADAMW  e5" }), [1]);
  assert.deepEqual(found({ text: "adamw nothing weights" }), []);
  assert.deepEqual(found({ rows: "runs", text: "nan_loss" }), [3], "why a run failed is shown");
  assert.deepEqual(found({ text: "weights" }), [], "what is quantized is not shown");
  assert.deepEqual(found({ text: "weights", columns: ["arm", "scope"] }), [0, 1]);
  assert.deepEqual(found({ text: "2.2000" }), [0, 1], "as the row shows it");
  assert.deepEqual(found({ text: "   " }), [0, 1, 2]);
  assert.deepEqual(found({ text: ".*[" }), []);
});

test("conditions hold on any column, shown or not", () => {
  assert.deepEqual(found({ text: "loss<2.15 steps=300" }), [0]);
  assert.deepEqual(found({ text: "loss >= 2.1 e5m2" }), [1]);
  assert.deepEqual(found({ text: "loss!=2.1000" }), [1, 2]);
  assert.deepEqual(found({ text: "stall=50%" }), [0]);
  assert.deepEqual(found({ text: "stall<=0.5" }), [0, 1]);
  assert.deepEqual(found({ text: "format=e4m3,FP32" }), [0, 2]);
  assert.deepEqual(found({ rows: "runs", text: "seed>9 failure=nan_loss" }), [3]);
  assert.deepEqual(found({ text: 'quantized="weights" studies=formats seeds=1' }), [1]);
  assert.deepEqual(found({ text: "loss<" }), [0, 1, 2], "still being typed");
});

test("a condition that cannot be read is named and left out", () => {
  for (const [text, told] of Object.entries({ "colour=1": "no column colour", "__proto__<1": "no column __proto__", "loss<abc": "loss is a number, not abc", "format<2": "format is text" })) {
    assert.equal(parse(text, "arms").problems.length, 1, text);
    assert.match(parse(text, "arms").problems[0], new RegExp(told));
    assert.deepEqual(found({ text }), [0, 1, 2], text);
  }
});

test("filters hold together", () => {
  assert.deepEqual(found({ format: "E4M3" }), [0]);
  assert.deepEqual(found({ rate: "0.003" }), [0, 1]);
  assert.deepEqual(found({ seeds: "1", steps: "300" }), [0, 1]);
  assert.deepEqual(found({ rows: "runs", seeds: "2" }), [0, 1]);
  assert.deepEqual(found({ rows: "runs", status: "finished", format: "E5M2" }), [2]);
  assert.deepEqual(found({ rows: "runs", study: HOSTILE }), [3]);
});

test("runs of tuning are there when they or their study are asked for", () => {
  assert.deepEqual(found({ rows: "runs", tuning: "" }), [0, 1, 2, 4]);
  assert.deepEqual(found({ rows: "runs", tuning: "", study: HOSTILE }), [3]);
  assert.deepEqual(found({ tuning: "", status: "failed" }), []);
});

test("an arm meets status and study by one run that has both", () => {
  assert.deepEqual(found({ status: "failed" }), [1]);
  assert.deepEqual(found({ status: "failed", study: "formats" }), []);
  assert.deepEqual(found({ status: "failed", study: HOSTILE }), [1]);
});

test("numbers sort as numbers, empty values last in either direction, ties as recorded", () => {
  const tables = decode(data());
  assert.deepEqual(order(tables.runs, "seed"), [1, 0, 2, 4, 3]);
  assert.deepEqual(order(tables.runs, "-seed"), [3, 0, 2, 4, 1]);
  assert.deepEqual(order(tables.runs, "final_val_loss"), [0, 1, 2, 3, 4]);
  assert.deepEqual(order(tables.runs, "-final_val_loss"), [2, 0, 1, 3, 4]);
  assert.deepEqual(order(tables.arms, "-learning_rate"), [0, 1, 2]);
  assert.deepEqual(order(tables.runs, "-failure"), [3, 0, 1, 2, 4]);
  assert.deepEqual(order(tables.runs, "status"), [4, 3, 0, 1, 2]);
});

test("every column that can be shown is there", () => {
  const tables = decode(data());
  for (const rows of ["arms", "runs"]) {
    for (const { key, write } of COLUMNS[rows]) {
      assert.equal(tables[rows].columns[key].length, tables[rows].length, key);
      for (const value of tables[rows].columns[key]) assert.equal(typeof write(value), "string", key);
    }
  }
  assert.deepEqual(choices(tables, "status").map(([value]) => value), ["crashed", "failed", "finished"]);
  assert.deepEqual(choices(tables, "seeds"), [["1", "1 or more"], ["2", "2 or more"]]);
});

test("a state is its address", () => {
  const tables = decode(data());
  const state = { ...usual, rows: "runs", text: "a b&c<=%", format: "E5M2", rate: "0.003", steps: "300", seeds: "2", status: "failed", study: HOSTILE, sort: "-seed", page: 3, columns: ["id", "seed"], chart: "scatter", x: "seed", y: "stall_ratio", better: "y", chosen: ["e4m3-adamw-1", "fp32-adamw-3"] };
  assert.deepEqual(readState(writeState(state), tables), { state, problems: [] });
  assert.equal(writeState(readState("", tables).state), "");
  assert.equal(new URLSearchParams(writeState(state)).has("q"), false, "which opens the theme's own search");
});

test("what is broken in an address is left out and named", () => {
  const tables = decode(data());
  const broken = "?rows=walls&format=E9M9&status=%zz&study=no&sort=-toString&page=-1&columns=constructor,,x&chosen=e4m3-adamw-1,__proto__&text=%00&x=1&chart=toString&rate=0.1&seeds=-1&q=e5m2";
  const { state, problems } = readState(broken, tables);
  assert.deepEqual(state, { ...usual, tuning: "", text: "\0", chosen: ["e4m3-adamw-1"] });
  assert.equal(problems.length, 13);
  assert.ok(readState(`?format=${"x".repeat(1e5)}`, tables).problems[0].length < 130);
  for (const page of ["1e400", "NaN", "1.5", "0"]) assert.equal(readState(`?page=${page}`, tables).state.page, 1);
});

test("columns keep their order; one that is chosen alone is shown alone", () => {
  assert.deepEqual(shownColumns({ ...usual, columns: ["runs", "arm"] }).map(({ key }) => key), ["arm", "runs"]);
});

test("the file has what is shown, quoted, and runs no formula", () => {
  const tables = decode(data());
  const columns = COLUMNS.runs.filter(({ key }) => ["id", "seed", "final_val_loss", "study"].includes(key));
  assert.equal(toCsv(tables.runs, [3, 0], columns), `id,seed,final_val_loss,study
"${HOSTILE.replaceAll('"', '""')}",11,,"${HOSTILE.replaceAll('"', '""')}"
e4m3-adamw-s10-0000000a,10,2.1,formats
`);
  for (const [text, cell] of [["=1+1", "'=1+1"], [" ＝1", " '＝1"], ["a\r\n=1", "a =1"], ["x; -2+cmd|' '!A0", "x; '-2+cmd|' '!A0"], ["+0.1; -0.2 (n = 3)", "'+0.1; -0.2 (n = 3)"], ["-2e-3", "-2e-3"]]) {
    tables.runs.columns.study[0] = text;
    assert.equal(toCsv(tables.runs, [0], columns).split("\n")[1].split(",")[3], cell);
  }
  tables.runs.columns['=1,"a'] = tables.runs.columns.study;
  assert.equal(toCsv(tables.runs, [], [{ key: '=1,"a' }]), `"'=1,""a"\n`, "a key of others' config");
});

test("an arm without a page of its own is on its study's", () => {
  const tables = decode(data());
  assert.deepEqual([places(tables, 0).page, places(tables, 0).file], ["../runs/e4m3-adamw-1/", "../runs/e4m3-adamw-1.curves.json"]);
  assert.deepEqual([places(tables, 1).page, places(tables, 1).file], ["../runs/study-tuning/#e5m2-adamw-2", "../runs/study-tuning.e5m2-adamw-2.curves.json"]);
  assert.equal(places(tables, 0).run("E4M3 s1.x"), "../runs/e4m3-adamw-1/#e4m3-s1-x");
  assert.equal(slug("Ünï--_.✓"), "uni-_");
});

test("no runs at all is a table without rows", () => {
  const empty = data();
  for (const part of Object.values(empty)) for (const key of Object.keys(part)) part[key] = Array.isArray(part[key]) ? [] : { words: [], codes: [] };
  const tables = decode(empty);
  assert.deepEqual(select(tables, { ...usual, text: "x", sort: "val_loss" }), []);
  assert.equal(readState("?chosen=a&format=E4M3", tables).problems.length, 2);
});

test("names like one that is none are suggested, the nearest first", () => {
  const names = ["e4m3-wag-adamw-1a", "e5m2-wag-adamw-2b", "fp32-adamw-3c"];
  assert.deepEqual(near("E4M3-wag-adam", names)[0], "e4m3-wag-adamw-1a");
  assert.deepEqual(near("fp32", names, 1), ["fp32-adamw-3c"]);
  assert.deepEqual(near("☃", names), []);
  assert.deepEqual(near("", names), []);
});

test("on the front is what no other is better than in both", () => {
  const points = [[1, 5], [2, 3], [3, 4], [4, 1], [2, 6], [NaN, 0], [1, 7]];
  assert.deepEqual(front(points), [0, 1, 3]);
  assert.deepEqual(front(points, "y"), [6]);
  assert.deepEqual(front(points, "x"), [3]);
  assert.deepEqual(front(points, "xy"), [3, 2, 4, 6]);
  for (const better of ["", "x", "y", "xy"]) {
    const sign = (axis) => (better.includes(axis) ? -1 : 1);
    const known = points.map(([x, y]) => [sign("x") * x, sign("y") * y]);
    const beaten = ([x, y]) => known.some(([a, b]) => a <= x && b <= y && (a < x || b < y));
    assert.deepEqual([...front(points, better)].sort(), known.map((_, place) => place).filter((place) => !Number.isNaN(known[place][0]) && !beaten(known[place])), better);
  }
});

test("an axis is linear, logarithmic over a wide range, or the words in their order; what is empty has no place", () => {
  const tables = decode(data());
  const of = (key, rows) => axisOf(tables.runs, COLUMNS.runs.find((column) => column.key === key), rows);
  assert.deepEqual(of("seed", [0, 1, 3]).places, [0.5, 0, 1]);
  assert.deepEqual(of("last_step", [0, 4]), { places: [1, 0], ticks: of("last_step", [0, 4]).ticks, log: true });
  assert.deepEqual(of("status", [0, 3, 4]).ticks, [[0, "crashed"], [0.5, "failed"], [1, "finished"]]);
  assert.deepEqual(of("final_val_loss", [0, 3]).places, [0.5, NaN]);
  assert.deepEqual(of("final_val_loss", [3]).ticks, []);
  for (const key of ["seed", "last_step"]) assert.ok(of(key, [0, 1, 2, 3, 4]).ticks.length >= 2, key);
});

test("the nearest point is the one that is meant, and none where all are far", () => {
  assert.equal(nearest([[0, 0], [10, 10], [NaN, NaN]], 8, 8), 1);
  assert.equal(nearest([[0, 0]], 100, 0), -1);
});

test("of lines over several axes the one that passes the pointer is meant, between two axes by its height there", () => {
  const heights = [[0, 100, NaN], [100, 0, 50], [100, 0, 50]];
  assert.equal(nearestLine(heights, 0.1, 11), 0);
  assert.equal(nearestLine(heights, 0.1, 89), 1);
  assert.equal(nearestLine(heights, 1.5, 51), 2);
  assert.equal(nearestLine(heights, 2, 99), 0);
  assert.equal(nearestLine(heights, 1.5, 25), -1);
  assert.equal(nearestLine([[5]], -1, 5), -1);
});

test("a site's own keys are columns and filters by their short names, and the best row is the first", () => {
  const tables = decode(data());
  for (const key of ["format", "scope", "rule"]) tables.arms.columns[key] = tables.runs.columns[key] = tables.arms.columns[key].map(() => "not stated");
  tables.arms.columns.stall_ratio = [null, null, null];
  tables.arms.columns.val_loss = [2.2, 2.1, null];
  fit(tables, { metric: { title: "loss", better: "lower", digits: 4 }, keys: { "model.width": ["64", "128", "64"], Solver: ["adam", "sgd", "sgd"] } });
  const { state, problems } = readState("?Solver=sgd&columns=label,width", tables);
  assert.deepEqual([state.Solver, state.columns, problems], ["sgd", ["label", "config model.width"], []]);
  assert.deepEqual(select(tables, state), [1, 2]);
  assert.deepEqual(select(tables, { ...state, Solver: "", text: "width=64 solver=adam,sgd" }), [0, 2]);
  assert.deepEqual(select(tables, { ...state, Solver: "" }), [1, 0, 2]);
  assert.deepEqual(COLUMNS.arms.filter(({ key }) => ["format", "scope", "rule", "stall_ratio"].includes(key)), []);
  assert.match(parse("wdth=64", "arms").problems[0], /no column wdth: .*model\.width, Solver/);
});
