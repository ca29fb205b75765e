//! A bar on stderr for work that takes a while: only where a person looks on, and gone when the work is done.
//!
//! Absent on purpose: colours, so that `NO_COLOR` has nothing to change. Nothing is drawn into pipes, on terminals that
//! cannot move their cursor, and where the log is JSON.

use std::time::{Duration, Instant};

use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

use super::{settings, terminal};
use crate::config::settings::Key;

/// Work that is done by then needs no bar.
const DRAW_AFTER: Duration = Duration::from_millis(400);
const TICK: Duration = Duration::from_millis(120);
/// Narrow enough to leave room for figures on 80 columns.
const BAR: &str = "{prefix} [{bar:20}] {percent:>3}%";
/// For terminals of any font.
const BAR_CHARACTERS: &str = "=> ";

/// The bar that is drawn.
static DRAWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// A bar, cleared when dropped.
pub(super) struct Progress {
    bar: ProgressBar,
    /// When it is drawn; `None` once it is, or when it never will be.
    draws_at: Option<Instant>,
}

impl Progress {
    /// Of bytes that are read.
    pub(super) fn of_bytes(what: &'static str, is_wanted: bool) -> Self {
        Self::new(what, "{bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left", is_wanted)
    }

    /// Of things that are done one by one.
    pub(super) fn of_count(what: &'static str, is_wanted: bool) -> Self {
        Self::new(what, "{human_pos} of {human_len}, {per_sec:0}, {eta} left", is_wanted)
    }

    /// Of time that passes, with figures, see [`Self::tell`].
    pub(super) fn of_time(what: &'static str, is_wanted: bool) -> Self {
        Self::new(what, "{msg}", is_wanted)
    }

    /// A sign of life while something else works, and nobody knows for how long.
    pub(super) fn of_waiting(what: &'static str, is_wanted: bool) -> Self {
        let mut progress = Self::with_template(what, "{spinner} {prefix}, for {elapsed}", is_wanted);
        if progress.draws_at.take().is_some() {
            progress.draw();
            progress.bar.enable_steady_tick(TICK);
        }
        progress
    }

    fn new(what: &'static str, figures: &str, is_wanted: bool) -> Self {
        Self::with_template(what, &format!("{BAR} {figures}"), is_wanted)
    }

    fn with_template(what: &'static str, template: &str, is_wanted: bool) -> Self {
        let style =
            ProgressStyle::with_template(template).expect("the templates are ours").progress_chars(BAR_CHARACTERS);
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()).with_style(style).with_prefix(what);
        Self { bar, draws_at: is_wanted.then(|| Instant::now() + DRAW_AFTER) }
    }

    /// `done` of `all` are done.
    pub(super) fn show(&mut self, done: u64, all: u64) {
        if self.bar.length() != Some(all) {
            self.bar.set_length(all);
        }
        self.bar.set_position(done);
        if self.draws_at.is_some_and(|at| Instant::now() >= at) {
            self.draws_at = None;
            self.draw();
        }
        if done >= all {
            // What comes now, such as the log, has the line to itself.
            self.bar.finish_and_clear();
        }
    }

    /// As [`Self::show`], with figures.
    pub(super) fn tell(&mut self, done: u64, all: u64, figures: String) {
        self.bar.set_message(figures);
        self.show(done, all);
    }

    fn draw(&self) {
        *DRAWN.lock() = Some(self.bar.clone());
        self.bar.set_draw_target(ProgressDrawTarget::stderr());
        self.bar.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        *DRAWN.lock() = None;
        self.bar.finish_and_clear();
    }
}

/// Has `write` write to the terminal: a bar that is drawn there makes room, and comes back below.
pub(super) fn aside<T>(write: impl FnOnce() -> T) -> T {
    let drawn = DRAWN.lock().clone();
    match drawn {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// A person looks on, and has not asked for a log that machines read.
pub(super) fn is_wanted(matches: &ArgMatches) -> bool {
    let is_json = || settings::raw(matches).get(Key::LogFormat).text.as_deref() == Some("json");
    terminal::takes_cursor_movements() && !is_json()
}
