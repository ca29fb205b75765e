//! The thread that keeps PostgreSQL running.
//!
//! It spawns the postmaster (whose parent-death signal is tied to this very thread), waits for its end, and
//! starts it again with growing pauses until it is told to stop.
//!
//! ```text
//!  Starting ──allow_restarts()──▶ Up ──stop()──▶ Stopping ──the child ended──▶ Ended
//!     │  └──────────────stop()───────────────────▲               ▲
//!     │                           │ the child ended: pause, spawn again, still Up
//!     └── the child ended ──────────────────────────────────────▶ Ended
//! ```
//!
//! Invariant: a signal is only sent under the lock while the child is not reaped, so its process number is still
//! its own. PostgreSQL's output is not read here: it goes to its log file.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, kill_process};

use crate::limits::{POSTGRES_RESTART_PAUSE, POSTGRES_STEADY_AFTER};
use crate::state_log::StateLog;
use crate::sys::child;

/// Makes the command of the next attempt, after seeing to what the last one left; the error is for the log.
pub(super) type Launch = Box<dyn Fn() -> Result<Command, super::EmbeddedError> + Send>;

/// Where the keeper is in its life, see the drawing above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Up,
    Stopping,
    Ended,
}

/// How one run of PostgreSQL ended.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// It ran, and ended so.
    Exited(ExitStatus),
    /// It could not be started at all.
    NotStarted(String),
}

impl Ending {
    /// What an operator has to look at: it was killed, gave up, or did not start.
    fn kind(&self) -> u8 {
        match self {
            Self::Exited(status) => u8::from(status.code().is_some()),
            Self::NotStarted(_) => 2,
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => status.fmt(f),
            Self::NotStarted(reason) => f.write_str(reason),
        }
    }
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// The running child, not reaped yet.
    pid: Option<Pid>,
    /// How the last run ended.
    ending: Option<Ending>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The keeper's handle. Dropping it does not stop the thread: call [`Keeper::stop`].
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread, and on it the first run of what `launch` makes.
    pub(super) fn start(launch: Launch) -> io::Result<Self> {
        let state = State { phase: Phase::Starting, pid: None, ending: None };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let for_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("postgres-keeper".into()).spawn(move || keep(&launch, &for_thread))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// From now on a child that ends by itself is started again.
    pub(super) fn allow_restarts(&self) {
        let mut state = self.shared.state.lock();
        if state.phase == Phase::Starting {
            state.phase = Phase::Up;
        }
    }

    /// The running postmaster.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.shared.state.lock().pid
    }

    /// How the last run ended, once the keeper is done.
    pub(super) fn ended(&self) -> Option<Ending> {
        let state = self.shared.state.lock();
        if state.phase == Phase::Ended { state.ending.clone() } else { None }
    }

    /// Sends `signal`, starts nothing again, and waits up to `wait_max` for the end. True when it has ended.
    pub(super) fn stop(&mut self, signal: Signal, wait_max: Duration) -> bool {
        let deadline = Instant::now() + wait_max;
        let mut state = self.shared.state.lock();
        if state.phase != Phase::Ended {
            state.phase = Phase::Stopping;
            self.shared.changed.notify_all();
            if let Some(pid) = state.pid {
                // Not reaped, so the number is the child's; it may be dead already, which is fine.
                let _ = kill_process(pid, signal);
            }
        }
        while state.phase != Phase::Ended {
            if self.shared.changed.wait_until(&mut state, deadline).timed_out() {
                return state.phase == Phase::Ended;
            }
        }
        drop(state);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that supervises the embedded PostgreSQL panicked");
        }
        true
    }
}

fn keep(launch: &Launch, shared: &Shared) {
    let (first_pause, longest_pause) = POSTGRES_RESTART_PAUSE;
    let (mut pause, mut log) = (first_pause, StateLog::default());
    loop {
        let began = Instant::now();
        let ending = match launch().map_err(|error| error.to_string()).and_then(|mut command| spawn(&mut command)) {
            Ok(child) => attend(child, shared),
            Err(reason) => Ending::NotStarted(reason),
        };
        if began.elapsed() >= POSTGRES_STEADY_AFTER {
            pause = first_pause;
            log.ends(Instant::now());
        }
        if !shared.go_on_after(&ending, pause, &mut log) {
            return;
        }
        pause = (pause * 2).min(longest_pause);
    }
}

