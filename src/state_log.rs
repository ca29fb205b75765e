//! When a state is worth a line of the log: as it begins, as its reason becomes one of another kind, and as it ends.
//!
//! ```text
//!  not there ── holds ──▶ held back ── holds, settled and due ──▶ logged ── ends ──▶ not there, one line
//!      ▲                     │                                     │  ▲
//!      └──────── ends ───────┘                                     └──┘ holds for another kind: one line for each
//! ```
//!
//! A state that comes and goes does not flood the log: what begins within [`STATE_LOGGED_EVERY`] of the last line waits for
//! its own until then. If it is over before, its end has no line either, and the next line says how often that was. So the
//! last line is true again after that time at the latest, as long as somebody says that the state still holds.
//!
//! Absent on purpose: clocks and the lines themselves. Whoever keeps a state has both.

use std::time::{Duration, Instant};

use crate::limits::STATE_LOGGED_EVERY;

/// What the log knows of one state.
#[derive(Debug, Default)]
pub struct StateLog {
    /// A state that is over sooner has no line.
    settles: Duration,
    episode: Option<Episode>,
    /// When the last line was written.
    logged_at: Option<Instant>,
    /// Episodes since then that were over before they had one.
    unlogged: u32,
}

#[derive(Debug)]
struct Episode {
    since: Instant,
    /// Kinds of reasons that have had their line, a bit for each; 0: none yet.
    kinds: u32,
}

/// A state has begun, or holds for a reason of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// How often it had come and gone since the last line; `None`: it had not.
    pub unlogged: Option<u32>,
}

impl StateLog {
    /// The log of a state that is not there, and worth a line once it has lasted for `settles`.
    pub fn settling(settles: Duration) -> Self {
        Self { settles, ..Self::default() }
    }

    /// The state holds at `now`, for a reason of `kind` (below 32); gives what its line is to say, if it is to have one.
    pub fn holds(&mut self, kind: u8, now: Instant) -> Option<Begun> {
        let episode = self.episode.get_or_insert(Episode { since: now, kinds: 0 });
        let kind = 1 << kind;
        if episode.kinds & kind != 0 {
            return None;
        }
        let is_new = episode.kinds == 0;
        let is_due = self.logged_at.is_none_or(|at| now.saturating_duration_since(at) >= STATE_LOGGED_EVERY);
        let is_settled = now.saturating_duration_since(episode.since) >= self.settles;
        if is_new && !(is_due && is_settled) {
            return None;
        }
        episode.kinds |= kind;
        self.logged_at = Some(now);
        let unlogged = std::mem::take(&mut self.unlogged);
        Some(Begun { unlogged: (unlogged > 0).then_some(unlogged) })
    }

    /// The state is not there at `now`; gives how long it was, if that is to have a line.
    pub fn ends(&mut self, now: Instant) -> Option<Duration> {
        let episode = self.episode.take()?;
        if episode.kinds == 0 {
            self.unlogged += 1;
            return None;
        }
        self.logged_at = Some(now);
        Some(now.saturating_duration_since(episode.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LINE: Option<Begun> = Some(Begun { unlogged: None });

    #[test]
    fn a_state_has_a_line_when_it_begins_and_one_when_it_ends() {
        let (mut log, start) = (StateLog::default(), Instant::now());
        assert_eq!(log.ends(start), None, "it was not there");
        assert_eq!(log.holds(0, start), LINE);
        for second in 1..45 {
            assert_eq!(log.holds(0, start + second * SECOND), None);
        }
        assert_eq!(log.ends(start + 45 * SECOND), Some(45 * SECOND));
        assert_eq!(log.ends(start + 46 * SECOND), None);
    }

    #[test]
    fn each_kind_of_reason_has_one_line_however_they_take_turns() {
        let (mut log, start) = (StateLog::default(), Instant::now());
        let lines = (0..60).filter_map(|second| log.holds((second % 3) as u8, start + second * SECOND)).count();
        assert_eq!(lines, 3);
        assert!(log.ends(start + 60 * SECOND).is_some());
        assert_eq!(log.holds(1, start + 120 * SECOND), LINE, "the next time they are news again");
    }

    #[test]
    fn what_is_over_before_it_settles_has_no_line() {
        let (mut log, start) = (StateLog::settling(SECOND), Instant::now());
        assert_eq!(log.holds(0, start), None);
        assert_eq!(log.holds(1, start + SECOND / 2), None);
        assert_eq!(log.ends(start + SECOND / 2), None);
        assert_eq!(log.holds(0, start + SECOND), None, "that is another one");
        assert_eq!(log.holds(0, start + 2 * SECOND), Some(Begun { unlogged: Some(1) }));
        assert_eq!(log.ends(start + 3 * SECOND), Some(2 * SECOND), "since it began, not since its line");
    }

    #[test]
    fn a_state_that_comes_and_goes_has_at_most_two_lines_in_each_interval_and_says_how_often() {
        let (mut log, start) = (StateLog::default(), Instant::now());
        let (mut begun, mut ended, mut told) = (0, 0, 0);
        const EPISODES: u32 = 3600;
        for second in 0..EPISODES {
            let now = start + second * SECOND;
            if let Some(line) = log.holds(0, now) {
                begun += 1;
                told += 1 + line.unlogged.unwrap_or(0);
            }
            ended += u32::from(log.ends(now + SECOND / 2).is_some());
        }
        let intervals = EPISODES / STATE_LOGGED_EVERY.as_secs() as u32;
        assert!((intervals / 2..=intervals).contains(&begun), "{begun}");
        assert_eq!(begun, ended, "the last line is true");
        assert!(EPISODES - told <= STATE_LOGGED_EVERY.as_secs() as u32, "all but the last are counted: {told}");
    }

    #[test]
    fn one_that_stays_has_its_line_even_when_it_began_too_soon_after_the_last() {
        let (mut log, start) = (StateLog::default(), Instant::now());
        log.holds(0, start);
        let ended = start + 45 * SECOND;
        assert!(log.ends(ended).is_some());
        assert_eq!(log.holds(0, ended + SECOND), None);
        assert_eq!(log.holds(0, ended + STATE_LOGGED_EVERY), LINE);
        assert!(log.ends(ended + 2 * STATE_LOGGED_EVERY).is_some());
    }
}
