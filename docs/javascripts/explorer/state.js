// What is typed and what the address says, read strictly: whatever cannot be read is named and left out.

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const POWER = /^([+-]?)(?:(\d+\.?\d*|\.\d+)\s*[*x×]\s*)?2\s*(?:\^|\*\*)\s*\(?([+-]?\d{1,5})\)?$/i;
const shown = (text) => (text.length > 40 ? `${text.slice(0, 40)}…` : text);

/**
 * A typed number as float64: decimals, nan, inf, 3*2^-9 and 1/3.
 * Returns {value, note} (note says what float64 did to it, or is empty), or null where it is no number.
 */
export function parseNumber(text) {
  const plain = String(text).trim().replace(/[−‒–]/g, "-");
  if (plain.length > 400) return null;
  if (/^[+-]?nan$/i.test(plain)) return { value: NaN, note: "" };
  const infinite = /^([+-]?)(inf|infinity|∞)$/i.exec(plain);
  if (infinite) return { value: infinite[1] === "-" ? -Infinity : Infinity, note: "" };
  const power = POWER.exec(plain);
  const parts = plain.split("/").map((part) => part.trim());
  let value;
  let zero;
  if (power) {
    const factor = Number(power[2] ?? 1);
    const exponent = Number(power[3]);
    const half = Math.trunc(exponent / 2); // in two steps: 2^-1074 times a large factor is no zero
    value = (power[1] === "-" ? -1 : 1) * factor * 2 ** half * 2 ** (exponent - half);
    zero = factor === 0;
  } else if (parts.length === 2 && parts.every((part) => NUMBER.test(part)) && Number(parts[1]) !== 0) {
    value = Number(parts[0]) / Number(parts[1]);
    zero = Number(parts[0]) === 0;
  } else if (NUMBER.test(plain)) {
    value = Number(plain);
    zero = !/[1-9]/.test(plain.split(/e/i)[0]);
  } else return null;
  if (Number.isNaN(value)) return null;
  if (!Number.isFinite(value)) return { value, note: `${shown(plain)} is beyond float64 and is taken as infinity` };
  if (value === 0 && !zero) return { value, note: `${shown(plain)} is below float64's smallest number and is taken as 0` };
  return { value, note: "" };
}

/** The shortest text that reads back as this float64, with -0 and the names of what is no number. */
export function numberText(value) {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  return Object.is(value, -0) ? "-0" : String(value);
}

/** A float64 for people: all of it where it is short, else six digits after an approximation sign. */
export function readable(value) {
  if (value === null) return "–";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const exact = numberText(value);
  const text = exact.length <= 12 ? exact : `≈${Number(value.toPrecision(6))}`;
  return text.replace(/-/g, "−");
}

export const DEFAULTS = {
  value: "0.1", // as typed
  code: null, // {format, code}: bits that were set by hand; then the value is what they mean
  rounding: "nearest_even",
  saturate: true,
  scale: "1",
  on: ["e4m3", "e5m2", "e3m4"], // formats on the number line
  axis: "linear",
  view: null, // [low, high] of the number line (powers of two on a log axis); null follows the value
  folded: ["Other 16-bit splits"],
};
const SHORT = { value: "v", code: "c", rounding: "r", saturate: "sat", scale: "s", on: "on", axis: "axis", view: "view", folded: "fold" };

/** The state that a query string describes, and notes on what of it could not be read. `data` is formats.json, read. */
export function readState(query, data) {
  const given = new URLSearchParams(query);
  const state = { ...DEFAULTS };
  const notes = [];
  const refuse = (what, text) => notes.push(`The address says ${what} “${shown(text)}”, which is not known; it was left out.`);
  const take = (key, what, read) => {
    const text = given.get(SHORT[key]);
    if (text === null) return;
    const found = read(text);
    if (found === undefined) refuse(what, text);
    else state[key] = found;
  };
  const named = new Map(data.formats.map((fmt) => [fmt.name, fmt]));
  const groups = new Set(data.formats.map((fmt) => fmt.group));
  take("value", "value", (text) => (parseNumber(text) ? text.trim() : undefined));
  take("code", "code", (text) => {
    const [name, digits, rest] = text.toLowerCase().split(":");
    const fmt = named.get(name);
    const code = /^[0-9a-f]{1,4}$/.test(digits ?? "") && rest === undefined ? parseInt(digits, 16) : NaN;
    return fmt && code < 2 ** fmt.bits ? { format: name, code } : undefined;
  });
  take("rounding", "rounding", (text) => (data.roundings.includes(text) ? text : undefined));
  take("saturate", "saturation", (text) => ({ 0: false, 1: true })[text]);
  take("scale", "scale", (text) => (readScale(text) ? text.trim() : undefined));
  take("axis", "axis", (text) => (["linear", "log"].includes(text) ? text : undefined));
  take("view", "view", (text) => {
    const [low, high, rest] = text.split(",").map((part) => (NUMBER.test(part) ? Number(part) : NaN));
    const width = high - low;
    return rest === undefined && Math.abs(low) < 1e300 && Math.abs(high) < 1e300 && width > 0 ? [low, high] : undefined;
  });
  for (const [key, what, known] of [["on", "format", named], ["folded", "group", groups]]) {
    const text = given.get(SHORT[key]);
    if (text === null) continue;
    const parts = [...new Set(text.split(",").filter(Boolean))].slice(0, 100);
    for (const part of parts) if (!known.has(part)) refuse(what, part);
    state[key] = parts.filter((part) => known.has(part));
  }
  return { state, notes };
}

/** A scale: {value, note} of a typed number above 0, or null. */
export function readScale(text) {
  const found = parseNumber(text);
  return found && found.value > 0 && Number.isFinite(found.value) ? found : null;
}

/** The query string of a state: what differs from the defaults, "" for none. */
export function writeState(state) {
  const given = new URLSearchParams();
  const texts = {
    value: state.code ? undefined : state.value,
    code: state.code && `${state.code.format}:${state.code.code.toString(16).padStart(2, "0")}`,
    rounding: state.rounding,
    saturate: state.saturate ? "1" : "0",
    scale: state.scale,
    on: state.on.join(","),
    axis: state.axis,
    view: state.view && state.view.map((end) => String(Number(end.toPrecision(12)))).join(","),
    folded: state.folded.join(","),
  };
  const usual = { ...DEFAULTS, saturate: "1", on: DEFAULTS.on.join(","), folded: DEFAULTS.folded.join(",") };
  for (const [key, name] of Object.entries(SHORT)) {
    if (texts[key] !== undefined && texts[key] !== null && texts[key] !== usual[key]) given.set(name, texts[key]);
  }
  const text = given.toString().replace(/%2C/g, ",").replace(/%3A/g, ":");
  return text && `?${text}`;
}
