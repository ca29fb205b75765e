// A real ingestd with a PostgreSQL of its own, for tests. Every wait is bounded.

import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, open, readFile, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";

/** How long anything may take that a test waits for: long enough for a machine that does much else. */
export const WAIT_MAX_MS = 120_000;
const INHERITED = ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE", "INGESTD_PG_BIN"];

export class Server {
  #folder;
  #address = "127.0.0.1:0";
  #settings;
  #psql;
  #process;
  url;

  constructor(settings = {}) {
    this.#settings = settings;
  }

  /** Returns when it listens; once more after kill9(), with the same address and data. */
  async start() {
    if (!this.#folder) {
      this.#folder = await mkdtemp(join(tmpdir(), "ingestd-node-"));
      await chmod(this.#folder, 0o755); // as root, PostgreSQL runs as another user
    }
    const path = join(this.#folder, "log");
    const log = await open(path, "w");
    const inherited = INHERITED.filter((name) => name in process.env).map((name) => [name, process.env[name]]);
    this.#process = spawn(process.env.INGESTD_BIN, ["serve", "--embedded"], {
      cwd: this.#folder,
      env: { ...Object.fromEntries(inherited), LISTEN_ADDR: this.#address, ...this.#settings },
      stdio: ["ignore", log.fd, log.fd],
    });
    const end = Date.now() + WAIT_MAX_MS;
    for (;;) {
      const text = await readFile(path, "utf8");
      const listening = /listening on (http:\/\/(\S+))/.exec(text);
      if (listening) {
        [, this.url, this.#address] = listening;
        this.#psql = /inspect it with: (.+?) version=/.exec(text)[1].split(" ");
        break;
      }
      if (this.#process.exitCode !== null || Date.now() > end) throw new Error(text);
      await sleep(20);
    }
    await log.close();
  }

  async kill9() {
    if (!this.#process || this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    const ended = once(this.#process, "exit");
    this.#process.kill("SIGKILL");
    await ended;
  }

  /** What psql answers: rows by line, columns by |. */
  async sql(query) {
    const [program, ...connection] = this.#psql;
    const options = ["--no-psqlrc", "--tuples-only", "--no-align", "--command", query];
    const { stdout } = await promisify(execFile)(program, [...connection, ...options], { timeout: WAIT_MAX_MS });
    return stdout.trim();
  }

  /** Ends it at once, and its PostgreSQL, which may have outlived it: their data are forgotten. */
  async remove() {
    await this.kill9();
    // As root in a folder where others may not come in, it is a link to another place.
    const data = await realpath(join(this.#folder, "data/postgres")).catch(() => this.#folder);
    const pid = await readFile(join(data, "postmaster.pid"), "utf8").then(parseInt, () => undefined);
    const end = Date.now() + WAIT_MAX_MS;
    try {
      if (pid) process.kill(pid, "SIGQUIT");
      while (pid && Date.now() < end) {
        process.kill(pid, 0);
        await sleep(10);
      }
    } catch (error) {
      if (error.code !== "ESRCH") throw error;
    }
    await rm(this.#folder, { recursive: true });
    await rm(data, { recursive: true, force: true });
  }
}
