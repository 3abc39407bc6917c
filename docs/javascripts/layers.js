// The health of an arm's layers as its file has it (altgrad.reports.health): heat maps and curves over time, the codes
// in use, and the last look in tables. Names come from records: they are only ever set as text.

import { breakable, element, live, plotCurves } from "./curves.js";
import { minus } from "./figures.js";
import { slug, toCsv } from "./runs/table.js";

const SVG = "http://www.w3.org/2000/svg";
const ROW = 13;
const GAP = 14;
const BESIDE = 560; // width from which the panels of a heat map stand side by side
const INK = "var(--md-default-fg-color)";
const PALE = "var(--chart-muted)";

const FORMS = {
  "": String,
  percent: (value) => (value === 0 ? "0%" : `${+(100 * value).toPrecision(3)}%`),
  dB: (value) => `${value.toFixed(1)} dB`,
  short: (value) => (value && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e5) ? value.toExponential(3).replace(/\.?0*e/, "e") : String(+value.toPrecision(4))),
};

/** A value as pages write it: by the name of a form, or with so many decimals; a dash where there is none. */
export function write(form, value) {
  if (value === null || typeof value === "string") return value ?? "–";
  const digits = { minimumFractionDigits: +form, maximumFractionDigits: +form };
  const text = Object.hasOwn(FORMS, form) ? FORMS[form](value) : value.toLocaleString("en", digits);
  return minus(text);
}

/** Which of the levels between `edges`, harmless first, a value belongs to; edges rise where larger is worse. */
export function level(edges, value) {
  const rising = edges[0] < edges.at(-1);
  return edges.filter((edge) => (rising ? value >= edge : value < edge)).length;
}

/** For each of at most `count` columns, the place of the worst of the values that share it. */
export function worstOf(values, count, sign) {
  const columns = Math.min(count, values.length);
  const first = (column) => Math.floor((column * values.length) / columns);
  return Array.from({ length: columns }, (_, column) => {
    const places = Array.from({ length: first(column + 1) - first(column) }, (__, index) => first(column) + index);
    return places.reduce((worst, place) => (values[place] !== null && (values[worst] === null || sign * values[place] > sign * values[worst]) ? place : worst));
  });
}

/** What a reader should see first in a heat map: its worst layers, and how many values are missing. */
export function worstWords({ edges, form, missing, steps, panels }, layers) {
  const sign = edges[0] < edges.at(-1) ? 1 : -1;
  let absent = 0;
  const found = panels.flatMap(([panel, rows]) => rows.flatMap((values, row) => {
    if (!values) return [];
    absent += values.filter((value) => value === null).length;
    const [place] = worstOf(values, 1, sign);
    return [{ value: values[place], where: panels.length > 1 ? `${layers[row][0]} ${panel}` : layers[row][0], step: steps[place] }];
  }));
  const worst = found.sort((a, b) => sign * (b.value - a.value)).slice(0, 3);
  const lost = absent ? ` Missing: ${absent} (${missing}).` : "";
  return `Worst: ${worst.map(({ where, value, step }) => `${where} ${write(form, value)} at step ${step}`).join("; ")}.${lost}`;
}

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const label = (x, y, text, more = {}) => shape("text", { x, y, fill: INK, "font-size": 12, ...more }, text);
const cut = (name, most) => (name.length > most ? `${name.slice(0, most - 1)}…` : name);
/** The end of a module's name, by which it differs from others, from a dot on where one is near. */
export function ending(name, most) {
  if (name.length <= most) return name;
  const end = name.slice(1 - most);
  const dot = end.indexOf(".");
  return `…${end.slice(dot < most / 3 ? dot + 1 : 0)}`;
}

const box = (x, y, width, height) => `M${x.toFixed(1)} ${y.toFixed(1)}h${width.toFixed(1)}v${height.toFixed(1)}h${(-width).toFixed(1)}z`;

