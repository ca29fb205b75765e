//! Stretches of time, partitions mostly, whose rows cannot land at present: batches with rows of them are not tried together
//! with others, so that they cost the others nothing.
//!
//! A stretch is held when PostgreSQL has said so (a lock, a month that cannot be made), or when several batches of one month
//! were refused one after the other and none landed. It is free again when a batch with rows of it lands: batches that were
//! put aside are tried again by themselves. What was not refused for [`HELD_FOR_MAX`] is forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::encode::tuple::tuples;
use crate::limits::{HELD_FOR_MAX, REFUSED_IN_A_ROW_OF_A_MONTH};
use crate::pg::locks::Blocked;
use crate::pg::month::Month;
use crate::types::UnixMicros;

/// The stretches that are held, or may be soon.
#[derive(Debug, Default)]
pub struct Held {
    stretches: Vec<Stretch>,
}

#[derive(Debug)]
struct Stretch {
    blocked: Blocked,
    sqlstate: String,
    /// Refusals in a row; more than enough where PostgreSQL has said so.
    refused: u32,
    refused_at: Instant,
}

/// Why a batch is not tried together with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// PostgreSQL's code.
    pub sqlstate: String,
    /// One line.
    pub reason: Arc<str>,
}

impl Held {
    /// True when nothing is held, nor refused lately.
    pub fn is_empty(&self) -> bool {
        self.stretches.is_empty()
    }

    /// PostgreSQL takes no rows of `blocked`.
    pub fn hold(&mut self, blocked: Blocked, sqlstate: &str, now: Instant) {
        self.refuse(blocked, sqlstate, REFUSED_IN_A_ROW_OF_A_MONTH, now);
    }

    /// A batch of `month` alone was refused.
    pub fn refused(&mut self, month: Month, reason: &str, sqlstate: &str, now: Instant) {
        let blocked = Blocked::month(month, reason);
        self.refuse(blocked, sqlstate, 1, now);
    }

    /// Forgets what was not refused lately.
    pub fn expire(&mut self, now: Instant) {
        self.stretches.retain(|stretch| now.saturating_duration_since(stretch.refused_at) < HELD_FOR_MAX);
    }

    fn refuse(&mut self, blocked: Blocked, sqlstate: &str, weight: u32, now: Instant) {
        let is_same =
            |stretch: &&mut Stretch| (stretch.blocked.start, stretch.blocked.end) == (blocked.start, blocked.end);
        match self.stretches.iter_mut().find(is_same) {
            Some(stretch) => {
                stretch.refused = stretch.refused.saturating_add(weight);
                (stretch.blocked.reason, stretch.refused_at) = (blocked.reason, now);
                sqlstate.clone_into(&mut stretch.sqlstate);
            }
            None => self.stretches.push(Stretch {
                blocked,
                sqlstate: sqlstate.to_owned(),
                refused: weight,
                refused_at: now,
            }),
        }
    }

    /// Why a batch with these tuples is not tried together with others; `None`: it is.
    pub fn reason(&self, batch_tuples: &[u8]) -> Option<Reason> {
        let held = || self.stretches.iter().filter(|stretch| stretch.refused >= REFUSED_IN_A_ROW_OF_A_MONTH);
        held().next()?;
        let stretch = times(batch_tuples).find_map(|at| held().find(|stretch| stretch.blocked.holds(at)))?;
        Some(Reason { sqlstate: stretch.sqlstate.clone(), reason: stretch.blocked.reason.as_str().into() })
    }

    /// A batch with these tuples has landed: what it has rows of is free.
    pub fn landed(&mut self, batch_tuples: &[u8]) {
        self.stretches.retain(|stretch| !times(batch_tuples).any(|at| stretch.blocked.holds(at)));
    }
}

fn times(batch_tuples: &[u8]) -> impl Iterator<Item = UnixMicros> {
    tuples(batch_tuples).map_while(Result::ok).map(|(_, event)| event.timestamp)
}

