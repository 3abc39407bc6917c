// The Explorer: one value in every format. The page is built once; each keystroke changes only what differs.

import { decode, encode, magnitude, neighbours, readFormat, ulp } from "./format.js";
import { drawLine, movedView, usualView, valuesInView } from "./line.js";
import { minus } from "../figures.js";
import { numberText, parseNumber, readScale, readState, readable, writeState } from "./state.js";

const ROUNDING_NAMES = {
  nearest_even: "to nearest, ties to even",
  nearest_away: "to nearest, ties away from zero",
  toward_zero: "toward zero",
  up: "up (toward +∞)",
  down: "down (toward −∞)",
  stochastic: "stochastic",
};

/** An element with properties, attributes (with a hyphen, or `role`) and children; text is never markup. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || ["role", "for", "colspan", "scope", "list"].includes(name)) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** A format's name with spaces where a narrow table may break it. */
const title = (fmt) => fmt.label.replaceAll("_", " ");

const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };

/** A value through one format: its code, what it becomes, the neighbours and the error in ulps. */
export function through(fmt, value, { rounding, saturate, scale }) {
  const x = value / scale;
  const code = encode(fmt, x, { rounding, saturate, draw: 0.5 });
  const rounded = code === null ? NaN : decode(fmt, code);
  const found = { code, rounded, error: (rounded - x) / ulp(fmt, x), neighbours: neighbours(fmt, x) };
  if (rounding !== "stochastic" || !Number.isFinite(x) || Number.isNaN(rounded)) return found;
  const [lower, higher] = [encode(fmt, x, { rounding, saturate, draw: 1 }), encode(fmt, x, { rounding, saturate, draw: 0 })];
  if (lower === higher) return found;
  const near = encode(fmt, x, { rounding: "toward_zero", saturate: true });
  const size = decode(fmt, near);
  const gap = magnitude(fmt, near % 2 ** (fmt.bits - 1) + 1) - Math.abs(size);
  const chance = Math.min(1, (Math.abs(x) - Math.abs(size)) / gap);
  return { ...found, candidates: [[lower, 1 - chance], [higher, chance]] };
}

export async function start(root) {
  const response = await fetch(root.dataset.formats);
  if (!response.ok) throw new Error(`formats.json: ${response.status}`);
  const loaded = await response.json();
  const data = { ...loaded, formats: loaded.formats.map(readFormat) };
  new Explorer(root, data).begin();
}

