// Charts of the rows that the table of runs has found: two columns against each other with the best trade-offs, or
// every shown column side by side. `axisOf`, `front` and `nearest` are pure.

import { element } from "../curves.js";
import { minus, swatchOf } from "../figures.js";
import { choice, field } from "./controls.js";
import { CHARTS, COLUMNS, COMMON, CORNERS, places, shownColumns } from "./table.js";

const MOST_TICKS = 8;
/** Most distance in px at which a point is meant. */
const REACH = 14;

/** Round values between two others, about `count` of them. */
function ticks(low, high, count = 5) {
  const rough = (high - low) / count;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * ten).find((each) => each >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, place) => +((first + place) * step).toPrecision(12));
}

/**
 * Where the rows stand on a column: {places: a number from 0 to 1 or NaN for each of `rows`, ticks: [[place, text]], log}.
 *
 * Numbers above 0 that span more than a factor of 20 stand on a logarithmic axis; words in their order, evenly.
 */
export function axisOf(table, column, rows) {
  const raw = rows.map((row) => table.columns[column.key][row]);
  if (!column.number) {
    const words = [...new Set(raw.map(column.write))].sort(new Intl.Collator("en", { numeric: true }).compare);
    const place = new Map(words.map((word, index) => [word, words.length > 1 ? index / (words.length - 1) : 0.5]));
    const every = Math.ceil(words.length / MOST_TICKS);
    return { places: raw.map((value) => place.get(column.write(value))), ticks: [...place].filter((_, index) => index % every === 0).map(([word, at]) => [at, word]), log: false };
  }
  const numbers = raw.map((value) => value ?? NaN);
  const [low, high] = numbers.reduce(([a, b], value) => (Number.isNaN(value) ? [a, b] : [Math.min(a, value), Math.max(b, value)]), [Infinity, -Infinity]);
  if (low > high) return { places: numbers, ticks: [], log: false };
  if (low === high) return { places: numbers.map((value) => (Number.isNaN(value) ? NaN : 0.5)), ticks: [[0.5, column.write(low)]], log: false };
  const log = low > 0 && high / low > 20;
  const on = log ? Math.log10 : (value) => value;
  const at = (value) => (on(value) - on(low)) / (on(high) - on(low));
  const tens = Array.from({ length: 40 }, (_, index) => 10 ** (index - 20));
  const round = log ? (high / low > 1e3 ? tens : tens.flatMap((ten) => [ten, +(3 * ten).toPrecision(2)])).filter((value) => value >= low && value <= high) : ticks(low, high);
  return { places: numbers.map(at), ticks: round.map((value) => [at(value), minus(String(+value.toPrecision(6)))]), log };
}

/**
 * Which points no other is better than in both: their places in `points` ([[x, y]]), from the best x to the best y.
 *
 * `better` names the axes, "x", "y" or "xy", on which higher is better; "" where lower is on both.
 */
export function front(points, better = "") {
  const [signX, signY] = ["x", "y"].map((axis) => (better.includes(axis) ? -1 : 1));
  const known = points.map((_, place) => place).filter((place) => points[place].every(Number.isFinite));
  known.sort((a, b) => signX * (points[a][0] - points[b][0]) || signY * (points[a][1] - points[b][1]));
  let best = Infinity;
  return known.filter((place) => {
    const y = signY * points[place][1];
    if (y >= best) return false;
    best = y;
    return true;
  });
}

/** The place of the point nearest to (x, y), at most `reach` away; -1 where there is none. */
export function nearest(points, x, y, reach = REACH) {
  let [found, least] = [-1, reach ** 2];
  points.forEach(([px, py], place) => {
    const distance = (px - x) ** 2 + (py - y) ** 2;
    if (distance <= least) [found, least] = [place, distance];
  });
  return found;
}

