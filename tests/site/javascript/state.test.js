// What is typed and what an address says: defined for every text.
import assert from "node:assert/strict";
import test from "node:test";
import { DEFAULTS, numberText, parseNumber, readable, readScale, readState, writeState } from "../../../docs/javascripts/explorer/state.js";
import { marks, movedView, usualView } from "../../../docs/javascripts/explorer/line.js";

const data = {
  roundings: ["nearest_even", "up"],
  formats: [["e4m3", 8], ["fp16", 16], ["e3m4", 8], ["e5m2", 8]].map(([name, bits]) => ({ name, bits, group: "Other 16-bit splits" })),
};

test("numbers are read as people write them", () => {
  const expected = {
    "0.1": 0.1, " -3e-5 ": -3e-5, "+.5": 0.5, "7.": 7, "1/3": 1 / 3, "2^-9": 2 ** -9, "3*2^4": 48, "-2**3": -8, "-0": -0,
    "−1.5": -1.5, "-inf": -Infinity, "∞": Infinity, Infinity: Infinity, NaN: NaN, "5e-324": 5e-324, "2^-1074": 5e-324,
  };
  for (const [text, value] of Object.entries(expected)) assert.ok(Object.is(parseNumber(text)?.value, value), text);
});

test("what is no number is no number", () => {
  for (const text of ["", " ", "one", "0x10", "1,5", "1e", "--1", "1/0", "1//2", "e5", "<script>", "1 2", "9".repeat(500), "2^999999", "1/2/3"]) {
    assert.equal(parseNumber(text), null, text);
  }
});

test("what float64 cannot hold says what became of it", () => {
  assert.equal(parseNumber("1e400").value, Infinity);
  assert.match(parseNumber("1e400").note, /taken as infinity/);
  assert.ok(Object.is(parseNumber("-1e-400").value, -0));
  assert.match(parseNumber("-1e-400").note, /taken as 0/);
  assert.match(parseNumber("2^2000").note, /taken as infinity/);
  for (const text of ["0", "-0", "0e5", "0/7", "1e300", "0*2^5"]) assert.equal(parseNumber(text).note, "", text);
});

test("a scale is a finite number above 0", () => {
  assert.equal(readScale("2^-3").value, 0.125);
  for (const text of ["0", "-1", "nan", "inf", "1e400", "x"]) assert.equal(readScale(text), null, text);
});

test("a state survives its own address", () => {
  const states = [
    {}, { value: "1/3" }, { value: "-0" }, { code: { format: "e4m3", code: 0x7f } }, { code: { format: "fp16", code: 0x7c01 } },
    { rounding: "up", saturate: false, scale: "2^-3" }, { on: [] }, { on: ["fp16"], axis: "log", view: [-4.5, 3] }, { folded: [] },
  ];
  for (const part of states) {
    const state = { ...DEFAULTS, ...part };
    const { state: read, notes } = readState(writeState(state), data);
    assert.deepEqual({ ...read, value: state.code ? DEFAULTS.value : read.value }, { ...state, value: state.code ? DEFAULTS.value : state.value });
    assert.deepEqual(notes, []);
  }
  assert.equal(writeState(DEFAULTS), "");
});

test("an address that cannot be read gives the defaults and a note for each fault", () => {
  const { state, notes } = readState("?v=abc&c=e9m9:ff&r=sideways&sat=2&s=-1&axis=round&view=3,1&on=e4m3,<img>&fold=x&unknown=1", data);
  assert.deepEqual(state, { ...DEFAULTS, on: ["e4m3"], folded: [] });
  assert.equal(notes.length, 9);
  for (const query of ["?c=e4m3:100", "?c=e4m3", "?c=e4m3:zz", "?c=:", "?view=nan,inf", "?view=1e301,2e301", "?view=1", "?v=", "?%", "?v=%E0%A4%A"]) {
    assert.deepEqual(readState(query, data).state, DEFAULTS, query);
  }
});

test("numbers are shown with their sign, their names and an approximation where they are long", () => {
  assert.equal(readable(-0), "−0");
  assert.equal(readable(NaN), "NaN");
  assert.equal(readable(-Infinity), "−∞");
  assert.equal(readable(null), "–");
  assert.equal(readable(0.1015625), "0.1015625");
  assert.equal(readable(1 / 3), "≈0.333333");
  assert.equal(numberText(-0), "-0");
});

test("a view zooms and moves, and stops where float64 ends", () => {
  assert.deepEqual(movedView([0, 4], 0.5, 0), [1, 3]);
  assert.deepEqual(movedView([0, 4], 1, 0.25), [1, 5]);
  let view = [0, 1];
  for (let k = 0; k < 3000; k += 1) view = movedView(view, 0.5, 0);
  assert.ok(view[1] > view[0]);
  for (let k = 0; k < 3000; k += 1) view = movedView(view, 2, 0);
  assert.ok(Number.isFinite(view[1]) && view[1] > view[0]);
  for (const value of [0, -0, NaN, Infinity, 5e-324, -1e308, 3]) {
    for (const axis of ["linear", "log"]) {
      const [low, high] = usualView(value, axis);
      assert.ok(high > low);
      assert.ok(marks([low, high], axis, 8).length >= 2);
    }
  }
});
