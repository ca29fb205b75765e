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
