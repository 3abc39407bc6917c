/** A number's text as readers are shown it: with a true minus, and no sign where it is shown as zero. */
export const minus = (text) => text.replace(/^[+-](?=[0.]*(?:%| dB)?$)/, "").replaceAll("-", "−");
