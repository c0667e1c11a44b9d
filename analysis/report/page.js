// The page: what is shown, and what changes it.

const data = JSON.parse(document.getElementById("data").textContent);
const RUNS = data.labels.length;
const MOST_PLOTS = 24;
const TOGETHER = 4, APART = 12; // so many losses share a plot, as in the figures; so many have one each
const $ = (id) => document.getElementById(id);
const real = (value) => (value === "Infinity" ? Infinity : value === "-Infinity" ? -Infinity : value);

const dimensions = data.dimensions.map((dimension) => ({ ...dimension, on: dimension.names.map(() => true), boxes: [] }));
const verdictDimension = dimensions.find((dimension) => dimension.column === "verdict");
const settingsShown = dimensions.filter((dimension) => dimension.column !== "state");
const words = Array.from({ length: RUNS }, (_, run) =>
  [data.labels[run], data.dirs[run], data.problems[run], ...dimensions.map((d) => `${d.title}=${d.names[d.of[run]]}`)].join(" ").toLowerCase());
const looks = { colours: data.colours, markers: data.markers, diverged: data.diverged };

const state = { visible: [], metric: 0, pinned: -1, from: 0, to: Infinity };
const unpacked = new Map();
const lastStep = Math.max(data.last, 1); // of an evaluation too, which may come after the last update
let plots = [], lines = null, theory = null, drawing = 0;

function unpackedOnce(id) {
  if (!unpacked.has(id)) {
    const block = $(id);
    unpacked.set(id, unpack(block.textContent, RUNS).then((made) => { block.remove(); return made; }));
  }
  return unpacked.get(id);
}

// What is shown

function filter() {
  const wanted = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  state.visible = [];
  for (let run = 0; run < RUNS; run++) {
    if (dimensions.every((d) => d.on[d.of[run]]) && wanted.every((word) => words[run].includes(word))) state.visible.push(run);
  }
  $("shown").textContent = `${state.visible.length.toLocaleString("en")} of ${RUNS.toLocaleString("en")} runs shown`;
  if (!state.visible.includes(state.pinned)) pin(-1);
  table.show(state.visible);
  drawPlots();
}

function groups() {
  const with_ = state.visible.filter((run) => lines.start[run + 1] > lines.start[run]);
  const split = dimensions.find((d) => d.column === $("split").value);
  if (!split) return [["", with_]];
  const found = new Map();
  for (const run of with_) {
    const value = split.of[run];
    if (!found.has(value)) found.set(value, []);
    found.get(value).push(run);
  }
  return [...found].sort(([a], [b]) => a - b).map(([value, runs]) => [split.column === "loss.name" ? split.names[value] : `${split.title} = ${split.names[value]}`, runs]);
}

/** Theory is of the margin; the reward margin is beta times it. */
function theoryFactor(run) {
  return data.metrics[state.metric][0] === "margin" ? 1 : data.betas[run] ?? NaN;
}

async function drawPlots() {
  const turn = ++drawing;
  const [name, meaning, unit] = data.metrics[state.metric];
  const averaged = data.means && !name.startsWith("eval/"); // an evaluation is of the same pairs each time
  $("mean-control").hidden = !averaged;
  const found = await unpackedOnce(`${averaged ? $("rows").value : "metric"}-${state.metric}`);
  const ofTheory = await unpackedOnce("theory");
  if (turn !== drawing) return; // something newer is on its way
  lines = found;
  const scaled = name === "margin" || name === "rewards/margins";
  theory = scaled && data.theory && $("theory-toggle").checked ? ofTheory : null;
  $("theory-control").hidden = !(scaled && data.theory);
  const targets = (run) => (scaled && data.targets[run] !== null ? data.targets[run] * theoryFactor(run) : null);
  const split = groups();
  const shown = split.slice(0, MOST_PLOTS);
  const titles = shown.map(([title]) => title);
  if (titles.join("\n") !== plots.map((plot) => plot.title).join("\n") || !plots.length) {
    plots = titles.map((title) => new Plot(title, events));
    $("plots").replaceChildren(...plots.map((plot) => plot.root));
    $("plots").classList.toggle("split", plots.length > 1);
  }
  const visible = shown.flatMap(([, runs]) => runs);
  const x = stepScale();
  const y = valueScale(visible, targets);
  const label = `${meaning}${unit ? ` (${unit})` : ""}${y.kind === "symlog" ? `, linear within ±${number(y.c)}` : ""}`;
  shown.forEach(([, runs], i) => plots[i].show({
    lines, theory, factor: theoryFactor, targets, runs, x, y, yLabel: plots.length > 1 ? name : label, looks,
    summary: `${meaning} against step, ${runs.length} runs`,
  }));
  $("plots").querySelector(".more")?.remove();
  if (split.length > shown.length) {
    $("plots").append(element("p", { className: "fine more", textContent: `The first ${shown.length} of ${split.length} plots; filter to see others.` }));
  }
  if (state.pinned >= 0) plots.forEach((plot) => plot.light(state.pinned));
}

