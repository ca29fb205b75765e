// Where the figures come from: /dashboard/data, once a second while somebody looks.

const INTERVAL_MS = 1000;
const RETRY_MS = 3000;
const TIMEOUT_MS = 8000;
const KEY_NAME = "ingestd-key";
/** As many as the server keeps. */
const SAMPLES_MAX = 600;

/** The server wants a key, or another one. */
export class KeyNeeded extends Error {}

/** Keeps the samples that were seen, so that each is asked for once. */
export class Source {
  samples = [];
  #next = 0;
  #key = sessionStorage.getItem(KEY_NAME);

  /** Sends `key` from now on. */
  useKey(key) {
    this.#key = key;
    sessionStorage.setItem(KEY_NAME, key);
  }

  /** The server's latest data; an error says in words why there are none. */
  async read() {
    const headers = this.#key ? { Authorization: `Bearer ${this.#key}` } : {};
    const options = { headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) };
    const answer = await fetch(`/dashboard/data?since=${this.#next}`, options).catch((error) => {
      throw new Error(error.name === "TimeoutError" ? `no response within ${TIMEOUT_MS / 1000} s` : "the node cannot be reached");
    });
    if (answer.status === 401 || answer.status === 403) {
      const problem = await answer.json().catch(() => ({}));
      throw new KeyNeeded(this.#key ? problem.detail ?? "the key was rejected" : "");
    }
    if (!answer.ok) throw new Error(`the response was ${answer.status}`);
    const data = await answer.json();
    this.#keep(data);
    return data;
  }

  #keep(data) {
    // A server that was restarted begins anew, and answered with all it has.
    const isContinued = data.history_next - data.history.length === this.#next;
    const kept = isContinued ? this.samples : [];
    this.samples = [...kept, ...data.history].slice(-SAMPLES_MAX);
    this.#next = data.history_next;
  }
}

/** Calls `show(data)` or `fail(error)` again and again, but not while `isPaused()` or nobody looks. */
export async function follow(source, { show, fail, isPaused }) {
  for (;;) {
    let wait = INTERVAL_MS;
    if (!isPaused() && !document.hidden) {
      try {
        show(await source.read());
      } catch (error) {
        fail(error);
        wait = RETRY_MS;
        if (error instanceof KeyNeeded) return;
      }
    }
    await pause(wait);
  }
}

/** Ends after `ms`, or as soon as somebody looks again. */
function pause(ms) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    document.addEventListener("visibilitychange", done);
  });
}
