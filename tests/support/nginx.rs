//! A real nginx before nodes under test, with the files of `deploy/nginx`.

use std::process::Child;

use ingestd::sys::child;
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use super::deployed::{self, NginxFiles};
use super::{WAIT_MAX, server};

/// How often a start is tried again because another program took the port that was free.
const PORT_TRIES: usize = 5;

/// An nginx with workers; ended with its workers when dropped.
#[derive(Debug)]
pub struct TestNginx {
    process: Child,
    files: NginxFiles,
    _folder: TempDir,
}

impl TestNginx {
    /// Starts it before the nodes on `nodes`; returns when it serves.
    pub fn start(nodes: &[u16]) -> Self {
        let mut errors = String::new();
        for _ in 0..PORT_TRIES {
            let folder = super::folder();
            let files = NginxFiles::write(folder.path(), deployed::lasting_port(), nodes);
            let process = super::spawn_to_end_by(files.command(), Signal::TERM).expect("nginx runs");
            let mut nginx = Self { process, files, _folder: folder };
            if nginx.serves() {
                return nginx;
            }
            errors = nginx.files.error_log();
        }
        panic!("nginx did not start: {errors}");
    }

    /// The URL of `path` (which begins with `/`).
    pub fn url(&self, path: &str) -> String {
        self.files.url() + path
    }

    /// Has it serve for other nodes from now on; returns when no worker is left that knows the old ones.
    pub fn set_nodes(&self, nodes: &[u16]) {
        let master = self.process.id();
        let before = deployed::children(master);
        self.files.write_nodes(nodes);
        self.signal(Signal::HUP);
        super::wait_until("nginx has new workers only", WAIT_MAX, || {
            let now = deployed::children(master);
            !now.is_empty() && now.iter().all(|worker| !before.contains(worker))
        });
    }

    /// What it logs of requests, a line of JSON each.
    pub fn access_log(&self) -> String {
        self.files.access_log()
    }

    /// False when it ends instead, as on a taken port.
    fn serves(&mut self) -> bool {
        let (url, mut ended) = (self.url("/livez"), false);
        super::wait_until("nginx serves", WAIT_MAX, || {
            ended = self.process.try_wait().expect("nginx is our child").is_some();
            // Any status will do: the nodes need not be there yet.
            ended || server::try_get(&url).is_some()
        });
        !ended
    }

    fn signal(&self, signal: Signal) {
        kill_process(child::pid_of(&self.process), signal).expect("nginx is our child");
    }
}

impl Drop for TestNginx {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::TERM);
            let _ = child::wait_at_most(&mut self.process, WAIT_MAX);
        }
        if std::thread::panicking() {
            eprintln!("--- errors of nginx ---\n{}", self.files.error_log());
        }
    }
}
