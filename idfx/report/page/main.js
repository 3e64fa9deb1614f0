document.documentElement.classList.add("scripted");

const dark = matchMedia("(prefers-color-scheme: dark)");
let tables = {};
let drawing = null;
let plots = null;

function isDark() {
  return (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
}

function themed() {
  const button = $("#theme");
  button.setAttribute("aria-pressed", isDark());
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", isDark() ? "Change to light colours" : "Change to dark colours");
  plots?.again();
}

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  themed();
}

function column(part, key, title, options = {}) {
  const get = options.get ?? ((row) => CASES[row.c][part][key][row.i]);
  return { key, title, number: true, get, show: (row) => digits(get(row)), ...options };
}

function words(part, key, title) {
  return column(part, key, title, { number: false, searched: true, show: (row) => CASES[row.c][part][key][row.i] || "" });
}

function rowsOf(part) {
  return CASES.flatMap((one, c) => one[part].name.map((_, i) => ({ c, i })));
}

function filled(part, columns) {
  return columns.filter(({ key, keep }) => keep || CASES.some((one) => one[part][key].some((value) => value !== null && value !== "")));
}

function caseColumn() {
  return several ? [{ key: "case", title: "case", number: false, searched: true, get: (row) => CASES[row.c].label, show: (row) => CASES[row.c].label }] : [];
}

function foundColumn(letter, of) {
  if (!MARKS.some((marks) => [...marks.keys()].some((place) => place[0] === letter))) return [];
  const mark = (row) => MARKS[row.c].get(`${letter}${row.i}`);
  return [{ key: "found", title: "findings", number: true, keep: true,
    get: (row) => (mark(row) ? mark(row).severity * 1e4 + mark(row).count : null),
    show: (row) => (mark(row) ? `${SYMBOLS.error} ${counted(mark(row).count, "finding")}` : ""),
    node: (row) => findingsNode(row.c, `${letter}${row.i}`) ?? "" }];
}

function parameterTable() {
  const part = "parameters";
  const columns = [words(part, "name", "parameter"), ...caseColumn(), ...filled(part, [
    column(part, "entries", "shape", { show: (row) => CASES[row.c][part].shape[row.i] }),
    words(part, "role", "role"), words(part, "block", "block"),
    column(part, "rms", "rms"), column(part, "gradient", "gradient norm"), column(part, "ratio", "gradient / weight"),
    words(part, "likeness", "looks like"), words(part, "scheme", "as written by")]),
    ...foundColumn("p"), ...filled(part, [words(part, "site", "acts in")])];
  return new Table($("#parameters .script"), "Parameters", columns, rowsOf(part), {
    one: "parameter", plural: "parameters", letter: "p",
    chosen: (row) => drawing?.point(row.c, boxOf(row.c, row.i)),
  });
}

function placeTable() {
  const part = "points";
  const columns = [words(part, "name", "place"), ...caseColumn(), ...filled(part, [
    column(part, "number", "order", { keep: true, get: (row) => row.i + 1 }),
    words(part, "kind", "kind"), words(part, "operator", "operator"), words(part, "block", "block"),
    column(part, "units", "units"), column(part, "variance", "variance"), column(part, "mean", "mean"),
    column(part, "kurtosis", "kurtosis"), column(part, "dead", "dead"), column(part, "saturated", "saturated"),
    column(part, "correlation", "correlation"), column(part, "effective_rank", "effective rank"),
    column(part, "gradient", "gradient norm")]), ...foundColumn("s")];
  return new Table($("#places .script"), "Places of the forward pass", columns, rowsOf(part), {
    one: "place", plural: "places", letter: "s",
    chosen: (row) => {
      const at = CASES[row.c].points.shown[row.i];
      if (at) drawing?.point(row.c, at.join(""));
    },
  });
}

// The box of a parameter; where it has none, the block that it stands in.
function boxOf(c, i) {
  const { box, home } = CASES[c].parameters;
  const place = `p${box[i]}`;
  return drawing.views[c].items.has(place) || home[i] === null ? place : `b${home[i]}`;
}

function within(c, block) {
  const { above } = CASES[c].blocks;
  return (row) => {
    let at = row.c === c ? CASES[c].parameters.home[row.i] : null;
    while (at !== null && at !== block) at = above[at];
    return at === block;
  };
}

// Lead to a place: the row of a parameter or a point, a block of the drawing, a finding.
function lead(c, place) {
  const [letter, i] = [place[0], Number(place.slice(1))];
  const table = tables[letter];
  if (letter === "f") {
    const found = document.getElementById(`c${c}-${place}`);
    found?.closest("details")?.setAttribute("open", "");
    found?.focus({ preventScroll: true });
    found?.scrollIntoView({ block: "center", behavior: "instant" });
  } else if (letter === "b") {
    drawing?.point(c, place);
    drawing?.reveal(c, place);
  } else if (table) {
    const row = table.find(c, i);
    if (row >= 0) table.reveal(row);
  }
}

// From the drawing to the rows: those of a block alone, or one parameter.
function toRows(c, place) {
  if (place[0] === "p" || !tables.p) return lead(c, place);
  const i = Number(place.slice(1));
  drawing.point(c, place);
  tables.p.input.value = "";
  tables.p.narrow(within(c, i), CASES[c].blocks.name[i]);
  tables.p.region.scrollIntoView({ block: "center", behavior: "instant" });
  if (tables.p.order.length) tables.p.show(0);
  else tables.p.region.focus({ preventScroll: true });
  return drawing.point(c, place);
}

function toHash() {
  const found = /^#c(\d+)-([pbsf]\d+)$/.exec(location.hash);
  if (found && CASES[Number(found[1])]) lead(Number(found[1]), found[2]);
}

function printed(on) {
  for (const table of Object.values(tables)) table.render(on);
  if (on && isDark()) { printed.theme = document.documentElement.dataset.theme ?? ""; setTheme("light"); }
  else if (!on && printed.theme !== undefined) { setTheme(printed.theme); delete printed.theme; }
  if (on && plots?.figures.length) plots.all();
}

function start() {
  const theme = remembered.get("idfx-theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  $("#theme").addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    remembered.set("idfx-theme", next);
    setTheme(next);
  });
  dark.addEventListener("change", themed);
  if ($("#drawing")) drawing = new Drawing($("#drawing"), toRows);
  if ($("#parameters .script")) tables.p = parameterTable();
  if ($("#places .script")) tables.s = placeTable();
  plots = new Plots((c, place) => lead(c, place));
  themed();
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.('a[href^="#c"]');
    if (link && link.getAttribute("href") === location.hash) { event.preventDefault(); toHash(); }
  });
  addEventListener("hashchange", toHash);
  addEventListener("beforeprint", () => printed(true));
  addEventListener("afterprint", () => printed(false));
  toHash();
}

start();
