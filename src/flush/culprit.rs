//! Whose fault it is when batches do not land: one decision table, held against docs/operations.md#whose-fault-it-is.
//!
//! A failure belongs to the narrowest thing that explains it, and only what it explains waits. A COPY of several batches
//! that PostgreSQL refuses is halved, so that the good ones land in `O(refused · log n)` transactions. A batch that is
//! refused by itself is the culprit if anything else has landed meanwhile, or lands from the same cut. If a second one is
//! refused by itself before anything has landed, it is PostgreSQL's fault, and everything waits.
//!
//! Pure: no I/O, no clock.

use crate::limits::{COLLISIONS_MAX, SESSIONS_LOST_MAX};

/// What went wrong with a part of a cut; see [`crate::flush::attempt::Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The session broke.
    Session,
    /// Another transaction was in the way (deadlock, serialization).
    Transaction,
    /// The coordinator of a Citus cluster answers, but the worker of a shard may be away.
    Shard,
    /// PostgreSQL refused the batches as they are.
    Refused,
    /// One of the batches cannot land, while PostgreSQL itself works.
    Batches,
    /// It took longer than ingestd lets it take while others wait: for a lock, or for the rows.
    Slow,
    /// Rows of one of the batches are refused, and have to be found.
    Rows,
    /// A lock keeps every COPY waiting.
    Locked,
}

/// What was seen so far.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// Batches in the part that failed; at least 1.
    pub batches: usize,
    /// How often another transaction was in the way of this cut.
    pub collisions: u32,
    /// Anything has landed since the cut was taken, or since one of the batches was a suspect before, by whichever flusher.
    pub others_landed: bool,
    /// A batch of this cut was refused by itself, and is neither landed nor postponed.
    pub has_suspect: bool,
    /// The batch was postponed before, so it is the culprit already.
    pub known: bool,
    /// How often a session broke that held nothing but this batch, with this time.
    pub sessions_lost: u32,
    /// Another session could be opened.
    pub reconnected: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The same batches again, at once.
    Again,
    /// Each half by itself.
    Halve,
    /// The batch waits by itself; everything else goes on.
    Postpone,
    /// The batch goes to whoever tries batches one by one, at once: only there refused rows are looked for.
    Quarantine,
    /// The batch is set apart until more is known; the rest of the cut goes on.
    Suspect,
    /// Everything goes back, and nothing is taken of its shard for a while.
    Hold,
    /// Everything goes back; PostgreSQL is asked again after a pause.
    Wait,
}

