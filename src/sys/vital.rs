//! Threads that the server cannot do without.

use std::io;
use std::thread::{self, JoinHandle};

/// Starts `body` on a thread called `name`. If it panics the process ends with exit code 1: without one of its threads a
/// server is half-dead, and a supervisor would not notice. What was acknowledged is in the journal for the next start.
///
/// # Errors
/// The system has no thread left.
pub fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    let life = Life { name: name.to_owned() };
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _life = life;
        body()
    })
}

/// Ends the process when the thread that holds it panics.
struct Life {
    name: String,
}

impl Drop for Life {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!(
                thread = self.name,
                "a thread panicked; the server exits; acknowledged batches are in the journal"
            );
            std::process::exit(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const CHILD: &str = "INGESTD_TEST_VITAL_CHILD";

    /// Not a test by itself: the process of the test below. It would go on for ever.
    #[test]
    fn child_process() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let thread = spawn("vital", || panic!("on purpose")).expect("a thread");
        let _: thread::Result<()> = thread.join();
        loop {
            thread::park();
        }
    }

    #[test]
    fn a_panic_ends_the_process_with_exit_code_1() {
        let status = Command::new(std::env::current_exe().expect("the test binary has a path"))
            .args(["--exact", "sys::vital::tests::child_process", "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("the test binary starts");
        assert_eq!(status.code(), Some(1));
    }

    #[test]
    fn a_thread_that_ends_by_itself_ends_nothing_else() {
        assert_eq!(spawn("vital", || 7).expect("a thread").join().expect("no panic"), 7);
    }
}
