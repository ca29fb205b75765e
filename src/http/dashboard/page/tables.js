// Tiles, concerns and tables. Whatever comes from outside becomes text, never HTML; what has not changed is left alone,
// so that a selection or a screen reader's place survives the next second.

import { bytes, clock, count, duration, millis, percent, rate } from "./format.js";

/** An element with properties and children. */
export function element(name, properties = {}, ...children) {
  const { data, ...own } = properties;
  const made = Object.assign(document.createElement(name), own);
  Object.assign(made.dataset, data);
  made.append(...children);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A table in `place`, whose `columns` are `{title, kind, isHead}`; gives a function that fills it with rows of texts. */
function table(place, caption, columns, empty) {
  const heads = columns.map(({ title, kind }) => element("th", { scope: "col", className: kind ?? "", textContent: title }));
  const body = element("tbody");
  const shown = element("table", {}, element("caption", { textContent: caption }), element("thead", {}, element("tr", {}, ...heads)), body);
  const none = element("p", { className: "quiet", textContent: empty });
  place.replaceChildren(shown, none);
  place.tabIndex = 0;
  place.role = "region";
  place.ariaLabel = caption;
  return (rows) => {
    none.hidden = rows.length > 0;
    while (body.rows.length > rows.length) body.lastElementChild.remove();
    while (body.rows.length < rows.length) body.append(row(columns));
    rows.forEach((texts, index) => texts.forEach((text, column) => fill(body.rows[index].cells[column], text, columns[column])));
  };
}

function row(columns) {
  const cells = columns.map(({ kind, isHead }) => {
    const cell = element(isHead ? "th" : "td", { className: kind ?? "" });
    if (isHead) cell.scope = "row";
    if (kind === "bar") cell.append(element("span"));
    return cell;
  });
  return element("tr", {}, ...cells);
}

function fill(cell, value, { kind }) {
  if (kind === "bar") {
    cell.firstChild.style.setProperty("--share", String(value));
    return;
  }
  setText(cell, value);
  if (kind === "word") cell.dataset.word = value;
}

const NUMBER = "number";

/** Makes all of it; gives a function that shows data. */
export function tables() {
  const place = (id) => document.getElementById(id);
  const batchColumns = [
    { title: "Batch", kind: "id", isHead: true }, { title: "Status", kind: "word" }, { title: "Priority", kind: NUMBER },
    { title: "Events", kind: NUMBER }, { title: "Inserted", kind: NUMBER }, { title: "Duplicates", kind: NUMBER },
    { title: "Dead-lettered", kind: NUMBER }, { title: "Received" }, { title: "Took", kind: NUMBER },
  ];
  const parts = {
    batches: table(place("batches"), "Latest batches of this node", batchColumns, "None yet."),
    troubled: table(place("troubled"), "Latest batches with rejected events", batchColumns, "None since the start."),
    queue: table(place("queue"), "Waiting for PostgreSQL, by priority",
      [{ title: "Priority", kind: NUMBER, isHead: true }, { title: "Batches", kind: NUMBER }, { title: "Events", kind: NUMBER },
        { title: "Bytes", kind: NUMBER }, { title: "Share", kind: "bar" }], ""),
    deadLetters: table(place("dead-letters"), "Why PostgreSQL rejected events",
      [{ title: "SQLSTATE", isHead: true }, { title: "Message", kind: "text" }, { title: "Events", kind: NUMBER },
        { title: "Last" }], "No events rejected since the start."),
    errors: table(place("errors"), "Errors since the start",
      [{ title: "Where", isHead: true }, { title: "Code" }, { title: "Count", kind: NUMBER }], "None."),
    latencies: table(place("latencies"), "Latencies since the start",
      [{ title: "Step", isHead: true }, ...["P50", "P95", "P99", "P99.9", "Max"].map((title) => ({ title, kind: NUMBER })),
        { title: "Count", kind: NUMBER }], ""),
    process: table(place("process"), "Process", [{ title: "Resource", isHead: true }, { title: "Now", kind: NUMBER }], ""),
  };
  return (data) => {
    parts.batches(data.batches.map(batchRow));
    parts.troubled(data.troubled_batches.map(batchRow));
    parts.queue(queueRows(data.metrics.queue.by_priority));
    parts.deadLetters(data.dead_letters.map((reason) => [
      reason.sqlstate, reason.message ?? "visible to keys with the scope admin", count(reason.events), clock(Date.parse(reason.last_at))]));
    parts.errors(errorRows(data.metrics.errors));
    parts.latencies(latencyRows(data.metrics.latency_ms));
    parts.process(processRows(data));
  };
}

function batchRow(batch) {
  const received = Date.parse(batch.received_at);
  const took = batch.completed_at === null ? "" : millis(Math.max(0, Date.parse(batch.completed_at) - received));
  const counts = [batch.priority, batch.events, batch.inserted, batch.duplicates, batch.dead_lettered];
  return [batch.batch_id, batch.status, ...counts.map(count), clock(received), took];
}

function queueRows(priorities) {
  const most = Math.max(1, ...priorities.map((one) => one.bytes));
  return priorities.map((one) =>
    [String(one.priority), count(one.batches), count(one.events), bytes(one.bytes), (one.bytes / most) * 100]);
}

function errorRows(errors) {
  const kinds = [
    ["events rejected by validation", errors.rejected_events], ["requests", errors.requests],
    ["authentication and rate limits", errors.auth], ["PostgreSQL, by class", errors.database],
  ];
  return kinds.flatMap(([where, codes]) => Object.entries(codes).map(([code, number]) => [where, code, count(number)]));
}

function latencyRows(latencies) {
  const names = {
    ack: "request to answer", queue: "accepted to COPY", copy: "COPY", commit: "COMMIT", batch: "request to commit",
    journal_fsync: "fsync of the journal",
  };
  return Object.entries(names).map(([name, said]) => {
    const { p50, p95, p99, p999, max, count: number } = latencies[name];
    return [said, ...[p50, p95, p99, p999, max].map(millis), count(number)];
  });
}

function processRows({ metrics }) {
  const { process, pool, memory } = metrics;
  const known = (value, format) => (value === null ? "unknown" : format(value));
  return [
    ["CPU time", known(process.cpu_seconds, duration)],
    ["Memory", known(process.resident_memory_bytes, bytes)],
    ["Rows in memory, of MEMORY_LIMIT_MB", `${bytes(memory.bytes)} of ${bytes(memory.limit_bytes)}`],
    ["Threads", known(process.threads, count)],
    ["Open files", `${known(process.open_fds, count)} of ${known(process.max_fds, count)}`],
    ["Read from disk", known(process.disk_read_bytes, bytes)],
    ["Written to disk", known(process.disk_written_bytes, bytes)],
    ["Connections to PostgreSQL, idle and busy", `${pool.idle} and ${pool.busy}`],
  ];
}

/** Shows what is wrong; does nothing when that is what is shown already. */
export function showConcerns(concerns) {
  // Screen readers are told when something begins or ends, not each time that a figure changes.
  setText(document.getElementById("said"), concerns.map(({ title }) => `${title}.`).join(" "));
  const list = document.getElementById("concerns");
  const items = concerns.map(({ severity, title, detail, advice }) =>
    element("li", { className: "concern", data: { severity } },
      element("strong", { textContent: title }), element("p", { textContent: detail }), element("p", { textContent: advice })));
  if (items.length === 0) items.push(element("li", { className: "quiet", textContent: "None." }));
  const isShown = list.children.length === items.length && items.every((item, index) => item.isEqualNode(list.children[index]));
  if (!isShown) list.replaceChildren(...items);
}

/** Makes the tiles; gives a function that shows data in them. */
export function tiles() {
  const names = ["Accepted", "Committed", "Ack, P99", "Request to commit, P99", "Waiting", "Journal", "PostgreSQL", "CPU"];
  const shown = names.map((name) => {
    const [value, note] = [element("dd"), element("dd")];
    document.getElementById("tiles").append(element("div", { className: "tile" }, element("dt", { textContent: name }), value, note));
    return [value, note];
  });
  return (data, samples) => texts(data, samples).forEach(([value, note], index) => {
    setText(shown[index][0], value);
    setText(shown[index][1], note);
  });
}

function texts({ metrics, health }, samples) {
  const [latest, earlier] = [samples.at(-1), samples.at(-2)];
  const throughput = metrics.throughput;
  const journal = health.checks.journal;
  const spread = (key) => samples.findLast((sample) => sample[key].count > 0)?.[key];
  const latency = (key) => [spread(key) ? millis(spread(key).p99) : "–", spread(key) ? `P50 ${millis(spread(key).p50)}` : "none yet"];
  const cores = earlier ? (latest.cpu_seconds - earlier.cpu_seconds) / ((latest.at_ms - earlier.at_ms) / 1000) : 0;
  return [
    [rate(throughput.accepted_events_per_second["1s"]), `${count(metrics.events.accepted)} events since start`],
    [rate(throughput.committed_events_per_second["1s"]), `${count(metrics.events.committed)} events since start`],
    latency("ack_ms"),
    latency("batch_ms"),
    [count(metrics.queue.events), `events in ${count(metrics.queue.batches)} batches`],
    [percent(journal.uncommitted_bytes / journal.bytes_max), `of ${bytes(journal.bytes_max)} not committed yet`],
    [health.checks.database.status, `for ${duration(health.checks.database.since_seconds)}`],
    [percent(cores), "of one core"],
  ];
}