/// The table.
pub fn decide(kind: Kind, evidence: Evidence) -> Action {
    let Evidence { batches, collisions, others_landed, has_suspect, known, sessions_lost, reconnected } = evidence;
    match kind {
        Kind::Session if !reconnected => Action::Wait,
        Kind::Session if batches > 1 => Action::Halve,
        // It breaks each session that it is sent over: its size, or what it does to a backend.
        Kind::Session if known || sessions_lost >= SESSIONS_LOST_MAX => Action::Postpone,
        Kind::Session => Action::Again,
        Kind::Transaction if collisions < COLLISIONS_MAX => Action::Again,
        Kind::Locked => Action::Wait,
        Kind::Shard => Action::Hold,
        Kind::Transaction | Kind::Refused | Kind::Batches | Kind::Slow | Kind::Rows if batches > 1 => Action::Halve,
        Kind::Batches | Kind::Slow => Action::Postpone,
        Kind::Rows => Action::Quarantine,
        Kind::Transaction | Kind::Refused if others_landed || known => Action::Postpone,
        Kind::Transaction | Kind::Refused if has_suspect => Action::Wait,
        Kind::Transaction | Kind::Refused => Action::Suspect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING_KNOWN: Evidence = Evidence {
        batches: 1,
        collisions: 0,
        others_landed: false,
        has_suspect: false,
        known: false,
        sessions_lost: 0,
        reconnected: false,
    };

    #[test]
    fn several_batches_that_are_refused_are_halved_whatever_else_is_known() {
        for others_landed in [false, true] {
            for has_suspect in [false, true] {
                let evidence = Evidence { batches: 2, others_landed, has_suspect, ..NOTHING_KNOWN };
                assert_eq!(decide(Kind::Refused, evidence), Action::Halve);
                assert_eq!(decide(Kind::Batches, evidence), Action::Halve);
            }
        }
    }

    #[test]
    fn a_batch_is_the_culprit_when_others_land() {
        assert_eq!(decide(Kind::Refused, Evidence { others_landed: true, ..NOTHING_KNOWN }), Action::Postpone);
        assert_eq!(decide(Kind::Refused, Evidence { known: true, ..NOTHING_KNOWN }), Action::Postpone);
        for kind in [Kind::Batches, Kind::Slow] {
            assert_eq!(decide(kind, NOTHING_KNOWN), Action::Postpone, "certain without any other");
        }
    }

    #[test]
    fn refused_rows_are_looked_for_in_one_batch_at_a_time() {
        assert_eq!(decide(Kind::Rows, Evidence { batches: 2, ..NOTHING_KNOWN }), Action::Halve);
        assert_eq!(decide(Kind::Rows, NOTHING_KNOWN), Action::Quarantine);
    }

    #[test]
    fn a_lock_that_everybody_waits_for_is_nobodys_fault() {
        for (batches, others_landed) in [(1, true), (1, false), (9, true)] {
            let evidence = Evidence { batches, others_landed, known: true, ..NOTHING_KNOWN };
            assert_eq!(decide(Kind::Locked, evidence), Action::Wait);
        }
    }

    #[test]
    fn a_worker_that_is_away_is_its_shards_own() {
        for (batches, known) in [(1, true), (1, false), (9, false)] {
            assert_eq!(decide(Kind::Shard, Evidence { batches, known, ..NOTHING_KNOWN }), Action::Hold);
        }
    }

    #[test]
    fn two_that_are_refused_while_nothing_lands_are_postgresqls_fault() {
        assert_eq!(decide(Kind::Refused, NOTHING_KNOWN), Action::Suspect);
        assert_eq!(decide(Kind::Refused, Evidence { has_suspect: true, ..NOTHING_KNOWN }), Action::Wait);
    }

    #[test]
    fn when_no_session_can_be_had_everything_waits() {
        for batches in [1, 9] {
            let evidence = Evidence { batches, others_landed: true, known: true, sessions_lost: 9, ..NOTHING_KNOWN };
            assert_eq!(decide(Kind::Session, evidence), Action::Wait);
        }
    }

    #[test]
    fn a_batch_that_breaks_session_after_session_is_found_and_postponed() {
        let other = Evidence { reconnected: true, ..NOTHING_KNOWN };
        assert_eq!(decide(Kind::Session, Evidence { batches: 9, ..other }), Action::Halve);
        for sessions_lost in 1..SESSIONS_LOST_MAX {
            assert_eq!(decide(Kind::Session, Evidence { sessions_lost, ..other }), Action::Again);
        }
        assert_eq!(decide(Kind::Session, Evidence { sessions_lost: SESSIONS_LOST_MAX, ..other }), Action::Postpone);
        assert_eq!(decide(Kind::Session, Evidence { known: true, ..other }), Action::Postpone);
    }

    #[test]
    fn a_collision_is_tried_again_a_bounded_number_of_times() {
        let mut evidence = Evidence { batches: 4, ..NOTHING_KNOWN };
        for collisions in 0..COLLISIONS_MAX {
            evidence.collisions = collisions;
            assert_eq!(decide(Kind::Transaction, evidence), Action::Again);
        }
        evidence.collisions = COLLISIONS_MAX;
        assert_eq!(decide(Kind::Transaction, evidence), Action::Halve);
    }
}
