const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const SVG = "http://www.w3.org/2000/svg";
const SEVERITIES = ["info", "warning", "error"];
const SYMBOLS = { info: "●", warning: "▲", error: "✕" };
const NAMED = { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity };

// Text is only ever set as text, never as HTML: names come from models.
function make(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const TEXTS = new Set(["name", "shape", "role", "site", "block", "kind", "operator", "parameter", "parent", "shown"]);

function readColumns(columns) {
  const revive = (value) => (typeof value === "string" && value in NAMED ? NAMED[value] : value);
  for (const name of Object.keys(columns)) if (!TEXTS.has(name)) columns[name] = columns[name].map(revive);
  return columns;
}

function readCases() {
  const found = JSON.parse($("#data").textContent).cases;
  for (const one of found) {
    for (const part of ["parameters", "blocks", "points"]) readColumns(one[part]);
    const points = one.points;
    points.rank = points.effective_rank.map((rank, i) => (rank === null ? null : rank / points.rank_bound[i]));
    for (const spectrum of one.spectra) {
      for (const [key, value] of Object.entries(spectrum)) if (value in NAMED && key !== "place") spectrum[key] = NAMED[value];
      spectrum.density = spectrum.density.map((pair) => pair.map((value) => (value in NAMED ? NAMED[value] : value)));
    }
  }
  return found;
}

const CASES = readCases();
const several = CASES.length > 1;

const WHOLE = new Intl.NumberFormat("en");

function digits(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return WHOLE.format(value).replace("-", "−");
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3 ? Number(value.toPrecision(4)).toExponential() : String(Number(value.toPrecision(4)));
  return text.replace("e+", "e").replaceAll("-", "−");
}

function counted(number, noun, plural = noun + "s") {
  return `${WHOLE.format(number)} ${number === 1 ? noun : plural}`;
}

function debounce(action, milliseconds) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), milliseconds);
  };
}

// The colour that a custom property stands for in the theme that is on.
function colour(name) {
  const probe = make("span", { style: `color: var(${name}); display: none` });
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const remembered = {
  get(name) {
    try { return localStorage.getItem(name); } catch { return null; }
  },
  set(name, value) {
    try { localStorage.setItem(name, value); } catch { /* no storage: it is not remembered */ }
  },
};

// What the findings say of each place, by its name: their worst severity, and the first finding of it.
const MARKS = CASES.map((one) => {
  const found = new Map();
  for (const [place, severity, finding] of one.marks) {
    const kept = found.get(place) ?? { severity: -1, finding, count: 0 };
    kept.count += 1;
    if (severity > kept.severity) Object.assign(kept, { severity, finding });
    found.set(place, kept);
  }
  return found;
});