/// The months of these tuples but for the one that most of them are of: if some of the rows are slow, theirs are.
pub fn odd_months<'a>(batches_tuples: impl Iterator<Item = &'a [u8]>) -> Vec<Month> {
    let mut rows: BTreeMap<Month, u64> = BTreeMap::new();
    batches_tuples.flat_map(times).for_each(|at| *rows.entry(Month::of(at)).or_default() += 1);
    let most = rows.iter().max_by_key(|(_, rows)| **rows).map(|(month, _)| *month);
    rows.into_keys().filter(|month| Some(*month) != most).collect()
}

/// The month that all of these tuples are of.
pub fn only_month(batch_tuples: &[u8]) -> Option<Month> {
    let mut months = times(batch_tuples).map(Month::of);
    let first = months.next()?;
    months.all(|month| month == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::encode::tuple::{RowContext, append_tuple};
    use crate::json::{EventSpans, Span, TextSpan};
    use crate::types::Priority;

    /// A tuple of each of these months.
    fn tuples_of(months: &[&str]) -> Vec<u8> {
        let body = b"x{}";
        let text = TextSpan { span: Span::new(0, 1), escaped: false };
        let row = RowContext::new("batch", Priority::default(), UnixMicros(0));
        let mut tuples = Vec::new();
        for name in months {
            let event = EventSpans {
                event_id: text,
                service_name: text,
                event_type: text,
                payload: Span::new(1, 3),
                metadata: None,
                timestamp: Some(month(name).start()),
            };
            append_tuple(&mut tuples, body, &event, &row);
        }
        tuples
    }

    fn month(text: &str) -> Month {
        Month::parse(text).expect("a month")
    }

    #[test]
    fn a_locked_partition_holds_batches_with_rows_of_it_and_no_others() {
        let (mut held, now) = (Held::default(), Instant::now());
        held.hold(Blocked::month(month("2026-05"), "locked"), "55P03", now);
        let reason = held.reason(&tuples_of(&["2026-06", "2026-05"])).expect("held");
        assert_eq!((reason.sqlstate.as_str(), &*reason.reason), ("55P03", "locked"));
        assert_eq!(held.reason(&tuples_of(&["2026-04", "2026-06"])), None);
        held.landed(&tuples_of(&["2026-06"]));
        assert!(held.reason(&tuples_of(&["2026-05"])).is_some());
        held.landed(&tuples_of(&["2026-05", "2026-06"]));
        assert!(held.is_empty());
    }

    #[test]
    fn a_month_is_held_when_several_of_its_batches_were_refused_and_none_landed() {
        let (mut held, now) = (Held::default(), Instant::now());
        let its = tuples_of(&["2026-05"]);
        for round in 0..REFUSED_IN_A_ROW_OF_A_MONTH {
            assert_eq!(held.reason(&its), None, "after {round}");
            held.refused(month("2026-05"), "no trigger function", "42883", now);
        }
        assert!(held.reason(&its).is_some());
        held.landed(&its);
        held.refused(month("2026-05"), "no trigger function", "42883", now);
        assert_eq!(held.reason(&its), None, "one landed in between");
    }

    #[test]
    fn what_was_not_refused_for_long_is_forgotten() {
        let (mut held, now) = (Held::default(), Instant::now());
        held.hold(Blocked::month(month("2026-05"), "locked"), "55P03", now);
        held.expire(now + HELD_FOR_MAX - Duration::from_millis(1));
        assert!(!held.is_empty());
        held.expire(now + HELD_FOR_MAX);
        assert!(held.is_empty());
    }

    #[test]
    fn slow_rows_are_looked_for_among_the_fewer_ones() {
        let (most, few) = (tuples_of(&["2026-11", "2026-11"]), tuples_of(&["2026-05", "2026-11", "2026-06"]));
        assert_eq!(odd_months([&most[..], &few[..]].into_iter()), [month("2026-05"), month("2026-06")]);
        assert_eq!(odd_months([&most[..]].into_iter()), []);
    }

    #[test]
    fn the_month_of_a_batch_is_known_when_it_has_only_one() {
        assert_eq!(only_month(&tuples_of(&["2026-05", "2026-05"])), Some(month("2026-05")));
        assert_eq!(only_month(&tuples_of(&["2026-05", "2026-06"])), None);
    }
}
