// What the pages of runs and of comparing have in common: labelled controls, and a line that says what was left out.

import { breakable, element } from "../curves.js";

export const button = (textContent, onclick, properties = {}) => element("button", { type: "button", textContent, onclick, ...properties });

/** A control under its label. */
export function field(label, control, ...more) {
  control.ariaLabel = label;
  return element("label", { className: "field" }, element("span", {}, ...breakable(label), ...more), control);
}

/** A choice among [value, text]. */
export function choice(values) {
  return element("select", {}, ...values.map(([value, textContent]) => element("option", { value, textContent })));
}

/** A paragraph that is read aloud when its text changes. */
export function status(className) {
  const made = element("p", { className });
  made.setAttribute("role", "status");
  return made;
}

/** Let a note say some lines, or be gone without any; `more` are nodes after them. */
export function say(note, lines, ...more) {
  note.hidden = !lines.length;
  note.replaceChildren(lines.length ? `${lines.join("; ")}.`.replace(/^./, (first) => first.toUpperCase()) : "", ...more);
}