function stepScale() {
  const from = Math.max(0, state.from), to = Math.min(lastStep, state.to);
  const log = $("x-scale").value === "log";
  if (!log) return makeScale("linear", from, Math.max(to, from + 1));
  return makeScale("symlog", from, Math.max(to, from + 1), 1);
}

/** Room for every value of the runs that did not diverge; where there is none, of those that did. */
function valueScale(runs, targets) {
  const calm = runs.filter((run) => !data.diverged[run]);
  const those = calm.length ? calm : runs;
  let low = Infinity, high = -Infinity, least = Infinity;
  const take = (value) => {
    if (!Number.isFinite(value)) return;
    if (value < low) low = value;
    if (value > high) high = value;
    const size = Math.abs(value);
    if (size > 0 && size < least) least = size;
  };
  for (const run of those) {
    for (let i = lines.start[run]; i < lines.start[run + 1]; i++) {
      if (lines.steps[i] >= state.from && lines.steps[i] <= state.to) take(lines.values[i]);
    }
    const target = targets(run);
    if (target !== null) take(target);
  }
  if (!(low <= high)) [low, high] = [0, 1];
  if (theory) [low, high] = withTheory(those, low, high);
  if (low === high) [low, high] = [low - (Math.abs(low) * 0.05 || 0.5), high + (Math.abs(high) * 0.05 || 0.5)];
  if ($("y-scale").value === "log") {
    if (low > 0) return makeScale("log", low / (high / low) ** 0.04, high * (high / low) ** 0.04);
    // Four decades below the largest, or down to the smallest there is.
    const largest = Math.max(Math.abs(low), Math.abs(high));
    const c = 10 ** Math.round(Math.log10(Math.max(least, largest * 1e-4)));
    const bare = makeScale("symlog", low, high, c);
    return makeScale("symlog", bare.back(-0.04), bare.back(1.04), c);
  }
  const spare = 0.05 * (high - low);
  return makeScale("linear", low - spare, high + spare);
}

/** The range widened to the lines of theory, unless that takes half as much again: the measurement comes first. */
function withTheory(runs, low, high) {
  let [lowest, highest] = [low, high];
  for (const run of runs) {
    const factor = theoryFactor(run);
    for (let i = theory.start[run]; i < theory.start[run + 1]; i++) {
      if (theory.steps[i] < state.from || theory.steps[i] > state.to) continue;
      lowest = Math.min(lowest, theory.values[i] * factor);
      highest = Math.max(highest, theory.values[i] * factor);
    }
  }
  return highest - lowest <= 1.5 * (high - low) ? [lowest, highest] : [low, high];
}

// Hovering and pinning

const tip = element("div", { className: "tip", hidden: true });
tip.setAttribute("aria-hidden", "true");
document.body.append(tip);

