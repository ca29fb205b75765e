//! What processes cost, from `/proc`.

use std::collections::HashMap;
use std::fs;

/// CPU seconds of `root` and all that descend from it, with those of their children that have ended.
pub fn tree_cpu_seconds(root: u32) -> f64 {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut ticks: HashMap<u32, u64> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name before the bracket may hold anything; after it come state, ppid, … (proc(5)).
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        children.entry(number(1) as u32).or_default().push(pid);
        // utime, stime, cutime, cstime
        ticks.insert(pid, (11..=14).map(number).sum());
    }
    let (mut total, mut left) = (0, vec![root]);
    while let Some(pid) = left.pop() {
        total += ticks.get(&pid).copied().unwrap_or(0);
        left.extend(children.remove(&pid).unwrap_or_default());
    }
    total as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// CPU seconds of all children of this process that have ended and were waited for.
pub fn ended_children_cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    // cutime, cstime
    let ticks: u64 = fields.iter().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Seconds of a core since the machine started.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoreSeconds {
    /// In use, for whomever, other tenants of the machine included.
    pub busy: f64,
    /// All of it.
    pub total: f64,
}

/// What each core has done, by number.
pub fn core_seconds() -> Vec<CoreSeconds> {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let cores = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    let core = |line: &str| {
        // user, nice, system, idle, iowait, irq, softirq, steal (proc(5)); guests are in user and nice already.
        let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
        let seconds = |of: u64| of as f64 / rustix::param::clock_ticks_per_second() as f64;
        let (total, idle) = (ticks.iter().sum::<u64>(), ticks.iter().skip(3).take(2).sum::<u64>());
        CoreSeconds { busy: seconds(total - idle), total: seconds(total) }
    };
    cores.map(core).collect()
}

/// Bytes that `pid` had the system write to disk.
pub fn written_bytes(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0)
}

/// The most memory that `pid` has had in use, in MiB.
pub fn resident_mib_peak(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap_or(f64::NAN) / 1024.0
}

/// Cores, processor, kernel and PostgreSQL.
pub fn machine(postgres_version: String) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores, {model}, Linux {}, PostgreSQL {postgres_version}", kernel.trim())
}