/** A button that saves columns, [name, values] each, as a file. */
function download(name, columns) {
  const table = { columns: Object.fromEntries(columns) };
  const save = () => {
    const csv = toCsv(table, columns[0][1].map((_, row) => row), columns.map(([key]) => ({ key })));
    const href = URL.createObjectURL(new Blob([csv], { type: "text/csv" }));
    element("a", { href, download: `${name}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 1000);
  };
  return element("button", { type: "button", textContent: "CSV", ariaLabel: `Download ${name} as CSV`, onclick: save });
}

/** A figure with what it shows above, and below a line on what is pointed at and its data. */
function frame(id, { title, note }, columns, readout, ...inside) {
  const foot = element("p", { className: "foot" }, readout, download(id, columns));
  const figure = element("figure", { className: "chart", id: `chart-${id}` }, element("figcaption", { textContent: title }), element("p", { className: "about", textContent: note }), ...inside, foot);
  figure.dataset.searchExclude = "";
  return figure;
}

function reading() {
  const made = element("span");
  made.setAttribute("role", "status");
  return made;
}

/**
 * A drawing whose values are read by pointer and by arrow keys.
 *
 * view(width) gives {height, parts, find(x, y), next(cell, key), place(cell), text(cell)}; it is asked again when the
 * width changes. Colours are variables, so the palettes need no other drawing.
 */
function drawing(title, view) {
  const svg = shape("svg", { role: "img", "aria-label": title });
  const mark = shape("rect", { fill: "none", stroke: INK, "stroke-width": 1.5 });
  const host = element("div", { className: "chart-box", tabIndex: 0, ariaLabel: `Chart: ${title}` }, svg);
  host.setAttribute("role", "group");
  const readout = reading();
  let width;
  let shown;
  let cell;
  const point = (to) => {
    cell = to;
    readout.textContent = cell ? shown.text(cell) : "Point at a value, or move with the arrow keys.";
    mark.setAttribute("visibility", cell ? "visible" : "hidden");
    if (!cell) return;
    const [x, y, wide, high] = shown.place(cell);
    for (const [name, value] of Object.entries({ x, y, width: wide, height: high })) mark.setAttribute(name, value);
  };
  new ResizeObserver(() => {
    if (width === host.clientWidth || !host.clientWidth) return;
    width = host.clientWidth;
    shown = view(width);
    svg.setAttribute("viewBox", `0 0 ${width} ${shown.height}`);
    svg.replaceChildren(...shown.parts, mark);
    point(null);
  }).observe(host);
  svg.addEventListener("pointermove", (event) => {
    const { left, top } = svg.getBoundingClientRect();
    point(shown.find(event.clientX - left, event.clientY - top));
  });
  svg.addEventListener("pointerleave", () => point(null));
  host.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !/^(Arrow|Escape)/.test(event.key)) return;
    point(event.key === "Escape" ? null : shown.next(cell, event.key));
    event.preventDefault();
  });
  return [readout, host];
}

const moved = (at, key, back, forth, most) => Math.min(Math.max(at + (key === forth) - (key === back), 0), most);

function heatView({ edges, form, missing, steps, panels }, layers) {
  const sign = edges[0] < edges.at(-1) ? 1 : -1;
  const rows = layers.map((_, row) => row).filter((row) => panels.some(([, values]) => values[row]));
  return (width) => {
    const most = width < BESIDE ? 22 : 34;
    const left = 8 + 6.4 * Math.max(...rows.map((row) => Math.min(layers[row][0].length, most)));
    const across = width < BESIDE ? 1 : panels.length;
    const wide = (width - left - GAP * (across - 1)) / across;
    const count = Math.min(steps.length, Math.floor(wide / 3));
    const high = rows.length * ROW;
    const parts = [];
    const paths = Array.from({ length: edges.length + 2 }, () => []);
    const drawn = panels.map(([title, values], panel) => {
      const [x, y] = across > 1 ? [left + panel * (wide + GAP), 18] : [left, 18 + panel * (high + 42)];
      parts.push(label(x, y - 6, title), label(x, y + high + 13, `step ${steps[0]}`, { fill: PALE }));
      if (steps.length > 1) parts.push(label(x + wide, y + high + 13, steps.at(-1), { fill: PALE, "text-anchor": "end" }));
      const shown = rows.map((row, line) => {
        if (x === left) parts.push(label(left - 6, y + line * ROW + 10, ending(layers[row][0], most), { "text-anchor": "end" }));
        if (!values[row]) return null;
        const places = worstOf(values[row], count, sign);
        const levels = places.map((place) => (values[row][place] === null ? edges.length + 1 : level(edges, values[row][place])));
        levels.forEach((own, column) => {
          if (levels[column - 1] === own) return;
          const end = levels.findIndex((other, index) => index > column && other !== own);
          const [from, to] = [column, end < 0 ? levels.length : end].map((each) => x + (wide * each) / levels.length);
          paths[own].push(own > edges.length ? box(from, y + line * ROW + 5.5, to - from, 1) : box(from, y + line * ROW + 0.75, to - from, ROW - 1.5));
        });
        return places;
      });
      return { x, y, shown };
    });
    const colours = [...edges, 0].map((_, index) => `var(--heat-${index + 1})`).concat(PALE);
    paths.forEach((path, index) => path.length && parts.push(shape("path", { d: path.join(""), fill: colours[index] })));
    const last = drawn.at(-1);
    return {
      height: last.y + high + 20,
      parts,
      find(x, y) {
        const panel = drawn.findIndex((each) => x >= each.x && x < each.x + wide && y >= each.y && y < each.y + high);
        if (panel < 0) return null;
        return { panel, line: Math.floor((y - drawn[panel].y) / ROW), column: Math.floor(((x - drawn[panel].x) / wide) * count) };
      },
      next(cell, key) {
        if (!cell) return { panel: 0, line: 0, column: 0 };
        const along = moved(cell.panel * count + cell.column, key, "ArrowLeft", "ArrowRight", panels.length * count - 1);
        return { panel: Math.floor(along / count), column: along % count, line: moved(cell.line, key, "ArrowUp", "ArrowDown", rows.length - 1) };
      },
      place: ({ panel, line, column }) => [drawn[panel].x + (wide * column) / count, drawn[panel].y + line * ROW, wide / count, ROW],
      text({ panel, line, column }) {
        const [title, values] = panels[panel];
        const name = layers[rows[line]][0];
        const place = drawn[panel].shown[line]?.[column];
        if (place === undefined) return `${name}: no ${title}`;
        const value = values[rows[line]][place];
        return `${name}, ${title}, step ${steps[place]}: ${value === null ? missing : write(form, value)}`;
      },
    };
  };
}

function codesView({ colour, values, shares }) {
  const up = 48;
  return (width) => {
    const left = 82;
    const one = (width - left - 6) / values.length;
    const x = (place) => left + place * one;
    const bottom = shares.length * up;
    const parts = shares.flatMap(([kind, share], row) => {
      const [base, top] = [(row + 1) * up, Math.max(...share)];
      const path = share.map((part, place) => (part ? box(x(place), base - (0.85 * up * part) / top, one, (0.85 * up * part) / top) : "")).join("");
      const end = { "text-anchor": "end" };
      return [
        shape("path", { d: `M${left} ${base}H${width - 6}`, stroke: "var(--chart-grid)" }),
        shape("path", { d: path, fill: `var(${colour})` }),
        label(left - 8, base - 29, cut(kind, 12), end),
        label(left - 8, base - 15, `peak ${write("percent", top)}`, { ...end, fill: PALE }),
        label(left - 8, base - 2, `${share.filter(Boolean).length} in use`, { ...end, fill: PALE }),
      ];
    });
    const marks = width < BESIDE ? 4 : 8;
    for (let part = 0; part <= marks; part += 1) {
      const place = Math.round((part / marks) * (values.length - 1));
      const anchor = { 0: "start", [marks]: "end" }[part] ?? "middle";
      parts.push(label(x(place + 0.5), bottom + 14, write("short", values[place]), { fill: PALE, "text-anchor": anchor }));
    }
    return {
      height: bottom + 20,
      parts,
      find: (at) => (at < left || at >= width - 6 ? null : { place: Math.floor((at - left) / one) }),
      next: (cell, key) => ({ place: cell ? moved(cell.place, key, "ArrowLeft", "ArrowRight", values.length - 1) : 0 }),
      place: ({ place }) => [x(place), 0, one, bottom],
      text: ({ place }) => `${write("short", values[place])}: ${shares.map(([kind, share]) => `${kind} ${write("percent", share[place])}`).join(", ")}`,
    };
  };
}

function legend({ legend: words, missing, panels }) {
  const absent = panels.some(([, rows]) => rows.some((values) => values?.includes(null)));
  const items = words.map((text, index) => [text, `var(--heat-${index + 1})`]).concat(absent ? [[missing, PALE]] : []);
  return element("p", { className: "legend" }, ...items.map(([text, colour]) => {
    const swatch = element("span", { className: text === missing ? "swatch line" : "swatch" });
    swatch.style.background = colour;
    return element("span", {}, swatch, text);
  }));
}

/** A figure over time as columns to download: a row a layer and panel, a column a step. */
function wide({ steps, panels }, layers) {
  const rows = panels.flatMap(([panel, found]) => found.flatMap((values, row) => (values ? [[layers[row][0], layers[row][1], panel, ...values]] : [])));
  return ["layer", "layer_type", "of", ...steps.map((step) => `step ${step}`)].map((key, place) => [key, rows.map((row) => row[place])]);
}

function heatMap(id, figure, layers) {
  const note = `${figure.note} ${worstWords(figure, layers)}`;
  const [readout, host] = drawing(figure.title, heatView(figure, layers));
  return frame(id, { ...figure, note }, wide(figure, layers), readout, legend(figure), host);
}

function curves(id, figure, layers) {
  const [[, rows]] = figure.panels;
  const kinds = [...new Set(layers.filter((_, row) => rows[row]).map(([, kind]) => kind))];
  const groups = kinds.map((kind, index) => ({
    label: cut(kind, 13),
    colour: `--chart-${1 + (index % 8)}`,
    runs: layers.flatMap((layer, row) => (rows[row] && layer[1] === kind ? [{ step: figure.steps, value: rows[row] }] : [])),
  }));
  const host = element("div", { className: "curves" });
  host.setAttribute("role", "img");
  host.ariaLabel = figure.title;
  const readout = reading();
  const around = element("div", { className: "chart-box", tabIndex: 0, ariaLabel: `Chart: ${figure.title}` }, host);
  around.setAttribute("role", "group");
  const options = { metric: "value", axis: "step", xLabel: "step", height: 230, each: true, log: true, of: "layers", onPoint: (text) => { readout.textContent = text; } };
  const { redraw, buttons } = live(around, host, () => plotCurves(host, groups, options));
  around.prepend(element("div", { className: "curve-controls" }, ...buttons));
  redraw(); // the library is awaited first, and by then the figure is on the page
  const note = `${figure.note} Thick: mean over the layers of a type; thin: each layer.`;
  return frame(id, { ...figure, note }, wide(figure, layers), readout, around);
}

function table({ id, caption, columns, rows }) {
  const cell = (tag, place, ...inside) => {
    const made = element(tag, {}, ...inside);
    if (columns[place][1]) made.style.textAlign = "right";
    return made;
  };
  const head = element("tr", {}, ...columns.map(([title], place) => cell("th", place, title)));
  const body = rows.map((row) => element("tr", {}, ...row.map((value, place) => cell("td", place, ...breakable(write(columns[place][1], value))))));
  const inside = element("table", { className: "data", ariaLabel: caption }, element("thead", {}, head), element("tbody", {}, ...body));
  const around = element("div", { className: "table-box", id: `table-${id}`, tabIndex: 0, ariaLabel: caption }, inside);
  around.setAttribute("role", "group");
  around.dataset.sort = "1".repeat(columns.length); // tables.js makes its headings sort
  return [element("p", { className: "table-caption", textContent: caption }), around, element("p", { className: "foot" }, download(id, columns.map(([title], place) => [title, rows.map((row) => row[place])])))];
}

function overTime({ layers, zero, figures }, prefix = "") {
  const calm = zero.length ? [element("p", { textContent: `${zero.join(", ")}: 0 in every layer at every look.` })] : [];
  return [...calm, ...figures.map((figure) => (figure.edges ? heatMap : curves)(prefix + figure.id, figure, layers))];
}

function alone(found) {
  const title = `Run ${found.run} (${found.status}) by itself, up to step ${found.steps.at(-1)}`;
  const folded = element("details", { className: "abstract" }, element("summary", { textContent: title }));
  folded.addEventListener("toggle", () => folded.append(...overTime(found, `${slug(found.run)}-`)), { once: true });
  return folded;
}

/** Everything that an arm's file has of its layers, into `host`. */
export function drawLayers(host, found) {
  host.classList.add("layers");
  host.append(
    ...overTime(found),
    ...found.codes.map((codes) => frame(codes.id, codes, [["value", codes.values], ...codes.shares], ...drawing(codes.title, codesView(codes)))),
    element("h3", { id: "the-last-look", textContent: "The last look" }),
    ...found.tables.flatMap(table),
    ...found.alone.map(alone),
  );
}
