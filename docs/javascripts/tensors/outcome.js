// What a format would keep, clip and flush of a recorded tensor: altgrad.analysis.tensors in the browser, step by step.

import { magnitude, round } from "../explorer/format.js";

export const SAMPLES = 101;
export const POLICIES = ["amax", "amax_exact", "none"];

const largest = (fmt) => magnitude(fmt, fmt.max_code);

/** Mantissa in [1/2, 1) and exponent of a finite x above 0. */
function frexp(x) {
  let exponent = Math.max(-1023, Math.floor(Math.log2(x)) + 1);
  let mantissa = x / 2 ** exponent;
  while (mantissa >= 1) { mantissa /= 2; exponent += 1; }
  while (mantissa < 0.5) { mantissa *= 2; exponent -= 1; }
  return [mantissa, exponent];
}

/** The scale of a tensor with this largest magnitude; see scale_by in Python. */
export function scaleBy(policy, amax, fmt) {
  if (policy === "none" || amax === 0) return 1;
  if (policy === "amax_exact") return amax / largest(fmt);
  const [[mantissa, exponent], [top, topExponent]] = [frexp(amax), frexp(largest(fmt))];
  return 2 ** Math.min(Math.max(exponent - topExponent + Number(mantissa > top), -126), 127);
}

function magnitudes({ kind, amax }, key) {
  if (kind === "codes") return [[key], key, key];
  const base = 2 ** key;
  const high = Math.max(base, Math.min(2 * base, amax));
  const parts = Array.from({ length: SAMPLES }, (_, k) => base + (high - base) * ((k + 0.5) / SAMPLES));
  return [parts, base * (1 + 2 ** -52), high * (1 - 2 ** -53)];
}

/** A histogram {kind, counts: [[key, number]], zeros, amax} through a format; fractions are of nonzero elements. */
export function outcome(histogram, fmt, policy) {
  const scale = scaleBy(policy, histogram.amax, fmt);
  const limit = largest(fmt) + 2 ** fmt.max_ulp_exponent / 2;
  const beyondAtTie = fmt.max_code % 2 === 1;
  const clips = (x) => Number(x > limit || (x === limit && beyondAtTie));
  const flushes = (x) => Number(round(fmt, x) === 0);
  const clipped = [0, 0, 0];
  const flushed = [0, 0, 0];
  let [signal, noise, total] = [0, 0, 0];
  for (const [key, number] of histogram.counts) {
    const [all, low, high] = magnitudes(histogram, key);
    total += number;
    const share = number / all.length;
    for (const each of all) {
      const x = each / scale;
      const q = round(fmt, x);
      clipped[1] += share * clips(x);
      flushed[1] += share * Number(q === 0);
      signal += share * (x * x);
      noise += share * ((q - x) * (q - x));
    }
    clipped[0] += number * clips(low / scale);
    clipped[2] += number * clips(high / scale);
    flushed[0] += number * flushes(high / scale);
    flushed[2] += number * flushes(low / scale);
  }
  if (typeof histogram.norm === "number") signal = (histogram.norm / scale) ** 2;
  const [c, f] = [clipped, flushed].map((counts) => counts.map((each) => each / Math.max(total, 1)));
  return {
    scale,
    clipped: c[1],
    flushed: f[1],
    kept: total ? 1 - c[1] - f[1] : 0,
    clipped_bounds: [c[0], c[2]],
    flushed_bounds: [f[0], f[2]],
    sqnr_db: signal > 0 && noise > 0 ? 10 * Math.log10(signal / noise) : null,
  };
}
