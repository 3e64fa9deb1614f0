// `of` says whose numbers they are; those of points are shown at the weight or the join where they arise.
const METRICS = [
  { key: "rms", title: "weight, root mean square", of: "parameters", scale: "log" },
  { key: "gradient", title: "gradient of the weight, norm", of: "parameters", scale: "log" },
  { key: "ratio", title: "gradient over weight, norms", of: "parameters", scale: "log" },
  { key: "variance", title: "variance", of: "points", scale: "log" },
  { key: "kurtosis", title: "excess kurtosis", of: "points", scale: "linear" },
  { key: "dead", title: "dead units, share", of: "points", scale: "share" },
  { key: "saturated", title: "saturated entries, share", of: "points", scale: "share" },
  { key: "correlation", title: "correlation between two batches", of: "points", scale: "linear" },
  { key: "rank", title: "effective rank, share of its bound", of: "points", scale: "share" },
  { key: "gradient", name: "signal", title: "gradient of the value, norm", of: "points", scale: "log" },
  { key: "mean_square", title: "χ of the block's Jacobian", of: "spectra", scale: "log" },
  { key: "spread", title: "spread of the block's squared singular values", of: "spectra", scale: "linear" },
];
const SIZE = { box: 13, thin: 6, tall: 18, gap: 6, lead: 11, level: 32, join: 6, foot: 24, head: 20 };

// The numbers of a metric by what bears them: "p" and a box, or "b" and a block.
function valuesOf(one, metric) {
  const found = new Map();
  const put = (place, value, largest) => {
    if (value === null || value === undefined) return;
    if (!found.has(place) || (largest && value > found.get(place))) found.set(place, value);
  };
  if (metric.of === "parameters") {
    const { box, matrix } = one.parameters;
    one.parameters[metric.key].forEach((value, i) => {
      if (box[i] === i && (matrix[i] || metric.key !== "rms")) put(`p${i}`, value); // a norm scale of 1 is no weight of rms 1
    });
  }
  if (metric.of === "spectra") one.spectra.forEach((s) => s.block !== null && put(`b${s.block}`, s[metric.key]));
  if (metric.of === "points") {
    const column = one.points[metric.key];
    const shared = metric.key === "dead" || metric.key === "saturated";
    for (const kind of ["weight", "activation", "join"]) {
      column.forEach((value, i) => {
        const at = one.points.shown[i];
        if (at && one.points.kind[i] === kind) put(at.join(""), value, shared);
      });
    }
  }
  return found;
}

class Drawing {
  constructor(home, go) {
    Object.assign(this, { go, home });
    this.metrics = METRICS.filter((metric) => CASES.some((one) => valuesOf(one, metric).size));
    this.readout = make("p", { class: "readout", role: "status" });
    this.scale = make("span", { class: "scale" });
    this.select = make("select", { id: "metric", onchange: () => this.paint() },
      ...this.metrics.map((metric) => make("option", { value: metric.name ?? metric.key }, metric.title)));
    const label = make("label", { for: "metric" }, "Colour and filling show", this.select);
    home.append(make("div", { class: "controls" }, this.metrics.length ? label : null, this.scale));
    this.views = CASES.map((one, c) => this.view(one, c));
    home.append(this.readout, this.key());
    this.lay();
    new ResizeObserver(debounce(() => this.lay(), 120)).observe(home);
  }

  view(one, c) {
    if (several) this.home.append(make("h3", {}, make("code", {}, one.label)));
    const box = make("div", { class: "drawing", role: "group", "aria-label": `Structure of ${one.label}; arrow keys move, Enter leads to the rows` });
    box.addEventListener("click", (event) => this.enter(event.target.closest(".item")));
    box.addEventListener("keydown", (event) => this.press(event, box));
    box.addEventListener("pointerover", (event) => this.tell(event.target.closest(".item")));
    box.addEventListener("focusin", (event) => this.tell(event.target.closest(".item")));
    this.home.append(box);
    return { one, c, box, items: new Map(), here: null };
  }

  lay() {
    const width = Math.max(260, this.home.clientWidth - 26);
    if (width === this.width) return;
    this.width = width;
    for (const view of this.views) this.draw(view);
    this.paint();
  }

