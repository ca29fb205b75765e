//! What this process takes from the machine, read from `/proc/self` at each scrape.
//!
//! Formats: `proc_pid_stat(5)`, `proc_pid_io(5)`, `proc_stat(5)`. What cannot be read (another system, a hardened
//! container) is `None` and left out of the exposition, never 0.

use std::fs;
use std::sync::OnceLock;

/// Figures of this process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessStats {
    /// User and system CPU time, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Memory in RAM.
    pub resident_bytes: Option<u64>,
    /// Address space.
    pub virtual_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// When the process started, in seconds since 1970.
    pub start_time_seconds: Option<f64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// The soft limit on open file descriptors; `None` when there is none.
    pub max_fds: Option<u64>,
    /// Bytes fetched from storage (not from the page cache).
    pub io_read_bytes: Option<u64>,
    /// Bytes sent towards storage.
    pub io_written_bytes: Option<u64>,
}

impl ProcessStats {
    /// The figures as they are now.
    pub fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let mut stats = Self {
            open_fds: open_fds(),
            max_fds: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            ..Self::default()
        };
        stats.set_from_stat(&text("/proc/self/stat"), boot_time_seconds());
        stats.set_from_io(&text("/proc/self/io"));
        stats
    }

    fn set_from_stat(&mut self, stat: &str, boot_time_seconds: Option<u64>) {
        // The command's name, in parentheses, may itself hold blanks and parentheses.
        let Some((_, after_name)) = stat.rsplit_once(')') else { return };
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        // The manual numbers fields from 1; `state`, field 3, is the first one here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / rustix::param::clock_ticks_per_second() as f64;

        let (user_ticks, system_ticks) = (field(14), field(15));
        self.cpu_seconds = user_ticks.zip(system_ticks).map(|(user, system)| seconds(user + system));
        self.threads = field(20);
        self.start_time_seconds = boot_time_seconds.zip(field(22)).map(|(boot, ticks)| boot as f64 + seconds(ticks));
        self.virtual_bytes = field(23);
        self.resident_bytes = field(24).map(|pages| pages * rustix::param::page_size() as u64);
    }

    fn set_from_io(&mut self, io: &str) {
        self.io_read_bytes = value_of(io, "read_bytes:");
        self.io_written_bytes = value_of(io, "write_bytes:");
    }
}

/// When the machine booted, in seconds since 1970. Read once: the kernel gathers a line for every core to say it, and
/// a start time that moved with the wall clock would look like a restart.
fn boot_time_seconds() -> Option<u64> {
    static BOOT_TIME: OnceLock<Option<u64>> = OnceLock::new();
    *BOOT_TIME.get_or_init(|| value_of(&fs::read_to_string("/proc/stat").ok()?, "btime "))
}

/// The number on the line that begins with `key`.
fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

fn open_fds() -> Option<u64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    // One of them is the directory being read.
    entries.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_running_process_are_sensible() {
        let stats = ProcessStats::read();
        let resident = stats.resident_bytes.expect("/proc/self/stat is readable");
        assert!(resident > 100_000 && resident < stats.virtual_bytes.expect("as above"));
        assert!(stats.threads >= Some(1));
        assert!(stats.open_fds >= Some(3), "stdin, stdout and stderr: {stats:?}");
        assert!(stats.cpu_seconds.is_some_and(|seconds| (0.0..1e6).contains(&seconds)));
        let year_2020 = 1_577_836_800.0;
        assert!(stats.start_time_seconds.is_some_and(|seconds| seconds > year_2020));
    }

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let stat =
            "77 (a) b (c) S 1 77 77 0 -1 4194304 100 0 1 0 250 50 0 0 20 0 9 0 1000 8192000 3 18446744073709551615";
        let mut stats = ProcessStats::default();
        stats.set_from_stat(stat, Some(1_000_000));
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(stats.cpu_seconds, Some(300.0 / ticks_per_second));
        assert_eq!(stats.threads, Some(9));
        assert_eq!(stats.start_time_seconds, Some(1_000_000.0 + 1000.0 / ticks_per_second));
        assert_eq!(stats.virtual_bytes, Some(8_192_000));
        assert_eq!(stats.resident_bytes, Some(3 * rustix::param::page_size() as u64));
    }

    #[test]
    fn disk_io_is_what_reached_storage() {
        let mut stats = ProcessStats::default();
        stats.set_from_io("rchar: 9\nwchar: 8\nread_bytes: 4096\nwrite_bytes: 512\ncancelled_write_bytes: 7\n");
        assert_eq!((stats.io_read_bytes, stats.io_written_bytes), (Some(4096), Some(512)));
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let mut stats = ProcessStats::default();
        stats.set_from_stat("", None);
        stats.set_from_stat("1 (cut) S 1 2", None);
        stats.set_from_io("");
        assert_eq!(stats, ProcessStats::default());
    }
}