/** A canvas's context in units of CSS, cleared, and the page's colours. */
function paper(canvas, height) {
  const width = canvas.parentElement.clientWidth;
  Object.assign(canvas, { width: width * devicePixelRatio, height: height * devicePixelRatio });
  canvas.style.height = `${height}px`;
  const style = getComputedStyle(document.body);
  const pen = canvas.getContext("2d");
  pen.scale(devicePixelRatio, devicePixelRatio);
  pen.font = `12px ${style.getPropertyValue("--sans") || "sans-serif"}`;
  return { pen, width, colour: (name) => style.getPropertyValue(name).trim() };
}

const HEIGHT = 380;
const BOX = { left: 78, right: 110, top: 14, bottom: 46 };

/** Which line is nearest to the height `up` at the place `at` between its axes (1.5: halfway between the second and the third); -1 where none is near. `lines`: a list of heights an axis. */
export function nearestLine(lines, at, up, reach = REACH / 2) {
  const [first, part] = [Math.min(Math.floor(at), lines.length - 2), at - Math.min(Math.floor(at), lines.length - 2)];
  if (first < 0) return -1;
  const heights = lines[first].map((left, row) => left + part * (lines[first + 1][row] - left));
  return nearest(heights.map((height) => [0, height]), 0, up, reach);
}

/**
 * Two columns against each other, a point a row in the colour of its format, a ring where its line has dashes; the rows of the front are joined and named.
 *
 * Returns {find(x, y): the place of the row that is pointed at or -1, front: its rows, text: what the chart shows, in words}.
 */
