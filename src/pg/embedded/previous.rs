//! A PostgreSQL that an ingestd which was killed left behind: seen to its end before the next one starts.
//!
//! Only the holder of the place's lock gets here, so no living ingestd owns what is found. A process counts as
//! PostgreSQL's when it is called `postgres` and works in the data folder (all of its processes do) or was
//! started on it; nothing else is ever sent a signal.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::EmbeddedError;
use crate::limits::{POSTGRES_POLL_PAUSE, POSTGRES_PREVIOUS_WAIT_MAX};

/// Waits until no PostgreSQL works on `data_dir` any more, asking it to end; then removes a lock file that
/// would hold up the next one because its process number belongs to another program by now.
pub(super) fn see_out(data_dir: &Path) -> Result<(), EmbeddedError> {
    let deadline = Instant::now() + POSTGRES_PREVIOUS_WAIT_MAX;
    let harsher = Instant::now() + POSTGRES_PREVIOUS_WAIT_MAX / 2;
    let mut asked: Option<Signal> = None;
    loop {
        let remaining = processes_of(data_dir);
        let Some(&some) = remaining.first() else { break };
        if Instant::now() >= deadline {
            return Err(EmbeddedError::StillRuns { pid: some.as_raw_pid(), data_dir: data_dir.to_path_buf() });
        }
        let wanted = if Instant::now() < harsher { Signal::INT } else { Signal::QUIT };
        if asked != Some(wanted) {
            asked = Some(wanted);
            ask(data_dir, &remaining, wanted);
        }
        thread::sleep(POSTGRES_POLL_PAUSE);
    }
    remove_misleading_lock_file(data_dir)
}

/// Sends `wanted` to the postmaster, which ends its children; children without a postmaster are told to end.
fn ask(data_dir: &Path, remaining: &[Pid], wanted: Signal) {
    let postmaster = lock_file_pid(data_dir).filter(|pid| remaining.contains(pid));
    let (pids, signal) = match &postmaster {
        Some(pid) => (std::slice::from_ref(pid), wanted),
        None => (remaining, if wanted == Signal::INT { Signal::TERM } else { Signal::QUIT }),
    };
    for pid in pids {
        tracing::warn!(pid = pid.as_raw_pid(), data_dir = %data_dir.display(), ?signal,
            "PostgreSQL of an earlier ingestd is still running; asked it to stop");
        // It may have ended in the meantime, which is what is wanted.
        let _ = kill_process(*pid, signal);
    }
}

/// PostgreSQL sees to a stale lock file itself, unless its process number is in use again.
fn remove_misleading_lock_file(data_dir: &Path) -> Result<(), EmbeddedError> {
    if lock_file_pid(data_dir).is_some_and(is_alive) {
        let path = data_dir.join("postmaster.pid");
        fs::remove_file(&path).map_err(|source| EmbeddedError::io("remove", &path, source))?;
        tracing::info!(path = %path.display(), "removed a stale lock file: its PID now belongs to another process");
    }
    Ok(())
}

/// The process number in PostgreSQL's lock file.
pub(super) fn lock_file_pid(data_dir: &Path) -> Option<Pid> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let number = text.lines().next()?.trim().parse::<i32>().ok().filter(|number| *number > 0)?;
    Pid::from_raw(number)
}

fn is_alive(pid: Pid) -> bool {
    // Not being allowed to signal it means that it lives.
    !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

/// PostgreSQL's living processes that work on `data_dir`.
fn processes_of(data_dir: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter(|number| works_on(*number, data_dir)).filter_map(Pid::from_raw).collect()
}

fn works_on(pid: i32, data_dir: &Path) -> bool {
    let about = Path::new("/proc").join(pid.to_string());
    let is_postgres = fs::read_to_string(about.join("comm")).is_ok_and(|name| name.trim_end() == "postgres");
    if !is_postgres {
        return false;
    }
    if fs::read_link(about.join("cwd")).is_ok_and(|folder| folder == data_dir) {
        return true;
    }
    // Root in a container may not see another user's folder, but everyone sees the arguments.
    let arguments = fs::read(about.join("cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|byte| *byte == 0);
    arguments.any(|argument| argument == b"-D")
        && arguments.next().is_some_and(|argument| argument == data_dir.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_file_whose_number_is_another_programs_is_removed_and_that_program_lives() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let lock_file = folder.path().join("postmaster.pid");
        let mut other = std::process::Command::new("sleep").arg("600").spawn().expect("sleep starts");
        fs::write(&lock_file, format!("{}\n{}\n", other.id(), folder.path().display())).expect("ours");
        see_out(folder.path()).expect("nothing of PostgreSQL runs");
        assert!(!lock_file.exists());
        assert_eq!(other.try_wait().expect("ours"), None, "the other program was not touched");
        other.kill().and_then(|()| other.wait()).expect("ours");
    }

    #[test]
    fn lock_files_without_a_process_number_are_left_to_postgresql() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let lock_file = folder.path().join("postmaster.pid");
        for text in ["", "-4\n", "0\n", "nonsense\n", "99999999999999\n"] {
            fs::write(&lock_file, text).expect("ours");
            see_out(folder.path()).expect("nothing of PostgreSQL runs");
            assert!(lock_file.exists(), "{text:?}");
        }
    }
}
