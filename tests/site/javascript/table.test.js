// The table of runs: what is found, in which order, as which address and file.
import assert from "node:assert/strict";
import test from "node:test";
import { COLUMNS, choices, decode, order, places, readState, select, shownColumns, slug, toCsv, writeState } from "../../../docs/javascripts/runs/table.js";

const HOSTILE = '<img src=x onerror="alert(1)">, "=1+1"';
const words = (values) => {
  const found = [...new Set(values.filter((value) => value !== null))];
  return { words: found, codes: values.map((value) => (value === null ? null : found.indexOf(value))) };
};
const data = () => ({
  arms: {
    arm: ["e4m3-adamw-1", "e5m2-adamw-2", "fp32-adamw-3"],
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
    failure: words(["", "", "", "nan_loss", ""]),
    wandb: words([null, null, null, "https://wandb.ai/a/b/runs/c", null]),
    last_step: [300, 300, 300, 12, 5],
    final_val_loss: [2.1, 2.1, 2.2, null, null],
    stall_ratio: [0.5, 0.5, 0, null, null],
  },
});
const usual = { rows: "arms", q: "", format: "", arm: "", status: "", study: "", sort: "", page: 1, columns: null, chosen: [] };
const found = (changes) => select(decode(data()), { ...usual, ...changes });

test("a run's id is put together again, whatever it is", () => {
  assert.deepEqual(decode(data()).runs.columns.id, ["e4m3-adamw-s10-0000000a", "e4m3-adamw-s9-0000000b", "e5m2-adamw-s10-0000000c", HOSTILE, "fp32-adamw-s10-0000000d"]);
});

test("every word of the text has to stand somewhere in the row", () => {
  assert.deepEqual(found({ q: "ADAMW  e5" }), [1]);
  assert.deepEqual(found({ q: "adamw nothing weights" }), []);
  assert.deepEqual(found({ rows: "runs", q: "nan_loss" }), [3]);
  assert.deepEqual(found({ q: "   " }), [0, 1, 2]);
  assert.deepEqual(found({ q: ".*[" }), []);
});

test("filters hold together, and a filter of an arm is a whole name or a part of one", () => {
  assert.deepEqual(found({ format: "E4M3" }), [0]);
  assert.deepEqual(found({ arm: "e4m3-adamw-1" }), [0]);
  assert.deepEqual(found({ arm: "ADAMW-" }), [0, 1, 2]);
  assert.deepEqual(found({ rows: "runs", status: "finished", format: "E5M2" }), [2]);
  assert.deepEqual(found({ rows: "runs", study: HOSTILE }), [3]);
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
  assert.deepEqual(choices(tables.runs, "status"), ["crashed", "failed", "finished"]);
});

test("a state is its address", () => {
  const tables = decode(data());
  const state = { ...usual, rows: "runs", q: "a b&c=%", format: "E5M2", status: "failed", study: HOSTILE, sort: "-seed", page: 3, columns: ["id", "seed"], chosen: ["e4m3-adamw-1", "fp32-adamw-3"] };
  assert.deepEqual(readState(writeState(state), tables), { state, problems: [] });
  assert.equal(writeState(usual), "");
  assert.deepEqual(readState("", tables), { state: usual, problems: [] });
});

test("what is broken in an address is left out and named", () => {
  const tables = decode(data());
  const broken = "?rows=walls&format=E9M9&status=%zz&study=no&sort=-toString&page=-1&columns=constructor,,x&chosen=e4m3-adamw-1,__proto__&q=%00&x=1";
  const { state, problems } = readState(broken, tables);
  assert.deepEqual(state, { ...usual, q: "\0", chosen: ["e4m3-adamw-1"] });
  assert.equal(problems.length, 9);
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
  tables.runs.columns.study[0] = "=1+1";
  assert.match(toCsv(tables.runs, [0], columns), /,'=1\+1\n$/);
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
  assert.deepEqual(select(tables, { ...usual, q: "x", sort: "val_loss" }), []);
  assert.equal(readState("?chosen=a&format=E4M3", tables).problems.length, 2);
});
