// Numbers and times as people read them. Everything here is pure.

const decimals = (digits) => new Intl.NumberFormat("en", { maximumFractionDigits: digits });
const [whole, tenths, hundredths] = [0, 1, 2].map(decimals);

/** `value` with thousands set apart; below 100 with a digit behind the point. */
export function count(value) {
  return Math.abs(value) < 100 ? tenths.format(value) : whole.format(value);
}

/** `value` short enough for an axis: 1.5k, 20M. */
export function short(value) {
  const units = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const [size, unit] = units.find(([size]) => Math.abs(value) >= size) ?? [1, ""];
  return hundredths.format(value / size) + unit;
}

/** Events a second. */
export function rate(value) {
  return `${count(value)}/s`;
}

/** Bytes, in the units of the settings (1 MB is 1024 * 1024 bytes there). */
export function bytes(value) {
  const units = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]];
  const [size, unit] = units.find(([size]) => value >= size) ?? [1, "B"];
  return `${tenths.format(value / size)} ${unit}`;
}

/** Milliseconds, with three digits. */
export function millis(value) {
  if (value === 0) return "0 ms";
  if (value < 1) return `${whole.format(value * 1000)} µs`;
  if (value < 10) return `${hundredths.format(value)} ms`;
  if (value < 1000) return `${whole.format(value)} ms`;
  return `${hundredths.format(value / 1000)} s`;
}

/** A share of 1. */
export function percent(share) {
  return `${share < 0.1 ? tenths.format(share * 100) : whole.format(share * 100)} %`;
}

/** A span of time, in its two largest units. */
export function duration(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = Math.max(0, units.findIndex(([size]) => seconds >= size));
  const [[size, unit], next] = [units[seconds < 1 ? 3 : first], units[first + 1]];
  const head = `${Math.floor(seconds / size)} ${unit}`;
  const rest = next && seconds >= 1 ? Math.floor((seconds % size) / next[0]) : 0;
  return rest > 0 ? `${head} ${rest} ${next[1]}` : head;
}

const two = (number) => String(number).padStart(2, "0");

/** The time of day of `ms` since 1970, where the reader is. */
export function clock(ms) {
  const at = new Date(ms);
  return [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":");
}
