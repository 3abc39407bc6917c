// The number line: which values of a format lie where, and a drawing of it. Places run from 0 to 1 across the view.

import { minus } from "../figures.js";
import { neighbours, valuesWithin } from "./format.js";
import { readable } from "./state.js";

const MOST = 800; // ticks a format; more are one band

/** The view around a value where the reader has chosen none: from 0 to twice the value, or four binades each way. */
export function usualView(value, axis) {
  const size = Math.abs(value);
  const plain = Number.isFinite(value) && size > 1e-290 && size < 1e290;
  if (axis === "log") {
    const middle = plain ? Math.floor(Math.log2(size)) : 0;
    return [middle - 4, middle + 5];
  }
  if (!plain) return [-2, 2];
  return value > 0 ? [0, 2 * value] : [2 * value, 0];
}

/** A view moved by a part of its width and made `factor` times as wide, within what float64 can tell apart. */
export function movedView([low, high], factor, shift, at = 0.5) {
  const width = high - low;
  const fixed = low + at * width;
  const next = [fixed - at * width * factor + shift * width, fixed + (1 - at) * width * factor + shift * width];
  const size = Math.max(...next.map(Math.abs));
  return next[1] - next[0] > size * 1e-12 && next[1] - next[0] > 1e-300 && size < 1e299 ? next : [low, high];
}

/** The place of a value in the view; NaN where the axis does not have it. A log axis shows magnitudes. */
export function place(value, view, axis) {
  const at = axis === "log" ? Math.log2(Math.abs(value)) : value;
  return (at - view[0]) / (view[1] - view[0]);
}

/** The values of scale * format in the view: {count, values} with the first of them. */
export function valuesInView(fmt, view, axis, scale, most = MOST) {
  const [low, high] = axis === "log" ? view.map((power) => 2 ** power) : view;
  const { count, values } = valuesWithin(fmt, low / scale, high / scale, most);
  return { count, values: values.map((value) => value * scale) };
}

/** Round numbers in the view to label it with, about `most`: [place, text]. */
export function marks(view, axis, most) {
  const width = view[1] - view[0];
  const rough = width / most;
  const unit = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough * 0.999);
  if (axis === "log") step = Math.max(1, Math.ceil(step));
  const first = Math.ceil(view[0] / step - 1e-9);
  const last = Math.floor(view[1] / step + 1e-9);
  return Array.from({ length: Math.max(0, Math.min(last - first + 1, 3 * most)) }, (_, k) => {
    const value = (first + k) * step;
    const digits = Math.min(12, Math.max(1, Math.ceil(Math.log10(Math.abs(value || 1) / step)) + 2));
    const text = axis === "log" ? `2^${minus(String(value))}` : readable(Number(value.toPrecision(digits)));
    return [(value - view[0]) / width, text.replace("-", "−")];
  });
}

const svg = (tag, attributes, text) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
};

const ROW = 30;
const TOP = 16;

/** Draw the line into an svg element: rows [{fmt, rounded, colour}] over one axis, and the value across them. */
export function drawLine(target, rows, { value, view, axis, scale }, width) {
  const label = 74;
  const across = Math.max(80, width - label - 12);
  const height = TOP + rows.length * ROW + 26;
  const x = (at) => (label + at * across).toFixed(1);
  target.setAttribute("viewBox", `0 0 ${width} ${height}`);
  target.style.height = `${height}px`;
  const parts = [];
  const bottom = TOP + rows.length * ROW;
  const most = Math.max(2, Math.floor(across / (axis === "log" ? 44 : 64)));
  for (const [at, text] of marks(view, axis, most)) {
    parts.push(svg("line", { x1: x(at), x2: x(at), y1: TOP, y2: bottom + 4, class: "grid" }));
    parts.push(svg("text", { x: x(at), y: bottom + 17, "text-anchor": "middle", class: "mark" }, text));
  }
  rows.forEach(({ fmt, rounded, colour }, index) => {
    const base = TOP + index * ROW + 21;
    parts.push(svg("text", { x: 0, y: base - 3, class: "name" }, fmt.label.replace("P3109_K8", "K8").replace("_", " ").slice(0, 12)));
    parts.push(svg("line", { x1: label, x2: label + across, y1: base, y2: base, stroke: colour, "stroke-width": 1 }));
    const { count, values } = valuesInView(fmt, view, axis, scale);
    if (count > MOST) {
      const ends = [values[0], largestInView(fmt, view, axis, scale)].map((end) => place(end, view, axis));
      const [from, to] = ends.map((end) => Math.min(1, Math.max(0, end)));
      parts.push(svg("rect", { x: x(from), y: base - 13, width: ((to - from) * across).toFixed(1), height: 13, fill: colour, opacity: 0.45 }));
    } else {
      const ticks = values.map((each) => place(each, view, axis)).filter((at) => at >= -1e-9 && at <= 1 + 1e-9);
      const path = ticks.map((at) => `M${x(at)} ${base}v-13`).join("");
      parts.push(svg("path", { d: path, stroke: colour, "stroke-width": 1.4, fill: "none" }));
    }
    const at = place(rounded, view, axis);
    if (at >= 0 && at <= 1) parts.push(svg("circle", { cx: x(at), cy: base, r: 4.5, fill: colour, class: "rounded" }));
  });
  const at = place(value, view, axis);
  if (at >= 0 && at <= 1) {
    parts.push(svg("line", { x1: x(at), x2: x(at), y1: TOP - 2, y2: bottom + 4, class: "value" }));
    const anchor = at < 0.15 ? "start" : at > 0.85 ? "end" : "middle";
    parts.push(svg("text", { x: x(at), y: TOP - 5, "text-anchor": anchor, class: "value-name" }, readable(value)));
  }
  target.replaceChildren(...parts);
}

function largestInView(fmt, view, axis, scale) {
  const top = (axis === "log" ? 2 ** view[1] : view[1]) / scale;
  const [below, above] = neighbours(fmt, top);
  return (above === null || above === Infinity ? Math.min(top, below ?? top) : top) * scale;
}
