//! What is in the tables in the end, against what was acknowledged.

use std::collections::HashMap;

use postgres::Client;

use super::streams::Sent;
use crate::Failure;

/// Faults of one kind that are named; the rest is counted.
const NAMED_MAX: usize = 3;

/// What becomes of a batch once the fault is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lands {
    /// All events as rows.
    All,
    /// Every second event as a row, the others as dead letters.
    Half,
    /// All events as dead letters.
    DeadLetters,
    /// Each event as a row or as a dead letter: it depends on when the fault goes.
    Either,
    /// The id was acknowledged with several bodies: one of them as rows, the others as dead letters.
    OneOfSeveral,
}

impl Lands {
    /// Whether rows are refused for as long as the fault is there.
    pub fn is_refused(self) -> bool {
        matches!(self, Self::Half | Self::DeadLetters)
    }
}

/// What the tables have of one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Rows.
    pub rows: u64,
    /// Different events among them.
    pub events: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Rows that the primary key kept out, as the ledger says.
    pub duplicates: u64,
    /// Whether the ledger has it.
    pub in_ledger: bool,
}

/// Everything that the tables have, by batch.
pub fn found(client: &mut Client) -> Result<HashMap<String, Found>, Failure> {
    let query = "SELECT batch_id, coalesce(e.rows, 0), coalesce(e.events, 0), coalesce(d.dead, 0), \
                        coalesce(l.duplicates, 0)::bigint, l.batch_id IS NOT NULL \
                 FROM (SELECT batch_id, count(*) AS rows, count(DISTINCT event_id) AS events FROM events GROUP BY 1) e \
                 FULL JOIN (SELECT batch_id, count(*) AS dead FROM dead_letter_events GROUP BY 1) d USING (batch_id) \
                 FULL JOIN ingest_batches l USING (batch_id)";
    let number = |row: &postgres::Row, column: usize| row.get::<_, i64>(column).unsigned_abs();
    let one = |row: &postgres::Row| {
        let (rows, events, dead_letters) = (number(row, 1), number(row, 2), number(row, 3));
        (row.get(0), Found { rows, events, dead_letters, duplicates: number(row, 4), in_ledger: row.get(5) })
    };
    Ok(client.query(query, &[])?.iter().map(one).collect())
}

/// What is wrong with `sent`, each batch of which should have become what `lands` says. Takes them out of `found`.
pub fn faults(sent: &[Sent], lands: Lands, found: &mut HashMap<String, Found>) -> Vec<String> {
    let mut wrong = Vec::new();
    for batch in sent {
        let has = found.remove(&batch.id).unwrap_or_default();
        if !is_right(batch, lands, has) {
            wrong.push(format!(
                "{} of {} events, acknowledged {} times, has {has:?}",
                batch.id, batch.events, batch.acks
            ));
        }
    }
    shortened(wrong)
}

/// What nobody sent.
pub fn strangers(found: &HashMap<String, Found>) -> Vec<String> {
    shortened(found.iter().map(|(id, has)| format!("nobody sent {id}: {has:?}")).collect())
}

fn shortened(mut faults: Vec<String>) -> Vec<String> {
    let more = faults.len().saturating_sub(NAMED_MAX);
    faults.truncate(NAMED_MAX);
    faults.extend((more > 0).then(|| format!("{more} more like that")));
    faults
}

fn is_right(batch: &Sent, lands: Lands, has: Found) -> bool {
    let Found { rows, events, dead_letters, duplicates, in_ledger } = has;
    let of = batch.events;
    let counts = match lands {
        Lands::All => (rows, dead_letters) == (of, 0),
        Lands::Half => (rows, dead_letters) == (of.div_ceil(2), of / 2),
        Lands::DeadLetters => (rows, dead_letters) == (0, of),
        Lands::Either => rows + dead_letters == of,
        Lands::OneOfSeveral => (rows, dead_letters) == (of, of * (batch.acks.saturating_sub(1))),
    };
    in_ledger && batch.acks > 0 && duplicates == 0 && rows == events && counts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RIGHT: Found = Found { rows: 10, events: 10, dead_letters: 0, duplicates: 0, in_ledger: true };

    fn count(lands: Lands, acks: u64, has: Found) -> usize {
        let (due, took) = (Duration::ZERO, Duration::ZERO);
        let sent = [Sent { id: "a".to_owned(), events: 10, due, took, acks }];
        faults(&sent, lands, &mut HashMap::from([("a".to_owned(), has)])).len()
    }

    #[test]
    fn what_is_there_once_is_right() {
        assert_eq!(count(Lands::All, 1, RIGHT), 0);
        assert_eq!(count(Lands::Half, 1, Found { rows: 5, events: 5, dead_letters: 5, ..RIGHT }), 0);
        assert_eq!(count(Lands::DeadLetters, 1, Found { rows: 0, events: 0, dead_letters: 10, ..RIGHT }), 0);
        assert_eq!(count(Lands::Either, 1, Found { rows: 3, events: 3, dead_letters: 7, ..RIGHT }), 0);
        assert_eq!(count(Lands::OneOfSeveral, 1, RIGHT), 0);
        assert_eq!(count(Lands::OneOfSeveral, 2, Found { dead_letters: 10, ..RIGHT }), 0);
    }

    #[test]
    fn what_is_lost_or_doubled_is_found() {
        for wrong in [
            Found { rows: 9, events: 9, ..RIGHT },
            Found { rows: 11, ..RIGHT },
            Found { duplicates: 10, ..RIGHT },
            Found { in_ledger: false, ..RIGHT },
            Found { dead_letters: 1, ..RIGHT },
            Found::default(),
        ] {
            assert_eq!(count(Lands::All, 1, wrong), 1, "{wrong:?}");
        }
        assert_eq!(count(Lands::OneOfSeveral, 2, RIGHT), 1);
        assert_eq!(strangers(&HashMap::from([("a".to_owned(), RIGHT)])).len(), 1);
    }
}
