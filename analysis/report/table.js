// The table of runs: sorted by any column, a hundred rows at a time.

const PAGE_ROWS = 100;

class Table {
  /** columns: {title, unit, about, numeric, sort: run -> number | string | null, cell: run -> text or nodes} */
  constructor(columns, events) {
    Object.assign(this, { columns, events, sorted: null, falling: false, page: 0, runs: [], pinned: -1 });
    this.root = document.getElementById("table");
    this.pager = document.getElementById("pager");
    const row = element("tr");
    this.heads = columns.map((column, i) => {
      const button = element("button", { type: "button", title: column.about },
        element("span", { className: "title", textContent: column.title }), element("small", { textContent: column.unit || " " }));
      button.addEventListener("click", () => this.sortBy(i));
      const head = element("th", { scope: "col", className: column.numeric ? "number" : "" }, button);
      row.append(head);
      return head;
    });
    this.root.tHead.append(row);
  }

  sortBy(i) {
    this.falling = this.sorted === i ? !this.falling : this.columns[i].numeric;
    this.sorted = i;
    this.page = 0;
    this.heads.forEach((head, j) => {
      if (i === j) head.setAttribute("aria-sort", this.falling ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    this.draw();
  }

  show(runs) {
    this.runs = runs;
    this.page = 0;
    this.draw();
  }

  /** What has no value comes last, whichever way the column is sorted; equal runs keep the sweep's order. */
  ordered() {
    if (this.sorted === null) return this.runs;
    const key = this.columns[this.sorted].sort, way = this.falling ? -1 : 1;
    return this.runs.map((run) => [key(run), run]).sort(([a, r], [b, s]) => {
      const none = (a === null) - (b === null);
      return none || (a < b ? -way : a > b ? way : r - s);
    }).map(([, run]) => run);
  }

  draw() {
    const ordered = this.ordered();
    const pages = Math.max(1, Math.ceil(ordered.length / PAGE_ROWS));
    this.page = Math.min(this.page, pages - 1);
    const from = this.page * PAGE_ROWS, shown = ordered.slice(from, from + PAGE_ROWS);
    const body = this.root.tBodies[0];
    body.replaceChildren(...shown.map((run) => this.row(run)));
    if (!shown.length) body.append(element("tr", {}, element("td", { colSpan: this.columns.length, textContent: "No run passes the filter" })));
    this.drawPager(from, shown.length, ordered.length, pages);
  }

  row(run) {
    const cells = this.columns.map((column, i) => {
      const content = column.cell(run);
      const cell = element(i ? "td" : "th", { className: column.numeric ? "number" : "" });
      if (!i) cell.scope = "row";
      cell.append(...[content].flat());
      return cell;
    });
    const row = element("tr", { className: run === this.pinned ? "lit" : "" }, ...cells);
    row.dataset.run = run;
    row.addEventListener("pointerenter", () => this.events.light(run));
    row.addEventListener("pointerleave", () => this.events.light(-1));
    return row;
  }

  pin(run) {
    this.pinned = run;
    for (const row of this.root.tBodies[0].rows) {
      const on = Number(row.dataset.run) === run;
      row.classList.toggle("lit", on);
      row.querySelector("button")?.setAttribute("aria-pressed", String(on));
    }
  }

  drawPager(from, shown, total, pages) {
    const text = total ? `${(from + 1).toLocaleString("en")}–${(from + shown).toLocaleString("en")} of ${total.toLocaleString("en")}` : "0 runs";
    if (pages === 1) return this.pager.replaceChildren(text);
    const turn = (name, page, possible) => {
      const button = element("button", { type: "button", textContent: name, disabled: !possible });
      button.addEventListener("click", () => {
        this.page = page;
        this.draw();
        const again = [...this.pager.querySelectorAll("button")].find((other) => other.textContent === name);
        (again.disabled ? this.pager.querySelector("button:not(:disabled)") : again).focus();
      });
      return button;
    };
    this.pager.replaceChildren(turn("Previous", this.page - 1, this.page > 0), text, turn("Next", this.page + 1, this.page < pages - 1));
  }
}
