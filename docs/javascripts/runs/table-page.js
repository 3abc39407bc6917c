// The Runs page: puts a table that filters, sorts, groups and pages in the place of the one without JavaScript.

import { element } from "../curves.js";
import { COLUMNS, PAGE, choices, decode, places, readState, select, shownColumns, toCsv, writeState } from "./table.js";

const static_ = document.querySelector("#table-arms");

/** A labelled control. */
function field(label, control) {
  control.ariaLabel = label;
  return element("label", { className: "field" }, element("span", { textContent: label }), control);
}

function choice(values, none) {
  const options = [element("option", { value: "", textContent: none }), ...values.map((value) => element("option", { value, textContent: value }))];
  return element("select", {}, ...options);
}

function start(tables) {
  const { state, problems } = readState(location.search, tables);
  const { arms, runs } = tables;
  const input = (properties) => element("input", { autocomplete: "off", spellcheck: false, ...properties });

  const armNames = element("datalist", { id: "arm-names" }, ...arms.columns.arm.map((value) => element("option", { value })));
  const controls = {
    q: input({ type: "search", placeholder: "e5m2 adamw" }),
    format: choice(choices(arms, "format"), "all"),
    arm: input({ type: "search", placeholder: "part of a name" }),
    status: choice(choices(runs, "status"), "all"),
    study: choice(choices(runs, "study"), "all"),
  };
  controls.arm.setAttribute("list", armNames.id);
  const labels = { q: "Text", format: "Format", arm: "Arm", status: "Status", study: "Study" };
  const grouping = element("select", {}, element("option", { value: "arms", textContent: "arms" }), element("option", { value: "runs", textContent: "single runs" }));
  const button = (textContent, onclick, properties = {}) => element("button", { type: "button", textContent, onclick, ...properties });

  const columnBoxes = element("div", { className: "boxes" });
  const columns = element("details", { className: "columns" }, element("summary", { textContent: "Columns" }), columnBoxes);
  const count = element("p", { className: "count" });
  count.setAttribute("role", "status");
  const note = element("p", { className: "note", hidden: true });
  note.setAttribute("role", "status");
  const compare = element("a", { className: "compare", hidden: true });
  const clear = button("Choose none", () => { state.chosen = []; draw(); compare.hidden = true; }, { hidden: true });
  const table = element("table", { className: "data" });
  table.setAttribute("aria-label", "Runs");
  const head = table.createTHead();
  const body = table.createTBody();
  const box = element("div", { className: "table-box", tabIndex: 0 }, table);
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "Runs");
  const previous = button("Previous", () => turn(-1));
  const next = button("Next", () => turn(1));
  const where = element("span");
  const pager = element("div", { className: "pager" }, previous, where, next);
  pager.setAttribute("role", "group");
  pager.setAttribute("aria-label", "Pages of the table");

  let rows = [];
  let lines = [];
  let saving = 0;
  const shown = () => tables[state.rows];

  function heading() {
    const cells = [element("th", { scope: "col" }, element("span", { className: "sr", textContent: "Compare" }))];
    for (const { key, title, number } of shownColumns(state)) {
      const cell = element("th", { scope: "col", className: number ? "number" : "" }, button(title, () => {
        state.sort = state.sort === key ? `-${key}` : key;
        state.page = 1;
        heading();
        find();
        head.querySelector(`[data-key="${key}"] button`).focus();
      }));
      cell.dataset.key = key;
      if (state.sort.replace(/^-/, "") === key) cell.setAttribute("aria-sort", state.sort.startsWith("-") ? "descending" : "ascending");
      cells.push(cell);
    }
    head.replaceChildren(element("tr", {}, ...cells));
    lines = [];
    body.replaceChildren();
    const boxes = COLUMNS[state.rows].map(({ key, title }) => {
      const check = element("input", { type: "checkbox", checked: shownColumns(state).some((each) => each.key === key) });
      check.addEventListener("change", () => {
        const keys = shownColumns(state).map((each) => each.key).filter((each) => each !== key);
        const wanted = check.checked ? [...keys, key] : keys;
        if (!wanted.length) { check.checked = true; return; }
        state.columns = wanted;
        heading();
        draw();
        [...columnBoxes.querySelectorAll("input")].find((each) => each.dataset.key === key).focus();
      });
      check.dataset.key = key;
      check.ariaLabel = `Column ${title}`;
      return element("label", {}, check, ` ${title}`);
    });
    columnBoxes.replaceChildren(...boxes);
  }

  /** A row of the table with what fills it: rows are made once, and a keystroke changes only their text. */
  function line() {
    const check = element("input", { type: "checkbox" });
    check.addEventListener("change", () => {
      const { arm } = check.dataset;
      state.chosen = state.chosen.filter((each) => each !== arm);
      if (check.checked) state.chosen.push(arm);
      for (const other of body.querySelectorAll("input")) other.checked = state.chosen.includes(other.dataset.arm);
      told();
    });
    const cells = shownColumns(state).map(({ key, write, number }) => {
      const link = { arm: (value, place) => place.page, id: (value, place) => place.run(value), wandb: (value) => (/^https?:\/\//.test(value) ? value : "") }[key];
      const holder = element(link ? "a" : "span");
      const fill = (value, place) => {
        const text = key === "wandb" && value ? "W&B run" : write(value);
        if (holder.textContent !== text) holder.textContent = text;
        const href = link?.(value ?? "", place);
        if (href) holder.href = href;
        else if (link) holder.removeAttribute("href");
      };
      return { key, fill, cell: element("td", { className: number ? "number" : key }, holder) };
    });
    const node = element("tr", {}, element("td", {}, check), ...cells.map(({ cell }) => cell));
    return {
      node,
      fill(row) {
        const index = state.rows === "arms" ? row : runs.armRow[row];
        const arm = arms.columns.arm[index];
        const place = places(tables, index);
        check.dataset.arm = arm;
        check.checked = state.chosen.includes(arm);
        check.ariaLabel = `Compare ${arm}`;
        for (const { key, fill } of cells) fill(shown().columns[key][row], place);
        return node;
      },
    };
  }

  const none = element("tr", {}, element("td", { textContent: "Nothing matches these filters." }));
  function draw() {
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    state.page = Math.min(state.page, pages);
    const wanted = rows.slice((state.page - 1) * PAGE, state.page * PAGE);
    while (lines.length < wanted.length) lines.push(line());
    const nodes = wanted.map((row, place) => lines[place].fill(row));
    none.firstChild.colSpan = shownColumns(state).length + 1;
    if (!nodes.length) nodes.push(none);
    while (body.rows.length > nodes.length) body.lastChild.remove();
    nodes.forEach((node, place) => { if (body.rows[place] !== node) body.insertBefore(node, body.rows[place] ?? null); });
    while (body.rows.length > nodes.length) body.lastChild.remove();
    previous.disabled = state.page <= 1;
    next.disabled = state.page >= pages;
    where.textContent = `page ${state.page} of ${pages}`;
    pager.hidden = pages === 1;
    told();
  }

  function told() {
    const what = state.rows === "arms" ? "arms" : "runs";
    count.textContent = `${rows.length.toLocaleString("en")} of ${shown().length.toLocaleString("en")} ${what}`;
    const { length } = state.chosen;
    compare.hidden = clear.hidden = !length;
    compare.textContent = `Compare ${length} ${length === 1 ? "arm" : "arms"}`;
    compare.href = `../compare/?arms=${state.chosen.map(encodeURIComponent).join(",")}`;
    clearTimeout(saving);
    saving = setTimeout(() => history.replaceState(null, "", `${location.pathname}${writeState(state)}${location.hash}`), 100);
  }

  function find() {
    rows = select(tables, state);
    draw();
  }

  function turn(by) {
    state.page += by;
    draw();
    box.scrollIntoView({ block: "nearest" });
    if (previous.disabled || next.disabled) box.focus({ preventScroll: true });
  }

  function download() {
    const csv = toCsv(shown(), rows, shownColumns(state));
    const href = URL.createObjectURL(new Blob([csv], { type: "text/csv" }));
    const link = element("a", { href, download: `${state.rows}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(href), 1000);
  }

  for (const [key, control] of Object.entries(controls)) {
    control.value = state[key];
    control.addEventListener("input", () => {
      state[key] = control.value;
      state.page = 1;
      find();
    });
  }
  grouping.value = state.rows;
  grouping.addEventListener("change", () => {
    Object.assign(state, { rows: grouping.value, sort: "", page: 1, columns: null });
    heading();
    find();
  });
  if (problems.length) {
    note.hidden = false;
    note.textContent = `Left out of the address: ${problems.join("; ")}.`;
  }
  const filters = element("div", { className: "filters" }, ...Object.entries(controls).map(([key, control]) => field(labels[key], control)), field("Rows", grouping), armNames);
  filters.setAttribute("role", "search");
  filters.setAttribute("aria-label", "Filter the table");
  const tools = element("div", { className: "tools" }, count, compare, clear, columns, button("Download CSV", download));
  const explorer = element("div", { className: "runs-table" }, filters, note, tools, box, pager);
  heading();
  find();
  const caption = static_.previousElementSibling;
  if (caption?.classList.contains("table-caption")) caption.hidden = true;
  static_.hidden = true;
  static_.before(explorer);
  explorer.dataset.ready = "";
}

if (static_) {
  // The sorting of tables.js is for those that are there before this one: it runs before the document is ready.
  const ready = new Promise((resolve) => { document.addEventListener("DOMContentLoaded", resolve, { once: true }); });
  fetch(new URL("../runs/index.table.json", document.baseURI))
    .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(`table.json: ${answer.status}`))))
    .then((data) => ready.then(() => data))
    .then((data) => start(decode(data)));
}
