//! What the service manager is told (sd_notify(3)): systemd, or whoever else set `NOTIFY_SOCKET`. Without one, nothing.
//!
//! ```text
//!  start ─ recover, listen ─▶ READY=1 ─ SIGHUP ─▶ RELOADING=1 ─▶ READY=1 … ─ SIGTERM ─▶ STOPPING=1
//!                                │ WATCHDOG=1, twice in WATCHDOG_USEC at least
//! ```

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;

/// The server answers requests.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// SIGHUP has come; [`ready`] follows.
pub fn reloading() {
    // With Type=notify-reload the time says which signal this answers.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The server shuts down.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// The server is alive.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How long the service manager waits for [`alive`] before it ends the process; `None`: for ever.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|wait| !wait.is_zero())
}

fn tell(state: &[NotifyState<'_>]) {
    let told: io::Result<()> = sd_notify::notify(state);
    if let Err(error) = told {
        tracing::warn!(%error, "could not notify the service manager (NOTIFY_SOCKET)");
    }
}
