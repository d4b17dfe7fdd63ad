"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const place = document.getElementById("charts");
  const shown = data.rows.map(() => true);
  const charts = [];
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function write(value) {
    if (value == null) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) return Number(value.toPrecision(3)).toExponential();
    return String(Number(value.toPrecision(4)));
  }

  function chip(row) {
    const element = make("span", { class: row.dashed ? "chip dashed" : "chip", "aria-hidden": "true" });
    element.style.setProperty("--row", row.colour);
    return element;
  }

  // The range of an axis: of what is shown, and without the first quarter of the epochs if it is trimmed.
  function range(chart) {
    let low = Infinity, high = -Infinity;
    const take = value => { low = Math.min(low, value); high = Math.max(high, value); };
    chart.rows.forEach((row, index) => {
      if (!shown[index]) return;
      const start = chart.trimmed ? Math.floor(row.mean.length / 4) : 0;
      for (const values of [row.mean, row.low ?? [], row.high ?? []]) values.slice(start).forEach(take);
    });
    for (const line of chart.lines) if (line.rows.some(index => shown[index])) take(line.value);
    if (low > high) return chart.log ? [0.1, 1] : [0, 1];
    if (chart.log) return low === high ? [low / 3, high * 3] : [low / (high / low) ** 0.04, high * (high / low) ** 0.04];
    const margin = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
    return [low - margin, high + margin];
  }

  // Ticks of a logarithmic axis: 1, 2, 5 within few decades, else powers of ten; null: too little for either.
  function logTicks(low, high) {
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
    const step = Math.max(1, Math.ceil((last - first) / 7));
    const steps = last - first <= 3 ? [1, 2, 5] : [1];
    const ticks = [];
    for (let power = first; power <= last; power += step) for (const digit of steps) ticks.push(Number(`${digit}e${power}`));
    const inside = ticks.filter(tick => tick >= low && tick <= high);
    return inside.length > 1 ? inside : null;
  }

  function linearTicks(low, high) {
    const rough = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(digit => digit * unit).find(size => size >= rough);
    const ticks = [];
    for (let index = Math.ceil(low / step); index * step <= high; index++) ticks.push(index * step);
    return ticks;
  }

  // The caps and radii, drawn after the curves, and their labels after all lines; one close to the label above is left out.
  function drawLines(plot, chart) {
    const { ctx, bbox } = plot, ratio = uPlot.pxRatio, right = bbox.left + bbox.width, labels = [];
    const sorted = chart.lines.slice().sort((one, other) => other.value - one.value);
    ctx.save();
    ctx.lineWidth = 1.3 * ratio;
    ctx.setLineDash([6 * ratio, 5 * ratio]);
    for (const line of sorted) {
      const visible = line.rows.filter(index => shown[index]);
      if (!visible.length) continue;
      const y = plot.valToPos(line.value, "y", true);
      ctx.strokeStyle = visible.length === 1 ? data.rows[visible[0]].colour : style("--soft");
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(right, y);
      ctx.stroke();
      const middle = y + (y - bbox.top < 16 * ratio ? 10 : -10) * ratio;
      if (!labels.length || middle - labels.at(-1).middle >= 14 * ratio) labels.push({ text: line.label, middle });
    }
    ctx.font = `${12 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    ctx.textBaseline = "middle";
    for (const { text, middle } of labels) {
      const width = ctx.measureText(text).width;
      ctx.fillStyle = style("--paper");
      ctx.fillRect(right - width - 7 * ratio, middle - 7 * ratio, width + 6 * ratio, 14 * ratio);
      ctx.fillStyle = style("--soft");
      ctx.fillText(text, right - 4 * ratio, middle);
    }
    ctx.restore();
  }

  function axis(side) {
    return { stroke: () => style("--soft"), ticks: { show: false }, font: "12px system-ui, sans-serif", gap: 6, side };
  }

  function axes(chart) {
    const whole = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000];
    const ticks = (plot, index, low, high) => (chart.log && logTicks(low, high)) || linearTicks(low, high);
    const x = { ...axis(2), grid: { show: false }, incrs: whole, space: 60, size: 30 };
    const y = { ...axis(3), splits: ticks, filter: (plot, all) => all, values: (plot, all) => all.map(write), size: 62 };
    return [x, { ...y, grid: { stroke: () => style("--line"), width: 1 } }];
  }

  function options(chart, width) {
    const pad = chart.epochs > 1 ? 0.01 * (chart.epochs - 1) : 0.5;
    const scales = { x: { time: false, range: [1 - pad, chart.epochs + pad] } };
    scales.y = { distr: chart.log ? 3 : 1, range: () => range(chart) };
    const cursor = { sync: { key: "epochs", scales: ["x", null], setSeries: false }, drag: { x: false, y: false }, y: false };
    const hooks = { setCursor: [() => read(chart)], draw: [plot => drawLines(plot, chart)] };
    const legend = { show: false };
    const size = { width, height: width < 500 ? 220 : 300 };
    return { ...size, scales, cursor, hooks, legend, axes: axes(chart), padding: [10, 8, 0, 0], ...series(chart) };
  }

  // A line for each row and, with several seeds, two invisible ones around its band.
  function series(chart) {
    const all = [{}], bands = [];
    chart.indices = chart.rows.map((row, index) => {
      const { colour, dashed } = data.rows[index], first = all.length;
      const points = { show: row.mean.length < 3, size: 6, fill: colour };
      const show = shown[index];
      all.push({ show, stroke: colour, width: 2, dash: dashed ? [6, 4] : undefined, points });
      if (!row.low) return [first];
      const edge = { show, stroke: "transparent", width: 0, points: { show: false } };
      all.push({ ...edge }, { ...edge });
      bands.push({ series: [first + 2, first + 1], fill: `${colour}2b` });
      return [first, first + 1, first + 2];
    });
    return { series: all, bands };
  }

  function columns(chart) {
    const whole = values => Array.from({ length: chart.epochs }, (_, epoch) => values[epoch] ?? null);
    const lists = chart.rows.flatMap(row => [row.mean, row.low, row.high].filter(Boolean).map(whole));
    return [Array.from({ length: chart.epochs }, (_, epoch) => epoch + 1), ...lists];
  }

  // Write the values at the cursor, or of the last epoch, beside the names.
  function read(chart) {
    const index = chart.plot?.cursor.idx ?? chart.epochs - 1;
    chart.epoch.textContent = `Epoch ${index + 1} of ${chart.epochs}`;
    const values = chart.rows.map(row => write(row.mean[index]));
    values.forEach((value, row) => { chart.values[row].textContent = value; });
    chart.box.setAttribute("aria-valuenow", index + 1);
    const told = data.rows.flatMap((row, at) => (shown[at] ? [`${row.name} ${values[at]}`] : []));
    chart.box.setAttribute("aria-valuetext", `epoch ${index + 1}: ${told.join(", ")}`);
  }

  function move(event, chart) {
    const now = chart.plot.cursor.idx ?? chart.epochs - 1, page = Math.max(1, Math.round(chart.epochs / 10));
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -page, PageUp: page };
    const wanted = { Home: 0, End: chart.epochs - 1 }[event.key] ?? now + steps[event.key];
    if (Number.isNaN(wanted)) return;
    event.preventDefault();
    const index = Math.min(Math.max(wanted, 0), chart.epochs - 1);
    for (const { plot } of drawn()) plot.setCursor({ left: plot.valToPos(index + 1, "x"), top: 10 });
  }

  function toggle(row) {
    shown[row] = !shown[row];
    for (const chart of charts) {
      chart.buttons[row].setAttribute("aria-pressed", shown[row]);
      read(chart);
      if (!chart.plot) continue;
      for (const index of chart.indices[row]) chart.plot.setSeries(index, { show: shown[row] }, false);
      chart.plot.redraw(true, true);
    }
  }

  function legend(chart) {
    chart.values = data.rows.map(() => make("span", { class: "value", "aria-hidden": "true" }));
    chart.buttons = data.rows.map((row, index) => {
      const button = make("button", { type: "button", "aria-pressed": "true" }, chip(row), row.name, chart.values[index]);
      button.addEventListener("click", () => toggle(index));
      return button;
    });
    const items = chart.buttons.map(button => make("li", {}, button));
    return make("ul", { class: "legend", "aria-label": `${chart.title}: rows` }, ...items);
  }

  // All values as a table, made when it is opened.
  function table(chart) {
    const details = make("details", { class: "values" }, make("summary", {}, "Values"));
    details.addEventListener("toggle", () => {
      if (details.childElementCount > 1) return;
      const head = ["epoch", ...data.rows.map(row => row.name)].map(name => make("th", { scope: "col" }, name));
      const lines = Array.from({ length: chart.epochs }, (_, epoch) => {
        const cells = chart.rows.map(row => make("td", {}, write(row.mean[epoch])));
        return make("tr", {}, make("th", { scope: "row" }, String(epoch + 1)), ...cells);
      });
      const whole = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines));
      const label = `${chart.title}: values`;
      details.append(make("div", { class: "wide", role: "region", tabindex: "0", "aria-label": label }, whole));
    });
    return details;
  }

  function build(chart, number) {
    const bounds = { "aria-valuemin": 1, "aria-valuemax": chart.epochs };
    chart.box = make("div", { class: "chart", role: "slider", tabindex: "0", "aria-label": `${chart.title}: epoch`, ...bounds });
    chart.epoch = make("p", { class: "soft epoch", "aria-hidden": "true" });
    const caption = make("p", { class: "soft" }, chart.caption);
    const heading = make("h2", { id: `chart-${number}` }, chart.title);
    place.append(make("div", { class: "figure" }, heading, caption, legend(chart), chart.epoch, chart.box, table(chart)));
    chart.box.addEventListener("keydown", event => move(event, chart));
    chart.box.addEventListener("focus", () => draw(chart));
    charts.push(chart);
    read(chart);
  }

  // A figure is drawn when it comes near the window, so that a page of many opens at once.
  function draw(chart) {
    if (chart.plot) return;
    chart.plot = new uPlot(options(chart, chart.box.clientWidth), columns(chart), chart.box);
    read(chart);
  }

  function resize(width) {
    for (const { plot, box } of drawn()) {
      const wanted = width ?? box.clientWidth;
      if (wanted && wanted !== plot.width) plot.setSize({ width: wanted, height: wanted < 500 ? 220 : 300 });
    }
  }

  const drawn = () => charts.filter(chart => chart.plot);
  const redraw = () => drawn().forEach(({ plot }) => plot.redraw(false, false));
  data.charts.forEach(build);
  const near = new IntersectionObserver(entries => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) draw(charts.find(({ box }) => box === target));
  }, { rootMargin: "600px" });
  charts.forEach(({ box }) => near.observe(box));
  new ResizeObserver(() => resize()).observe(place);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", () => { resize(); redraw(); });
  }
  addEventListener("beforeprint", () => { charts.forEach(draw); resize(680); });
  addEventListener("afterprint", () => resize());
})();
