// One plot, of three canvases: the axes, every line, and over them the line that is hovered or pinned.

const MARGIN = { left: 62, right: 16, top: 10, bottom: 40 };
const MARKED = 12; // so many lines can carry markers and stay apart
const FEW = 40, MANY = 300; // beyond these, lines are thinner and let others through

/**
 * The lines of a metric: run r's points are steps[start[r] … start[r + 1]], values of the same.
 * Unpacks counts and steps (uint32) and values (float32), as curves.py packs them.
 */
async function unpack(text, runs) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const counts = new Uint32Array(buffer, 0, runs);
  const start = new Uint32Array(runs + 1);
  for (let r = 0; r < runs; r++) start[r + 1] = start[r] + counts[r];
  const points = start[runs];
  return {
    start,
    steps: new Uint32Array(buffer, 4 * runs, points),
    values: new Float32Array(buffer, 4 * (runs + points), points),
  };
}

class Plot {
  constructor(title, events) {
    this.events = events;
    this.stage = element("div", { className: "stage", tabIndex: 0 });
    this.stage.setAttribute("role", "application");
    this.stage.setAttribute("aria-roledescription", "chart");
    this.stage.setAttribute("aria-describedby", "hint");
    this.back = element("canvas");
    this.all = element("canvas", { className: "all" });
    this.over = element("canvas", { className: "over" });
    this.stage.append(this.back, this.all, this.over);
    this.root = element("div", { className: "plot" }, ...(title ? [element("h3", { textContent: title })] : []), this.stage);
    this.title = title;
    this.lit = -1;
    this.point = -1;
    this.drag = null;
    this.listen();
  }

  /** lines: of `unpack`. theory: the same or null. runs: which to draw, the last on top. */
  show({ lines, theory, factor, targets, runs, x, y, yLabel, looks, summary }) {
    Object.assign(this, { lines, theory, factor, targets, runs, x, y, yLabel, looks });
    this.stage.setAttribute("aria-label", `${this.title ? this.title + ": " : ""}${summary}`);
    this.draw();
    this.light(this.lit, this.point);
  }

