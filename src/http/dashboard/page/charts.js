// Charts over the samples: uPlot draws, the caption beneath tells the values of the latest second, or of the one that
// pointer or arrow keys are at.

import { bytes, clock, count, millis, percent, rate, short } from "./format.js";
import { element } from "./tables.js";

/** Dashes beside colours: no line is told by its colour alone. */
const SOLID = [];
const DASHED = [8, 4];
const DOTTED = [2, 3];

const latency = (title, key) => ({
  title,
  format: millis,
  // The shortest that matters, so that noise of a calm second is not drawn as mountains.
  least: 1,
  lines: [
    { name: "P50", colour: "blue", dash: SOLID, value: (sample) => spreadOf(sample, key, "p50") },
    { name: "P95", colour: "purple", dash: DASHED, value: (sample) => spreadOf(sample, key, "p95") },
    { name: "P99", colour: "orange", dash: DOTTED, value: (sample) => spreadOf(sample, key, "p99") },
  ],
});

/** A gap where there was nothing to time. */
const spreadOf = (sample, key, quantile) => (sample[key].count > 0 ? sample[key][quantile] : null);

/** A line of what a counter grew by in a second. */
const growth = (name, colour, dash, count) => ({
  name,
  colour,
  dash,
  value: (sample, before) => (before ? Math.max(0, count(sample) - count(before)) / ((sample.at_ms - before.at_ms) / 1000) : null),
});

const level = (name, colour, dash, value) => ({ name, colour, dash, value });

/** All charts; `limits` are what the latest data say. */
const CHARTS = [
  {
    title: "Events per second",
    format: rate,
    least: 10,
    lines: [
      growth("accepted", "blue", SOLID, (sample) => sample.accepted),
      growth("committed", "green", DASHED, (sample) => sample.committed),
      growth("invalid", "orange", DOTTED, (sample) => sample.rejected),
      growth("dead-lettered", "red", DOTTED, (sample) => sample.dead_lettered),
    ],
  },
  latency("Ack latency (request to answer)", "ack_ms"),
  latency("Batch latency (request to commit)", "batch_ms"),
  {
    title: "Waiting for PostgreSQL",
    format: count,
    least: 10,
    lines: [
      level("events", "blue", SOLID, (sample) => sample.queue_events),
      level("batches", "purple", DASHED, (sample) => sample.queue_batches),
    ],
  },
  {
    title: "Journal and memory",
    format: bytes,
    least: 2 ** 20,
    lines: [
      level("not committed", "blue", SOLID, (sample) => sample.queue_bytes),
      level("journal on disk", "green", DASHED, (sample) => sample.journal_bytes),
      level("rows in memory", "purple", DOTTED, (sample) => sample.memory_bytes),
    ],
  },
  latency("COPY including COMMIT", "copy_ms"),
  {
    title: "Rows per COPY",
    format: count,
    least: 10,
    lines: [level("rows, on average", "blue", SOLID, (sample) => (sample.copy_ms.count > 0 ? sample.copy_rows : null))],
  },
  {
    title: "Connections to PostgreSQL",
    format: count,
    least: 4,
    lines: [
      level("busy", "orange", SOLID, (sample) => sample.pool_busy),
      level("idle", "green", DASHED, (sample) => sample.pool_idle),
    ],
  },
  {
    title: "Requests refused or failed per second",
    format: rate,
    least: 4,
    lines: [
      growth("refused (429, 503)", "orange", SOLID, (sample) => sample.refused_requests),
      growth("failed (500)", "red", DASHED, (sample) => sample.failed_requests),
    ],
  },
  latency("Fsync of the journal", "fsync_ms"),
  {
    title: "CPU, in cores",
    format: percent,
    least: 0.1,
    lines: [growth("of one core", "blue", SOLID, (sample) => sample.cpu_seconds ?? 0)],
  },
  {
    title: "Process memory",
    format: bytes,
    least: 2 ** 20,
    lines: [level("resident", "purple", SOLID, (sample) => sample.resident_bytes)],
  },
];

const SYNC = "ingestd";
/** Steps of an axis of bytes, so that it reads 16 MiB and not 15.3. */
const POWERS = Array.from({ length: 51 }, (_, power) => 2 ** power);

/** Times of day, without seconds where none has any. */
function labelsOf(times) {
  const labels = times.map((time) => clock(time * 1000));
  return labels.every((label) => label.endsWith(":00")) ? labels.map((label) => label.slice(0, 5)) : labels;
}

const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

class Chart {
  #spec;
  #plot;
  #place = element("div", { className: "plot" });
  #values;
  #at = element("span", { className: "at" });
  #data;
  #span = 300;

