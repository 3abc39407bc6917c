// The calculator of the scaling report: what a format will cost at a size and a length. Its address holds the question.

import { element } from "../curves.js";
import { minus } from "../figures.js";
import { choice, field, say, status } from "../runs/controls.js";
import { ask, readSize } from "./law.js";

const DEFAULTS = { n: "1M", d: "3M", f: "", w: "ends" };
const WIDE = [["ends", "embedding and head"], ["nothing", "nothing"]];
const KEYS = ["n", "d", "f", "w"];

const nats = (value, sign = true) => minus(`${sign && value > 0 ? "+" : ""}${value.toFixed(Math.abs(value) < 0.00095 ? 4 : 3)}`);
const count = (value) => Math.round(value).toLocaleString("en");
const times = (value) => `${Number(value.toPrecision(3)).toLocaleString("en")} times`;

/** The answer in a sentence. */
export function sentence(answer, label, parameters, tokens) {
  const where = `${label} at ${count(parameters)} parameters and ${count(tokens)} tokens`;
  if (answer.kind === "refused") return `${where}: no answer. That lies ${times(answer.beyond)} outside of what is recorded.`;
  const worth = Number.isNaN(answer.share) ? "" : ` That is worth ${Number((100 * answer.share).toPrecision(2))}% of the compute.`;
  const far = answer.beyond > 1 ? ` ${times(answer.beyond)} outside of what is recorded${answer.kind === "guess" ? ": a guess" : ""}.` : " Inside of what is recorded.";
  const interval = `95% interval ${nats(answer.low, false)} to ${nats(answer.high, false)}`;
  return `${where}: ${nats(answer.gap)} nats per character (${interval}).${worth}${far}`;
}

/** What was recorded with everything quantized, where no law is fitted. */
export function recordedEverywhere(data) {
  if (!data.everywhere.length) return "No law is fitted where nothing stays wide, and nothing is recorded.";
  const rows = data.everywhere.map(({ label, parameters, tokens, gap }) => `${label} at ${count(parameters)} parameters and ${count(tokens)} tokens ${nats(gap)}`);
  return `No law is fitted where nothing stays wide. Recorded are, in nats per character: ${rows.join("; ")}.`;
}

/** Put the calculator before the table that says the same. */
export async function start(page) {
  const table = page.querySelector("#table-calculator");
  const file = page.querySelector("a[href$='.law.json']");
  const response = await fetch(file.href);
  if (!response.ok) return; // the table stays
  const data = await response.json();
  DEFAULTS.f = data.forms.some(({ key }) => key === "NVFP4") ? "NVFP4" : data.forms[0].key;

  const size = (id) => element("input", { id, type: "text", autocomplete: "off", spellcheck: false, maxLength: 40, size: 12, "aria-describedby": "calculator-note" });
  const controls = { n: size("calculator-n"), d: size("calculator-d"), f: choice(data.forms.map(({ key, label }) => [key, label])), w: choice(WIDE) };
  const note = element("p", { id: "calculator-note", className: "note" });
  const left = status("note");
  const said = status("summary");
  const box = element("section", { className: "explorer", id: "calculator", "aria-label": "Calculator" },
    element("div", { className: "controls" }, field("Parameters", controls.n), field("Tokens", controls.d), field("Format", controls.f), field("What stays wide", controls.w)),
    note, left, said);
  (table.closest("details") ?? table).before(box);
  say(left, []);

  let state = { ...DEFAULTS };
  let typing = null;
  const valid = { n: readSize, d: readSize, f: (text) => data.forms.some(({ key }) => key === text) || null, w: (text) => WIDE.some(([key]) => key === text) || null };

  const show = () => {
    const [parameters, tokens] = [readSize(state.n), readSize(state.d)];
    const form = data.forms.find(({ key }) => key === state.f);
    const answer = ask(data, state.f, parameters, tokens);
    box.dataset.kind = state.w === "ends" ? answer.kind : "refused";
    box.answer = state.w === "ends" ? answer : null;
    said.textContent = state.w === "ends" ? sentence(answer, form.label, parameters, tokens) : recordedEverywhere(data);
  };
  const read = () => {
    const given = new URLSearchParams(window.location.search);
    const refused = [];
    state = { ...DEFAULTS };
    for (const key of KEYS) {
      const text = given.get(key);
      if (text === null) continue;
      if (valid[key](text) === null) refused.push(`the address says “${text.slice(0, 40)}”, which is not known; it was left out`);
      else state[key] = text.trim();
    }
    for (const key of KEYS) {
      controls[key].value = state[key];
      controls[key].removeAttribute("aria-invalid");
    }
    note.textContent = "";
    say(left, refused);
    show();
  };
  const change = (key) => {
    const text = controls[key].value.trim();
    const known = valid[key](text) !== null;
    controls[key].setAttribute("aria-invalid", String(!known));
    note.textContent = known ? "" : `“${text.slice(0, 40)}” is no size: write a positive number such as 1e6, 1,000,000 or 10M. Below is the last one.`;
    if (!known) return;
    state = { ...state, [key]: text };
    const query = new URLSearchParams(window.location.search);
    for (const each of KEYS) {
      if (state[each] === DEFAULTS[each]) query.delete(each);
      else query.set(each, state[each]);
    }
    const address = `${window.location.pathname}${query.size ? `?${query}` : ""}${window.location.hash}`;
    window.history[typing === key ? "replaceState" : "pushState"](null, "", address);
    typing = controls[key].type === "text" ? key : null;
    say(left, []);
    show();
  };
  for (const key of KEYS) {
    controls[key].addEventListener("input", () => change(key));
    controls[key].addEventListener("change", () => { typing = null; });
  }
  window.addEventListener("popstate", read);
  read();
  box.dataset.ready = "";
}