export function drawScatter(canvas, table, rows, x, y, better, name, styles) {
  const { pen, width, colour } = paper(canvas, HEIGHT);
  const [across, up] = [axisOf(table, x, rows), axisOf(table, y, rows)];
  const inner = [width - BOX.left - BOX.right, HEIGHT - BOX.top - BOX.bottom];
  const points = rows.map((_, place) => [BOX.left + across.places[place] * inner[0], BOX.top + (1 - up.places[place]) * inner[1]]);
  pen.lineWidth = 1;
  pen.textBaseline = "middle";
  for (const [at, text] of up.ticks) {
    const place = BOX.top + (1 - at) * inner[1];
    pen.fillStyle = colour("--chart-grid");
    pen.fillRect(BOX.left, place, inner[0], 1);
    pen.fillStyle = colour("--chart-muted");
    pen.textAlign = "right";
    pen.fillText(text.slice(0, 10), BOX.left - 8, place);
  }
  pen.fillStyle = colour("--chart-muted");
  pen.textAlign = "center";
  for (const [at, text] of across.ticks) pen.fillText(text.slice(0, 14), BOX.left + at * inner[0], HEIGHT - BOX.bottom + 16);
  const about = ({ title }, { log }) => `${title}${log ? " (logarithmic)" : ""}`;
  pen.fillText(about(x, across), BOX.left + inner[0] / 2, HEIGHT - 10);
  pen.save();
  pen.translate(12, BOX.top + inner[1] / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText(about(y, up), 0, 0);
  pen.restore();
  for (const [place, [px, py]] of points.entries()) {
    if (Number.isNaN(px + py)) continue;
    const [own, dash] = styles[name(rows[place])];
    pen.fillStyle = pen.strokeStyle = `${colour(own)}b0`;
    pen.beginPath();
    pen.arc(px, py, rows.length > 2000 ? 1.6 : 3, 0, 2 * Math.PI);
    if (dash.length) pen.stroke();
    else pen.fill();
  }
  const both = x.number && y.number && x.key !== y.key;
  const best = both ? front(rows.map((row) => [table.columns[x.key][row] ?? NaN, table.columns[y.key][row] ?? NaN]), better) : [];
  pen.strokeStyle = colour("--md-default-fg-color");
  pen.beginPath();
  best.forEach((place, index) => {
    const [px, py] = points[place];
    if (index) pen.lineTo(px, points[best[index - 1]][1]);
    pen.lineTo(px, py);
  });
  pen.stroke();
  let last = [-Infinity, -Infinity];
  for (const place of best) {
    const [px, py] = points[place];
    pen.beginPath();
    pen.fillStyle = colour(styles[name(rows[place])][0]);
    pen.arc(px, py, 4, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
    if (Math.abs(py - last[1]) < 14 && px - last[0] < 80) continue;
    const format = name(rows[place]);
    pen.textAlign = px > width / 2 ? "right" : "left";
    pen.fillText(format === "not stated" ? table.columns.label[rows[place]].slice(0, 48) : format, px + (px > width / 2 ? -8 : 8), py - 8);
    last = [px, py];
  }
  const drawn = points.filter(([px, py]) => !Number.isNaN(px + py)).length;
  const told = best.length ? `; ${best.length} of them are on the front, its ${CORNERS[better]} the best` : "";
  return { find: (px, py) => nearest(points, px, py), front: best.map((place) => rows[place]), text: `${y.title} against ${x.title}: ${drawn} of ${rows.length} rows have both${told}` };
}

/** Most lines that are drawn side by side; a picture of more says nothing. */
const MOST_LINES = 1000;

/** Every column in which the rows differ as an axis, a line a row in the style of its format. Returns what drawScatter does. */
export function drawParallel(canvas, table, rows, shown, styles) {
  const { pen, width, colour } = paper(canvas, HEIGHT);
  const every = Math.ceil(rows.length / MOST_LINES);
  const drawn = rows.filter((_, place) => place % every === 0);
  const columns = shown.filter(({ key }) => new Set(drawn.map((row) => table.columns[key][row])).size > 1);
  const axes = columns.map((column) => axisOf(table, column, drawn));
  const [top, bottom, side] = [34, HEIGHT - 16, 60];
  const at = (index) => side + (columns.length > 1 ? (index / (columns.length - 1)) * (width - 2 * side) : 0);
  const y = (place) => bottom - place * (bottom - top);
  const room = columns.length > 1 ? at(1) - at(0) - 14 : width;
  drawn.forEach((each, row) => {
    const [own, dash] = styles[table.columns.format[each]];
    pen.strokeStyle = `${colour(own)}b0`;
    pen.setLineDash(dash);
    pen.beginPath();
    let open = false;
    axes.forEach(({ places }, index) => {
      if (Number.isNaN(places[row])) open = false;
      else if (open) pen.lineTo(at(index), y(places[row]));
      else pen.moveTo(at(index), y(places[row]));
      open = !Number.isNaN(places[row]);
    });
    pen.stroke();
  });
  pen.setLineDash([]);
  columns.forEach(({ title }, index) => {
    pen.fillStyle = colour("--chart-muted");
    pen.fillRect(at(index), top, 1, bottom - top);
    pen.textAlign = "center";
    pen.fillStyle = colour("--md-default-fg-color");
    pen.fillText(title, at(index), 12);
    pen.textAlign = index === columns.length - 1 ? "right" : "left";
    pen.textBaseline = "middle";
    const [paperColour, ink] = [colour("--md-default-bg-color"), colour("--md-default-fg-color")];
    for (const [place, text] of axes[index].ticks) {
      let cut = text;
      for (let length = text.length; length && pen.measureText(cut).width > room; length -= 1) cut = `${text.slice(0, length - 1)}…`;
      const wide = pen.measureText(cut).width;
      const left = index === columns.length - 1 ? at(index) - 4 : at(index) + 4;
      pen.fillStyle = `${paperColour}d0`;
      pen.fillRect(index === columns.length - 1 ? left - wide : left, y(place) - 7, wide, 14);
      pen.fillStyle = ink;
      pen.fillText(cut, left, y(place));
    }
    pen.textBaseline = "alphabetic";
  });
  const some = drawn.length < rows.length ? `${drawn.length} of ${rows.length} rows, evenly chosen` : `${rows.length} rows`;
  const lines = axes.map(({ places }) => places.map(y));
  const find = (px, py) => rows.indexOf(drawn[nearestLine(lines, columns.length > 1 ? (px - side) / (at(1) - side) : -1, py)]);
  return { find, columns, front: [], text: `${some} over ${columns.map(({ title }) => title).join(", ")}` };
}

/** The controls of the chart and its place: {nodes, draw(rows)}; what is chosen there goes into `state`, which `save` keeps. */
export function chartPanel(tables, state, save) {
  const canvas = element("canvas");
  canvas.setAttribute("role", "img");
  const readout = element("p", { className: "readout" });
  const best = element("p", { className: "small" });
  const legend = element("p", { className: "small legend" });
  const box = element("div", { className: "chart-of-rows" }, element("div", {}, canvas), legend, readout, best);
  const controls = { chart: choice(Object.entries(CHARTS)), x: choice([]), y: choice([]), better: choice(Object.entries(CORNERS)) };
  const [kind, ...fields] = Object.entries({ chart: "Chart", x: "Across", y: "Up", better: "Best corner" }).map(([name, label]) => field(label, controls[name]));
  const table = () => tables[state.rows];
  const column = (axis) => {
    const usual = { x: "learning_rate", y: state.rows === "arms" ? "val_loss" : "final_val_loss" };
    return COLUMNS[state.rows].find(({ key }) => key === ((state.chart === "scatter" && state[axis]) || usual[axis]));
  };
  const name = (row) => table().columns[state.rows === "arms" ? "label" : "id"][row];
  const link = (row) => {
    const { page, run } = places(tables, state.rows === "arms" ? row : tables.runs.armRow[row]);
    return element("a", { textContent: name(row), href: state.rows === "arms" ? page : run(name(row)) });
  };
  let shown = [];
  let picture = null;

  function draw(rows = shown) {
    shown = rows;
    const scatter = state.chart === "scatter";
    box.hidden = !state.chart;
    for (const each of fields) each.hidden = !scatter;
    if (!state.chart) return;
    for (const axis of ["x", "y"]) {
      controls[axis].replaceChildren(...COLUMNS[state.rows].map(({ key, title }) => element("option", { value: key, textContent: title })));
      controls[axis].value = column(axis).key;
    }
    const told = new Set(["label", "arm", "id", "low", "high", "wandb"]);
    const all = COLUMNS[state.rows].filter((each) => !told.has(each.key) && (COMMON.includes(each) || shownColumns(state).includes(each)));
    picture = scatter
      ? drawScatter(canvas, table(), rows, column("x"), column("y"), state.better, (row) => table().columns.format[row], tables.styles)
      : drawParallel(canvas, table(), rows, all, tables.styles);
    const found = new Set(rows.map((row) => table().columns.format[row]));
    legend.replaceChildren(...[...new Set(tables.arms.columns.format)].filter((format) => found.has(format) && (format !== "not stated" || found.size > 1)).map((format) => element("span", {}, swatchOf(...tables.styles[format]), format)));
    canvas.ariaLabel = readout.textContent = picture.text;
    best.replaceChildren(...picture.front.slice(0, 12).flatMap((row, place) => [place ? ", " : "On the front: ", link(row)]));
  }

  for (const [key, control] of Object.entries(controls)) {
    control.value = state[key];
    control.addEventListener("change", () => {
      state[key] = control.value;
      draw();
      save();
    });
  }
  canvas.addEventListener("mousemove", ({ offsetX, offsetY }) => {
    const place = picture.find(offsetX, offsetY);
    const told = ({ key, title, write }) => `${title} ${write(table().columns[key][shown[place]])}`;
    readout.textContent = place < 0 ? picture.text : [name(shown[place]), ...(picture.columns ?? [column("x"), column("y")]).map(told)].join(" · ");
  });
  new MutationObserver(() => draw()).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
  new ResizeObserver(() => draw()).observe(box.firstChild);
  return { nodes: [element("div", { className: "filters" }, kind, ...fields), box], draw };
}