function described(run, point) {
  const [name, , unit] = data.metrics[state.metric];
  const value = lines.values[point];
  const rows = [["step", lines.steps[point].toLocaleString("en")], [name, `${number(value, 5)}${unit ? ` ${unit}` : ""}`]];
  if (/^(eval\/)?(log_pi|logps)\//.test(name)) rows.push(["probability", probability(value)]);
  const line = theory && theoryAt(run, lines.steps[point]);
  if (line !== null && line !== undefined) rows.push(["theory", `${number(line, 5)}${unit ? ` ${unit}` : ""}`]);
  for (const d of settingsShown) rows.push([d.title, d.names[d.of[run]]]);
  const onset = onsetOf(run);
  if (onset !== null) rows.push(["onset", `step ${onset.toLocaleString("en")}`]);
  return rows;
}

function theoryAt(run, step) {
  const { start, steps, values } = theory;
  const from = start[run], end = start[run + 1];
  if (from === end) return null;
  let i = from;
  while (i < end - 1 && steps[i] < step) i++;
  const before = Math.max(i - 1, from);
  const share = steps[i] === steps[before] ? 1 : Math.min((step - steps[before]) / (steps[i] - steps[before]), 1);
  return theoryFactor(run) * (values[before] + share * (values[i] - values[before]));
}

function onsetOf(run) {
  return data.columns.find((column) => column.key === "onset").values[run];
}

const events = {
  hover(plot, hit, x, y, spoken = false) {
    if (!hit) return this.leave(plot);
    for (const other of plots) other.light(hit.run, other === plot ? hit.point : -1);
    const rows = described(hit.run, hit.point);
    tip.replaceChildren(
      element("b", { textContent: data.labels[hit.run] }),
      element("table", {}, ...rows.map(([key, value]) => element("tr", {}, element("td", { textContent: key }), element("td", { textContent: value })))),
    );
    tip.hidden = false;
    const stage = plot.stage.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const room = document.documentElement.clientWidth;
    let left = stage.left + x + 16;
    if (left + box.width > room - 8) left = Math.max(8, stage.left + x - box.width - 16);
    let top = stage.top + (Number.isFinite(y) ? y : 0) + 12;
    if (top + box.height > window.innerHeight - 8) top = Math.max(8, window.innerHeight - box.height - 8);
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${top + window.scrollY}px`;
    if (spoken) $("readout").textContent = `${data.labels[hit.run]}: ${rows.map(([key, value]) => `${key} ${value}`).join(", ")}`;
  },
  leave() {
    tip.hidden = true;
    for (const plot of plots) plot.light(state.pinned);
  },
  pin(run) { pin(run === state.pinned ? -1 : run); },
  zoom(from, to) { setRange(Math.max(0, Math.round(from)), Math.max(Math.round(to), Math.round(from) + 1)); },
  light(run) { for (const plot of plots) plot.light(run < 0 ? state.pinned : run); },
};

function pin(run) {
  state.pinned = run;
  for (const plot of plots) plot.light(run);
  table.pin(run);
  $("readout").textContent = run < 0 ? "" : `Pinned: ${data.labels[run]} (${data.dirs[run]}); ${
    settingsShown.map((d) => `${d.title} ${d.names[d.of[run]]}`).join(", ")}${data.problems[run] ? `; ${data.problems[run]}` : ""}`;
}

function setRange(from, to) {
  state.from = from;
  state.to = to >= lastStep ? Infinity : to;
  $("from").value = from;
  $("to").value = Math.min(to, lastStep);
  $("whole").hidden = from <= 0 && to >= lastStep;
  drawPlots();
}

// The table

const icon = (run) => markerIcon(data.markers[run], data.colours[run]);
const ofDimension = (d) => ({
  title: d.title, unit: "", about: d.column, numeric: false,
  sort: (run) => d.of[run],
  cell: (run) => (d === verdictDimension
    ? element("span", { className: "verdict" }, swatch(d.names[d.of[run]], data.verdicts[d.names[d.of[run]]]), d.names[d.of[run]])
    : d.names[d.of[run]]),
});
const columns = [
  {
    title: "run", unit: "", about: "label", numeric: false, sort: (run) => data.labels[run],
    cell(run) {
      const button = element("button", { type: "button", title: data.dirs[run] }, icon(run), data.labels[run]);
      button.setAttribute("aria-pressed", String(run === state.pinned));
      button.addEventListener("click", () => events.pin(run));
      return button;
    },
  },
  ofDimension(verdictDimension),
  ...data.columns.slice(0, 1).map(ofNumbers),
  ...dimensions.filter((d) => d !== verdictDimension && (d.names.length > 1 || d.column === "loss.name")).map(ofDimension),
  ...data.columns.slice(1).map(ofNumbers),
];

function ofNumbers(column) {
  const values = column.values.map(real);
  const write = column.kind === "probability" ? probability : number;
  return { title: column.title, unit: column.unit, about: column.about, numeric: true, sort: (run) => values[run], cell: (run) => write(values[run]) };
}

const table = new Table(columns, events);

// The filters

function makeFilters() {
  for (const d of dimensions) {
    const counts = new Array(d.names.length).fill(0);
    for (const value of d.of) counts[value]++;
    const list = element("div", { className: "values" });
    list.setAttribute("role", "group");
    list.setAttribute("aria-label", d.title);
    d.names.forEach((name, value) => {
      const box = element("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => { d.on[value] = box.checked; filter(); });
      d.boxes.push(box);
      const picture = d.looks ? [markerIcon(d.looks[value][1], d.looks[value][0])] : d === verdictDimension ? [swatch(name, data.verdicts[name])] : [];
      list.append(element("label", {}, box, ...picture, element("span", { className: "name", textContent: name }),
        element("span", { className: "count", textContent: counts[value].toLocaleString("en") })));
    });
    const set = (name, on) => {
      const button = element("button", { type: "button", textContent: name });
      button.setAttribute("aria-label", `${name} of ${d.title}`);
      button.addEventListener("click", () => { setAll(d, on); filter(); });
      return button;
    };
    if (d.names.length === 1) continue;
    const holder = element("details", { className: "dimension", open: d.names.length <= 12 || d.looks !== undefined }, // that of losses is the key to the colours
      element("summary", {}, d.title, element("small", { textContent: d.names.length > 12 ? ` ${d.names.length} values` : "" })),
      element("span", { className: "all" }, set("all", true), set("none", false)), list);
    $("dimensions").append(holder);
  }
}

function setAll(d, on) {
  d.on.fill(on);
  for (const box of d.boxes) box.checked = on;
}

// The rest

function makeControls() {
  data.metrics.forEach(([name, meaning], i) => $("metric").append(element("option", { value: i, textContent: name, title: meaning })));
  $("split").append(element("option", { value: "", textContent: "nothing" }));
  for (const d of dimensions) if (d.names.length > 1) $("split").append(element("option", { value: d.column, textContent: d.title }));
  const losses = dimensions.find((d) => d.column === "loss.name");
  if (losses.names.length > TOGETHER && losses.names.length <= APART) $("split").value = losses.column;
  $("metric").addEventListener("change", () => { state.metric = Number($("metric").value); drawPlots(); });
  for (const id of ["split", "x-scale", "y-scale", "rows", "theory-toggle"]) $(id).addEventListener("change", drawPlots);
  for (const id of ["from", "to"]) {
    $(id).addEventListener("change", () => {
      const from = Math.min(Math.max(0, Math.round(Number($("from").value) || 0)), lastStep - 1);
      setRange(from, Math.max(from + 1, Math.round(Number($("to").value) || lastStep)));
    });
  }
  $("whole").addEventListener("click", () => { setRange(0, lastStep); $("from").focus(); });
  let waiting = 0;
  $("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  $("reset").addEventListener("click", () => {
    $("search").value = "";
    for (const d of dimensions) setAll(d, true);
    filter();
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") { events.leave(); pin(-1); } });
  $("copy")?.addEventListener("click", async () => {
    const range = document.createRange();
    range.selectNodeContents($("command"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    try {
      await navigator.clipboard.writeText($("command").textContent);
      $("copy").textContent = "Copied";
    } catch {
      $("copy").textContent = "Selected"; // a page from a file may not be allowed to copy
    }
  });
  for (const button of document.querySelectorAll(".enlarge")) {
    button.addEventListener("click", () => {
      const [from, to] = [button.querySelector("img"), $("large").querySelector("img")];
      to.src = from.src;
      to.alt = from.alt;
      $("large").showModal();
    });
  }
}

function makeTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const say = () => {
    $("theme").setAttribute("aria-pressed", String(isDark()));
    for (const plot of plots) { plot.draw(); plot.light(plot.lit, plot.point); }
  };
  $("theme").addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; say(); });
  system.addEventListener("change", say);
  say();
}

async function begin() {
  makeFilters();
  makeControls();
  makeTheme();
  const first = await unpackedOnce("metric-0");
  for (const id of ["from", "to"]) $(id).max = lastStep;
  $("from").value = 0;
  $("to").value = lastStep;
  lines = first;
  filter();
  document.documentElement.dataset.ready = "";
}

begin();
