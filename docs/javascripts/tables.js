// Sortable tables: each heading becomes a button. Numbers sort as numbers, empty cells stay last, ties keep their order.
// At the end, what every page needs besides: copy buttons that are no landmarks, and a sign on tables that go on.
"use strict";

function sortKey(cell) {
  const text = cell.textContent.trim();
  if (text === "" || text === "–") return null;
  const number = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?/i.exec(text.replace(/[−‑]/g, "-").replace(/(\d),(?=\d{3})/g, "$1"));
  return number ? Number(number[0]) : text.toLowerCase();
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === typeof b) return a.localeCompare(b, "en", { numeric: true });
  return typeof a === "number" ? -1 : 1;
}

function sortRows(table, column, direction) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [sortKey(row.cells[column]), row]);
  rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : direction * compare(a, b)));
  body.append(...rows.map(([, row]) => row));
}

function makeSortable(box) {
  const table = box.querySelector("table");
  if (table.tBodies.length !== 1 || table.tBodies[0].rows.length < 2) return;
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    if (box.dataset.sort?.[column] === "0" || !heading.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortRows(table, column, descending ? -1 : 1);
    });
  });
}

// A table or a chart that is wider than its box has a shadow where it goes on.
const BOXES = ".table-box, .chart-box";
const tellCut = (box) => box.classList.toggle("cut", box.scrollWidth - box.clientWidth - box.scrollLeft > 4);
const resized = new ResizeObserver((entries) => { for (const { target } of entries) tellCut(target.closest(BOXES)); });
const known = new WeakSet();

function finish(first = false) {
  // Material puts each copy button into a <nav> without a name: to a screen reader, as many landmarks as code blocks.
  for (const box of document.querySelectorAll("nav.md-code__nav:not([role])")) box.setAttribute("role", "presentation");
  for (const box of document.querySelectorAll(BOXES)) {
    if (known.has(box)) continue;
    known.add(box);
    if (box.matches(".table-box") && (first || box.dataset.sort)) makeSortable(box);
    resized.observe(box);
    resized.observe(box.firstElementChild);
    box.addEventListener("scroll", () => tellCut(box), { passive: true });
  }
}
finish(true);
// Scripts add tables later: those with data-sort sort as these do, the others by their own script.
new MutationObserver(() => finish()).observe(document.body, { childList: true, subtree: true });