class Explorer {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.named = new Map(data.formats.map((fmt) => [fmt.name, fmt]));
    this.build();
  }

  begin() {
    this.read();
    window.addEventListener("popstate", () => this.read());
    new ResizeObserver(() => this.draw()).observe(this.svg.parentElement);
  }

  /** Take the state from the address; what cannot be read is said. */
  read() {
    const { state, notes } = readState(window.location.search, this.data);
    this.state = state;
    this.typing = null;
    this.notes.replaceChildren(...notes.slice(0, 5).map((note) => element("p", { textContent: note })));
    this.show({ controls: true });
  }

  /** Change the state, the address and the page. Keystrokes in one field are one step of the back button. */
  change(part, field = null) {
    this.state = { ...this.state, ...part };
    const address = window.location.pathname + writeState(this.state) + window.location.hash;
    const again = field !== null && field === this.typing;
    if (address !== window.location.pathname + window.location.search + window.location.hash) {
      window.history[again ? "replaceState" : "pushState"](null, "", address);
    }
    this.typing = field;
    this.notes.replaceChildren();
    this.show({ controls: field === null });
  }

  build() {
    const field = (label, control) => element("div", { className: "field" }, element("label", { for: control.id, textContent: label }), control);
    this.value = element("input", { id: "x-value", type: "text", autocomplete: "off", spellcheck: false, maxLength: 400, "aria-describedby": "x-value-note", "inputmode": "text" });
    this.scale = element("input", { id: "x-scale", type: "text", autocomplete: "off", spellcheck: false, maxLength: 40, size: 8, "aria-describedby": "x-value-note" });
    this.rounding = element("select", { id: "x-rounding" }, ...this.data.roundings.map((name) => element("option", { value: name, textContent: ROUNDING_NAMES[name] ?? name })));
    this.saturate = element("select", { id: "x-saturate" }, element("option", { value: "1", textContent: "saturates at the largest value" }), element("option", { value: "0", textContent: "becomes infinity or NaN" }));
    this.note = element("p", { id: "x-value-note", className: "note" });
    this.notes = element("div", { className: "notes", role: "status" });
    this.summary = element("p", { className: "summary", role: "status" });
    this.value.addEventListener("input", () => this.type("value", this.value.value));
    this.scale.addEventListener("input", () => this.type("scale", this.scale.value));
    for (const control of [this.value, this.scale]) control.addEventListener("change", () => { this.typing = null; });
    this.rounding.addEventListener("change", () => this.change({ rounding: this.rounding.value }));
    this.saturate.addEventListener("change", () => this.change({ saturate: this.saturate.value === "1" }));
    const examples = element("p", { className: "examples" }, "Try ", ...["0.1", "1/3", "448", "500", "2^-10", "-0", "nan", "inf"].flatMap((text) => [
      element("button", { type: "button", textContent: text, onclick: () => this.change({ value: text, code: null, view: null }) }), " ",
    ]));
    const form = element("div", { className: "controls" }, field("Value", this.value), field("Rounding", this.rounding), field("Beyond the largest", this.saturate), field("Scale", this.scale));
    this.root.replaceChildren(form, this.note, examples, this.notes, this.summary, this.buildLine(), this.buildTable());
    this.root.hidden = false;
  }

  buildLine() {
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("aria-label", "Number line; its values are in the table below it");
    const box = element("div", { className: "line-box", tabIndex: 0, role: "group", "aria-label": "Number line. Arrow keys move it, plus and minus zoom, 0 returns to the value" }, this.svg);
    const view = () => this.state.view ?? usualView(this.number(), this.state.axis);
    const move = (factor, shift, at, field) => this.change({ view: movedView(view(), factor, shift, at) }, field);
    const button = (text, label, act) => element("button", { type: "button", textContent: text, "aria-label": label, title: label, onclick: act });
    this.axis = element("select", { id: "x-axis", onchange: () => this.change({ axis: this.axis.value, view: null }) },
      element("option", { value: "linear", textContent: "linear" }), element("option", { value: "log", textContent: "logarithmic (magnitudes)" }));
    const controls = element("div", { className: "line-controls" },
      element("label", { for: "x-axis", textContent: "Axis" }), this.axis,
      button("+", "Zoom in", () => move(0.5, 0)), button("−", "Zoom out", () => move(2, 0)),
      button("←", "Move left", () => move(1, -0.25)), button("→", "Move right", () => move(1, 0.25)),
      button("Reset", "Follow the value again", () => this.change({ view: null })));
    box.addEventListener("keydown", (event) => {
      const act = { "+": [0.5, 0], "=": [0.5, 0], "-": [2, 0], ArrowLeft: [1, -0.1], ArrowRight: [1, 0.1] }[event.key];
      if (event.ctrlKey || event.metaKey || event.altKey || (!act && event.key !== "0")) return;
      event.preventDefault();
      if (act) move(act[0], act[1], 0.5, "line");
      else this.change({ view: null }, "line");
    });
    box.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== box) return; // else the page scrolls
      event.preventDefault();
      move(event.deltaY > 0 ? 1.25 : 0.8, 0, this.across(event), "line");
    }, { passive: false });
    box.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch") return; // fingers scroll the page; the buttons move the line
      const from = this.across(event);
      const held = view();
      const drag = (moved) => this.change({ view: movedView(held, 1, from - this.across(moved)) }, "drag");
      box.setPointerCapture(event.pointerId);
      box.addEventListener("pointermove", drag);
      box.addEventListener("pointerup", () => { box.removeEventListener("pointermove", drag); this.typing = null; }, { once: true });
    });
    this.lineData = element("div");
    const details = element("details", {}, element("summary", { textContent: "The line as a table" }), this.lineData);
    details.addEventListener("toggle", () => this.tabulate());
    this.lineDetails = details;
    return element("section", { className: "line", "aria-label": "Number line" }, element("h2", { textContent: "Number line" }), controls, box, details);
  }

  buildTable() {
    this.rows = [];
    const head = ["Line", "Format", "Rounded", "Error (ulp)", "Next below", "Next above", "Code", "Bits"];
    const table = element("table", { "aria-label": "The value in every format", role: "table" },
      element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...head.map((text) => element("th", { scope: "col", role: "columnheader", textContent: text })))));
    this.bodies = new Map();
    for (const group of new Set(this.data.formats.map((fmt) => fmt.group))) {
      const formats = this.data.formats.filter((fmt) => fmt.group === group);
      const body = element("tbody", { role: "rowgroup" });
      const toggle = element("button", { type: "button", className: "fold", textContent: `${group} (${formats.length})` });
      toggle.addEventListener("click", () => {
        const folded = this.state.folded.includes(group) ? this.state.folded.filter((each) => each !== group) : [...this.state.folded, group];
        this.change({ folded });
      });
      const header = element("tr", { role: "row", className: "group" }, element("th", { colspan: head.length, scope: "rowgroup", role: "rowheader" }, toggle));
      const rows = formats.map((fmt) => this.buildRow(fmt));
      body.append(header, ...rows.map((row) => row.line));
      this.bodies.set(group, { toggle, rows });
      this.rows.push(...rows);
      table.append(body);
    }
    const legend = element("p", { className: "legend" }, ...["sign", "exponent", "mantissa"].map((name) => element("span", { className: `bits-${name}`, textContent: name })),
      " Click a bit, or move with the arrow keys and press Space, to change it: the value becomes what the bits mean.");
    return element("section", { "aria-label": "Formats" }, element("h2", { textContent: "Every format" }), legend,
      element("div", { className: "format-table", role: "region", tabIndex: 0, "aria-label": "The value in every format" }, table));
  }

  buildRow(fmt) {
    const cell = (className, label, ...children) => element("td", { className, role: "cell", "data-label": label }, ...children);
    const fields = [["sign", fmt.signed ? 1 : 0], ["exponent", fmt.exponent_bits], ["mantissa", fmt.mantissa_bits]].filter(([, width]) => width);
    let position = fmt.bits - 1;
    const buttons = [];
    const groups = fields.map(([name, width]) => element("span", { className: `bits-${name}` },
      element("span", { className: "bit-row" }, ...Array.from({ length: width }, (_, k) => {
        const bit = position--;
        const button = element("button", { type: "button", className: "bit", tabIndex: buttons.length ? -1 : 0, "aria-pressed": "false", "aria-label": width > 1 ? `${name} bit ${width - 1 - k}` : name });
        button.addEventListener("click", () => this.toggle(fmt, bit));
        buttons.push(button);
        return button;
      })), element("span", { className: "bit-name", "aria-hidden": "true", textContent: width > 1 ? name : name[0] })));
    const bits = element("div", { className: "bits", role: "group", "aria-label": `${fmt.label}: bits` }, ...groups);
    bits.addEventListener("keydown", (event) => {
      const at = buttons.indexOf(document.activeElement);
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
      if (to === undefined || !buttons[to]) return;
      event.preventDefault();
      buttons.forEach((button, k) => { button.tabIndex = k === to ? 0 : -1; });
      buttons[to].focus();
    });
    const name = fmt.page ? element("a", { href: `../formats/${fmt.name}/`, textContent: title(fmt) }) : title(fmt);
    const on = element("input", { type: "checkbox", "aria-label": `${fmt.label} on the number line` });
    on.addEventListener("change", () => this.change({ on: on.checked ? [...this.state.on, fmt.name] : this.state.on.filter((each) => each !== fmt.name) }));
    const [rounded, error, below, above, code] = Array.from({ length: 5 }, () => element("span"));
    const line = element("tr", { role: "row" }, cell("on", "Line", on), element("th", { scope: "row", role: "rowheader" }, name), cell("rounded", "Rounded", rounded), cell("error", "Error (ulp)", error),
      cell("", "Next below", below), cell("", "Next above", above), cell("code", "Code", code), cell("bits-cell", "Bits", bits));
    return { fmt, line, rounded, error, below, above, code, buttons, on };
  }

  /** The number that the state means: what was typed, or what bits set by hand stand for. */
  number() {
    const { code } = this.state;
    return code ? decode(this.named.get(code.format), code.code) * this.factor() : parseNumber(this.state.value).value;
  }

  factor() { return readScale(this.state.scale).value; }

  type(field, text) {
    const found = field === "scale" ? readScale(text) : parseNumber(text);
    this[field].setAttribute("aria-invalid", String(!found));
    const wanted = field === "scale" ? "a number above 0" : "a number: 0.1, -1e-3, 1/3, 3*2^-9, inf or nan";
    if (!found) write(this.note, text.trim() ? `“${text.slice(0, 60)}” is not ${wanted}; below is the last one.` : `Type ${wanted}.`);
    else this.change({ [field]: text.trim(), ...(field === "value" ? { code: null } : {}) }, field);
  }

  toggle(fmt, bit) {
    const current = this.found.get(fmt.name).code ?? 0;
    const code = Math.floor(current / 2 ** bit) % 2 ? current - 2 ** bit : current + 2 ** bit;
    this.change({ code: { format: fmt.name, code } });
  }

  show({ controls }) {
    const { state } = this;
    const value = this.number();
    const scale = this.factor();
    if (controls) {
      this.value.value = state.code ? numberText(value) : state.value;
      this.scale.value = state.scale;
      for (const input of [this.value, this.scale]) input.removeAttribute("aria-invalid");
    }
    else if (this.typing) this[this.typing]?.removeAttribute?.("aria-invalid");
    this.rounding.value = state.rounding;
    this.saturate.value = state.saturate ? "1" : "0";
    this.axis.value = state.axis;
    const typed = state.code ? "" : parseNumber(state.value).note;
    const power = Number.isInteger(Math.log2(scale)) ? "" : "The scale is no power of two: value / scale is rounded to float64 before it is rounded to a format.";
    write(this.note, [typed && `${typed}.`, power].filter(Boolean).join(" "));
    const options = { rounding: state.rounding, saturate: state.saturate, scale };
    this.found = new Map();
    for (const row of this.rows) {
      const found = through(row.fmt, value, options);
      if (state.code?.format === row.fmt.name) Object.assign(found, { code: state.code.code, rounded: decode(row.fmt, state.code.code), candidates: undefined });
      this.found.set(row.fmt.name, found);
      this.showRow(row, found, scale);
    }
    for (const [group, { toggle, rows }] of this.bodies) {
      const folded = state.folded.includes(group);
      toggle.setAttribute("aria-expanded", String(!folded));
      for (const { line } of rows) line.hidden = folded;
    }
    write(this.summary, this.best(value, scale));
    this.draw();
    this.tabulate();
  }

  showRow(row, { code, rounded, error, neighbours: [below, above], candidates }, scale) {
    const real = (each) => readable(each === null ? null : each * scale);
    const percent = (chance) => `${Number((100 * chance).toPrecision(3))}%`;
    write(row.rounded, candidates ? candidates.map(([each, chance]) => `${real(decode(row.fmt, each))} (${percent(chance)})`).join(" or ") : real(rounded));
    row.rounded.title = numberText(rounded * scale);
    write(row.error, candidates || Number.isNaN(error) ? "–" : error === 0 ? "0" : Number.isFinite(error) ? `${error > 0 ? "+" : "−"}${minus(String(Number(Math.abs(error).toPrecision(3))))}` : readable(error));
    row.error.parentElement.classList.toggle("exact", error === 0);
    write(row.below, real(below));
    write(row.above, real(above));
    write(row.code, code === null ? "no code" : `0x${code.toString(16).padStart(Math.ceil(row.fmt.bits / 4), "0")}`);
    row.buttons.forEach((button, k) => {
      const bit = code === null ? "·" : String(Math.floor(code / 2 ** (row.fmt.bits - 1 - k)) % 2);
      if (button.textContent !== bit) {
        button.textContent = bit;
        button.setAttribute("aria-pressed", String(bit === "1"));
      }
    });
    row.on.checked = this.state.on.includes(row.fmt.name);
  }

  /** One sentence: which formats come nearest. */
  best(value, scale) {
    if (!Number.isFinite(value)) return `${readable(value)}: which formats can hold it is in the table.`;
    const nearest = (bits) => {
      const distances = this.rows.filter(({ fmt }) => fmt.bits <= bits && fmt.bits > bits - 8).map(({ fmt }) => {
        const { rounded } = this.found.get(fmt.name);
        return [fmt.label, Math.abs(rounded * scale - value)];
      }).filter(([, distance]) => distance < Infinity);
      const least = Math.min(...distances.map(([, distance]) => distance));
      const names = distances.filter(([, distance]) => distance === least).map(([label]) => label);
      const list = names.length > 6 ? `${names.slice(0, 5).join(", ")} and ${names.length - 5} more` : names.join(", ");
      return names.length ? `up to ${bits} bits ${list}${least === 0 ? " (exactly)" : `, ${readable(least)} away`}` : "";
    };
    return `Nearest to ${readable(value)}: ${[8, 16].map(nearest).filter(Boolean).join("; ")}.`;
  }

  shownRows() {
    return this.state.on.map((name) => ({ fmt: this.named.get(name), rounded: this.found.get(name).rounded * this.factor(), colour: `var(${this.named.get(name).style[0]})` }));
  }

  lineState() {
    const value = this.number();
    const { axis } = this.state;
    return { value, axis, scale: this.factor(), view: this.state.view ?? usualView(value, axis) };
  }

  draw() {
    const width = Math.max(260, Math.floor(this.svg.parentElement.clientWidth - 16));
    drawLine(this.svg, this.shownRows(), this.lineState(), width);
  }

  across(event) {
    const box = this.svg.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left - 74) / (box.width - 86)));
  }

  /** The number line's other form: how many values of each format are in view, which, and the spacing there. */
  tabulate() {
    if (!this.lineDetails.open) return;
    const { value, view, axis, scale } = this.lineState();
    const most = 64;
    const rows = this.shownRows().map(({ fmt, rounded }) => {
      const { count, values } = valuesInView(fmt, view, axis, scale, most);
      const list = values.map(readable).join(", ") + (count > most ? `, … (${count - most} more)` : "");
      return [fmt.label, readable(rounded), readable(ulp(fmt, value / scale) * scale), String(count), list || "none"];
    });
    const head = ["Format", "Rounded", "Spacing at the value", "Values in view", "Which"];
    const ends = axis === "log" ? view.map((end) => `2^${minus(String(Number(end.toPrecision(4))))}`) : view.map(readable);
    this.lineData.replaceChildren(
      element("p", { textContent: `In view: ${ends.join(" to ").replace(/-/g, "−")}.` }),
      element("div", { className: "format-table", tabIndex: 0, role: "region", "aria-label": "Values in view" },
        element("table", {}, element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col", textContent: text })))),
          element("tbody", {}, ...rows.map(([name, ...cells]) => element("tr", {}, element("th", { scope: "row", textContent: name }), ...cells.map((text) => element("td", { textContent: text }))))))),
    );
  }
}

const root = globalThis.document?.getElementById("value-explorer");
if (root) {
  start(root).catch((error) => {
    root.hidden = false;
    root.replaceChildren(element("p", { role: "alert", textContent: `The formats could not be loaded (${error.message}).` }));
  });
}
