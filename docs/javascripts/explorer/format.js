// Number formats in the browser: the scalar decode, encode and ulp of altgrad.formats, which the tests hold them to.
// A format is one entry of explorer/formats.json, as altgrad.reports.explorer writes it: fields, bias, specials,
// the largest code, and up to 8 bits the value of every code. Above that, values are computed from the fields.

const NAMED = { nan: NaN, inf: Infinity, "-inf": -Infinity };

/** A format of formats.json, with its table as numbers. Values of unlisted codes come from the fields, exactly. */
export function readFormat(entry) {
  const values = entry.values?.map((value) => (typeof value === "string" ? NAMED[value] : value));
  return { ...entry, values, signed: entry.specials !== "unsigned" };
}

const signBit = (fmt) => (fmt.signed ? 2 ** (fmt.bits - 1) : 2 ** fmt.bits);
const hasInfinity = (fmt) => fmt.specials === "p3109" || (fmt.specials === "ieee" && fmt.exponent_bits > 0);
const hasNan = (fmt) =>
  fmt.specials === "ieee" ? fmt.exponent_bits > 0 && fmt.mantissa_bits > 0 : fmt.specials !== "finite";
const hasNegativeZero = (fmt) => ["ieee", "fn", "finite"].includes(fmt.specials);

/** The value of a nonnegative code, as if no code were special: the grid goes on above the largest value. */
export function magnitude(fmt, code) {
  const field = Math.floor(code / 2 ** fmt.mantissa_bits);
  const mantissa = code % 2 ** fmt.mantissa_bits;
  if (fmt.exponent_bits === 0) return code * 2 ** fmt.quantum_exponent;
  if (field === 0 && fmt.signed) return mantissa * 2 ** fmt.quantum_exponent;
  return (2 ** fmt.mantissa_bits + mantissa) * 2 ** (field - fmt.bias - fmt.mantissa_bits);
}

/** The exact value of a code; NaN for a special one. */
export function decode(fmt, code) {
  if (fmt.values) return fmt.values[code];
  const negative = fmt.signed && code >= signBit(fmt);
  const rest = negative ? code - signBit(fmt) : code;
  if (negative && rest === 0 && !hasNegativeZero(fmt)) return NaN;
  const value = rest <= fmt.max_code ? magnitude(fmt, rest) : hasInfinity(fmt) && rest === fmt.max_code + 1 ? Infinity : NaN;
  return negative ? -value : value;
}

/** The largest code up to that of the largest value whose value is not above |x|; 0 where there is none. */
function floorCode(fmt, x) {
  let low = 0;
  let high = fmt.max_code;
  while (low < high) {
    const middle = Math.floor((low + high + 1) / 2);
    if (magnitude(fmt, middle) <= x) low = middle;
    else high = middle - 1;
  }
  return low;
}

function nanCode(fmt) {
  if (fmt.specials === "fnuz" || fmt.specials === "p3109") return signBit(fmt);
  if (fmt.specials === "ieee") return fmt.max_code + 1 + 2 ** (fmt.mantissa_bits - 1);
  return signBit(fmt) - 1;
}

/**
 * The code of x on the format's grid; null for NaN in a format without a NaN code. As FloatFormat.encode: rounding is
 * "nearest_even", "nearest_away", "toward_zero", "up", "down" or "stochastic" (with a draw in [0, 1)).
 */
export function encode(fmt, x, { rounding = "nearest_even", saturate = true, draw = 0 } = {}) {
  const negative = x < 0 || Object.is(x, -0);
  if (Number.isNaN(x) || (!fmt.signed && (negative || x === 0))) return hasNan(fmt) ? nanCode(fmt) : null;
  const inwards = rounding === "toward_zero" || rounding === (negative ? "up" : "down");
  let code = fmt.max_code;
  const size = Math.abs(x);
  if (size !== Infinity) {
    code = floorCode(fmt, size);
    const low = magnitude(fmt, code);
    const over = size - low; // exact: both are multiples of x's last place
    const gap = magnitude(fmt, code + 1) - low;
    if (rounding === "nearest_even") code += Number(over > gap / 2 || (over === gap / 2 && code % 2 === 1));
    else if (rounding === "nearest_away") code += Number(over >= gap / 2);
    else if (rounding === "stochastic") code += Number(draw * gap < over);
    else if (!inwards) code += Number(over > 0);
  }
  if (size === Infinity || code > fmt.max_code) {
    code = fmt.max_code;
    if (!saturate && hasInfinity(fmt)) code += 1;
    else if (!saturate && hasNan(fmt)) return nanCode(fmt);
  }
  return negative && (code || hasNegativeZero(fmt)) ? code + signBit(fmt) : code;
}

/** x on the format's grid, with NaN kept as NaN where there is no code for it. */
export function round(fmt, x, options) {
  const code = encode(fmt, x, options);
  return code === null ? NaN : decode(fmt, code);
}

/** floor(log2 |x|) from the bits, for finite x that is not 0. */
export function exponentOf(x) {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, x);
  const field = (view.getUint32(0) >>> 20) & 0x7ff;
  if (field) return field - 1023;
  view.setFloat64(0, x * 2 ** 64);
  return ((view.getUint32(0) >>> 20) & 0x7ff) - 1023 - 64;
}

/** Spacing of the grid at x: 2^floor(log2 |x|) * 2^-M, within what the format has. */
export function ulp(fmt, x) {
  if (Number.isNaN(x)) return NaN;
  if (x === 0) return 2 ** fmt.quantum_exponent;
  const exponent = Number.isFinite(x) ? exponentOf(x) : fmt.max_exponent;
  return 2 ** Math.min(Math.max(exponent - fmt.mantissa_bits, fmt.quantum_exponent), fmt.max_ulp_exponent);
}

// The finite values of a format in order have indices: k >= 0 is the value of code k, -k its negative.

const valueAt = (fmt, k) => (k < 0 ? -magnitude(fmt, -k) : magnitude(fmt, k));

/** The index of the largest finite value up to x; one below the first index where there is none. */
function lastIndex(fmt, x) {
  if (!fmt.signed && x < magnitude(fmt, 0)) return -1;
  if (x >= 0) return floorCode(fmt, x);
  const code = floorCode(fmt, -x);
  return magnitude(fmt, code) === -x ? -code : -code - 1;
}

/** The index of the smallest finite value from x on; one above the last index where there is none. */
function firstIndex(fmt, x) {
  const k = lastIndex(fmt, x);
  const least = fmt.signed ? -fmt.max_code : 0;
  return k >= least && valueAt(fmt, k) === x ? k : k + 1;
}

/** The values next to x, [below, above], neither of them x itself; null where the format has none. */
export function neighbours(fmt, x) {
  if (Number.isNaN(x)) return [null, null];
  const below = firstIndex(fmt, x) - 1;
  const above = lastIndex(fmt, x) + 1;
  const least = fmt.signed ? -fmt.max_code : 0;
  const beyond = (infinity) => (hasInfinity(fmt) && x !== infinity ? infinity : null);
  return [
    below < least ? (fmt.signed ? beyond(-Infinity) : null) : valueAt(fmt, below),
    above > fmt.max_code ? beyond(Infinity) : valueAt(fmt, above),
  ];
}

/** How many finite values lie in [low, high], and the first `most` of them in order. */
export function valuesWithin(fmt, low, high, most) {
  const first = firstIndex(fmt, low);
  const count = Math.max(0, lastIndex(fmt, high) - first + 1);
  return { count, values: Array.from({ length: Math.min(count, most) }, (_, k) => valueAt(fmt, first + k) + 0) };
}
