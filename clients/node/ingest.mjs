// Sends single events to ingestd in batches, each of which lands exactly once. Needs Node 20 or newer and nothing else.
//
//   import { Ingest } from "./ingest.mjs";
//   const ingest = new Ingest("http://127.0.0.1:8000", { onError: ({ events, error }) => console.error(error, events) });
//   await ingest.send({ event_id: "order-1", service_name: "shop", event_type: "sold", payload: { amount: 5 } });
//   await ingest.close();
//
//   node ingest.mjs http://127.0.0.1:8000 <events.ndjson
//
// Every attempt of a batch has the same id and the same bytes, so the server knows one that it has already. What waits here
// is in memory: a process that is killed loses it. Absent on purpose: disk, order of batches, numbers beyond a double.

import { randomUUID } from "node:crypto";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { gzip } from "node:zlib";

const compress = promisify(gzip);

const TRIED_AGAIN = new Set([408, 429, 500, 502, 503, 504]);
const BACKOFF_FIRST_MS = 100;
const BACKOFF_MAX_MS = 5_000;
const ATTEMPT_MAX_MS = 40_000; // longer than the 30 s that ack=commit may take
const COMPRESSED_FROM_BYTES = 1_024; // less is one packet anyway

export class Ingest {
  #url;
  #options;
  #events = [];
  #timer;
  #underWay = new Set();
  #closed = false;
  #failed;

  /**
   * @param {string} url of the server
   * @param {object} [options]
   * @param {string} [options.apiKey]
   * @param {"memory"|"journal"|"commit"} [options.ack] when a batch counts as delivered
   * @param {number} [options.priority] 0 to 10
   * @param {number} [options.batchEvents] a batch is sent when it has so many events (the server takes 10000 at most) …
   * @param {number} [options.batchAgeMs] … or when its first event has waited so long
   * @param {number} [options.batchesUnderWay] beyond them send() waits, so memory is bounded
   * @param {number} [options.retryMs] how long a batch is tried for
   * @param {(failure: {events: object[], error: Error, batchId: string}) => void} [options.onError] gets what was not
   *   delivered; without it close() throws the first error
   */
  constructor(url, options = {}) {
    this.#options = {
      ack: "journal", priority: 0, batchEvents: 500, batchAgeMs: 500, batchesUnderWay: 4, retryMs: 60_000, ...options,
    };
    const { ack, priority } = this.#options;
    this.#url = new URL(`v1/ingest/batch?${new URLSearchParams({ ack, priority, invalid: "skip" })}`, `${url}/`);
  }

  /** Takes an event; waits while too much is under way. One without a timestamp happened now, whenever it is sent. */
  async send(event) {
    if (this.#closed) throw new Error("closed");
    this.#events.push({ timestamp: new Date().toISOString(), ...event });
    if (this.#events.length >= this.#options.batchEvents) this.#dispatch();
    else this.#timer ??= setTimeout(() => this.#dispatch(), this.#options.batchAgeMs);
    while (this.#underWay.size > this.#options.batchesUnderWay) await Promise.race(this.#underWay);
  }

  /** Returns when everything sent so far is acknowledged or was given up. */
  async flush() {
    this.#dispatch();
    await Promise.all(this.#underWay);
  }

  /** Flushes and ends. Throws the first error where nobody listens to them. */
  async close() {
    this.#closed = true;
    await this.flush();
    if (this.#failed) throw this.#failed;
  }

  #dispatch() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#events.length === 0) return;
    const batch = this.#deliver(this.#events.splice(0)).finally(() => this.#underWay.delete(batch));
    this.#underWay.add(batch);
  }

  /** Never throws: what was not delivered is told. */
  async #deliver(events) {
    const batchId = randomUUID();
    try {
      const answer = await this.#post(batchId, JSON.stringify(events));
      for (const verdict of answer.errors) {
        this.#tell([events[verdict.index]], new Error(`${verdict.pointer}: ${verdict.detail}`), batchId);
      }
    } catch (error) {
      this.#tell(events, error, batchId);
    }
  }

  #tell(events, error, batchId) {
    if (this.#options.onError) this.#options.onError({ events, error, batchId });
    else this.#failed ??= error;
  }

  async #post(batchId, json) {
    const { apiKey, retryMs } = this.#options;
    const compressed = json.length >= COMPRESSED_FROM_BYTES;
    const request = {
      method: "POST",
      body: compressed ? await compress(json) : json,
      headers: {
        "Content-Type": "application/json",
        "Idempotency-Key": batchId,
        ...(compressed && { "Content-Encoding": "gzip" }),
        ...(apiKey && { Authorization: `Bearer ${apiKey}` }),
      },
    };
    const end = Date.now() + retryMs;
    for (let attempt = 0; ; attempt++) {
      const { answer, error, retryAfterMs } = await this.#attempt(request);
      if (answer) return answer;
      // Full jitter, so that clients that failed together do not come back together.
      const delayMs = Math.max(retryAfterMs, Math.random() * Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** attempt));
      if (retryAfterMs === undefined || Date.now() + delayMs > end) throw error;
      await sleep(delayMs);
    }
  }

  /** The answer, or an error with how long to wait at least: undefined where another attempt cannot help. */
  async #attempt(request) {
    try {
      const response = await fetch(this.#url, { ...request, signal: AbortSignal.timeout(ATTEMPT_MAX_MS) });
      const text = await response.text();
      if (response.ok) return { answer: JSON.parse(text) };
      const error = new Error(`${response.status}: ${text}`);
      if (!TRIED_AGAIN.has(response.status)) return { error };
      return { error, retryAfterMs: 1_000 * (Number(response.headers.get("Retry-After")) || 0) };
    } catch (error) {
      // No connection, a reset, a timeout: the batch may be there or not, and its id tells.
      return { error, retryAfterMs: 0 };
    }
  }
}

async function main(url) {
  if (!url) throw new Error("usage: node ingest.mjs http://HOST:PORT <events.ndjson");
  let sent = 0;
  const ingest = new Ingest(url, { apiKey: process.env.INGESTD_API_KEY });
  for await (const line of createInterface({ input: process.stdin })) {
    if (line.trim() === "") continue;
    await ingest.send(JSON.parse(line));
    sent += 1;
  }
  await ingest.close();
  console.log(`${sent} events delivered`);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  await main(process.argv[2]).catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