  constructor(spec) {
    this.#spec = spec;
    this.#data = [[], ...spec.lines.map(() => [])];
    this.#values = spec.lines.map(() => element("span"));
    const names = spec.lines.map((line, index) =>
      element("span", {}, swatch(line), element("span", { className: "name", textContent: `${line.name} ` }), this.#values[index]));
    const title = element("h3", { textContent: spec.title });
    this.figure = element("figure", {}, title, this.#place, element("figcaption", {}, ...names, this.#at));
    this.#place.tabIndex = 0;
    this.#place.role = "img";
    this.#place.ariaLabel = `${spec.title}: no values yet`;
    this.#place.setAttribute("aria-describedby", "chart-hint");
    this.#place.addEventListener("keydown", (event) => this.#key(event));
    this.#place.addEventListener("blur", () => this.#point(-10));
    new ResizeObserver(() => this.#plot?.setSize(this.#size())).observe(this.#place);
  }

  #size() {
    return { width: Math.max(this.#place.clientWidth, 100), height: Math.max(this.#place.clientHeight, 100) };
  }

  /** Draws anew, as after a change of colours. */
  draw() {
    this.#plot?.destroy();
    const { format, least, lines } = this.#spec;
    const axis = { stroke: colourOf("quiet"), grid: { stroke: colourOf("grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const isMeasured = [bytes, millis, percent].includes(format);
    this.#plot = new uPlot({
      ...this.#size(),
      legend: { show: false },
      cursor: { sync: { key: SYNC }, y: false, drag: { x: false, y: false } },
      hooks: { setCursor: [() => this.#tell()] },
      scales: {
        x: { time: true, range: (_, low, high) => [high - this.#span, high] },
        y: { range: (_, low, high) => [0, Math.max(high * 1.08, least)] },
      },
      axes: [
        { ...axis, size: 26, gap: 6, space: 58, values: (_, times) => labelsOf(times) },
        { ...axis, size: 62, space: 32, incrs: format === bytes ? POWERS : undefined, values: (_, values) => values.map(isMeasured ? format : short) },
      ],
      series: [{}, ...lines.map(({ name, colour, dash }) => ({ label: name, stroke: colourOf(colour), dash, width: 2, points: { show: false } }))],
    }, this.#data, this.#place);
  }

  /** Shows `samples` of the last `span` seconds. */
  show(samples, span) {
    this.#span = span;
    const begin = (samples.at(-1)?.at_ms ?? 0) - span * 1000;
    const shown = samples.filter((sample) => sample.at_ms >= begin);
    const before = samples.at(-shown.length - 1);
    this.#data = [
      shown.map((sample) => sample.at_ms / 1000),
      ...this.#spec.lines.map((line) => shown.map((sample, index) => line.value(sample, index > 0 ? shown[index - 1] : before))),
    ];
    if (this.#plot) this.#plot.setData(this.#data);
    else this.draw();
    this.#tell();
    this.#place.ariaLabel = `${this.#spec.title}, now: ${this.#say(shown.length - 1)}`;
  }

  #text(line, index) {
    const value = this.#data[line + 1]?.[index];
    return value === null || value === undefined ? "–" : this.#spec.format(value);
  }

  #say(index) {
    return this.#spec.lines.map((line, number) => `${line.name} ${this.#text(number, index)}`).join(", ");
  }

  #tell() {
    const pointed = this.#plot?.cursor.idx;
    const index = pointed ?? this.#data[0].length - 1;
    this.#values.forEach((value, line) => { value.textContent = this.#text(line, index); });
    this.#at.textContent = pointed !== null && pointed !== undefined ? `at ${clock(this.#data[0][index] * 1000)}` : "";
  }

  /** Moves the cursor of all charts to `left`, as the pointer does. */
  #point(left) {
    this.#plot?.setCursor({ left, top: left < 0 ? left : 10 }, true, true);
  }

  #key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step === undefined || this.#data[0].length === 0) return;
    event.preventDefault();
    const last = this.#data[0].length - 1;
    const index = Math.min(last, Math.max(0, (this.#plot.cursor.idx ?? last) + step));
    this.#point(this.#plot.valToPos(this.#data[0][index], "x"));
    this.#place.ariaLabel = `${this.#spec.title}, at ${clock(this.#data[0][index] * 1000)}: ${this.#say(index)}`;
  }
}

/** A piece of the line, for the caption. */
function swatch({ colour, dash }) {
  const space = "http://www.w3.org/2000/svg";
  const [svg, line] = ["svg", "line"].map((name) => document.createElementNS(space, name));
  svg.setAttribute("viewBox", "0 0 26 8");
  svg.setAttribute("aria-hidden", "true");
  Object.entries({ x1: 0, x2: 26, y1: 4, y2: 4, "stroke-width": 3, "stroke-dasharray": dash.join(" ") })
    .forEach(([name, value]) => line.setAttribute(name, value));
  line.style.stroke = `var(--${colour})`;
  svg.append(line);
  return svg;
}

/** Makes all charts; gives how to show samples and how to draw anew. */
export function charts() {
  const made = CHARTS.map((spec) => new Chart(spec));
  document.getElementById("charts").replaceChildren(...made.map((chart) => chart.figure));
  return {
    show: (samples, span) => made.forEach((chart) => chart.show(samples, span)),
    draw: () => made.forEach((chart) => chart.draw()),
  };
}
