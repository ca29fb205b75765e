//! Finding the embedded PostgreSQL of a server that runs, for commands beside it.

use std::fs;
use std::path::Path;

use super::{DATABASE, SUPERUSER};

/// How to reach the PostgreSQL that runs on `data_dir`; `None` when none does, or when its files are not this
/// user's to read.
///
/// Source of the format: PostgreSQL's `src/include/utils/pidfile.h`; lines 1, 4 and 5 are process number, port
/// and socket folder.
pub fn running(data_dir: &Path) -> Option<postgres::Config> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().collect();
    let pid: u32 = lines.first()?.trim().parse().ok()?;
    let port: u16 = lines.get(3)?.trim().parse().ok()?;
    let socket_dir = lines.get(4).map(|line| line.trim()).filter(|dir| !dir.is_empty())?;
    if !Path::new("/proc").join(pid.to_string()).exists() {
        return None;
    }
    let mut config = postgres::Config::new();
    config.host_path(socket_dir).port(port).user(SUPERUSER).dbname(DATABASE);
    Some(config)
}
