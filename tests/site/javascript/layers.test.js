// The layers of an arm: how values are written, which level they have, and what is worst.
import assert from "node:assert/strict";
import test from "node:test";
import { decades } from "../../../docs/javascripts/curves.js";
import { minus } from "../../../docs/javascripts/figures.js";
import { ending, worstOf, worstWords, write } from "../../../docs/javascripts/layers.js";

test("values are written as on the other pages, with a true minus and a dash for none", () => {
  const cases = [
    ["percent", 0, "0%"], ["percent", 0.12345, "12.3%"], ["dB", -3.25, "−3.3 dB"], ["short", 0.0078125, "0.007813"],
    ["short", 7.629e-7, "7.629e−7"], ["short", -2e-8, "−2e−8"], ["short", 123456, "1.235e+5"], ["1", 56.04, "56.0"], ["3", -0.0001, "0.000"],
    ["0", 12345, "12,345"], ["", "head", "head"], ["percent", null, "–"],
  ];
  assert.deepEqual(cases.map(([form, value]) => write(form, value)), cases.map(([, , text]) => text));
});

test("looks that share a column show the worst of them, in either direction, and a missing one last", () => {
  assert.deepEqual(worstOf([1, 5, 2, 3], 2, 1), [1, 3]);
  assert.deepEqual(worstOf([1, 5, 2, 3], 2, -1), [0, 2]);
  assert.deepEqual(worstOf([null, null, null, 4, 1, null], 3, 1), [0, 3, 4]);
  assert.deepEqual(worstOf([7, 8], 60, 1), [0, 1]);
});

test("the worst layers of a heat map are told with their values, and how many are missing", () => {
  const figure = { edges: [0.25, 0.5], form: "percent", missing: "no updates", steps: [1, 31] };
  const layers = [["head", "head"], ["up", "mlp"]];
  const of = (panels) => worstWords({ ...figure, panels }, layers);
  assert.equal(of([["weights", [[0.1, 0.75], [0.5, null]]], ["gradients", [null, [0, 0.2]]]]), "Worst: head weights 75% at step 31; up weights 50% at step 1; up gradients 20% at step 31. Missing: 1 (no updates).");
  assert.equal(worstWords({ ...figure, edges: [35, 15], form: "dB", panels: [["weights", [[30, 12], [9, 40]]]] }, layers), "Worst: up 9.0 dB at step 1; head 12.0 dB at step 31.");
});

test("a logarithmic axis has round values, more where it is short", () => {
  assert.deepEqual(decades(0.05, 200), [0.1, 1, 10, 100]);
  assert.deepEqual(decades(0.3, 3).map((value) => +value.toPrecision(3)), [0.5, 1, 2]);
});

test("a negative number has a true minus, and what is shown as zero no sign", () => {
  const shown = { "-0.161": "−0.161", "-0.000": "0.000", "+0.0000": "0.0000", "+0.010": "+0.010", "-0%": "0%", "-0.0 dB": "0.0 dB", "-1e-7": "−1e−7", 0: "0" };
  for (const [text, read] of Object.entries(shown)) assert.equal(minus(text), read);
});

test("a long name of a layer keeps its end, by which it differs from others", () => {
  const shown = { head: "head", "blocks.0.mlp.down": "blocks.0.mlp.down", "model.layers.10.self_attn.q_proj": "…10.self_attn.q_proj" };
  for (const [name, text] of Object.entries(shown)) assert.equal(ending(name, 22), text);
  assert.equal(ending("x".repeat(40), 22), `…${"x".repeat(21)}`);
  assert.equal(ending("model.a_name_without_any_dot_near", 22), "…_without_any_dot_near");
});
