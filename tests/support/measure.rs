//! Figures of running processes, and what is made of several.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::server::{Ingestd, get};

/// CPU seconds of a process so far, with those of its children that have ended.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before the bracket may hold anything; utime, stime, cutime and cstime are fields 14 to 17 (proc(5)).
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name.split(' ').skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Bytes of memory that the server has in use now.
pub fn resident_bytes(server: &Ingestd) -> u64 {
    status_bytes(server, "VmRSS:")
}

/// The most bytes of memory that this run of the server has had in use.
pub fn resident_bytes_peak(server: &Ingestd) -> u64 {
    status_bytes(server, "VmHWM:")
}

fn status_bytes(server: &Ingestd, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a figure");
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
    kib * 1024
}

/// Files that the server says it has open, connections among them.
pub fn open_files(server: &Ingestd) -> u64 {
    metrics(server)["process"]["open_fds"].as_u64().expect("a figure")
}

/// The server's metrics as JSON.
pub fn metrics(server: &Ingestd) -> Value {
    get(&server.url("/v1/metrics?format=json")).json()
}

/// The value that `share` of `values` do not exceed; 0.5 is the median.
pub fn quantile<T: Copy + PartialOrd>(values: &[T], share: f64) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_by(|one, other| one.partial_cmp(other).expect("values can be ordered"));
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// P50, P95, P99 and the longest, for a line of figures.
pub fn quantiles_ms(latencies: &[Duration]) -> String {
    let [p50, p95, p99, max] = [0.5, 0.95, 0.99, 1.0].map(|share| quantile(latencies, share).as_millis());
    format!("{p50}/{p95}/{p99}/{max}")
}