  draw(view) {
    view.items = new Map();
    const rows = this.rows(view.one, view.one.tree.map((item) => measure(view.one, item)));
    const svg = make("svg:svg", { role: "presentation" });
    let y = 0;
    let widest = 0;
    for (const row of rows) {
      const levels = Math.max(0, ...row.items.map((item) => item.levels));
      const base = y + SIZE.head + levels * SIZE.level + SIZE.tall / 2;
      svg.append(make("svg:path", { class: "stem", d: `M2 ${base}H${row.width + 8}l-5 -3m5 3l-5 3` }));
      let x = 8;
      for (const item of row.items) {
        this.put(view, svg, item, x, base);
        if (item.block !== undefined) svg.append(this.name(view.one, item, x, base + SIZE.tall / 2 + 13));
        x += item.width;
      }
      y = base + SIZE.tall / 2 + SIZE.foot;
      widest = Math.max(widest, row.width + 14);
    }
    svg.setAttribute("width", widest);
    svg.setAttribute("height", y);
    view.box.style.containIntrinsicHeight = `${y + 16}px`;
    view.box.replaceChildren(svg);
    const first = svg.querySelector(".item");
    if (first) first.setAttribute("tabindex", 0);
    if (view.here) view.items.get(view.here)?.classList.add("here");
  }

  rows(one, items) {
    const found = [];
    for (const item of items) {
      const last = found[found.length - 1];
      if (last && last.width + item.width <= this.width - 10) { last.items.push(item); last.width += item.width; }
      else found.push({ items: [item], width: 8 + item.width });
    }
    return found;
  }

  name(one, item, x, y) {
    const full = one.blocks.name[item.block];
    const room = Math.max(1, Math.floor((item.width - 10) / 6.05));
    const text = full.length <= room ? full : room < 4 ? "" : `…${full.slice(1 - room)}`;
    return make("svg:text", { class: "name", x: x + item.lead, y }, text);
  }

  put(view, into, item, x, y) {
    if (item.block === undefined) this.weight(view, into, item.number, x, y);
    else this.block(view, into, item, x, y);
  }

  weight(view, into, i, x, y) {
    const width = view.one.parameters.matrix[i] ? SIZE.box : SIZE.thin;
    const top = y - SIZE.tall / 2;
    const place = `p${i}`;
    const group = make("svg:g", { class: "item weight none", "data-place": place, tabindex: -1, role: "button", "aria-label": this.words(view, place) },
      make("svg:rect", { class: "outline", x, y: top, width, height: SIZE.tall }),
      make("svg:rect", { class: "fill", x: x + 0.5, y: top + SIZE.tall - 0.5, width: width - 1, height: 0, "data-foot": top + SIZE.tall - 0.5 }));
    this.mark(view, group, this.worst(view, i), x + width / 2, top - 4);
    view.items.set(place, group);
    into.append(group);
  }

  // The worst finding of all parameters that share a box.
  worst(view, i) {
    view.shared ??= view.one.parameters.box.reduce((found, box, j) => {
      const mark = MARKS[view.c].get(`p${j}`);
      if (mark && mark.severity > (found.get(box)?.severity ?? -1)) found.set(box, mark);
      return found;
    }, new Map());
    return view.shared.get(i);
  }

  mark(view, into, mark, x, y) {
    if (!mark) return;
    const severity = SEVERITIES[mark.severity];
    into.append(make("svg:text", { class: `mark ${severity}`, x, y }, SYMBOLS[severity]));
  }

