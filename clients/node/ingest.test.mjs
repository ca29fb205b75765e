// Promise: what ingest.mjs says was delivered is in the table once, through kill -9 of the server.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { Ingest } from "./ingest.mjs";
import { Server, WAIT_MAX_MS } from "./server.mjs";

const event = (id, members) => ({ event_id: id, service_name: "shop", event_type: "sold", payload: { id }, ...members });
const rows = (server, prefix) =>
  server.sql(`SELECT count(*), count(DISTINCT event_id) FROM events WHERE starts_with(event_id, '${prefix}')`);

const server = new Server();
const limited = new Server({ RATE_LIMIT_EVENTS_PER_SECOND: "25", RATE_LIMIT_BURST: "100" });
before(() => Promise.all([server.start(), limited.start()]));
after(() => Promise.all([server.remove(), limited.remove()]));

test("events_land_once_through_kill_9", { timeout: WAIT_MAX_MS }, async () => {
  const events = 6_000;
  const ingest = new Ingest(server.url, { batchEvents: 50, ack: "commit" });
  const killing = (async () => {
    for (let kill = 1; kill <= 2; kill++) {
      while (Number((await rows(server, "kill-")).split("|")[0]) < (events * kill) / 4) await sleep(5);
      await server.kill9();
      await sleep(100);
      await server.start();
    }
  })();
  for (let number = 0; number < events; number++) await ingest.send(event(`kill-${number}`));
  await ingest.close();
  await killing;
  assert.equal(await rows(server, "kill-"), `${events}|${events}`);
  // The primary key alone would let a batch that was sent again under another id land once, too; the ledger shows it.
  assert.equal(await server.sql("SELECT count(*), sum(events) FROM ingest_batches"), `${events / 50}|${events}`);
});

test("a_rate_limit_slows_and_loses_nothing", { timeout: WAIT_MAX_MS }, async () => {
  const begin = Date.now();
  const ingest = new Ingest(limited.url, { batchEvents: 100, ack: "commit" });
  for (let number = 0; number < 300; number++) await ingest.send(event(`limit-${number}`));
  await ingest.close();
  assert.equal(await rows(limited, "limit-"), "300|300");
  assert(Date.now() - begin > 7_500, "100 at once and 25 a second: eight seconds for 300");
  const metrics = await (await fetch(`${limited.url}/v1/metrics?format=json`)).json();
  const refused = metrics.errors.requests["429"];
  assert(refused >= 1 && refused <= 4, `waits as long as Retry-After says: ${refused} refused`);
});

test("a_bad_event_is_told_and_costs_the_others_nothing", { timeout: WAIT_MAX_MS }, async () => {
  const told = [];
  const ingest = new Ingest(server.url, { ack: "commit", onError: (failure) => told.push(failure) });
  for (const item of [event("bad-1"), event("bad-2", { payload: 7 }), event("bad-3")]) await ingest.send(item);
  await ingest.close();
  assert.deepEqual(told.map(({ events, error }) => [events[0].event_id, error.message]), [
    ["bad-2", "/1/payload: payload must be an object"],
  ]);
  assert.equal(await rows(server, "bad-"), "2|2");
});

test("an_old_batch_goes_by_itself", { timeout: WAIT_MAX_MS }, async () => {
  const ingest = new Ingest(server.url, { batchAgeMs: 20 });
  await ingest.send(event("aged-1"));
  while ((await rows(server, "aged-")) !== "1|1") await sleep(10);
  await ingest.close();
  await assert.rejects(ingest.send(event("aged-2")), /closed/);
});

test("what_another_attempt_cannot_help_is_thrown_at_once", { timeout: WAIT_MAX_MS }, async () => {
  const ingest = new Ingest(server.url, { priority: 11 });
  await ingest.send(event("never-1"));
  await assert.rejects(ingest.close(), /^Error: 4\d\d: .*priority/);
});

test("no_server_is_told_when_the_time_is_over", { timeout: WAIT_MAX_MS }, async () => {
  const ingest = new Ingest("http://127.0.0.1:9", { retryMs: 300 });
  await ingest.send(event("unreachable-1"));
  await assert.rejects(ingest.close(), TypeError);
});

test("the_command_sends_lines_of_stdin", { timeout: WAIT_MAX_MS }, async () => {
  const file = new URL("ingest.mjs", import.meta.url);
  const command = spawn(process.execPath, [file.pathname, server.url], { stdio: ["pipe", "pipe", "inherit"] });
  let printed = "";
  command.stdout.on("data", (data) => (printed += data));
  for (let number = 0; number < 1_200; number++) command.stdin.write(JSON.stringify(event(`line-${number}`)) + "\n");
  command.stdin.end();
  const [code] = await once(command, "close");
  assert.deepEqual([code, printed], [0, "1200 events delivered\n"]);
  while ((await rows(server, "line-")) !== "1200|1200") await sleep(10);
});
