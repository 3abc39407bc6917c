// The ladder's law, as altgrad.analysis.scaling.asked has it: a gap with its interval for an arm, a size and a length.

const UNITS = { "": 1, k: 1e3, m: 1e6, b: 1e9, g: 1e9, t: 1e12 };

/** A typed size such as 1e6, 1,000,000, 10M or 1.5b; null where it is no positive number. */
export function readSize(text) {
  const found = /^(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([kmbgt]?)$/i.exec(String(text).trim().replace(/(\d),(?=\d{3}(?!\d))/g, "$1"));
  const value = found ? Number(found[1]) * UNITS[found[2].toLowerCase()] : NaN;
  return value > 0 && Number.isFinite(value) ? value : null;
}

/**
 * {gap, low, high, share, beyond, kind} of an arm at a size and a length; kind is "inside", "guess" or "refused", which has
 * no figures. `data` is scaling.law.json, `form` the key of one of its arms.
 */
export function ask(data, form, parameters, tokens) {
  const { coefficient, covariance } = data.forms.find(({ key }) => key === form);
  let beyond = 1;
  [parameters, tokens].forEach((value, at) => {
    const [smallest, largest] = data.recorded[at];
    beyond = Math.max(beyond, value / largest, smallest / value);
  });
  const kind = beyond >= data.refused ? "refused" : beyond > data.grey ? "guess" : "inside";
  if (kind === "refused") return { gap: NaN, low: NaN, high: NaN, share: NaN, beyond, kind };
  const logs = [Math.log(parameters / data.units[0]), Math.log(tokens / data.units[1])];
  const shape = Math.exp(data.exponents[0] * logs[0] + data.exponents[1] * logs[1]);
  const gap = coefficient * shape;
  const gradient = [gap * logs[0], gap * logs[1], shape];
  const variance = gradient.reduce((sum, x, i) => sum + gradient.reduce((row, y, j) => row + x * covariance[i][j] * y, 0), 0);
  const half = data.quantile * Math.sqrt(Math.max(variance, 0));
  return { gap, low: gap - half, high: gap + half, share: shareOfData(data, tokens, gap), beyond, kind };
}

/** The share of the tokens that FP32 could go without and still end as low; NaN without a law of its loss. */
export function shareOfData(data, tokens, gap) {
  if (!data.loss) return NaN;
  const { beta, fall } = data.loss;
  const length = tokens / data.units[1];
  return 1 - (length ** -beta + Math.max(gap, 0) / fall) ** (-1 / beta) / length;
}