  block(view, into, item, x, y) {
    const { blocks } = view.one;
    const place = `b${item.block}`;
    const closed = blocks.closed[item.block];
    const [left, right, up] = [x + 3, x + item.width - SIZE.gap - SIZE.join, y - SIZE.level];
    const group = make("svg:g", { class: `item block none${closed ? " closed" : ""}`, "data-place": place, tabindex: -1, role: "button", "aria-label": this.words(view, place) });
    group.append(
      make("svg:rect", { class: "hit", x: x - 1, y: y - SIZE.level * item.levels - SIZE.tall / 2 - 3, width: item.width - SIZE.gap + 5, height: SIZE.level * item.levels + SIZE.tall + 6 }),
      make("svg:path", { class: "wire branch", d: `M${left} ${y}V${up + 5}q0 -5 5 -5H${right - 5}q5 0 5 5V${y}` }));
    const other = blocks.kind[item.block] !== "identity";
    if (other) group.append(make("svg:path", { class: "patch", d: `M${left + 1} ${y - 2}H${right - 6}v4H${left + 1}z` }));
    group.append(make("svg:path", { class: other ? "wire other" : "stem", d: `M${left} ${y}H${right}` }));
    let at = left + SIZE.lead;
    for (const inner of item.branch) { this.put(view, group, inner, at, up); at += inner.width; }
    at = (left + right - item.overWidth) / 2;
    for (const number of item.over) { this.weight(view, group, number, at, y); at += widthOf(view.one, number); }
    group.append(
      make("svg:circle", { class: "outline", cx: right, cy: y, r: SIZE.join }),
      make("svg:circle", { class: "fill", cx: right, cy: y, r: 0 }),
      make("svg:path", { class: "wire", d: `M${right - 3} ${y}h6m-3 -3v6` }));
    this.mark(view, group, MARKS[view.c].get(place), right, y - SIZE.join - 5);
    view.items.set(place, group);
    into.append(group);
  }

  paint() {
    const metric = this.metrics[this.select.selectedIndex];
    if (!metric) return;
    const all = this.views.map(({ one }) => valuesOf(one, metric));
    const range = span(all.flatMap((values) => [...values.values()]), metric.scale);
    this.scale.replaceChildren(digits(range.low), make("i"), digits(range.high));
    this.shown = { metric, all };
    this.views.forEach((view, v) => {
      for (const [place, group] of view.items) this.fill(group, all[v].get(place), range, metric.scale);
    });
  }

  fill(group, value, range, scale) {
    const [outline, fill] = [":scope > .outline", ":scope > .fill"].map((name) => group.querySelector(name));
    const state = value === undefined ? "none" : !Number.isFinite(value) ? "broken" : value === 0 && scale === "log" ? "zero" : "";
    for (const name of ["none", "zero", "broken"]) group.classList.toggle(name, name === state);
    const share = state ? 0 : range.share(value);
    fill.style.setProperty("--t", `${(share * 100).toFixed(1)}%`);
    if (fill.tagName === "circle") return fill.setAttribute("r", state ? 0 : 2 + share * (Number(outline.getAttribute("r")) - 2.5));
    const height = state ? 0 : 2 + share * (SIZE.tall - 3);
    fill.setAttribute("height", height);
    return fill.setAttribute("y", Number(fill.dataset.foot) - height);
  }

  words(view, place) {
    const { parameters, blocks } = view.one;
    const i = Number(place.slice(1));
    if (place[0] === "p") return `${parameters.name[i]}, ${parameters.shape[i]}, ${parameters.role[i]}`;
    const inside = blocks.parent[i] ? `, inside ${blocks.parent[i]}` : "";
    return `block ${blocks.name[i]}, shortcut ${blocks.kind[i]}, branch ${blocks.closed[i] ? "closed" : "open"}${inside}`;
  }

  tell(item) {
    const view = this.owner(item);
    if (!view) return;
    const place = item.dataset.place;
    const value = this.shown?.all[view.c].get(place);
    const marked = place[0] === "p" ? this.worst(view, Number(place.slice(1))) : MARKS[view.c].get(place);
    const found = marked ? ` · ${SYMBOLS[SEVERITIES[marked.severity]]} ${SEVERITIES[marked.severity]}` : "";
    const told = value === undefined ? "" : ` · ${this.shown.metric.title}: ${digits(value)}`;
    this.readout.textContent = this.words(view, place) + told + found;
  }

  owner(item) {
    return item && this.views.find((view) => view.box.contains(item));
  }

  enter(item) {
    const view = this.owner(item);
    if (view) this.go(view.c, item.dataset.place);
  }

