//! SIGTERM, SIGINT and SIGHUP, turned into calls on a thread where ordinary code may run.
//!
//! ```text
//!   SIGHUP ─────────────────────────▶ Signal::Reload, each time
//!   SIGTERM or SIGINT, first ───────▶ Signal::Terminate, once
//!   SIGTERM or SIGINT, any later ───▶ the process exits at once with 128 + the signal's number (143 or 130)
//! ```
//!
//! The later one acts inside the signal handler: it works however badly the orderly shutdown hangs. It exits with the
//! shell's convention for "ended by that signal" instead of dying by it, because the kernel shields process 1 of a
//! container from default actions. Nothing that was acked is lost by it: the journal is what an ack means.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

/// What the operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Shut down in order.
    Terminate,
    /// Read keys, limits and certificates again.
    Reload,
}

/// Takes over the signals above and calls `on_signal` for each, on a thread of its own that lives as long as the
/// process. Call it once, before other threads start work that a default action would cut short.
///
/// Several SIGHUPs that arrive while `on_signal` runs may be told as one.
///
/// # Errors
/// When the kernel refuses the handlers or the thread.
pub fn install(mut on_signal: impl FnMut(Signal) + Send + 'static) -> io::Result<()> {
    let terminating = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // Actions run in this order, so the signal that arms the exit does not meet it armed.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&terminating))?;
        flag::register(signal, Arc::clone(&terminating))?;
    }
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            on_signal(if signal == SIGHUP { Signal::Reload } else { Signal::Terminate });
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, ChildStderr, Command, Stdio};

    use rustix::process::{Pid, Signal as Kill, kill_process};

    use super::*;

    const CHILD: &str = "INGESTD_TEST_SIGNALS_CHILD";

    /// Not a test by itself: the process that the tests below send signals to. It tells what it receives on stderr
    /// and never ends by itself, as a shutdown that hangs.
    #[test]
    fn child_process() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        install(|signal| eprintln!("{signal:?}")).expect("signals can be installed");
        eprintln!("ready");
        loop {
            thread::park();
        }
    }

    struct Server {
        process: Child,
        lines: io::Lines<BufReader<ChildStderr>>,
    }

    impl Server {
        fn start() -> Self {
            let executable = std::env::current_exe().expect("the test binary has a path");
            let mut process = Command::new(executable)
                .args(["--exact", "sys::signals::tests::child_process", "--nocapture"])
                .env(CHILD, "1")
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the test binary starts");
            let lines = BufReader::new(process.stderr.take().expect("stderr is piped")).lines();
            let mut server = Self { process, lines };
            server.expect_line("ready");
            server
        }

        fn send(&self, signal: Kill) {
            let pid = Pid::from_child(&self.process);
            kill_process(pid, signal).expect("the child runs");
        }

        fn expect_line(&mut self, expected: &str) {
            let line = self.lines.next().expect("the child still runs").expect("stderr is text");
            assert_eq!(line, expected);
        }

        fn exit_code(mut self) -> Option<i32> {
            self.process.wait().expect("the child can be waited for").code()
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            // Fails when the child has ended, which is fine.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    #[test]
    fn every_sighup_is_a_reload_and_the_first_sigterm_a_termination() {
        let mut server = Server::start();
        for _ in 0..2 {
            server.send(Kill::HUP);
            server.expect_line("Reload");
        }
        server.send(Kill::TERM);
        server.expect_line("Terminate");
        server.send(Kill::HUP);
        server.expect_line("Reload");
    }

    #[test]
    fn a_second_termination_signal_exits_at_once_with_the_shells_code() {
        for (first, second, code) in [(Kill::TERM, Kill::TERM, 143), (Kill::TERM, Kill::INT, 130)] {
            let mut server = Server::start();
            server.send(first);
            server.expect_line("Terminate");
            server.send(second);
            assert_eq!(server.exit_code(), Some(code));
        }
    }
}
