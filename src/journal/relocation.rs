//! Which segment is held by few blocks: those are better written again at the journal's head, after which it can leave. The
//! choice only, pure; who has the blocks writes them (`server::relocator`).
//!
//! Room comes back a segment at a time, so a block that waits for long costs its whole segment, and every restart sends all
//! that is behind the oldest such block once more. Written again it costs its own bytes. The price is bounded: a segment
//! that is chosen has room to give for what it takes. By the first row that fits, the oldest segment first:
//!
//! | segment | room used | relocated when | and outstanding in it is |
//! |---|---|---|---|
//! | any | any | never: nothing would be won | none, or all (an outage) |
//! | any | any | not now: it would not fit | more than the room that is left |
//! | sealed | any | no block of it was released for 0.25 s | less than 1/64 of its bytes |
//! | sealed | up to 1/4 | no block of it was released for 5 s | less than 1/2 of its bytes |
//! | sealed | up to 3/4 | the same for 2 s | less than 1/2 |
//! | sealed | above 3/4 | the same for 0.25 s | less than 1/2 |
//! | sealed | above 3/4 | the same for 2 s | less than 7/8 |
//! | active | any | now and then, see [`Occasion`], when something behind the oldest block is committed | less than 1/2 |
//!
//! A segment from which blocks are being released, as a backlog drains, is left alone: the rest of it is about to land.

use std::time::Duration;

/// A segment that blocks hold which are better written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Its id.
    pub segment: u64,
    /// Outstanding blocks in it.
    pub blocks: u64,
    /// It is the active one: only the low-water mark gains by it, no room.
    pub is_active: bool,
}

/// When it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Between two groups: sealed segments only.
    Routine,
    /// A minute after the last time: the active one too, within itself. It gives no room, but a restart then replays
    /// little.
    Interval,
    /// The process ends: nobody waits for a segment to be quiet, and only what a restart would replay matters.
    Stop,
}

/// A segment as the choice sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub id: u64,
    /// Outstanding blocks, and the bytes of their frames.
    pub blocks: u64,
    pub live_bytes: u64,
    /// Blocks in it that are committed.
    pub committed: u64,
    /// As far as it is written.
    pub used_bytes: u64,
    /// What those blocks are charged, written again, until they are sealed.
    pub charge: u64,
    /// Since no block of it was released.
    pub quiet_for: Duration,
    pub is_active: bool,
}

/// How much it matters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pressure {
    pub occasion: Occasion,
    /// Bytes that can be charged still.
    pub room_left: u64,
    /// Bytes that can be charged in all.
    pub room: u64,
    /// Blocks behind the low-water mark that are committed: a restart would send them again.
    pub committed_behind: u64,
}

/// What makes relocating a segment worth its price.
#[derive(Clone, Copy, Debug)]
struct Terms {
    quiet_min: Duration,
    /// In eighths of the segment's bytes; what is outstanding has to stay below.
    live_eighths: u64,
}

impl Pressure {
    /// The terms for `segment`; `None`: not at all.
    fn terms(&self, segment: &Candidate) -> Option<Terms> {
        const SHORT: Duration = Duration::from_millis(250);
        const MEDIUM: Duration = Duration::from_secs(2);
        const LONG: Duration = Duration::from_secs(5);
        let used = self.room - self.room_left.min(self.room);
        let is_quiet = segment.quiet_for >= MEDIUM;
        let (quiet_min, live_eighths) = match (self.occasion, segment.is_active) {
            (Occasion::Routine, true) => return None,
            (Occasion::Interval, true) | (Occasion::Stop, _) if self.committed_behind == 0 => return None,
            (Occasion::Interval, true) | (Occasion::Stop, _) => (Duration::ZERO, 4),
            (Occasion::Routine | Occasion::Interval, false) if segment.live_bytes < segment.used_bytes / 64 => {
                (SHORT, 4)
            }
            (Occasion::Routine | Occasion::Interval, false) if used <= self.room / 4 => (LONG, 4),
            (Occasion::Routine | Occasion::Interval, false) if used <= self.room / 4 * 3 => (MEDIUM, 4),
            (Occasion::Routine | Occasion::Interval, false) => (SHORT, if is_quiet { 7 } else { 4 }),
        };
        Some(Terms { quiet_min, live_eighths })
    }
}