  press(event, box) {
    const item = event.target.closest(".item");
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); this.enter(item); return; }
    const all = $$(".item", box);
    const at = all.indexOf(item);
    const whole = all.filter((one) => !one.parentNode.closest(".item"));
    const root = whole.findIndex((one) => one.contains(item));
    const next = { ArrowRight: all[at + 1], ArrowLeft: all[at - 1], ArrowDown: whole[root + 1], ArrowUp: whole[root - 1], Home: all[0], End: whole[whole.length - 1] };
    if (!(event.key in next)) return;
    event.preventDefault();
    if (next[event.key]) this.focus(next[event.key], box);
  }

  focus(item, box) {
    for (const one of $$('.item[tabindex="0"]', box)) one.setAttribute("tabindex", -1);
    item.setAttribute("tabindex", 0);
    item.focus({ preventScroll: true });
    item.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
  }

  // Mark a place without moving the page.
  point(c, place) {
    for (const view of this.views) {
      for (const item of $$(".item.here", view.box)) item.classList.remove("here");
      view.here = view.c === c ? place : null;
    }
    const view = this.views[c];
    const item = view.items.get(place);
    if (!item) return;
    item.classList.add("here");
    this.tell(item);
    const [frame, own] = [view.box.getBoundingClientRect(), item.getBoundingClientRect()];
    if (own.top < frame.top || own.bottom > frame.bottom) view.box.scrollTop += own.top - frame.top - frame.height / 2;
    if (own.left < frame.left || own.right > frame.right) view.box.scrollLeft += own.left - frame.left - frame.width / 2;
  }

  reveal(c, place) {
    const item = this.views[c].items.get(place);
    if (!item) return;
    this.focus(item, this.views[c].box);
    item.scrollIntoView({ block: "center", behavior: "instant" });
  }

  key() {
    const sign = (width, ...parts) => make("svg:svg", { width, height: 18, "aria-hidden": "true" }, ...parts);
    const entry = (text, width, ...parts) => make("span", {}, sign(width, ...parts), text);
    const path = (kind, d) => make("svg:path", { class: kind, d });
    const arc = "M3 16V6q0 -4 4 -4H29q4 0 4 4V16";
    const shut = make("svg:g", { class: "closed" }, path("wire branch", arc));
    const round = make("svg:circle", { class: "outline", cx: 8, cy: 9, r: 6 });
    const dashed = make("svg:g", { class: "zero" }, make("svg:rect", { class: "outline", x: 1, y: 1, width: 11, height: 15 }));
    const broken = make("svg:g", { class: "broken" }, make("svg:rect", { class: "outline", x: 2, y: 2, width: 10, height: 13 }));
    const plain = [make("svg:rect", { class: "outline", x: 1, y: 1, width: 11, height: 15 }), make("svg:rect", { class: "outline", x: 18, y: 1, width: 5, height: 15 })];
    return make("div", { class: "key" },
      entry("weight; scale or bias alone", 26, ...plain), entry("zero", 15, dashed), entry("not finite", 15, broken),
      entry("open branch", 37, path("wire branch", arc)), entry("closed branch", 37, shut),
      entry("shortcut that is no identity", 34, path("wire other", "M2 9H32")),
      entry("join", 17, round, path("wire", "M5 9h6m-3 -3v6")));
  }
}

function widthOf(one, number) {
  return (one.parameters.matrix[number] ? SIZE.box : SIZE.thin) + SIZE.gap;
}

function measure(one, item) {
  if (typeof item === "number") return { number: item, width: widthOf(one, item), levels: 0 };
  const branch = item.branch.map((inner) => measure(one, inner));
  const inside = branch.reduce((sum, inner) => sum + inner.width, 0);
  const overWidth = item.over.reduce((sum, number) => sum + widthOf(one, number), 0);
  const width = Math.max(inside, overWidth, 14) + 2 * SIZE.lead + SIZE.join + SIZE.gap;
  return { ...item, branch, overWidth, width, lead: 3, levels: 1 + Math.max(0, ...branch.map((inner) => inner.levels)) };
}

// The range of the finite values, and where in it a value lies, from 0 to 1.
function span(values, scale) {
  const kept = values.filter((value) => Number.isFinite(value) && (scale !== "log" || value > 0));
  let [low, high] = kept.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
  if (scale === "share") [low, high] = [0, 1];
  if (!kept.length) return { low: null, high: null, share: () => 0 };
  const of = scale === "log" ? Math.log : (value) => value;
  const width = of(high) - of(low);
  return { low, high, share: (value) => (width > 1e-9 * Math.abs(of(high)) ? Math.min(1, Math.max(0, (of(value) - of(low)) / width)) : 0.5) };
}
