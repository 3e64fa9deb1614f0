const LINES_FROM = 1200; // points of a trace from which on it has no markers: thousands of them make a page slow
const SYMBOL = ["circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "pentagon"];
const DASH = ["solid", "dash", "dot", "dashdot", "longdash", "solid", "dash", "dot"];
const DEPTH = {
  variance: { key: "variance", log: true },
  gradient: { key: "gradient", log: true },
  mean: { key: "mean" },
  kurtosis: { key: "kurtosis" },
  dead: { key: "dead", range: [-0.03, 1.03] },
  saturated: { key: "saturated", range: [-0.03, 1.03] },
  correlation: { key: "correlation" },
  effective_rank: { key: "rank", range: [-0.03, 1.03] },
};

// Plotly reads a few tags as markup; a name shows as it is.
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

// The library takes long to start, so that it waits in a block of text until a plot comes into view.
function loadPlotly() {
  const library = $("#library");
  if (!library) return;
  const script = make("script");
  script.textContent = library.textContent;
  library.remove();
  document.head.append(script);
}

class Plots {
  constructor(go) {
    this.go = go;
    this.hidden = new Set();
    this.figures = $$("figure[data-plot]");
    if (!this.figures.length) return;
    for (const legend of $$(".legend")) this.legend(legend);
    this.watcher = new IntersectionObserver((seen) => {
      for (const one of seen) if (one.isIntersecting) this.draw(one.target);
    }, { rootMargin: "300px" });
    for (const figure of this.figures) this.watcher.observe(figure);
  }

  legend(home) {
    const sign = (c, hollow) => {
      const tone = `var(--s${several ? c % 8 : hollow ? 1 : 0})`;
      const dash = hollow ? "0 99" : { dash: "6 3", dot: "2 2", dashdot: "6 2 2 2", longdash: "9 3" }[DASH[c % 8]] ?? "none";
      return make("svg:svg", { width: 30, height: 14, "aria-hidden": "true" },
        make("svg:path", { d: "M0 7H30", stroke: tone, "stroke-width": 2, "stroke-dasharray": dash, fill: "none" }),
        make("svg:circle", { cx: 15, cy: 7, r: 4, stroke: tone, "stroke-width": 2, fill: hollow ? "var(--paper)" : tone }));
    };
    const entry = (name, text, picture) => {
      const box = make("input", { type: "checkbox", "data-shows": name, onchange: (event) => this.toggle(name, event.target.checked) });
      box.checked = true;
      home.append(make("label", {}, box, picture, text));
    };
    if (several) CASES.forEach((one, c) => entry(`case ${c}`, one.label, sign(c, false)));
    if (home.closest("#depth")) {
      const branches = CASES.some((one) => one.points.block.some((block) => block !== null));
      if (branches || !several) entry("stem", "main stem", several ? "" : sign(0, false));
      if (branches) entry("branch", "residual branches (hollow)", several ? "" : sign(0, true));
    }
  }

  toggle(name, on) {
    if (on) this.hidden.delete(name);
    else this.hidden.add(name);
    for (const box of $$(`input[data-shows="${name}"]`)) box.checked = on;
    this.again();
  }

  drawn() {
    return this.figures.filter((figure) => figure.dataset.drawn);
  }

  again() {
    for (const figure of this.drawn()) this.draw(figure);
  }

  all() {
    for (const figure of this.figures) this.draw(figure);
  }

  draw(figure) {
    this.watcher.unobserve(figure);
    loadPlotly();
    figure.dataset.drawn = "yes";
    const name = figure.dataset.plot;
    const made = DEPTH[name] ? this.depth(DEPTH[name]) : this.spectrum(name);
    const canvas = $(".canvas", figure);
    $(".note", figure).textContent = made.note;
    const title = $("figcaption", figure).textContent;
    const first = !canvas.data;
    Plotly.react(canvas, made.traces, this.layout(made), {
      displaylogo: false, displayModeBar: "hover", responsive: true, plotlyServerURL: "", showSendToCloud: false, showEditInChartStudio: false, showLink: false,
      modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "sendDataToCloud"],
      toImageButtonOptions: { filename: title.replace(/\W+/g, "-").toLowerCase(), scale: 2 },
    });
    if (first) {
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${title}. ${made.note}`);
      canvas.on("plotly_click", (event) => this.click(event.points[0]));
    }
  }

  click(point) {
    const place = point.data.places?.[point.pointIndex];
    if (place) this.go(point.data.caseNumber, place);
  }

  // Ticks of a logarithmic axis: 1, 2 and 5 in each decade, or a decade in so many; left to plotly where it is short.
  decades(values) {
    const { low, high } = span(values.flat(), "log");
    const wide = low === null ? 0 : Math.log10(high / low);
    return { tickformat: "~g", dtick: wide < 0.7 ? undefined : wide < 2.5 ? "D2" : Math.ceil(wide / 6) };
  }

  layout({ traces, x, y, log, range, xlog }) {
    const [soft, line] = [colour("--soft"), colour("--line")];
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line, ticks: "outside", ticklen: 4, automargin: true, exponentformat: "power" };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", barmode: "overlay",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: soft },
      margin: { l: 52, r: 10, t: 10, b: 42 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: colour("--accent") },
      hoverlabel: { bgcolor: colour("--raised"), bordercolor: line, font: { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily }, align: "left" },
      xaxis: { ...axis, title: { text: x, standoff: 8 }, type: xlog ? "log" : "linear", ...(xlog ? this.decades(traces.map((trace) => trace.x)) : {}), showgrid: Boolean(xlog), zeroline: false },
      yaxis: { ...axis, title: y ? { text: y } : undefined, type: log ? "log" : "linear", ...(log ? this.decades(traces.map((trace) => trace.y)) : {}), range: range ?? undefined, nticks: 6, zeroline: !log },
    };
  }

  tones(c, hollow) {
    return colour(`--s${several ? c % 8 : hollow ? 1 : 0}`);
  }

  // Stem and branches of each case, over the order of execution.
  depth(plot) {
    const found = { traces: [], x: "place in the order of execution", range: plot.range };
    const told = { values: [], zero: 0, broken: 0 };
    CASES.forEach((one, c) => {
      for (const hollow of [false, true]) {
        if (this.hidden.has(`case ${c}`) || this.hidden.has(hollow ? "branch" : "stem")) continue;
        const trace = this.trace(one, c, plot, hollow, told);
        if (trace.x.length) found.traces.push(trace);
      }
    });
    found.log = plot.log;
    found.note = this.note(told, plot.log);
    return found;
  }

  trace(one, c, plot, hollow, told) {
    const { points } = one;
    const tone = this.tones(c, hollow);
    const made = { x: [], y: [], text: [], places: [], caseNumber: c, hoverinfo: "text", type: "scatter" };
    points[plot.key].forEach((value, i) => {
      if (value === null || (points.block[i] !== null) !== hollow) return;
      if (!Number.isFinite(value)) { told.broken += 1; return; }
      if (plot.log && value <= 0) { told.zero += 1; return; }
      told.values.push(value);
      made.x.push(i + 1);
      made.y.push(value);
      made.places.push(`s${i}`);
      const where = points.block[i] === null ? "main stem" : `branch of ${plain(points.block[i])}`;
      made.text.push(`<b>${plain(points.name[i])}</b><br>${digits(value)} · ${points.kind[i]} · ${plain(points.operator[i])}<br>${where}${several ? `<br>${plain(one.label)}` : ""}`);
    });
    const many = made.x.length > LINES_FROM;
    made.name = `${plain(one.label)}, ${hollow ? "branches" : "main stem"}`;
    made.mode = hollow ? "markers" : many ? "lines" : "lines+markers";
    made.line = { color: tone, width: hollow || many ? 1 : 1.6, dash: DASH[c % 8] };
    if (hollow && many) Object.assign(made, { mode: "lines", opacity: 0.6, line: { ...made.line, dash: "dot" } });
    made.marker = { color: hollow ? colour("--paper") : tone, size: made.x.length > 150 ? 4 : 6, symbol: SYMBOL[c % 8], line: { color: tone, width: hollow ? 1.5 : 0 } };
    return made;
  }

  note({ values, zero, broken }, log) {
    const range = span(values, "linear");
    const parts = values.length ? [`${digits(range.low)} to ${digits(range.high)} at ${counted(values.length, "place")}`] : ["nothing to show"];
    if (zero) parts.push(`${counted(zero, "place")} at 0, which a logarithmic axis does not show`);
    if (broken) parts.push(`${counted(broken, "place")} not finite, not shown`);
    return parts.join("; ") + ".";
  }

  spectrum(name) {
    return name === "density" ? this.density() : this.blocks(name);
  }

  // Shares in bins of a tenth of a decade where there are many values, each one by itself where there are few.
  density() {
    const found = { traces: [], x: "singular value", y: "share", xlog: true };
    const parts = [];
    CASES.forEach((one, c) => {
      const whole = one.spectra.find((spectrum) => !spectrum.place);
      if (!whole || this.hidden.has(`case ${c}`)) return;
      const kept = whole.density.filter(([value]) => value > 1e-12 * whole.largest);
      const lost = whole.density.reduce((sum, [value, share]) => sum + (value > 1e-12 * whole.largest ? 0 : share), 0);
      const which = several ? `${one.label}: ` : "";
      const how = whole.exact ? `all ${counted(whole.density.length, "value")}` : `quadrature of ${counted(whole.density.length, "node")}`;
      parts.push(`${which}${how}${lost > 1e-9 ? `, ${digits(lost)} of them at 0, not shown` : ""}`);
      const step = 0.1;
      const bins = new Map();
      for (const [value, share] of kept) {
        const bin = Math.floor(Math.log10(value) / step);
        bins.set(bin, (bins.get(bin) ?? 0) + share);
      }
      const x = [], y = [], width = [], text = [];
      for (const [bin, share] of [...bins].sort((a, b) => a[0] - b[0])) {
        const [from, to] = [10 ** (bin * step), 10 ** ((bin + 1) * step)];
        x.push(10 ** ((bin + 0.5) * step)); y.push(share); width.push(to - from);
        text.push(`${digits(from)} to ${digits(to)}: ${digits(share)}${several ? `<br>${plain(one.label)}` : ""}`);
      }
      const tone = this.tones(c, false);
      found.traces.push({ type: "bar", x, y, text, textposition: "none", hoverinfo: "text", name: plain(one.label), width: width.map((w) => w * 0.94),
        marker: { color: tone, opacity: several ? 0.5 : 0.85, line: { color: tone, width: 1 }, pattern: { shape: ["", "/", "\\", "x", ".", "-", "|", "+"][c % 8], fgcolor: tone, size: 5 } } });
    });
    found.note = `${parts.join("; ")}. Bins of a tenth of a decade.`;
    return found;
  }

  blocks(name) {
    const found = { traces: [], x: "residual block in the order of execution", log: name !== "spread" };
    const shown = [];
    const sides = { extremes: [["largest", 1], ["smallest", -1]], chi: [["mean_square", 0]], spread: [["spread", 0]] }[name];
    let missing = 0;
    CASES.forEach((one, c) => {
      if (this.hidden.has(`case ${c}`)) return;
      sides.forEach(([key, toward], side) => {
        const tone = this.tones(c, side === 1);
        const made = { x: [], y: [], text: [], places: [], caseNumber: c, hoverinfo: "text", type: "scatter", mode: "lines+markers", name: `${plain(one.label)}, ${key}` };
        const errors = { type: "data", array: [], arrayminus: [], symmetric: false, color: tone, thickness: 1.2, width: 3 };
        one.spectra.filter((spectrum) => spectrum.place).forEach((spectrum, i) => {
          const [value, off] = [spectrum[key], spectrum[`${key}_error`] || 0];
          if (!Number.isFinite(value) || value === null || (name !== "spread" && value <= 0)) { missing += 1; return; }
          made.x.push(i + 1); made.y.push(value);
          errors.array.push(toward < 0 ? 0 : off);
          errors.arrayminus.push(toward > 0 ? 0 : Math.min(off, value * 0.999));
          made.places.push(spectrum.block === null ? null : `b${spectrum.block}`);
          made.text.push(`<b>${plain(spectrum.place)}</b><br>${key.replace("_", " ")} ${digits(value)}${off ? ` ${["−", "±", "+"][toward + 1]} ${digits(off)}` : ""}${several ? `<br>${plain(one.label)}` : ""}`);
        });
        made.line = { color: tone, width: 1.5, dash: DASH[c % 8] };
        made.marker = { color: side ? colour("--paper") : tone, size: 6, symbol: SYMBOL[c % 8], line: { color: tone, width: side ? 1.5 : 0 } };
        made.error_y = errors;
        shown.push(...made.y);
        if (made.x.length) found.traces.push(made);
      });
    });
    const range = span(shown, "linear");
    if (name === "extremes" && shown.length) {
      const most = found.traces.flatMap(({ y, error_y }) => y.map((value, i) => value + error_y.array[i]));
      found.range = [Math.log10(range.low / 3), Math.log10(span(most, "linear").high * 1.3)];
    }
    const words = { extremes: "Filled: largest; hollow: smallest. Bars: how much larger or smaller it may be; one that leaves the plot reaches 0 or nearly. ", chi: "1 is critical. Bars are standard errors. ", spread: "0: all singular values are equal. Bars are standard errors. " };
    found.note = `${words[name]}${digits(range.low)} to ${digits(range.high)}.${missing ? ` ${counted(missing, "value")} at 0, not finite or not measured, not shown.` : ""}`;
    return found;
  }
}
