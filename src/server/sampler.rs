//! The sampler thread: notes throughput and history once a second. A thread of its own, since the others wait for
//! PostgreSQL now and then, and history is of most use when PostgreSQL is away. It also tells the service manager's watchdog that the server is alive: it
//! passes the locks that would stop the others.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};

use crate::http::app::App;
use crate::limits::SAMPLE_INTERVAL;
use crate::server::{ServeError, join, spawn};
use crate::sys::clock::wall_now;
use crate::sys::service_manager;

/// The running thread.
pub struct Sampler {
    thread: JoinHandle<()>,
    stop: Sender<()>,
}

impl Sampler {
    /// Starts it.
    pub fn start(app: Arc<App>) -> Result<Self, ServeError> {
        let (stop, stopped) = bounded::<()>(1);
        let watchdog = service_manager::watchdog();
        // A service manager is told twice in its time.
        let interval = watchdog.map_or(SAMPLE_INTERVAL, |wait| SAMPLE_INTERVAL.min(wait / 2));
        let thread = spawn("sampler", move || {
            loop {
                app.read_gauges();
                app.metrics.tick(Instant::now(), wall_now());
                if watchdog.is_some() {
                    service_manager::alive();
                }
                if stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Self { thread, stop })
    }

    /// Ends it.
    pub fn stop(self) {
        drop(self.stop);
        join(vec![self.thread]);
    }
}
