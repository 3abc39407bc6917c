/** A span that shows how lines of this colour (a variable) and with these dashes are drawn. */
export function swatchOf(colour, dash) {
  const made = document.createElement("span");
  made.className = "swatch";
  made.style.borderTopStyle = dash?.length ? (dash[0] < 4 ? "dotted" : "dashed") : "solid";
  made.style.borderColor = `var(${colour})`;
  return made;
}

/** A number's text as readers are shown it: with a true minus, and no sign where it is shown as zero. */
export const minus = (text) => text.replace(/^[+-](?=[0.]*(?:%| dB)?$)/, "").replaceAll("-", "−");

/** What AltGrad calls a metric, at the beginning of a sentence; one of another loop is a name and stays as it is. */
export const capital = (title) => (/ loss$/.test(title) ? title.replace(/^./, (first) => first.toUpperCase()) : title);