fn spawn(command: &mut Command) -> Result<Child, String> {
    // INT is PostgreSQL's fast shutdown: sessions are ended, what is committed is written out.
    child::end_with_thread(command, Signal::INT);
    command.spawn().map_err(|error| format!("{}: {error}", command.get_program().display()))
}

/// Publishes `child` and waits for its end.
fn attend(mut child: Child, shared: &Shared) -> Ending {
    let pid = child::pid_of(&child);
    {
        let mut state = shared.state.lock();
        state.pid = Some(pid);
        if state.phase == Phase::Stopping {
            // The stop came between the launch and now.
            let _ = kill_process(pid, Signal::INT);
        }
    }
    let waited = child::wait_without_reaping(pid);
    let mut state = shared.state.lock();
    state.pid = None;
    // Returns at once: the child has ended, or is not ours, which the first wait would have said as well.
    match waited.and_then(|()| child.wait()) {
        Ok(status) => Ending::Exited(status),
        Err(error) => Ending::NotStarted(format!("waiting for PostgreSQL failed: {error}")),
    }
}

impl Shared {
    /// The transition on the end of a run: true when there is to be another one, after `pause`.
    fn go_on_after(&self, ending: &Ending, pause: Duration, log: &mut StateLog) -> bool {
        let mut state = self.state.lock();
        state.ending = Some(ending.clone());
        if state.phase == Phase::Up {
            if let Some(begun) = log.holds(ending.kind(), Instant::now()) {
                tracing::error!(%ending, pause_ms = pause.as_millis(), unlogged = begun.unlogged,
                    "embedded PostgreSQL exited unexpectedly; restarting it");
            } else {
                tracing::debug!(%ending, pause_ms = pause.as_millis(), "embedded PostgreSQL exited again");
            }
            let deadline = Instant::now() + pause;
            while state.phase == Phase::Up && !self.changed.wait_until(&mut state, deadline).timed_out() {}
        }
        let again = state.phase == Phase::Up;
        if !again {
            state.phase = Phase::Ended;
            self.changed.notify_all();
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const WAIT_MAX: Duration = Duration::from_secs(120);

    fn keeper_of(program: &'static str, argument: &'static str) -> (Keeper, Arc<AtomicUsize>) {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let launch: Launch = Box::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut command = Command::new(program);
            command.arg(argument);
            Ok(command)
        });
        (Keeper::start(launch).expect("a thread"), runs)
    }

    fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + WAIT_MAX;
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_first_run_that_fails_is_not_repeated() {
        let (keeper, runs) = keeper_of("false", "");
        wait_for("the end", || keeper.ended().is_some());
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(matches!(keeper.ended(), Some(Ending::Exited(status)) if status.code() == Some(1)));
    }

    #[test]
    fn what_is_killed_while_up_is_started_again_until_it_is_stopped() {
        let (mut keeper, runs) = keeper_of("sleep", "600");
        wait_for("the first run", || keeper.pid().is_some());
        keeper.allow_restarts();
        let first = keeper.pid().expect("it runs");
        kill_process(first, Signal::KILL).expect("ours");
        wait_for("the second run", || keeper.pid().is_some_and(|pid| pid != first));
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        assert!(keeper.stop(Signal::TERM, WAIT_MAX));
        assert_eq!(keeper.pid(), None);
    }

    #[test]
    fn a_stop_during_the_pause_ends_the_pause() {
        let (mut keeper, runs) = keeper_of("sleep", "600");
        wait_for("the first run", || keeper.pid().is_some());
        keeper.allow_restarts();
        let killed = keeper.pid().expect("it runs");
        kill_process(killed, Signal::KILL).expect("ours");
        wait_for("its end", || keeper.pid() != Some(killed));
        assert!(keeper.stop(Signal::TERM, WAIT_MAX));
        assert!(runs.load(Ordering::SeqCst) <= 2);
    }

    #[test]
    fn a_program_that_is_missing_is_an_ending_that_names_it() {
        let (keeper, _) = keeper_of("/nonexistent/postgres", "");
        wait_for("the end", || keeper.ended().is_some());
        let text = keeper.ended().map(|ending| ending.to_string()).unwrap_or_default();
        assert!(text.contains("/nonexistent/postgres"), "{text}");
    }
}
