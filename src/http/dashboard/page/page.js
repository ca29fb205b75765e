// The page: follows the source and shows what comes; controls and theme.

import { charts } from "./charts.js";
import { duration } from "./format.js";
import { follow, KeyNeeded, Source } from "./source.js";
import { showConcerns, tables, tiles } from "./tables.js";

const THEME_NAME = "ingestd-theme";
const find = (id) => document.getElementById(id);

const source = new Source();
const show = { charts: charts(), tables: tables(), tiles: tiles() };
let answeredAt = null;

const span = () => Number(document.querySelector("input[name=span]:checked").value);
const isPaused = () => find("pause").getAttribute("aria-pressed") === "true";

function setState(state, text) {
  const shown = find("state");
  shown.dataset.state = state;
  if (shown.textContent !== text) shown.textContent = text;
}

function showData(data) {
  answeredAt = Date.now();
  const { health, metrics } = data;
  setState(health.status, health.status);
  document.title = `${health.status === "healthy" ? "" : `${health.status}: `}${health.node} – ingestd`;
  find("node").textContent = health.node;
  find("about").textContent = `version ${health.version}, up for ${duration(metrics.uptime_seconds)}`;
  showConcerns(data.concerns);
  show.tiles(data, source.samples);
  show.charts.show(source.samples, span());
  show.tables(data);
}

function fail(error) {
  setState("away", error instanceof KeyNeeded ? "key needed" : "no response");
  if (error instanceof KeyNeeded) {
    askForKey(error.message);
    return;
  }
  const since = answeredAt ? ` Its last response is ${duration((Date.now() - answeredAt) / 1000)} old; the values below are from that time.` : "";
  showConcerns([{
    severity: "critical",
    title: "This node is not responding",
    detail: `The page queries it once per second: ${error.message}.${since}`,
    advice: "Check whether the process is running and what its log says. The page resumes automatically when the node responds again.",
  }]);
}

function askForKey(reason) {
  find("key-form").hidden = false;
  find("key-reason").textContent = reason && `The server rejected the key: ${reason}.`;
  showConcerns([]);
  find("key").focus();
}

const start = () => follow(source, { show: showData, fail, isPaused });

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  source.useKey(find("key").value.trim());
  find("key").value = "";
  find("key-form").hidden = true;
  setState("unknown", "connecting");
  start();
});

find("pause").addEventListener("click", () => {
  const paused = !isPaused();
  find("pause").setAttribute("aria-pressed", String(paused));
  find("pause").textContent = paused ? "Paused" : "Pause";
});

find("span").addEventListener("change", () => show.charts.show(source.samples, span()));

function useTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  find("theme").value = theme;
  show.charts.draw();
}

find("theme").addEventListener("change", () => {
  localStorage.setItem(THEME_NAME, find("theme").value);
  useTheme(find("theme").value);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show.charts.draw());

useTheme(localStorage.getItem(THEME_NAME) ?? "auto");
start();
