// The explorer's arithmetic against what Python's altgrad.formats says; tests/test_explorer_script.py writes the cases.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { decode, encode, neighbours, readFormat, ulp, valuesWithin } from "../../../docs/javascripts/explorer/format.js";
import { through } from "../../../docs/javascripts/explorer/explorer.js";

const { formats, encoded, spacings } = JSON.parse(readFileSync(process.env.ALTGRAD_EXPLORER_CASES, "utf-8"));
const named = new Map(formats.map((entry) => [entry.name, readFormat(entry)]));
const NAMED = { nan: NaN, inf: Infinity, "-inf": -Infinity };
const number = (value) => (typeof value === "string" ? NAMED[value] : value);

test("every code decodes to Python's value, from the table and from the fields", () => {
  let checked = 0;
  for (const entry of formats) {
    for (const fmt of [readFormat(entry), readFormat({ ...entry, values: undefined })]) {
      entry.all.forEach((value, code) => {
        assert.ok(Object.is(decode(fmt, code), number(value)), `${entry.name} ${code}: ${decode(fmt, code)}`);
        checked += 1;
      });
    }
  }
  assert.ok(checked > 2 * 31 * 256);
});

test("every value goes to Python's code under every rounding and saturation", () => {
  for (const [name, value, rounding, saturate, draw, code] of encoded) {
    const found = encode(named.get(name), number(value), { rounding, saturate, draw });
    assert.equal(found, code, `${name} ${value} ${rounding} ${saturate} ${draw}`);
  }
  assert.ok(encoded.length >= 120_000);
});

test("the spacing at every value is Python's", () => {
  for (const [name, value, spacing] of spacings) {
    assert.ok(Object.is(ulp(named.get(name), number(value)), number(spacing)), `${name} ${value}`);
  }
  assert.ok(spacings.length >= 10_000);
});

test("neighbours are the next values of the sorted table", () => {
  for (const fmt of named.values()) {
    if (!fmt.values) continue;
    const grid = [...new Set(fmt.values.filter(Number.isFinite).map((value) => value + 0))].sort((a, b) => a - b);
    const infinite = fmt.values.includes(Infinity);
    for (const value of [...grid, ...grid.slice(1).map((upper, k) => (upper + grid[k]) / 2), -1e300, 1e300, -0]) {
      const below = grid.filter((each) => each < value).at(-1) ?? (infinite && fmt.values.includes(-Infinity) ? -Infinity : null);
      const above = grid.find((each) => each > value) ?? (infinite ? Infinity : null);
      assert.deepEqual(neighbours(fmt, value), [below, above], `${fmt.name} ${value}`);
    }
  }
});

test("the values of a stretch are counted and listed as the table has them", () => {
  for (const fmt of named.values()) {
    if (!fmt.values) continue;
    const grid = [...new Set(fmt.values.filter(Number.isFinite).map((value) => value + 0))].sort((a, b) => a - b);
    for (const [low, high] of [[-1, 1], [0, 0.3], [-0.26, -0.1], [2, 1e9], [-1e300, 1e300], [grid[1], grid[1]]]) {
      const inside = grid.filter((value) => value >= low && value <= high);
      assert.deepEqual(valuesWithin(fmt, low, high, 1e6), { count: inside.length, values: inside }, `${fmt.name} ${low} ${high}`);
    }
  }
});

test("stochastic rounding shows both values with chances that make it unbiased", () => {
  for (const name of ["e4m3", "e5m2", "e0m7", "e2m1"]) {
    const fmt = named.get(name);
    for (const value of [0.1, -0.3, 0.77]) {
      const { candidates } = through(fmt, value, { rounding: "stochastic", saturate: true, scale: 1 });
      const mean = candidates.reduce((sum, [code, chance]) => sum + chance * decode(fmt, code), 0);
      assert.ok(Math.abs(mean - value) < 1e-15, `${name} ${value}: ${mean}`);
    }
  }
  assert.equal(through(named.get("e4m3"), 0.5, { rounding: "stochastic", saturate: true, scale: 1 }).candidates, undefined);
});