/// The oldest of `segments`, which rise, that is worth relocating.
pub(super) fn choose(pressure: &Pressure, mut segments: impl Iterator<Item = Candidate>) -> Option<Pinned> {
    let chosen = segments.find(|segment| {
        pressure.terms(segment).is_some_and(|terms| {
            segment.blocks > 0
                && segment.committed > 0
                && segment.charge <= pressure.room_left
                && segment.live_bytes < segment.used_bytes / 8 * terms.live_eighths
                && segment.quiet_for >= terms.quiet_min
        })
    });
    chosen.map(|Candidate { id, blocks, is_active, .. }| Pinned { segment: id, blocks, is_active })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOM: u64 = 60 << 20;
    const SEGMENT: u64 = 4 << 20;

    fn pressure(occasion: Occasion, used: u64, committed_behind: u64) -> Pressure {
        Pressure { occasion, room_left: ROOM - used, room: ROOM, committed_behind }
    }

    fn segment(id: u64, live_bytes: u64, quiet_seconds: u64) -> Candidate {
        let quiet_for = Duration::from_secs(quiet_seconds);
        let charge = live_bytes + live_bytes / 3;
        let blocks = live_bytes / 1000;
        let committed = (SEGMENT - live_bytes) / 1000;
        Candidate { id, blocks, live_bytes, committed, used_bytes: SEGMENT, charge, quiet_for, is_active: false }
    }

    fn chosen(pressure: &Pressure, segments: &[Candidate]) -> Option<u64> {
        choose(pressure, segments.iter().copied()).map(|pinned| pinned.segment)
    }

    #[test]
    fn the_oldest_segment_that_few_blocks_hold_is_chosen() {
        let segments = [segment(1, SEGMENT * 3 / 4, 60), segment(2, 0, 60), segment(3, 5000, 60), segment(4, 5000, 60)];
        assert_eq!(chosen(&pressure(Occasion::Routine, 4 * SEGMENT, 9), &segments), Some(3));
    }

    #[test]
    fn a_segment_that_is_being_emptied_is_left_alone() {
        let draining = |seconds| [segment(1, SEGMENT / 8, seconds)];
        for (used, seconds) in [(0, 5), (ROOM / 2, 2), (ROOM - SEGMENT, 1)] {
            let pressure = pressure(Occasion::Routine, used, 9);
            assert_eq!(chosen(&pressure, &draining(seconds)), Some(1), "{used}");
            assert_eq!(chosen(&pressure, &draining(seconds - 1)), None, "{used}");
        }
    }

    #[test]
    fn a_handful_of_blocks_is_relocated_at_once() {
        let routine = pressure(Occasion::Routine, 0, 9);
        assert_eq!(chosen(&routine, &[segment(1, SEGMENT / 65, 1)]), Some(1));
        assert_eq!(chosen(&routine, &[segment(1, SEGMENT / 63, 1)]), None);
        assert_eq!(chosen(&routine, &[segment(1, SEGMENT / 65, 0)]), None, "it may be about to land");
    }

    #[test]
    fn the_less_room_is_left_the_more_may_be_written_again() {
        let lately = [segment(1, SEGMENT * 3 / 4, 1)];
        assert_eq!(chosen(&pressure(Occasion::Routine, ROOM - 2 * SEGMENT, 9), &lately), None, "it may be emptied yet");
        let segments = [segment(1, SEGMENT * 3 / 4, 60)];
        assert_eq!(chosen(&pressure(Occasion::Routine, ROOM / 2, 9), &segments), None);
        assert_eq!(chosen(&pressure(Occasion::Routine, ROOM - 2 * SEGMENT, 9), &segments), Some(1));
        assert_eq!(chosen(&pressure(Occasion::Routine, ROOM - SEGMENT / 2, 9), &segments), None, "it would not fit");
    }

    #[test]
    fn the_active_segment_is_relocated_now_and_then_where_a_restart_would_replay_what_is_committed() {
        let active = [Candidate { is_active: true, ..segment(7, 5000, 0) }];
        assert_eq!(chosen(&pressure(Occasion::Routine, ROOM, 9), &active), None);
        for occasion in [Occasion::Interval, Occasion::Stop] {
            assert_eq!(chosen(&pressure(occasion, 0, 9), &active), Some(7));
            assert_eq!(chosen(&pressure(occasion, 0, 0), &active), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_chosen_gives_more_room_than_it_takes_and_an_outage_costs_nothing(
            live in prop::collection::vec((0..=SEGMENT, 0u64..20), 0..16),
            used in 0..=ROOM,
            committed_behind in 0u64..3,
            occasion in prop_oneof![Just(Occasion::Routine), Just(Occasion::Interval), Just(Occasion::Stop)],
        ) {
            let ids = 1u64..;
            let segments: Vec<_> =
                ids.zip(&live).map(|(id, &(live_bytes, quiet))| segment(id, live_bytes, quiet)).collect();
            let pressure = pressure(occasion, used, committed_behind);
            if let Some(id) = chosen(&pressure, &segments) {
                let segment = &segments[id as usize - 1];
                prop_assert!(segment.blocks > 0 && segment.live_bytes < SEGMENT / 8 * 7);
                prop_assert!(segment.charge <= pressure.room_left);
                prop_assert!(segment.live_bytes < SEGMENT / 2 || used > ROOM / 4 * 3);
            }
            let all_wait: Vec<_> = segments.iter().map(|segment| Candidate { committed: 0, ..*segment }).collect();
            prop_assert_eq!(chosen(&pressure, &all_wait), None);
        }

        #[test]
        fn whenever_few_blocks_hold_most_of_the_room_a_quiet_segment_is_found(
            live in prop::collection::vec(1000..SEGMENT / 4, 15),
        ) {
            let ids = 1u64..;
            let segments: Vec<_> = ids.zip(live).map(|(id, live_bytes)| segment(id, live_bytes, 1)).collect();
            let left = ROOM / 32;
            let pressure = Pressure { occasion: Occasion::Routine, room_left: left, room: ROOM, committed_behind: 1 };
            prop_assert_eq!(chosen(&pressure, &segments), Some(1));
        }
    }
}
