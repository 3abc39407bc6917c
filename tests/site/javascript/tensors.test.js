// The tensor view's arithmetic against altgrad.analysis.tensors.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { readFormat } from "../../../docs/javascripts/explorer/format.js";
import { POLICIES, outcome } from "../../../docs/javascripts/tensors/outcome.js";
import { choose } from "../../../docs/javascripts/tensors/tensors.js";

const { formats, outcomes } = JSON.parse(readFileSync(process.env.ALTGRAD_EXPLORER_CASES, "utf-8"));
const named = new Map(formats.map((entry) => [entry.name, readFormat(entry)]));

test("what is kept, clipped and flushed is what Python says, and so is the SQNR", () => {
  for (const [histogram, name, policy, expected] of outcomes) {
    const found = outcome(histogram, named.get(name), policy);
    for (const [key, value] of Object.entries(expected)) {
      const [a, b] = [found[key], value].map((each) => (Array.isArray(each) ? each : [each]));
      a.forEach((each, k) => assert.ok(each === b[k] || Math.abs(each - b[k]) <= 1e-9 * Math.abs(b[k]), `${name} ${policy} ${key}: ${each}, not ${b[k]}`));
    }
  }
  assert.ok(outcomes.length >= 3 * POLICIES.length * 15);
});

test("an address chooses what there is, and what there is not is said", () => {
  const tensors = [["a", "weight", 0], ["a", "weight", 9], ["b", "activation", 9]].map(([layer, operand, step]) => ({ layer, operand, step }));
  assert.deepEqual(choose("", tensors).choice, { layer: "a", operand: "weight", step: "9", scale: "amax" });
  assert.deepEqual(choose("?layer=b&scale=none", tensors).choice, { layer: "b", operand: "activation", step: "9", scale: "none" });
  const { choice, notes } = choose("?layer=<img>&operand=bias&step=NaN&scale=%00", tensors);
  assert.deepEqual(choice, { layer: "a", operand: "weight", step: "9", scale: "amax" });
  assert.equal(notes.length, 4);
});