  place() {
    const box = this.stage.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.back, this.all, this.over]) {
      canvas.width = Math.round(box.width * ratio);
      canvas.height = Math.round(box.height * ratio);
    }
    this.ratio = ratio;
    this.width = Math.max(box.width - MARGIN.left - MARGIN.right, 10);
    this.height = Math.max(box.height - MARGIN.top - MARGIN.bottom, 10);
  }

  px(step) { return MARGIN.left + this.x.at(step) * this.width; }
  py(value) { return MARGIN.top + (1 - this.y.at(value)) * this.height; }

  colour(name) {
    this.all.style.color = `var(--${name})`;
    return getComputedStyle(this.all).color;
  }

  pen(canvas) {
    const pen = canvas.getContext("2d");
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    return pen;
  }

  inside(pen, draw) {
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left - 1, MARGIN.top - 1, this.width + 2, this.height + 2);
    pen.clip();
    draw();
    pen.restore();
  }

  draw() {
    if (!this.x) return;
    this.place();
    const back = this.pen(this.back), pen = this.pen(this.all), count = this.runs.length;
    this.axes(back);
    this.inside(back, () => this.drawTargets(back));
    pen.lineJoin = "round";
    this.inside(pen, () => {
      pen.lineWidth = count <= FEW ? 1.7 : count <= MANY ? 1.2 : 0.8;
      pen.globalAlpha = count <= FEW ? 1 : count <= MANY ? 0.8 : 0.4;
      for (const run of this.runs) {
        pen.strokeStyle = this.looks.colours[run];
        this.trace(pen, this.lines, run, 1);
        pen.stroke();
      }
      pen.globalAlpha = 1;
      if (count <= MARKED) this.runs.forEach((run, i) => this.markers(pen, run, i));
      if (count <= FEW) for (const run of this.runs) if (this.looks.diverged[run]) this.cross(pen, run);
      if (this.theory) {
        pen.strokeStyle = this.colour("theory");
        pen.lineWidth = 1;
        pen.setLineDash([5, 4]);
        const drawn = new Set();
        for (const run of this.runs) this.drawTheory(pen, run, drawn);
        pen.setLineDash([]);
      }
    });
    this.stage.querySelector(".empty")?.remove();
    if (!this.runs.length) this.stage.append(element("div", { className: "empty", textContent: "No run with this metric is shown" }));
  }

  /** Seeds share their line of theory; it is drawn once. */
  drawTheory(pen, run, drawn) {
    const { start, values } = this.theory, last = start[run + 1] - 1;
    if (last < start[run]) return;
    const key = `${values[last].toPrecision(6)} ${values[(start[run] + last) >> 1].toPrecision(6)} ${this.factor(run)}`;
    if (drawn.has(key)) return;
    drawn.add(key);
    this.trace(pen, this.theory, run, this.factor(run));
    pen.stroke();
  }

  drawTargets(pen) {
    const values = new Set(this.runs.map((run) => this.targets(run)).filter((value) => value !== null));
    pen.strokeStyle = this.colour("axis");
    pen.lineWidth = 1;
    pen.setLineDash([1.5, 3]);
    for (const value of values) {
      const y = Math.round(this.py(value)) + 0.5;
      pen.beginPath();
      pen.moveTo(MARGIN.left, y);
      pen.lineTo(MARGIN.left + this.width, y);
      pen.stroke();
    }
    pen.setLineDash([]);
  }

  trace(pen, { start, steps, values }, run, factor) {
    pen.beginPath();
    let broken = true;
    for (let i = start[run]; i < start[run + 1]; i++) {
      const value = values[i] * factor;
      const y = Number.isFinite(value) ? this.py(value) : NaN;
      if (!Number.isFinite(y)) { broken = true; continue; }
      if (broken) pen.moveTo(this.px(steps[i]), y); else pen.lineTo(this.px(steps[i]), y);
      broken = false;
    }
  }

  /** Five a line, each line's set off from the others', as in the figures. */
  markers(pen, run, nth) {
    const { start, steps, values } = this.lines;
    const shape = new Path2D(MARKERS[this.looks.markers[run]] ?? MARKERS.o);
    pen.fillStyle = this.looks.colours[run];
    pen.strokeStyle = this.colour("paper");
    let i = start[run];
    const end = start[run + 1];
    for (let k = 0; k < 5; k++) {
      const wanted = (k + (nth + 0.5) / this.runs.length) / 5;
      while (i < end - 1 && this.x.at(steps[i]) < wanted) i++;
      if (i >= end || !Number.isFinite(values[i])) continue;
      pen.save();
      pen.translate(this.px(steps[i]), this.py(values[i]));
      pen.scale(3.6, 3.6);
      pen.lineWidth = 0.3;
      pen.fill(shape);
      pen.stroke(shape);
      pen.restore();
    }
  }

  /** Where a run diverged; at the edge, if that is out of view. */
  cross(pen, run) {
    const { start, steps, values } = this.lines;
    let last = start[run + 1] - 1;
    while (last >= start[run] && !Number.isFinite(values[last])) last--;
    if (last < start[run]) return;
    const x = this.px(steps[last]);
    const y = Math.min(Math.max(this.py(values[last]), MARGIN.top + 5), MARGIN.top + this.height - 5);
    pen.save();
    pen.strokeStyle = this.colour("ink");
    pen.lineWidth = 1.8;
    pen.beginPath();
    pen.moveTo(x - 4, y - 4); pen.lineTo(x + 4, y + 4);
    pen.moveTo(x - 4, y + 4); pen.lineTo(x + 4, y - 4);
    pen.stroke();
    pen.restore();
  }

  axes(pen) {
    const family = getComputedStyle(document.body).fontFamily;
    const right = MARGIN.left + this.width, floor = MARGIN.top + this.height;
    pen.font = `11.5px ${family}`;
    pen.lineWidth = 1;
    const soft = this.colour("soft"), grid = this.colour("grid"), axis = this.colour("axis");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const tick of this.y.ticks(this.height / 48)) {
      const y = Math.round(this.py(tick)) + 0.5;
      if (y < MARGIN.top - 1 || y > floor + 1) continue;
      pen.strokeStyle = grid;
      pen.beginPath(); pen.moveTo(MARGIN.left, y); pen.lineTo(right, y); pen.stroke();
      pen.fillStyle = soft;
      pen.fillText(number(tick), MARGIN.left - 7, y);
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const tick of this.x.ticks(this.width / 80)) {
      const x = Math.round(this.px(tick)) + 0.5;
      if (x < MARGIN.left - 1 || x > right + 1) continue;
      pen.strokeStyle = grid;
      pen.beginPath(); pen.moveTo(x, MARGIN.top); pen.lineTo(x, floor); pen.stroke();
      pen.fillStyle = soft;
      pen.fillText(number(tick), x, floor + 6);
    }
    pen.strokeStyle = axis;
    pen.beginPath();
    pen.moveTo(MARGIN.left + 0.5, MARGIN.top); pen.lineTo(MARGIN.left + 0.5, floor + 0.5); pen.lineTo(right, floor + 0.5);
    pen.stroke();
    pen.fillStyle = soft;
    pen.fillText("step (optimiser updates)", MARGIN.left + this.width / 2, floor + 23);
    pen.save();
    pen.translate(5, MARGIN.top + this.height / 2);
    pen.rotate(-Math.PI / 2);
    pen.textBaseline = "top";
    pen.fillText(this.yLabel, 0, 0, this.height + 20);
    pen.restore();
  }

  /** Draw one run over the others, which fade; a ring at one of its points. -1 for none. */
  light(run, point = -1) {
    this.lit = this.runs?.includes(run) ? run : -1;
    this.point = this.lit < 0 ? -1 : point;
    this.root.classList.toggle("lit", this.lit >= 0);
    if (!this.x || !this.ratio) return;
    const pen = this.pen(this.over);
    if (this.drag) {
      pen.fillStyle = this.colour("accent");
      pen.globalAlpha = 0.15;
      pen.fillRect(Math.min(this.drag.from, this.drag.to), MARGIN.top, Math.abs(this.drag.to - this.drag.from), this.height);
      pen.globalAlpha = 1;
    }
    if (this.lit < 0) return;
    pen.lineJoin = "round";
    this.inside(pen, () => {
      pen.strokeStyle = this.looks.colours[run];
      pen.lineWidth = 2.6;
      this.trace(pen, this.lines, run, 1);
      pen.stroke();
      if (this.theory) {
        pen.strokeStyle = this.colour("theory");
        pen.lineWidth = 1.1;
        pen.setLineDash([5, 4]);
        this.trace(pen, this.theory, run, this.factor(run));
        pen.stroke();
        pen.setLineDash([]);
      }
      if (this.looks.diverged[run]) this.cross(pen, run);
    });
    if (this.point >= 0) {
      const x = this.px(this.lines.steps[this.point]), y = this.py(this.lines.values[this.point]);
      if (!Number.isFinite(y)) return;
      pen.beginPath();
      pen.arc(x, y, 5, 0, 7);
      pen.fillStyle = this.colour("paper");
      pen.strokeStyle = this.looks.colours[run];
      pen.lineWidth = 2.5;
      pen.fill();
      pen.stroke();
    }
  }

  /** The run whose line is nearest to a place in pixels, and its nearest point; null beyond 28 pixels. */
  nearest(x, y) {
    const { start, steps, values } = this.lines;
    let best = null, distance = 28;
    for (const run of this.runs) {
      const first = start[run], end = start[run + 1];
      let low = first, high = end - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.px(steps[middle]) < x) low = middle + 1; else high = middle;
      }
      const after = low, before = Math.max(low - 1, first);
      const xa = this.px(steps[before]), xb = this.px(steps[after]);
      const ya = this.py(values[before]), yb = this.py(values[after]);
      if (!Number.isFinite(ya) && !Number.isFinite(yb)) continue;
      let away;
      if (x >= xa && x <= xb && xb > xa && Number.isFinite(ya) && Number.isFinite(yb)) {
        const slope = (yb - ya) / (xb - xa);
        away = Math.abs(ya + slope * (x - xa) - y) / Math.hypot(1, slope); // to the line, not straight up to it
      } else {
        away = Math.min(
          Number.isFinite(ya) ? Math.hypot(x - xa, y - ya) : Infinity,
          Number.isFinite(yb) ? Math.hypot(x - xb, y - yb) : Infinity,
        );
      }
      if (away < distance) {
        distance = away;
        const nearer = !Number.isFinite(ya) || (Number.isFinite(yb) && Math.abs(xb - x) <= Math.abs(x - xa)) ? after : before;
        best = { run, point: nearer };
      }
    }
    return best;
  }

  listen() {
    const at = (event) => {
      const box = this.stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.stage.addEventListener("pointermove", (event) => {
      if (!this.x) return;
      const [x, y] = at(event);
      if (this.drag) {
        this.drag.to = Math.min(Math.max(x, MARGIN.left), MARGIN.left + this.width);
        this.light(this.lit, this.point);
        return;
      }
      this.events.hover(this, this.nearest(x, y), x, y);
    });
    this.stage.addEventListener("pointerleave", () => { if (!this.drag) this.events.leave(this); });
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      const [x] = at(event);
      this.drag = { from: x, to: x };
      this.stage.setPointerCapture(event.pointerId);
    });
    this.stage.addEventListener("pointerup", (event) => {
      const drag = this.drag, [x, y] = at(event);
      this.drag = null;
      if (drag && Math.abs(drag.to - drag.from) > 8) {
        const step = (px) => this.x.back((Math.min(Math.max(px, MARGIN.left), MARGIN.left + this.width) - MARGIN.left) / this.width);
        this.events.zoom(step(Math.min(drag.from, drag.to)), step(Math.max(drag.from, drag.to)));
      } else {
        this.events.pin(this.nearest(x, y)?.run ?? -1);
      }
    });
    this.stage.addEventListener("pointercancel", () => { this.drag = null; this.light(this.lit, this.point); });
    this.stage.addEventListener("keydown", (event) => this.key(event));
    this.stage.addEventListener("blur", () => this.events.leave(this));
    new ResizeObserver(() => { this.draw(); this.light(this.lit, this.point); }).observe(this.stage);
  }

  /** Up and down go from line to line in the order of their last values, left and right along a line. */
  key(event) {
    if (!this.runs?.length) return;
    const { start, values } = this.lines;
    const first = start[this.lit], end = start[this.lit + 1] - 1;
    const stride = event.shiftKey ? 10 : 1;
    let run = this.lit, point = this.point < 0 ? end : this.point;
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const ordered = [...this.runs].sort((a, b) => order(values[start[a + 1] - 1], values[start[b + 1] - 1]) || a - b);
      const up = event.key === "ArrowUp";
      const place = ordered.indexOf(run);
      const next = place < 0 ? (up ? 0 : ordered.length - 1) : Math.min(Math.max(place + (up ? 1 : -1), 0), ordered.length - 1);
      run = ordered[next];
      point = start[run + 1] - 1;
    } else if (run < 0) {
      return;
    } else if (event.key === "ArrowLeft") point = Math.max(point - stride, first);
    else if (event.key === "ArrowRight") point = Math.min(point + stride, end);
    else if (event.key === "Home") point = first;
    else if (event.key === "End") point = end;
    else if (event.key === "Enter" || event.key === " ") this.events.pin(run);
    else return;
    event.preventDefault();
    this.events.hover(this, { run, point }, this.px(this.lines.steps[point]), this.py(values[point]), true);
  }
}

/** Numbers rising; what is no number comes first. */
function order(a, b) {
  const x = Number.isNaN(a) ? -Infinity : a, y = Number.isNaN(b) ? -Infinity : b;
  return x < y ? -1 : x > y ? 1 : 0;
}
