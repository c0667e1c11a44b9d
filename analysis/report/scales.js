// Scales, ticks and numbers as text.

const MINUS = "−";

/** Four figures, or as many as asked for; powers of ten beyond a million and below a ten-thousandth. */
function number(value, figures = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : MINUS + "∞";
  const size = Math.abs(value);
  let text;
  if (size !== 0 && (size >= 1e6 || size < 1e-4)) {
    const [digits, power] = value.toExponential(figures - 1).split("e");
    text = `${digits.includes(".") ? digits.replace(/\.?0+$/, "") : digits}e${Number(power)}`;
  } else {
    text = String(Number(value.toPrecision(figures)));
  }
  return text.replaceAll("-", MINUS);
}

/** A probability given as its natural logarithm, whatever its size: −2000 nats is 2.58e−869. */
function probability(logP) {
  if (logP === null || Number.isNaN(logP)) return "";
  if (!Number.isFinite(logP)) return logP < 0 ? "0" : "∞";
  const tens = logP / Math.LN10;
  if (Math.abs(tens) < 3) return number(Math.exp(logP), 3);
  let power = Math.floor(tens);
  let digits = (10 ** (tens - power)).toFixed(2);
  if (digits === "10.00") [digits, power] = ["1.00", power + 1];
  return `${digits}e${power}`.replaceAll("-", MINUS);
}

/** Maps values to 0…1 and back, with ticks. `kind`: linear; log, for positive values only; symlog, linear up to `c`. */
function makeScale(kind, low, high, c = 1) {
  const to = {
    linear: (v) => v,
    log: (v) => Math.log10(v),
    symlog: (v) => (Math.abs(v) <= c ? 0.5 * v / c : Math.sign(v) * (0.5 + Math.log10(Math.abs(v) / c))),
  }[kind];
  const from = {
    linear: (u) => u,
    log: (u) => 10 ** u,
    symlog: (u) => (Math.abs(u) <= 0.5 ? 2 * u * c : Math.sign(u) * c * 10 ** (Math.abs(u) - 0.5)),
  }[kind];
  const start = to(low), span = to(high) - start || 1;
  return {
    kind, low, high, c,
    at: (v) => (to(v) - start) / span,
    back: (u) => from(start + u * span),
    ticks: (wanted) => (kind === "linear" ? linearTicks(low, high, wanted) : decadeTicks(kind, low, high, c, wanted)),
  };
}

function linearTicks(low, high, wanted) {
  const rough = (high - low) / Math.max(wanted, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

/** Powers of ten, thinned to what there is room for; less than a decade and a half has linear ticks. */
function decadeTicks(kind, low, high, c, wanted) {
  const ticks = [];
  if (kind === "log") {
    if (Math.log10(high / low) < 1.5) return linearTicks(low, high, wanted);
    for (let n = Math.ceil(Math.log10(low) - 1e-9); n <= Math.log10(high) + 1e-9; n++) ticks.push(10 ** n);
    return thin(ticks, wanted);
  }
  const positive = [], negative = [];
  for (let v = c; v <= high * 1.0001; v *= 10) positive.push(v);
  for (let v = c; v <= -low * 1.0001; v *= 10) negative.push(-v);
  const side = Math.max(2, Math.round(wanted * 0.6));
  const zero = low <= 0 && high >= 0 ? [0] : [];
  return [...thin(negative, side).reverse(), ...zero, ...thin(positive, side)].filter((v) => v >= low && v <= high);
}

function thin(ticks, wanted) {
  const every = Math.ceil(ticks.length / Math.max(wanted, 1));
  return ticks.filter((_, i) => i % every === 0);
}

// The figures' markers, of unit radius.
const MARKERS = {
  o: "M1 0A1 1 0 1 1 -1 0A1 1 0 1 1 1 0Z",
  s: "M-.9 -.9H.9V.9H-.9Z",
  "^": "M0 -1.05L1.05 .9H-1.05Z",
  v: "M0 1.05L1.05 -.9H-1.05Z",
  "<": "M-1.05 0L.9 1.05V-1.05Z",
  ">": "M1.05 0L-.9 1.05V-1.05Z",
  D: "M0 -1.2L1.2 0L0 1.2L-1.2 0Z",
  P: "M-.4 -1H.4V-.4H1V.4H.4V1H-.4V.4H-1V-.4H-.4Z",
  X: "M-1 -.5L-.5 -1L0 -.5L.5 -1L1 -.5L.5 0L1 .5L.5 1L0 .5L-.5 1L-1 .5L-.5 0Z",
};

function svg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function markerIcon(marker, colour) {
  return svg("svg", { viewBox: "-1.3 -1.3 2.6 2.6", "aria-hidden": "true" }, svg("path", { d: MARKERS[marker] ?? MARKERS.o, fill: colour }));
}

function swatch(verdict, colour) {
  const box = svg("rect", { width: 10, height: 10, fill: colour, class: verdict === "none" ? "none" : "" });
  return svg("svg", { viewBox: "0 0 10 10", class: "swatch", "aria-hidden": "true" }, box);
}

/** An element; what data hold goes in as text only. */
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
