// The Runs page: puts a table that filters, sorts, groups and pages in the place of the one without JavaScript.

import { breakable, element } from "../curves.js";
import { chartPanel } from "./chart.js";
import { button, choice, field, say, status } from "./controls.js";
import { COLUMNS, FILTERS, PAGE, choices, decode, fit, parse, places, readState, select, shownColumns, sorting, toCsv, writeState } from "./table.js";

const static_ = document.querySelector("#table-arms");

function start(tables) {
  const { state, problems } = readState(location.search, tables);
  const { arms, runs } = tables;
  const labels = { text: "Find", ...Object.fromEntries(Object.entries(FILTERS).map(([name, { title }]) => [name, title])), rows: "Rows" };
  const controls = {
    text: element("input", { type: "search", autocomplete: "off", spellcheck: false, placeholder: tables.arms.columns.format.every((format) => format === "not stated") ? "loss<2.2 steps=300" : "e5m2 loss<2.2 steps=300" }),
    ...Object.fromEntries(Object.keys(FILTERS).map((name) => [name, choice([["", "all"], ...choices(tables, name)])])),
    rows: choice([["arms", "arms"], ["runs", "single runs"]]),
  };
  const tuning = element("input", { type: "checkbox", checked: state.tuning !== "" });

  const columnBoxes = element("div", { className: "boxes" });
  const columns = element("details", { className: "columns" }, element("summary", { textContent: "Columns" }), columnBoxes);
  const count = status("count");
  const note = status("note");
  const compare = element("a", { className: "compare", hidden: true });
  const clear = button("Choose none", () => { state.chosen = []; draw(); }, { hidden: true });
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
      const sort = button("", () => {
        state.sort = sorting(state) === key ? `-${key}` : key;
        state.page = 1;
        heading();
        find();
        head.querySelector(`[data-key="${key}"] button`).focus();
      });
      sort.append(...breakable(title));
      const cell = element("th", { scope: "col", className: number ? "number" : "" }, sort);
      cell.dataset.key = key;
      if (sorting(state).replace(/^-/, "") === key) cell.setAttribute("aria-sort", sorting(state).startsWith("-") ? "descending" : "ascending");
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
        find();
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
      const link = { label: (value, place) => place.page, id: (value, place) => place.run(value), wandb: (value) => (/^https?:\/\//.test(value) ? value : "") }[key];
      const holder = element(link ? "a" : "span");
      const fill = (value, place) => {
        const text = write(value);
        if (holder.textContent !== text) holder.replaceChildren(...breakable(text));
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
        check.ariaLabel = `Compare ${arms.columns.label[index]}`;
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
    save();
  }

  function save() {
    clearTimeout(saving);
    saving = setTimeout(() => history.replaceState(null, "", `${location.pathname}${writeState(state)}${location.hash}`), 100);
  }

  function find() {
    rows = select(tables, state);
    draw();
    chart.draw(rows);
    say(note, parse(state.text, state.rows).problems);
  }

  const chart = chartPanel(tables, state, save);

  function turn(by) {
    state.page += by;
    draw();
    box.scrollIntoView({ block: "nearest" });
    if (previous.disabled || next.disabled) box.focus({ preventScroll: true });
  }

  function download() {
    const identity = state.rows === "arms" ? "arm" : "id";
    const columns = shownColumns(state).filter(({ key }) => key !== identity);
    const csv = toCsv(shown(), rows, [{ key: identity }, ...columns]);
    const href = URL.createObjectURL(new Blob([csv], { type: "text/csv" }));
    const link = element("a", { href, download: `${state.rows}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(href), 1000);
  }

  const change = (changes) => {
    Object.assign(state, { page: 1, ...changes });
    find();
  };
  for (const [name, control] of Object.entries(controls)) {
    control.value = state[name];
    if (name !== "rows") control.addEventListener("input", () => change({ [name]: control.value }));
  }
  controls.rows.addEventListener("change", () => {
    Object.assign(state, { rows: controls.rows.value, sort: "", columns: null, x: "", y: "" });
    heading();
    change({});
  });
  tuning.addEventListener("change", () => change({ tuning: tuning.checked ? "shown" : "" }));
  /** A choice between all and nothing else is none. */
  const useful = (name) => !(name in FILTERS) || state[name] || choices(tables, name).length > 1;
  const filters = element("div", { className: "filters" }, ...Object.entries(controls).filter(([name]) => useful(name)).map(([name, control]) => field(labels[name], control)), ...(runs.columns.role.includes("tuning") ? [element("label", { className: "check" }, tuning, " tuning runs")] : []));
  filters.firstChild.classList.add("wide");
  filters.setAttribute("role", "search");
  filters.setAttribute("aria-label", "Filter the table");
  const tools = element("div", { className: "tools" }, count, compare, clear, columns, button("Download CSV", download));
  const explorer = element("div", { className: "runs-table" }, filters, note, tools, ...chart.nodes, box, pager);
  heading();
  const caption = static_.previousElementSibling;
  if (caption?.classList.contains("table-caption")) caption.hidden = true;
  static_.hidden = true;
  static_.before(explorer);
  find();
  if (problems.length) say(note, [`left out of the address: ${problems.join("; ")}`]);
  explorer.dataset.ready = "";
}

if (static_) {
  // The sorting of tables.js is for those that are there before this one: it runs before the document is ready.
  const ready = new Promise((resolve) => { document.addEventListener("DOMContentLoaded", resolve, { once: true }); });
  fetch(new URL("../runs/index.table.json", document.baseURI))
    .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(`table.json: ${answer.status}`))))
    .then((data) => ready.then(() => data))
    .then((data) => {
      const tables = decode(data);
      if (data.metric) fit(tables, data);
      start(tables);
    });
}
