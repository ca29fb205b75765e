//! Child processes that must not outlive this one, and bounded waits for them.
//!
//! Used for the embedded PostgreSQL and, in tests, for the servers under test. The kernel's parent-death
//! signal covers the ends that no code of ours sees (`kill -9`, an abort).
//!
//! Absent on purpose: anything that changes the calling process (no global SIGCHLD handler).
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// Pause between two looks at a child that is waited for with a bound.
const POLL_PAUSE: Duration = Duration::from_millis(5);

/// Makes the child of `command` receive `signal` when the **thread** that spawns it ends, however it ends.
///
/// Spawn from a thread that lives as long as the child should. The setting survives `exec`, and it is made
/// after `CommandExt::uid`/`gid` took effect (changing credentials would clear it).
pub fn end_with_thread(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    let arm = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have ended before the signal was armed: then nobody would ever send it.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from(Errno::SRCH)) }
    };
    // SAFETY: between fork and exec only async-signal-safe work is allowed. `arm` makes two raw system calls
    // through rustix and builds an `io::Error` from an error number, which does not allocate; it takes no lock
    // and touches no memory but its own copy of `parent` and `signal`.
    unsafe { command.pre_exec(arm) };
}

/// The process id of `child` in rustix's type.
pub fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Blocks until `pid`, a child of this process, has ended; does not reap it, so the number stays its own.
pub fn wait_without_reaping(pid: Pid) -> io::Result<()> {
    loop {
        match rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Err(Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Waits for `child` to end, for `wait_max` at most; `None` when it still runs then.
pub fn wait_at_most(child: &mut Child, wait_max: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + wait_max;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(POLL_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_child_ends_with_the_thread_that_spawned_it() {
        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("600").stdin(Stdio::null());
            end_with_thread(&mut command, Signal::TERM);
            command.spawn().expect("sleep starts")
        })
        .join()
        .expect("the thread ends");
        let status = wait_at_most(&mut child, Duration::from_secs(120)).expect("the child is ours");
        let signal = status.and_then(|status| std::os::unix::process::ExitStatusExt::signal(&status));
        assert_eq!(signal, Some(Signal::TERM.as_raw()));
    }

    #[test]
    fn a_child_that_ended_keeps_its_number_until_it_is_reaped() {
        let mut child = Command::new("true").spawn().expect("true starts");
        wait_without_reaping(pid_of(&child)).expect("the child is ours");
        assert!(rustix::process::test_kill_process(pid_of(&child)).is_ok(), "a zombie still has its number");
        assert!(child.wait().expect("it can still be reaped").success());
    }

    #[test]
    fn a_wait_for_a_child_is_bounded() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("sleep starts");
        let outcome = wait_at_most(&mut child, Duration::from_millis(20)).expect("the child is ours");
        assert_eq!(outcome, None);
        child.kill().expect("the child is ours");
        child.wait().expect("the child is ours");
    }
}
