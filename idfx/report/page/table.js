const ROW = 30;
const MARGIN = 12;
const PRINTED = 1000;

// A table of many rows, of which only those in view are in the document.
class Table {
  constructor(home, label, columns, rows, words) {
    Object.assign(this, { columns, rows, words, label, block: null, sorted: null, active: null, first: -1, last: -1 });
    this.order = rows.map((_, i) => i);
    this.texts = rows.map((row) => columns.filter((c) => c.searched).map((c) => c.get(row) ?? "").join("\n").toLowerCase());
    this.position = new Map();
    home.append(this.controls(), this.build());
    this.apply();
    this.placed = true;
    this.region.addEventListener("scroll", () => this.render(), { passive: true });
    this.region.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.render()).observe(this.region);
  }

  controls() {
    const id = `filter-${this.words.plural}`;
    this.input = make("input", { type: "search", id, autocomplete: "off", spellcheck: "false", oninput: debounce(() => this.apply(), 60) });
    this.count = make("span", { class: "soft count", role: "status" });
    this.chip = make("button", { type: "button", class: "chip", hidden: true, onclick: () => { this.narrow(null); this.input.focus(); } });
    const parts = [make("label", { for: id }, "Filter", this.input)];
    if (several) {
      this.cases = make("select", { onchange: () => this.apply() }, make("option", { value: "" }, "all"));
      CASES.forEach((one, i) => this.cases.append(make("option", { value: i }, one.label)));
      parts.push(make("label", {}, "Case", this.cases));
    }
    return make("div", { class: "controls" }, ...parts, this.chip, this.count);
  }

  build() {
    const widths = this.columns.map((column) => {
      let longest = column.title.length + 3;
      for (const row of this.rows) longest = Math.max(longest, column.show(row).length);
      return Math.min(longest, 60) * (column === this.columns[0] ? 8.3 : column.number ? 8.4 : 7.4) + 30;
    });
    const heads = this.columns.map((column, i) =>
      make("th", { scope: "col", class: this.kind(i), "aria-sort": "none", title: column.title },
        make("button", { type: "button", onclick: () => this.sort(i) }, make("span", {}, column.title))));
    this.heads = heads;
    this.body = make("tbody");
    const group = make("colgroup", {}, ...widths.map((width) => make("col", { style: `width: ${width}px` })));
    const width = widths.reduce((sum, one) => sum + one, 0);
    this.table = make("table", { "aria-rowcount": this.rows.length + 1, style: `width: ${width}px`, "aria-label": this.label },
      group, make("thead", {}, make("tr", { "aria-rowindex": 1 }, ...heads)), this.body);
    this.region = make("div", { class: "grid", tabindex: 0, role: "region", "aria-label": `${this.label}, scrolls` }, this.table);
    return this.region;
  }

  kind(i) {
    return [i === 0 ? "first" : "", this.columns[i].number ? "number" : ""].join(" ").trim() || null;
  }

  // Click by click: ascending, descending, as in the model.
  sort(i) {
    const { column, down } = this.sorted ?? {};
    this.sorted = column !== i ? { column: i, down: false } : down ? null : { column: i, down: true };
    this.heads.forEach((head, j) => {
      const on = this.sorted?.column === j;
      head.setAttribute("aria-sort", on ? (this.sorted.down ? "descending" : "ascending") : "none");
    });
    if (this.region.scrollTop) this.region.scrollTop = 0;
    this.apply();
  }

  narrow(block, shown = "") {
    this.block = block;
    this.chip.hidden = block === null;
    this.chip.replaceChildren(`block ${shown} `, make("span", { "aria-hidden": "true" }, "✕"));
    this.chip.setAttribute("aria-label", `block ${shown}: show all again`);
    this.apply();
  }

  apply() {
    const words = this.input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = this.cases?.value ?? "";
    const keep = (i) =>
      (chosen === "" || this.rows[i].c === Number(chosen)) &&
      (this.block === null || this.block(this.rows[i])) &&
      words.every((word) => this.texts[i].includes(word));
    this.order = this.rows.map((_, i) => i).filter(keep);
    if (this.sorted) this.arrange();
    this.position = new Map(this.order.map((row, at) => [row, at]));
    const all = this.order.length === this.rows.length;
    this.count.textContent = (all ? "" : `${WHOLE.format(this.order.length)} of `) + counted(this.rows.length, this.words.one, this.words.plural);
    this.first = -1;
    this.render();
  }

  // Rows without a value stand last in both directions.
  arrange() {
    const { column, down } = this.sorted;
    const { get, number } = this.columns[column];
    const keys = this.rows.map(get);
    const missing = (key) => key === null || key === "" || Number.isNaN(key);
    const language = new Intl.Collator("en", { numeric: true });
    const compare = number ? (a, b) => (a < b ? -1 : a > b ? 1 : 0) : language.compare;
    const filled = this.order.filter((i) => !missing(keys[i]));
    filled.sort((a, b) => (down ? compare(keys[b], keys[a]) : compare(keys[a], keys[b])));
    this.order = [...filled, ...this.order.filter((i) => missing(keys[i]))];
  }

  render(everything = false) {
    // The first time nothing is asked of the layout, which would have to be made for it.
    const height = (this.placed && this.region.clientHeight) || 512;
    const top = this.placed ? Math.floor(this.region.scrollTop / ROW) : 0;
    const first = everything ? 0 : Math.max(0, top - MARGIN);
    const last = everything ? Math.min(PRINTED, this.order.length) : Math.min(this.order.length, top + Math.ceil(height / ROW) + MARGIN);
    if (first === this.first && last === this.last) return;
    const inside = this.body.contains(document.activeElement);
    Object.assign(this, { first, last });
    const rows = [];
    for (let at = first; at < last; at += 1) rows.push(this.row(this.order[at], at));
    const space = (count) => make("tr", { class: "space", "aria-hidden": "true" }, make("td", { colspan: this.columns.length, style: `height: ${count * ROW}px` }));
    this.body.replaceChildren(...(first ? [space(first)] : []), ...rows, ...(last < this.order.length ? [space(this.order.length - last)] : []));
    if (inside) (this.shownRow(this.active) ?? this.region).focus({ preventScroll: true });
  }

  row(i, at) {
    const row = this.rows[i];
    const cells = this.columns.map((column, j) => {
      const text = column.show(row);
      const content = column.node?.(row) ?? text;
      const kind = [this.kind(j) ?? "", text === "NaN" || text.endsWith("∞") ? "bad" : ""].join(" ").trim();
      return make(j ? "td" : "th", { class: kind || null, scope: j ? null : "row", title: text.length > 12 ? text : null }, content);
    });
    const made = make("tr", { id: `c${row.c}-${this.words.letter}${row.i}`, tabindex: -1, "aria-rowindex": at + 2, class: i === this.active ? "here" : null }, ...cells);
    made.addEventListener("focus", () => this.activate(i));
    return made;
  }

  activate(i) {
    this.active = i;
    for (const row of $$("tr.here", this.body)) row.classList.remove("here");
    this.shownRow(i)?.classList.add("here");
    this.words.chosen(this.rows[i]);
  }

  shownRow(i) {
    const row = this.rows[i];
    return row ? document.getElementById(`c${row.c}-${this.words.letter}${row.i}`) : null;
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 14, PageUp: -14, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.target.closest("thead") || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const at = this.position.get(this.active) ?? (steps[event.key] > 0 ? -1 : 0);
    const next = Math.max(0, Math.min(this.order.length - 1, at + steps[event.key]));
    if (this.order.length) this.show(next);
  }

  show(at) {
    const top = at * ROW;
    const view = this.region.clientHeight - 34 - ROW;
    if (top < this.region.scrollTop || top > this.region.scrollTop + view - ROW) this.region.scrollTop = Math.max(0, top - view / 2);
    this.render();
    this.shownRow(this.order[at]).focus({ preventScroll: true });
  }

  // Bring a row into view and focus it, whatever the filters hide.
  reveal(i) {
    if (!this.position.has(i)) {
      this.input.value = "";
      if (this.cases) this.cases.value = "";
      this.narrow(null);
    }
    this.region.scrollIntoView({ block: "center", behavior: "instant" });
    this.show(this.position.get(i));
  }

  find(c, i) {
    return this.rows.findIndex((row) => row.c === c && row.i === i);
  }
}

function findingsNode(c, place) {
  const mark = MARKS[c].get(place);
  if (!mark) return null;
  const severity = SEVERITIES[mark.severity];
  const text = counted(mark.count, "finding");
  return make("a", { href: `#c${c}-f${mark.finding}`, class: `badge ${severity}`, "aria-label": `${severity}: ${text}` },
    make("span", { class: "symbol", "aria-hidden": "true" }, SYMBOLS[severity]), text);
}
